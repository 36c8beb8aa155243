"""The last step of the night: who is told what, and that no secret is told."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from pipeline.config import Dataset, Home
from pipeline.errors import ConfigError, NightsiftError
from pipeline.lake import Lake
from pipeline.notify import build_message, notify
from pipeline.state import State, write_state
from pipeline.tables import incidents_schema
from pipeline.workspace import Workspace

DAY = date(2026, 3, 25)
SECRET = "hunter2secret"


class Server:
    """A service on 127.0.0.1 that keeps what it is sent and answers with `status`."""

    def __init__(self) -> None:
        self.received: list[dict] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer.received.append(json.loads(self.rfile.read(length)))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *args) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"json://user:{SECRET}@127.0.0.1:{self.http.server_port}/hook/{SECRET}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.stop()


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{DAY}T{text}").replace(tzinfo=UTC)


def anomaly(entity: str, severity: float) -> dict:
    driver = {"feature": "vibration", "share": 0.62, "observed": 15.0, "expected": 3.0}
    return {"entity": entity, "start": at("14:02"), "end": at("15:40"), "peak_time": at("15:00"), "kind": "anomaly",
            "peak_score": 5 * severity, "threshold": 5.0, "p_value": 2e-5, "severity": severity, "steps": 9,
            "drivers": [driver]}  # fmt: skip


def frame(*rows: dict) -> pl.DataFrame:
    schema = incidents_schema()
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def dataset(*variables: str) -> Dataset:
    return Dataset(name="pumps", kind="sensor", source={"path": "x.parquet"}, entity="pump", event_time="time",
                   cadence="1m", features=[{"name": "vibration"}], notify={"urls_env": list(variables)})  # fmt: skip


def night(tmp_path: Path, incidents: pl.DataFrame, *variables: str) -> Workspace:
    ws = Workspace(dataset(*variables), Home(tmp_path), Lake(str(tmp_path / "lake"), "pumps"))
    ws.lake.replace("incidents", DAY, incidents)
    write_state(ws, State(DAY, "incidents", "i", "c", "7", {}))
    return ws


def test_message_says_what_where_since_when_how_severe_and_where_the_report_is() -> None:
    """One line an incident, the most severe first, five at most, then how many more, then the report's path."""
    found = frame(*(anomaly(f"pump-{i}", 1.0 + i) for i in range(8)))
    title, body = build_message(dataset(), DAY, found, Path("/reports/pumps/2026-03-25.html"))
    lines = body.splitlines()
    assert title == "pumps: 8 incidents on 2026-03-25"
    assert lines[0] == (
        "- pump-7 from 14:02 to 15:40 UTC, driven by vibration (62 %); 8 × the threshold; "
        "about once in 50,000 normal steps"
    )
    assert [line.split()[1] for line in lines[:5]] == ["pump-7", "pump-6", "pump-5", "pump-4", "pump-3"]
    assert lines[5:] == ["and 3 more", "Report: /reports/pumps/2026-03-25.html"]


def test_message_of_silence_and_of_nothing() -> None:
    """Silence has no score to tell; a night without incidents is one sentence."""
    silence = {"entity": "(all)", "start": at("00:00"), "end": at("00:00") + timedelta(days=1), "kind": "silent"}
    title, body = build_message(dataset(), DAY, frame(silence))
    assert (title, body) == ("pumps: 1 incident on 2026-03-25",
                             "- the whole source sent nothing from 00:00 to 24:00 UTC")  # fmt: skip
    assert build_message(dataset(), DAY, frame())[1] == "Nothing abnormal on 2026-03-25 in pumps."


