"""The incidents page as a web app: addresses to answers. It knows nothing of Airflow.

`make_app(guard, home, datasets)` is what Airflow's API server mounts (plugins/incidents.py); the `guard` says who asks
and what they may do, before anything else is looked at. A request that writes has to come from these pages, or bring a
token of its own, so that no other site can act for who is logged in.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline import browse, pages
from pipeline.config import dataset_names
from pipeline.errors import ConfigError, NightsiftError
from pipeline.lake import UNREADABLE
from pipeline.links import PREFIX, airflow_url
from pipeline.pages import Reader
from pipeline.report import read_facts, render_report, report_file
from pipeline.review import Verdict, record, record_all
from pipeline.workspace import Workspace, open_workspace

log = logging.getLogger("nightsift.page")

MOST_BODY = 64 * 1024  # bytes
SHAPE = '{"dataset": …, "verdicts": [{"incident": …, "verdict": …, "note": …}]}'
FORM = ("dataset", "first", "last", "entities", "overwrite")  # of a backfill
REPORT_POLICY = (  # on top of the report's own
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # not less: a form's Origin would be `null`
}
UNSAID = {  # what the routes themselves say
    "Not Found": "There is no such page.",
    "Method Not Allowed": "Nothing is to be seen at this address; go back to the incidents.",
}
TITLES = {401: "Not logged in", 403: "Not allowed", 404: "Not there", 413: "Too much", 503: "Out of reach"}


class Visitor(Protocol):
    """Who asks, as the guard knows them."""

    @property
    def name(self) -> str:
        """What a verdict is recorded under."""

    @property
    def ambient(self) -> bool:
        """Whether the browser sends what they are known by with each request, whoever causes it: a cookie."""

    def may(self, dag: str, *, run: bool = False) -> bool:
        """Whether they may read the DAG, or `run` it."""


Guard = Callable[[Request], Awaitable[Visitor]]
"""Tells who asks; raises `HTTPException` 401 or 403, with a sentence, for whom it does not know."""


def make_app(guard: Guard, home: Path | None, datasets: Path) -> ASGIApp:
    """The pages over the datasets in the folder `datasets`, with their state in `home`."""
    served = Pages(home, datasets)
    incident = "/incidents/{name}/{day}/{incident}"
    routes = [
        Route("/", served.start),
        Route("/incidents", served.incidents),
        Route(incident, served.incident),
        Route(f"{incident}/rows.csv", served.rows),
        Route(f"{incident}/verdict", served.judge, methods=["POST"]),
        Route("/backfill", served.backfill),
        Route("/reports/{name}/{day}", served.report),
        Route("/api/incidents", served.incidents_json),
        Route("/api/verdicts", served.judge_json, methods=["POST"]),
    ]
    told = {HTTPException: _refused, NightsiftError: _failed, Exception: _unexpected}
    told |= {kind: _unreadable for kind in UNREADABLE if issubclass(kind, Exception)}
    return Door(Starlette(routes=routes, exception_handlers=told), guard)


class Door:
    """An ASGI app in front of the pages: lets in whom the guard knows, reads the body, and sets the headers."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "Content-Security-Policy": pages.policy()}.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        try:
            request.state.visitor = await self.guard(request)
            request.state.body = await self._body(request) if request.method == "POST" else b""
        except HTTPException as error:
            await _refused(request, error)(scope, receive, send_with_headers)
            return
        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)  # and was answered by _unexpected

    async def _body(self, request: Request) -> bytes:
        """What a request that writes has sent; raises `HTTPException` for one of another site, or a long one."""
        own = of_these_pages(request)
        if own is False or (own is None and request.state.visitor.ambient):
            raise HTTPException(403, "This was sent from another site, so nothing was recorded.")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BODY:
                raise HTTPException(413, f"At most {MOST_BODY:,} bytes can be sent at once; nothing was recorded.")
        return body


