"""The incidents page inside Airflow: mounted by its API server under /nightsift, shown in its navigation.

Apps that a plugin mounts are open to everybody. So each request is asked for Airflow's own login first, and a dataset
is what its DAG NAME_nightly is: who may read the DAG may look, who may start runs of it may record a verdict.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from starlette.requests import Request

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
NAME = "Incidents"


@dataclass(frozen=True, slots=True)
class AirflowVisitor:
    """A user of Airflow; `ambient` is whether a cookie says so."""

    user: Any
    ambient: bool

    @property
    def name(self) -> str:
        """The user's name in Airflow."""
        return str(self.user.get_name())

    def may(self, dag: str, *, run: bool = False) -> bool:
        """Whether Airflow lets the user read the DAG, or start runs of it."""
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
        from airflow.models.dag import DagModel

        details = DagDetails(id=dag, team_name=DagModel.get_team_name(dag))
        method, entity = ("POST", DagAccessEntity.RUN) if run else ("GET", None)
        return bool(
            get_auth_manager().is_authorized_dag(method=method, access_entity=entity, details=details, user=self.user)
        )


async def airflow_visitor(request: "Request") -> AirflowVisitor:
    """Who Airflow says that asks, by the token or the cookie that its own pages take."""
    from airflow.api_fastapi.core_api.security import bearer_scheme, get_user
    from starlette.exceptions import HTTPException

    token = await bearer_scheme(request)
    try:
        user = await get_user(request, None, token)
    except HTTPException as error:
        sentence = "You are not logged in to Airflow." if error.status_code == 401 else "Airflow refuses this login."
        raise HTTPException(error.status_code, sentence) from error
    return AirflowVisitor(user, ambient=token is None)


class IncidentsApp:
    """The ASGI app that is mounted; what it takes is imported at the first request, so that no server starts later."""

    def __init__(self) -> None:
        self._app: App | None = None

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer one request."""
        from starlette.concurrency import run_in_threadpool

        self._app = self._app or await run_in_threadpool(_make)
        await self._app(scope, receive, send)


def _make() -> App:
    from pipeline.web import make_app
    from pipeline.wiring import datasets_folder, home_folder

    return make_app(airflow_visitor, home_folder(), datasets_folder())


class Incidents(AirflowPlugin):
    """Adds the page to the API server and to the navigation."""

    name = "nightsift_incidents"
    fastapi_apps: ClassVar = [{"app": IncidentsApp(), "url_prefix": "/nightsift", "name": NAME}]
    external_views: ClassVar = [
        {"name": NAME, "href": "nightsift/incidents", "url_route": "incidents", "nav_top_level": True}
    ]
