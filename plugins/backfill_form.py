"""Refuses a backfill that cannot be run before there is a run of it: 422, and a sentence that says why.

Airflow itself checks a form field by field. What takes more than one field, the registry or the lake to tell is asked
here, by a middleware of the API server, for `POST …/dags/backfill/dagRuns` alone; a request for anything else passes
untouched. The DAG's own first task asks the same of what did not come by this way (`airflow dags trigger`).

Nobody learns anything here whom Airflow would not let start the run: such a request goes on, and Airflow refuses it.
"""

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger("nightsift.form")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
DAG_ID = "backfill"
PATH = f"/api/v2/dags/{DAG_ID}/dagRuns"


class RefuseBackfills:
    """An ASGI middleware that answers 422 to a backfill that cannot be run, and 503 where it cannot find out."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer for the one path, or pass the request on."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith(PATH):
            await self.app(scope, receive, send)
            return
        answer = None
        try:
            if await _may_trigger(scope):
                body, receive = await _read(receive)
                answer = await _refusal(body)
        except Exception:
            log.exception("The form of %s could not be checked", DAG_ID)
            answer = 503, "The backfill was not started: its form could not be checked; the API server's log says why"
        if answer is None:
            await self.app(scope, receive, send)
        else:
            await _send(answer, scope, receive, send)


async def _may_trigger(scope: Message) -> bool:
    """Whether Airflow would let this user start the run: asked of what the route itself asks."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import bearer_scheme, get_user, requires_access_dag
    from fastapi import HTTPException, Request
    from starlette.concurrency import run_in_threadpool

    request, access = Request(scope), requires_access_dag("POST", DagAccessEntity.RUN, DAG_ID)
    try:
        user = await get_user(request, None, await bearer_scheme(request))
        await run_in_threadpool(access, request, user)
    except HTTPException:
        return False
    return True


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """The request's body, and what gives it to the next reader once more."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":  # the caller has gone
            return b"", _replay(message, receive)
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body, _replay({"type": "http.request", "body": body, "more_body": False}, receive)


def _replay(message: Message, receive: Receive) -> Receive:
    messages = [message]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


async def _refusal(body: bytes) -> tuple[int, str] | None:
    """Status and sentence, or None where the run can be made, or Airflow refuses the form by itself."""
    from starlette.concurrency import run_in_threadpool

    try:
        form = json.loads(body)["conf"]
    except (ValueError, TypeError, KeyError):
        return None
    return await run_in_threadpool(_judge, form)


def _judge(form: Any) -> tuple[int, str] | None:
    from pipeline.backfill import read_form, refuse
    from pipeline.errors import ConfigError, NightsiftError
    from pipeline.wiring import workspace

    try:
        asked = read_form(form or {})
    except ConfigError as error:
        return 422, str(error)
    try:
        refuse(workspace(asked.dataset), asked)
    except ConfigError as error:
        return 422, str(error)
    except NightsiftError as error:
        return 503, f"The backfill was not started: {error}"
    return None


async def _send(answer: tuple[int, str], scope: Message, receive: Receive, send: Send) -> None:
    from starlette.responses import JSONResponse

    await JSONResponse({"detail": answer[1]}, status_code=answer[0])(scope, receive, send)


class BackfillForm(AirflowPlugin):
    """Adds the check to the API server."""

    name = "nightsift_backfill_form"
    fastapi_root_middlewares: ClassVar = [
        {"middleware": RefuseBackfills, "name": "Refuses backfills that cannot be run"}
    ]