def of_these_pages(request: Request) -> bool | None:
    """Whether a page of this server, under any of its names, has sent the request; None where no browser says so.

    Behind a proxy the name may be the one in `Host`, or the one that Airflow knows itself by.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site == "same-origin"
    if origin is None:
        return None
    known = {request.headers.get("host", ""), urlsplit(airflow_url() or "").netloc} - {""}
    return urlsplit(origin).netloc in known


class Pages:
    """What each address answers; the methods block, and are run in threads."""

    def __init__(self, home: Path | None, datasets: Path) -> None:
        self._home, self._datasets = home, datasets

    def start(self, request: Request) -> Response:
        """Lead to the list."""
        return RedirectResponse(f"{_root(request)}/incidents", 303)

    def incidents(self, request: Request) -> Response:
        """The list of incidents."""
        reader, query = self._reader(request), dict(request.query_params)
        try:
            question = browse.read_question(query)
        except ConfigError as error:
            return HTMLResponse(pages.render_wrong(browse.Question(), reader, f"{error}."), 400)
        found, opened = self._find(request, question, reader)
        datasets = {name: ws.dataset for name, ws in opened.items()}
        return HTMLResponse(pages.render_list(found, datasets, reader, query.get("said", "")))

    def incidents_json(self, request: Request) -> Response:
        """The list of incidents for a script: the same query, the same pages."""
        found, _ = self._find(request, browse.read_question(dict(request.query_params)), self._reader(request))
        told = {name: getattr(found, name) for name in ("page", "pages", "states", "nights", "trouble")}
        return _json({"incidents": found.shown().to_dicts(), **told})

    def incident(self, request: Request) -> Response:
        """The page of one incident."""
        ws, row = self._incident(request)
        question = _question(request.url.query)
        reader = self._reader(request)
        found, _ = self._find(request, question, reader)
        return HTMLResponse(pages.render_one(ws, row, reader, found))

    def rows(self, request: Request) -> Response:
        """The raw rows around an incident, as CSV."""
        ws, row = self._incident(request)
        name = f"{ws.dataset.name}-{row['day']}-{row['incident_id']}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(pages.harmless_csv(pages.raw_rows(ws, row)), media_type="text/csv", headers=headers)

    def judge(self, request: Request) -> Response:
        """Record the verdict of a form, and lead back to where it stood."""
        ws, row = self._incident(request)
        self._check_judge(request, ws.dataset.name)
        form = dict(parse_qsl(request.state.body.decode("utf-8", "replace")))
        said = record(ws, row["incident_id"], form.get("verdict", ""), form.get("note", ""), request.state.visitor.name)
        back = _question(form.get("back", "")).query()
        if form.get("stay"):
            address = self._reader(request).incident(ws.dataset.name, row["day"], row["incident_id"])
        else:
            back = "&".join(filter(None, [back, urlencode({"said": f"{ws.dataset.name}.{said['incident_id']}"})]))
            address = f"{_root(request)}/incidents"
        return RedirectResponse(f"{address}?{back}" if back else address, 303)

    def judge_json(self, request: Request) -> Response:
        """Record the verdicts on a dataset that a script sends, as `SHAPE` says, all or none; what stands there now."""
        try:
            name, said = _read_verdicts(json.loads(request.state.body))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HTTPException(400, f"Send {SHAPE}, all of it text.") from error
        ws = self._open(request, name)
        self._check_judge(request, name)
        return _json(record_all(ws, said, request.state.visitor.name))

    def backfill(self, request: Request) -> Response:
        """The form of a backfill, filled in from the query."""
        reader = self._reader(request)
        if not reader.backfills:
            raise HTTPException(403, "You may not start runs of the DAG backfill.")
        given = {name: request.query_params.get(name, "") for name in FORM}
        return HTMLResponse(pages.render_backfill(reader, reader.datasets, given))

    def report(self, request: Request) -> Response:
        """The report of a night: the file, or where it is not on this machine what would stand in it."""
        ws, day = self._open(request, request.path_params["name"]), _day(request)
        file = report_file(ws, day)
        try:
            text = file.read_text(encoding="utf-8") if file.is_file() else render_report(read_facts(ws, day))
        except NightsiftError as error:
            raise HTTPException(404, f"{browse.for_visitors(error)}.") from error
        return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})

    def _reader(self, request: Request) -> Reader:
        visitor: Visitor = request.state.visitor
        names = tuple(name for name in dataset_names(self._datasets) if visitor.may(_nightly(name)))
        judges = frozenset(name for name in names if visitor.may(_nightly(name), run=True))
        return Reader(_airflow(request), visitor.name, names, judges, visitor.may("backfill", run=True))

    def _open(self, request: Request, name: str) -> Workspace:
        """The workspace of a dataset that the visitor may see; raises `HTTPException` where there is none."""
        if not request.state.visitor.may(_nightly(name)):
            raise HTTPException(403, f"You may not see the DAG {_nightly(name)}, and so nothing of that dataset.")
        if name not in dataset_names(self._datasets):
            raise HTTPException(404, f"There is no dataset {name!r}.")
        return open_workspace(name, self._home, self._datasets)

    def _find(
        self, request: Request, question: browse.Question, reader: Reader
    ) -> tuple[browse.Found, dict[str, Workspace]]:
        """The answer to a question, and the workspaces that it came from."""
        opened: dict[str, Workspace] = {}

        def opening(name: str) -> Workspace:
            opened[name] = self._open(request, name)
            return opened[name]

        names = [question.dataset] if question.dataset else reader.datasets
        return browse.find(question, names, opening), opened

    def _incident(self, request: Request) -> tuple[Workspace, dict[str, Any]]:
        """The incident that the address names; raises `HTTPException` where there is none."""
        ws, day = self._open(request, request.path_params["name"]), _day(request)
        row = browse.find_incident(ws, day, request.path_params["incident"])
        if row is None:
            raise HTTPException(
                404, f"{ws.dataset.name} has no such incident on {day}. If late data has changed it since, the list "
                "has it under another address.",
            )  # fmt: skip
        return ws, row

    def _check_judge(self, request: Request, name: str) -> None:
        if not request.state.visitor.may(_nightly(name), run=True):
            raise HTTPException(403, f"Only who may start runs of the DAG {_nightly(name)} can record a verdict.")


def _nightly(name: str) -> str:
    return f"{name}_nightly"


def _root(request: Request) -> str:
    """Where these pages are, as a path."""
    return str(request.scope.get("root_path", ""))


def _airflow(request: Request) -> str:
    """Where Airflow's pages are, as a path without a slash at its end."""
    return _root(request).removesuffix(PREFIX)


