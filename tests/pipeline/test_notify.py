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
from pipeline.notify import News, build_message, notify, notify_all
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


def anomaly(entity: str, severity: float, start: str = "14:02", end: str = "15:40", reason: str | None = None) -> dict:
    driver = {"feature": "vibration", "share": 0.62, "observed": 15.0, "expected": 3.0}
    return {"incident_id": f"{entity} {start}", "reason": reason,
            "entity": entity, "start": at(start), "end": at(end), "peak_time": at("15:00"), "kind": "anomaly",
            "peak_score": 5 * severity, "threshold": 5.0, "p_value": 2e-5, "severity": severity, "steps": 9,
            "drivers": [driver]}  # fmt: skip


def frame(*rows: dict) -> pl.DataFrame:
    schema = incidents_schema()
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def dataset(*variables: str, most: int = 20) -> Dataset:
    return Dataset(name="pumps", kind="sensor", source={"path": "x.parquet"}, entity="pump", event_time="time",
                   cadence="1m", features=[{"name": "vibration"}],
                   notify={"urls_env": list(variables), "most": most})  # fmt: skip


def night(tmp_path: Path, incidents: pl.DataFrame, *variables: str) -> Workspace:
    ws = Workspace(dataset(*variables), Home(tmp_path), Lake(str(tmp_path / "lake"), "pumps"))
    find(ws, incidents)
    return ws


def find(ws: Workspace, incidents: pl.DataFrame, day: date = DAY) -> None:
    """What the incidents step leaves of a day."""
    ws.lake.replace("incidents", day, incidents)
    write_state(ws, State(day, "incidents", "i", "c", "7", {}))
    write_state(ws, State(day, "score", "i", "c", "7", {}))


def said(server: Server) -> list[str]:
    """The titles of what a service was sent, which is forgotten."""
    titles = [message["title"] for message in server.received]
    server.received.clear()
    return titles


def test_message_says_what_where_since_when_how_severe_and_where_the_report_is() -> None:
    """One line an incident, the most severe first, then how many are known, or planned, then the report's path."""
    found = frame(*(anomaly(f"pump-{i}", 1.0 + i) for i in range(8)))
    planned = frame(anomaly("pump-9", 3.0, reason="seal change"))
    news = News(found, known=2, planned=planned)
    title, body = build_message(dataset(), DAY, news, Path("/reports/pumps/2026-03-25.html"))
    lines = body.splitlines()
    assert title == "pumps: 8 incidents on 2026-03-25"
    assert lines[0] == (
        "- pump-7 from 14:02 to 15:40 UTC, driven by vibration (62 %); 8 × the threshold; "
        "about once in 50,000 normal steps"
    )
    assert [line.split()[1] for line in lines[:8]] == [f"pump-{i}" for i in range(7, -1, -1)]
    assert lines[8:] == [
        "Told before: 2 incidents",
        "1 incident is explained by the calendar (seal change)",
        "Report: /reports/pumps/2026-03-25.html",
    ]


def test_a_summary_tells_the_worst_and_how_many_more() -> None:
    """Five lines, then the number of those left out, of how many entities, and which option says so."""
    found = frame(*(anomaly(f"pump-{i}", 1.0 + i) for i in range(30)))
    title, body = build_message(dataset(), DAY, News(found, summary=True))
    lines = body.splitlines()
    assert title == "pumps: 30 incidents on 2026-03-25"
    assert [line.split()[1] for line in lines[:5]] == [f"pump-{i}" for i in range(29, 24, -1)]
    assert lines[5:] == ["and 25 more of 25 entities: above 20 in a night (notify.most), only the worst are told"]


def test_message_of_silence_and_of_nothing() -> None:
    """Silence has no score to tell; a night without incidents is one sentence."""
    silence = {"entity": "(all)", "start": at("00:00"), "end": at("00:00") + timedelta(days=1), "kind": "silent"}
    title, body = build_message(dataset(), DAY, News(frame(silence)))
    assert (title, body) == ("pumps: 1 incident on 2026-03-25",
                             "- the whole source sent nothing from 00:00 to 24:00 UTC")  # fmt: skip
    assert build_message(dataset(), DAY, News(frame()))[1] == "Nothing abnormal on 2026-03-25 in pumps."


def test_names_from_data_cannot_forge_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An entity with line breaks stays within its line, in the message and in the log."""
    found = frame(anomaly("pump\nERROR all is lost\r\n", 2.0))
    caplog.set_level(logging.INFO, "nightsift.notify")
    notify(night(tmp_path, found), DAY)
    assert len(build_message(dataset(), DAY, News(found))[1].splitlines()) == 1
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


def test_a_night_that_is_run_again_says_nothing_twice(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the same incident, nor one that late data has moved; what is new is told as more, with what was known."""
    monkeypatch.setenv("OPS", server.url)
    ws = night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS")
    assert [notify(ws, DAY).sent, notify(ws, DAY).sent] == [1, 0]
    assert said(server) == ["pumps: 1 incident on 2026-03-25"]
    find(ws, frame(anomaly("pump-1", 9.0, start="13:50", end="15:10")))
    assert notify(ws, DAY).sent == 0
    find(ws, frame(anomaly("pump-1", 9.0), anomaly("pump-1", 2.0, start="18:00", end="18:30"), anomaly("pump-2", 1.5)))
    result = notify(ws, DAY)
    assert (result.incidents, result.news, result.sent) == (3, 2, 1)
    assert result.message.splitlines()[-2] == "Told before: 1 incident"
    assert said(server) == ["pumps: 2 more incidents on 2026-03-25"]
    assert notify(ws, DAY).sent == 0
    find(ws, frame())
    assert notify(ws, DAY).sent == 0
    assert said(server) == []