def test_names_from_data_cannot_forge_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An entity with line breaks stays within its line, in the message and in the log."""
    found = frame(anomaly("pump\nERROR all is lost\r\n", 2.0))
    caplog.set_level(logging.INFO, "nightsift.notify")
    result = notify(night(tmp_path, found), DAY)
    assert len(result.message.splitlines()) == 3
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]


def test_every_target_receives_the_message(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two variables, one with two URLs: three notifications with title and body; one log line, without a secret."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPS", server.url)
    monkeypatch.setenv("TEAM", f"{server.url}, {server.url}")
    ws = night(tmp_path, frame(anomaly("pump <&> 1", 4.0)), "OPS", "TEAM")
    result = notify(ws, DAY)
    assert (result.incidents, result.sent, result.failed) == (1, 3, [])
    assert len(server.received) == 3
    assert server.received[0]["title"] == "pumps: 1 incident on 2026-03-25"
    assert "pump <&> 1 from 14:02 to 15:40 UTC" in server.received[0]["message"]
    assert server.received[0]["message"].endswith(str(tmp_path / "reports" / "pumps" / "2026-03-25.html"))
    assert [r.getMessage() for r in caplog.records if r.name == "nightsift.notify"] == [
        "1 incident on 2026-03-25 in pumps: pump <&> 1 from 14:02 to 15:40 UTC, driven by vibration (62 %)."
    ]
    assert SECRET not in caplog.text
    assert json.loads(json.dumps(asdict(result)))["day"] == "2026-03-25"


def test_a_night_that_is_run_again_says_nothing_twice(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same incidents go out once; when they have changed, and after a failure, they go out again."""
    monkeypatch.setenv("OPS", server.url)
    ws = night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS")
    server.status = 500
    with pytest.raises(NightsiftError, match="1 of 1 notifications failed"):
        notify(ws, DAY)
    server.status = 200
    assert [notify(ws, DAY).sent for _ in range(2)] == [1, 0]
    ws.lake.replace("incidents", DAY, frame(anomaly("pump-1", 2.0), anomaly("pump-2", 3.0)))
    assert notify(ws, DAY).sent == 1


def test_a_quiet_night_is_logged_and_not_sent(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without an incident nobody is disturbed, but the log says that the night was looked at."""
    caplog.set_level(logging.INFO, "nightsift.notify")
    monkeypatch.setenv("OPS", server.url)
    assert notify(night(tmp_path, frame(), "OPS"), DAY).sent == 0
    assert server.received == []
    assert caplog.messages == ["Nothing abnormal on 2026-03-25 in pumps."]


def test_a_variable_that_is_not_set_is_named_before_anything_is_sent(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable; no other target has been told by then."""
    monkeypatch.setenv("OPS", server.url)
    monkeypatch.delenv("TEAM", raising=False)
    with pytest.raises(ConfigError, match=r"pumps\.yaml: notify\.urls_env names TEAM, but"):
        notify(night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS", "TEAM"), DAY)
    assert server.received == []


@pytest.mark.parametrize(
    ("url", "why"),
    [("bad", "OPS: the server answered 500"), (f"nosuchservice://{SECRET}", "OPS: not a URL that Apprise knows"),
     (f"json://{SECRET}:{SECRET}@127.0.0.1:9/", "OPS: it could not be reached, or refused")],
)  # fmt: skip
def test_a_failing_target_is_reported_without_its_secrets(
    url: str,
    why: str,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All targets are tried; the failing one is named by its variable, and nothing of its URL is shown or logged."""
    caplog.set_level(logging.DEBUG)
    other = Server()
    server.status = 500
    monkeypatch.setenv("OPS", server.url if url == "bad" else url)
    monkeypatch.setenv("TEAM", other.url)
    with pytest.raises(NightsiftError, match="1 of 2 notifications failed") as error:
        notify(night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS", "TEAM"), DAY)
    other.stop()
    assert why in str(error.value)
    assert len(other.received) == 1
    assert SECRET not in f"{error.value!r} {caplog.text}"
    assert error.value.__cause__ is None


def test_a_night_whose_incidents_were_not_looked_for_is_refused(tmp_path: Path) -> None:
    """Without the incidents step, silence would be taken for good news."""
    ws = Workspace(dataset(), Home(tmp_path), Lake(str(tmp_path / "lake"), "pumps"))
    with pytest.raises(NightsiftError, match="not looked for yet"):
        notify(ws, DAY)