def _day(request: Request) -> date:
    try:
        return browse.bounded(date.fromisoformat(request.path_params["day"]))
    except ConfigError as error:
        raise HTTPException(404, f"{error}.") from error
    except ValueError as error:
        raise HTTPException(404, f"{request.path_params['day']!r} is no day such as 2026-01-31.") from error


def _question(query: str) -> browse.Question:
    """The question in the query of a list that somebody came from; the usual one where it asks none."""
    try:
        return browse.read_question(dict(parse_qsl(query)))
    except ConfigError:
        return browse.Question()


def _read_verdicts(sent: Any) -> tuple[str, list[Verdict]]:
    """The dataset, and the verdicts on it; raises whatever another `SHAPE` leads to."""
    name, said = sent["dataset"], sent["verdicts"]
    if not isinstance(said, list):
        raise TypeError
    for text in (name, *(text for each in said for text in each.values())):
        str.encode(text)  # raises for what is no text, and for half of a character
    return name, [Verdict(**each) for each in said]


def _json(value: Any, status: int = 200) -> Response:
    text = json.dumps(value, default=lambda each: each.isoformat(), ensure_ascii=False)
    return Response(text, status, media_type="application/json")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code != 401:
        return _message(request, error.status_code, UNSAID.get(error.detail, error.detail))
    asked = f"{request.url.path}?{request.url.query}".rstrip("?")
    there = urlencode({"next": asked if request.method == "GET" else f"{_root(request)}/incidents"})
    return _message(request, 401, error.detail, (f"{_airflow(request)}/api/v2/auth/login?{there}", "Log in"))


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, NightsiftError)
    return _message(request, 400 if isinstance(error, ConfigError) else 503, f"{browse.for_visitors(error)}.")


def _unreadable(request: Request, error: Exception) -> Response:
    log.error("%s could not be answered", request.url.path, exc_info=error)
    return _message(request, 503, "The tables could not be read or written; the API server's log says why.")


def _unexpected(request: Request, _: Exception) -> Response:
    return _message(request, 500, "This should not happen; the API server's log says what did.")


def _message(request: Request, status: int, sentence: str, link: tuple[str, str] | None = None) -> Response:
    """An answer of one sentence: a page, or for a script JSON."""
    if request.url.path.startswith(f"{_root(request)}/api/"):
        return _json({"detail": sentence}, status)
    reader = Reader(_airflow(request))
    return HTMLResponse(pages.render_message(TITLES.get(status, "Not done"), sentence, reader, link), status)