def test_a_silence_that_goes_on_is_told_once(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Night after night, and when the silence has ended; the day before is remembered."""
    monkeypatch.setenv("OPS", server.url)
    ws = night(tmp_path, frame(), "OPS")
    begin = {"incident_id": "s", "entity": "pump-1", "start": at("14:00"), "kind": "silent"}
    for n in range(9):
        day = DAY + timedelta(days=n)
        find(ws, frame({**begin, "end": at("00:00") + timedelta(days=n + 1)}), day)
        assert notify(ws, day).sent == (1 if n == 0 else 0)
    assert said(server) == ["pumps: 1 incident on 2026-03-25"]


def test_a_target_that_failed_is_told_later_and_the_other_not_again(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each target is remembered by itself, as soon as it took the message."""
    other = Server()
    monkeypatch.setenv("OPS", server.url)
    monkeypatch.setenv("TEAM", other.url)
    ws = night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS", "TEAM")
    server.status = 500
    with pytest.raises(NightsiftError, match="1 of 2 notifications failed"):
        notify(ws, DAY)
    server.status = 200
    said(server)
    assert notify(ws, DAY).sent == 1
    other.stop()
    assert (len(said(server)), len(said(other))) == (1, 1)


def test_a_target_that_failed_gets_the_same_message_later(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another target was told uses up nothing of its budget: of the night, nor of earlier days' one summary."""
    other = Server()
    monkeypatch.setenv("OPS", server.url)
    monkeypatch.setenv("TEAM", other.url)
    ws = Workspace(dataset("TEAM", "OPS", most=8), Home(tmp_path), Lake(str(tmp_path / "lake"), "pumps"))
    now = at("05:00") + timedelta(days=1)
    for day, incidents in ((DAY, many(7)), (DAY - timedelta(days=2), many(12))):
        find(ws, incidents, day)
        server.status = 500
        with pytest.raises(NightsiftError, match="1 of 2 notifications failed"):
            notify(ws, day, now)
        server.status = 200
        server.received.clear()
        assert notify(ws, day, now).sent == 1
        assert server.received == other.received
        other.received.clear()
    other.stop()


def test_only_a_death_between_sending_and_remembering_can_say_it_twice(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies right after the message was taken: the next run cannot know."""
    monkeypatch.setenv("OPS", server.url)
    ws = night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.notify.write_state", _die)
        with pytest.raises(KeyboardInterrupt):
            notify(ws, DAY)
    assert [notify(ws, DAY).sent, notify(ws, DAY).sent] == [1, 0]
    assert len(said(server)) == 2


def _die(*_args: object) -> None:
    raise KeyboardInterrupt


def test_what_the_calendar_explains_alerts_nobody(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is mentioned beside what does; once the calendar no longer has it, it is told."""
    monkeypatch.setenv("OPS", server.url)
    planned = anomaly("pump-1", 9.0, reason="seal change")
    ws = night(tmp_path, frame(planned), "OPS")
    assert notify(ws, DAY).sent == 0
    find(ws, frame(planned, anomaly("pump-2", 2.0)))
    assert "1 incident is explained by the calendar (seal change)" in notify(ws, DAY).message
    find(ws, frame({**planned, "reason": None}, anomaly("pump-2", 2.0)))
    assert notify(ws, DAY).news == 1
    assert len(said(server)) == 2


def many(n: int) -> pl.DataFrame:
    return frame(*(anomaly(f"pump-{i:02}", 1.0 + i) for i in range(n)))


def test_above_the_budget_one_summary_goes_out_for_the_night_and_one_for_all_earlier_days(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget of ten: earlier days use it up together, then send one summary, then nothing; the latest always does."""
    monkeypatch.setenv("OPS", server.url)
    ws = Workspace(dataset("OPS", most=10), Home(tmp_path), Lake(str(tmp_path / "lake"), "pumps"))
    now = at("05:00") + timedelta(days=1)
    days = [DAY - timedelta(days=2 * n) for n in range(6)]
    for day in days:
        find(ws, many(4), day)
    sent = [notify(ws, day, now).sent for day in days[1:]]
    assert sent == [1, 1, 1, 0, 0]
    bodies = [message["message"] for message in server.received]
    assert ["notify.most" in body for body in bodies] == [False, False, False]
    find(ws, many(12))
    result = notify(ws, DAY, now)
    assert (result.sent, result.news) == (1, 12)
    assert "and 7 more of 7 entities: above 10 in a night" in result.message
    assert [notify(ws, day, now).sent for day in days] == [0] * 6


def test_the_budget_is_new_every_night(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told on another day does not count."""
    monkeypatch.setenv("OPS", server.url)
    ws = Workspace(dataset("OPS", most=10), Home(tmp_path), Lake(str(tmp_path / "lake"), "pumps"))
    for n in range(3):
        day = DAY + timedelta(days=2 * n)
        find(ws, many(8), day)
        assert "notify.most" not in notify(ws, day, at("05:00") + timedelta(days=2 * n + 1)).message


def test_of_several_days_one_that_cannot_be_told_keeps_no_other_back(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong is said in the end."""
    monkeypatch.setenv("OPS", server.url)
    ws = night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS")
    with pytest.raises(NightsiftError, match="2026-03-24: its incidents were not looked for yet"):
        notify_all(ws, [DAY - timedelta(days=1), DAY])
    assert said(server) == ["pumps: 1 incident on 2026-03-25"]
    assert [told.sent for told in notify_all(ws, [DAY])] == [0]
