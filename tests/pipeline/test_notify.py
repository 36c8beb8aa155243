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

from pipeline.cli import main
from pipeline.config import Dataset, Home
from pipeline.errors import ConfigError, NightsiftError
from pipeline.incidents import incident_id
from pipeline.lake import Lake
from pipeline.message import Message, render
from pipeline.notify import News, build_message, notify, notify_all, preview
from pipeline.score import Scored
from pipeline.state import State, read_state, write_state
from pipeline.tables import incidents_schema, scores_schema
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR

DAY = date(2026, 3, 25)
SECRET = "hunter2secret"


class Server:
    """A service on 127.0.0.1 that keeps what it is sent and answers with `status`."""

    def __init__(self) -> None:
        self.received: list[dict] = []
        self.paths: list[str] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer.paths.append(self.path)
                outer.received.append(json.loads(self.rfile.read(length)))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *args) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
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


def silence(entity: str, start: str, end: str, *, days: int = 0) -> dict:
    """From `start` on `DAY` to `end`, `days` later."""
    begin = at(start)
    return {"incident_id": incident_id(entity, begin, "silent"), "entity": entity, "start": begin, "kind": "silent",
            "end": at(end) + timedelta(days=days)}  # fmt: skip


def frame(*rows: dict) -> pl.DataFrame:
    schema = incidents_schema()
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def dataset(*variables: str, **notified: object) -> Dataset:
    return Dataset(name="pumps", kind="sensor", source={"path": "x.parquet"}, entity="pump", event_time="time",
                   cadence="1m", features=[{"name": "vibration", "unit": "mm/s"}],
                   notify={"urls_env": list(variables), **notified})  # fmt: skip


def workspace(tmp_path: Path, *variables: str, **notified: object) -> Workspace:
    return Workspace(dataset(*variables, **notified), Home(tmp_path), Lake(str(tmp_path / "lake"), "pumps"))


def night(tmp_path: Path, incidents: pl.DataFrame, *variables: str) -> Workspace:
    ws = workspace(tmp_path, *variables)
    find(ws, incidents)
    return ws


def find(ws: Workspace, incidents: pl.DataFrame, day: date = DAY, promised: float | None = None) -> None:
    """What the incidents step leaves of a day of twenty pumps."""
    ws.lake.replace("incidents", day, incidents)
    write_state(ws, State(day, "incidents", "i", "c", "7", {}))
    write_state(ws, State(day, "score", "i", "c", "7", asdict(Scored(str(day), 20 * 1440, 0, 20, "7", promised))))


def said(server: Server) -> list[str]:
    """The titles of what a service was sent, which is forgotten."""
    titles = [message["title"] for message in server.received]
    server.received.clear()
    return titles


def told_of(message: Message) -> list[str]:
    """The entities that have a block of their own, in order."""
    return [block.who for block in message.blocks]


def test_message_says_what_where_since_when_how_sure_and_where_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block an entity, the most severe first, then how many are known, or planned, then the report."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/")
    found = frame(*(anomaly(f"pump-{i}", 1.0 + i) for i in range(8)))
    planned = frame(anomaly("pump-9", 3.0, reason="seal change"))
    news = News(found, known=2, planned=planned)
    message = build_message(dataset(), DAY, news, Path("/reports/pumps/2026-03-25.html"), "Chance alone makes one")
    parts = render(message).split("\n\n")
    assert message.title == "pumps: 8 incidents on 2026-03-25"
    assert parts[0].splitlines() == [
        "pump-7: from 14:02 to 15:40 UTC (1 h 38 min)",
        "  vibration was 15 mm/s where 3 mm/s was expected (62 % of the score)",
        "  8 × the threshold; about once in 50,000 normal steps",
        "  https://airflow.example/nightsift/incidents/pumps/2026-03-25/pump-7%2014%3A02",
    ]
    assert told_of(message) == [f"pump-{i}" for i in range(7, -1, -1)]
    assert parts[8].splitlines() == [
        "Told before: 2 incidents",
        "1 incident is explained by the calendar (seal change)",
        "Chance alone makes one",
        "Report: https://airflow.example/nightsift/reports/pumps/2026-03-25",
    ]
    assert "[Report](https://airflow.example/nightsift/reports/pumps/2026-03-25)" in render(message, "markdown")


def test_without_airflows_address_the_file_of_the_report_is_where_there_is_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No block has a link that leads nowhere, nor has the report."""
    monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
    monkeypatch.setattr("pipeline.links.airflow_url", lambda: None)
    message = build_message(dataset(), DAY, News(frame(anomaly("pump-1", 2.0))), Path("/r.html"))
    assert [block.link for block in message.blocks] == [""]
    assert render(message).endswith("Report: /r.html")


def test_the_incidents_of_an_entity_are_one_block() -> None:
    """Its most severe in full, the others with their time, and those beyond three as a count."""
    times = [("02:00", "02:30"), ("14:02", "15:40"), ("18:00", "18:30"), ("20:00", "20:30"), ("23:00", "23:59")]
    rows = [anomaly("pump-1", severity, *time) for severity, time in zip((2, 9, 3, 1.5, 4), times, strict=True)]
    silent = {"incident_id": "s", "entity": "pump-1", "start": at("21:00"), "end": at("22:00"), "kind": "silent"}
    (block,) = build_message(dataset(), DAY, News(frame(*rows, silent, anomaly("pump-1", 1.1)))).blocks
    assert block.incidents == 7
    assert block.what == "7 incidents, the most severe from 14:02 to 15:40 UTC (1 h 38 min)"
    assert block.facts[-1] == (
        "also from 23:00 to 23:59 UTC (59 min), not over when the day ended, 4 × the threshold; "
        "from 18:00 to 18:30 UTC (30 min), 3 × the threshold; from 02:00 to 02:30 UTC (30 min), 2 × the threshold; "
        "3 others"
    )


def test_a_message_says_what_chance_alone_makes_of_such_a_night(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty pumps at 0.05 a day make one; a silence is none of the threshold's."""
    monkeypatch.setenv("OPS", server.url)
    ws = workspace(tmp_path, "OPS")
    find(ws, frame(anomaly("pump-1", 2.0)), promised=0.05)
    line = (
        "Whether to believe it: chance alone makes up to about 1 in such a night (0.05 false alarms per entity and day"
    )
    assert line in notify(ws, DAY).message
    find(ws, frame(silence("pump-2", "10:00", "12:00"), anomaly("pump-1", 2.0)), promised=0.05)
    assert "Whether to believe it" not in notify(ws, DAY).message


def test_a_summary_tells_the_worst_and_how_many_more() -> None:
    """Five entities, then the number of those left out, of how many entities, and which option says so."""
    found = frame(*(anomaly(f"pump-{i}", 1.0 + i) for i in range(30)))
    message = build_message(dataset(), DAY, News(found, summary=True))
    assert message.title == "pumps: 30 incidents on 2026-03-25"
    assert told_of(message) == [f"pump-{i}" for i in range(29, 24, -1)]
    told = "and 25 more of 25 entities: above 20 in a night (notify.most), only the worst are told"
    assert message.notes == (told,)


def test_message_of_a_silence() -> None:
    """Silence has no score to tell; one until the day's end is not over."""
    everyone = {"entity": "(all)", "start": at("00:00"), "end": at("00:00") + timedelta(days=1), "kind": "silent"}
    message = build_message(dataset(), DAY, News(frame(everyone)))
    assert (message.title, render(message)) == (
        "pumps: 1 incident on 2026-03-25",
        "the whole source: sent nothing from 00:00 to 24:00 UTC (1 d), not over when the day ended",
    )


def test_names_from_data_cannot_forge_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An entity with line breaks stays within its line, in the message and in the log."""
    found = frame(anomaly("pump\nERROR all is lost\r\n", 2.0))
    caplog.set_level(logging.INFO, "nightsift.notify")
    notify(night(tmp_path, found), DAY)
    message = build_message(dataset(), DAY, News(found))
    assert render(message).splitlines()[0] == "pump ERROR all is lost: from 14:02 to 15:40 UTC (1 h 38 min)"
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
    assert (result.incidents, result.sent) == (1, 3)
    assert len(server.received) == 3
    assert server.received[0]["title"] == "pumps: 1 incident on 2026-03-25"
    assert "pump <&> 1: from 14:02 to 15:40 UTC" in server.received[0]["message"]
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
    with pytest.raises(NightsiftError, match="not looked for yet"):
        notify(workspace(tmp_path), DAY)


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


def test_what_an_earlier_version_remembered_counts(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept no severities and no recoveries; nothing is told anew, and what comes is remembered beside it."""
    monkeypatch.setenv("OPS", server.url)
    ws = night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS")
    told = [["pump-1", at("14:02").isoformat(), at("15:40").isoformat(), "anomaly"]]
    counts = {"on": str(DAY), "singly": {"OPS": 1}, "summary": [], "told": {"OPS": told}}
    write_state(ws, State(DAY, "notify", "", "", counts=counts))
    assert notify(ws, DAY).sent == 0
    find(ws, frame(anomaly("pump-1", 2.0), anomaly("pump-2", 2.0)))
    assert [notify(ws, DAY).sent, notify(ws, DAY).sent] == [1, 0]
    find(ws, frame(shifted(anomaly("pump-1", 2.0), 1)), NEXT)
    assert "Again, told of lately: pump-1" in notify(ws, NEXT).message


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


def test_a_second_address_in_a_variable_makes_the_first_hear_nothing_twice(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was told stays the target it was; the new one is told of a night that is run again."""
    other = Server()
    monkeypatch.setenv("OPS", server.url)
    ws = night(tmp_path, frame(anomaly("pump-1", 2.0)), "OPS")
    notify(ws, DAY)
    monkeypatch.setenv("OPS", f"{server.url} {other.url}")
    notify(ws, DAY)
    other.stop()
    assert (len(server.received), len(other.received)) == (1, 1)


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
    ws = workspace(tmp_path, "TEAM", "OPS", most=8)
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
    ws = workspace(tmp_path, "OPS", most=10)
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
    ws = workspace(tmp_path, "OPS", most=10)
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


# --- the cool-down


def nights(ws: Workspace, *found: pl.DataFrame, first: date = DAY) -> list[str]:
    """What is said of nights in a row, the last told of each; empty where nothing is."""
    days = [first + timedelta(days=n) for n in range(len(found))]
    said = []
    for day, incidents in zip(days, found, strict=True):
        find(ws, incidents, day)
        said.append(notify(ws, day).message)
    return said


def shifted(row: dict, days: int) -> dict:
    """The incident, as another so many days later."""
    moved = {name: row[name] + timedelta(days=days) for name in ("start", "end", "peak_time") if row.get(name)}
    return row | moved | {"incident_id": f"{row['incident_id']} +{days}"}


def test_who_was_told_of_last_night_is_counted(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it has incidents night after night; after a quiet night it is told in full again."""
    monkeypatch.setenv("OPS", server.url)
    ws, one = workspace(tmp_path, "OPS", most=1), anomaly("pump-1", 2.0)
    again = frame(shifted(one, 1), shifted(anomaly("pump-1", 3.0, "18:00", "18:30"), 1), shifted(anomaly("p", 1.5), 1))
    said = nights(ws, frame(one), again, frame(shifted(one, 2)), frame(), frame(shifted(one, 4)))
    assert said[1].splitlines()[0] == "pumps: 3 incidents on 2026-03-26"
    assert "pump-1:" not in said[1]
    assert "Again, told of lately: pump-1 (2 incidents, up to 3 × the threshold)" in said[1]
    assert "p: from 14:02" in said[1]
    assert said[2].splitlines()[1] == "Again, told of lately: pump-1 (1 incident, up to 2 × the threshold)"
    assert said[3] == ""
    assert "pump-1: from 14:02" in said[4]
    assert not any("notify.most" in text for text in said)


def test_what_is_twice_as_severe_or_of_another_kind_breaks_the_cool_down(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the worst that was told; a pump that falls silent after an anomaly is told."""
    monkeypatch.setenv("OPS", server.url)
    worse, silent = shifted(anomaly("pump-1", 4.0), 1), shifted(silence("pump-2", "10:00", "12:00"), 1)
    first = frame(anomaly("pump-1", 2.0), anomaly("pump-2", 2.0), anomaly("pump-3", 2.0))
    said = nights(workspace(tmp_path, "OPS"), first, frame(worse, silent, shifted(anomaly("pump-3", 3.9), 1)))
    assert "pump-1: from 14:02" in said[1]
    assert "pump-2: sent nothing from 10:00" in said[1]
    assert "lately: pump-3 (1 incident, up to 3.9 × the threshold)" in said[1]


def test_who_gets_worse_night_by_night_is_compared_with_what_was_last_told_in_full(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than twice a night, yet twice what was told, is told; a second run, and late data, forget nothing of it."""
    monkeypatch.setenv("OPS", server.url)
    ws, told = workspace(tmp_path, "OPS"), []
    for n, severity in enumerate((2, 3.5, 6.5, 12, 23, 45)):
        told += nights(ws, frame(shifted(anomaly("pump-1", severity), n)), first=DAY + timedelta(days=n))
        late = frame(shifted(anomaly("pump-1", severity * 10, "14:00"), n))
        assert nights(ws, late, first=DAY + timedelta(days=n)) == [""]
    assert ["pump-1: from 14:02" in text for text in told] == [True, False, True, False, True, False]
    assert ["Again, told of lately: pump-1" in text for text in told] == [False, True, False, True, False, True]


def test_the_cool_down_is_as_long_as_the_yaml_says(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None at all, or three nights, which later ones do not count for."""
    monkeypatch.setenv("OPS", server.url)
    one = anomaly("pump-1", 2.0)
    for cooldown, full in ((0, [True, True, True]), (3, [True, False, True])):
        ws = workspace(tmp_path / str(cooldown), "OPS", cooldown=cooldown)
        days = [DAY, DAY + timedelta(days=3), DAY - timedelta(days=1)]
        said = [nights(ws, frame(shifted(one, (day - DAY).days)), first=day)[0] for day in days]
        assert ["pump-1: from 14:02" in text for text in said] == full


# --- who is told of what


def test_a_route_is_told_of_what_is_severe_enough_and_of_its_kinds(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silence, which has no severity, goes to every route that does not leave out its kind."""
    others = {name: Server() for name in ("ONCALL", "SILENCES", "SCORES")}
    for name, one in {"OPS": server, **others}.items():
        monkeypatch.setenv(name, one.url)
    routes = [{"urls_env": ["ONCALL"], "severity": 3}, {"urls_env": ["SILENCES"], "kinds": ["silent"]},
              {"urls_env": ["SCORES"], "kinds": ["anomaly"], "severity": 2.5}]  # fmt: skip
    ws = workspace(tmp_path, "OPS", routes=routes)
    find(ws, frame(anomaly("mild", 2.0), anomaly("bad", 3.0), silence("gone", "10:00", "12:00")))
    assert notify(ws, DAY).sent == 4
    bodies = {name: one.received[0]["message"] for name, one in {"OPS": server, **others}.items()}
    for one in others.values():
        one.stop()
    told = {name: [who for who in ("mild", "bad", "gone") if f"{who}: " in body] for name, body in bodies.items()}
    assert told == {"OPS": ["mild", "bad", "gone"], "ONCALL": ["bad", "gone"], "SILENCES": ["gone"], "SCORES": ["bad"]}


def test_what_becomes_severe_enough_is_told_then(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a route was not told for being mild is news once late data, or the next night, has made it severe; once."""
    monkeypatch.setenv("ONCALL", server.url)
    ws = workspace(tmp_path, routes=[{"urls_env": ["ONCALL"], "severity": 3}])
    find(ws, frame(anomaly("pump-1", 2.0)))
    assert notify(ws, DAY).sent == 0
    find(ws, frame(anomaly("pump-1", 5.0)))
    assert [notify(ws, DAY).sent, notify(ws, DAY).sent] == [1, 0]
    assert said(server) == ["pumps: 1 incident on 2026-03-25"]


# --- who has recovered


def scored(ws: Workspace, day: date, *entities: str, anomalous: tuple[str, str] | None = None, gone: str = "") -> None:
    """A reading a minute of each entity; between two times, both included, abnormal; none before `gone`."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    steps = [start + timedelta(minutes=n) for n in range(1440) if f"{n // 60:02}:{n % 60:02}" >= gone]
    bad = [anomalous is not None and anomalous[0] <= f"{step:%H:%M}" <= anomalous[1] for step in steps]
    rows = pl.concat(
        pl.DataFrame({"day": day, "entity": entity, "event_time": steps, "is_anomaly": bad}) for entity in entities
    )
    schema = scores_schema(ws.dataset)
    columns = [pl.col(name) if name in rows.columns else pl.lit(None).alias(name) for name in schema]
    ws.lake.replace("scores", day, rows.select(columns).cast(schema))


NEXT = DAY + timedelta(days=1)


def test_what_went_on_at_midnight_is_told_once_it_is_over(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with the first normal reading; a night later there is nothing to say."""
    monkeypatch.setenv("OPS", server.url)
    ws, one = night(tmp_path, frame(anomaly("pump-1", 2.0, "20:00", "23:59")), "OPS"), anomaly("pump-1", 2.0, "20:00")
    scored(ws, DAY, "pump-1", anomalous=("20:00", "23:59"))
    assert "not over when the day ended" in notify(ws, DAY).message
    scored(ws, NEXT, "pump-1", anomalous=("00:00", "03:11"))
    find(ws, frame(one | {"end": at("03:11") + timedelta(days=1)}), NEXT)
    result = notify(ws, NEXT)
    assert (result.sent, result.news, result.recovered) == (1, 0, 1)
    assert result.message.splitlines()[0] == "pumps: 1 recovered on 2026-03-26"
    assert "Recovered: pump-1 (normal again since 03:12 UTC)" in result.message
    scored(ws, NEXT + timedelta(days=1), "pump-1")
    find(ws, frame(), NEXT + timedelta(days=1))
    assert [notify(ws, day).sent for day in (NEXT, NEXT + timedelta(days=1))] == [0, 0]
    assert len(said(server)) == 2


def test_what_ended_shortly_before_midnight_is_over_when_the_next_night_is_normal(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could have gone on; `since` is its first normal reading, of the evening. What ended at noon is not told."""
    monkeypatch.setenv("OPS", server.url)
    ws = night(tmp_path, frame(anomaly("pump-1", 2.0, "20:00", "23:50"), anomaly("pump-2", 2.0)), "OPS")
    scored(ws, DAY, "pump-1", "pump-2", anomalous=("20:00", "23:50"))
    notify(ws, DAY)
    scored(ws, NEXT, "pump-1", "pump-2")
    find(ws, frame(), NEXT)
    message = notify(ws, NEXT).message
    assert "Recovered: pump-1 (normal again since 2026-03-25 23:51 UTC)" in message
    assert "pump-2" not in message


def test_a_silence_of_days_is_over_with_the_first_reading(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one pump, or of the whole source, which others' incidents stand beside."""
    monkeypatch.setenv("OPS", server.url)
    for entity, name in (("pump-1", "pump-1"), ("(all)", "the whole source")):
        ws = workspace(tmp_path / entity, "OPS")
        for n in range(3):
            find(ws, frame(silence(entity, "14:00", "00:00", days=n + 1)), DAY + timedelta(days=n))
            assert notify(ws, DAY + timedelta(days=n)).sent == (n == 0)
        back = DAY + timedelta(days=3)
        scored(ws, back, "pump-1", gone="09:15")
        find(ws, frame(silence(entity, "14:00", "09:15", days=3), shifted(anomaly("pump-7", 2.0), 3)), back)
        message = notify(ws, back).message
        assert message.splitlines()[0] == "pumps: 1 incident, 1 recovered on 2026-03-28"
        assert f"Recovered: {name} (sends again since 09:15 UTC)" in message


def test_who_is_not_normal_yet_has_not_recovered(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not without a reading, nor while anything else of it goes on; then with the first night that shows it."""
    monkeypatch.setenv("OPS", server.url)
    ws = night(
        tmp_path, frame(anomaly("pump-1", 2.0, "20:00", "23:59"), anomaly("pump-2", 2.0, "20:00", "23:59")), "OPS"
    )
    scored(ws, DAY, "pump-1", "pump-2", anomalous=("20:00", "23:59"))
    notify(ws, DAY)
    scored(ws, NEXT, "pump-2")
    find(ws, frame(shifted(anomaly("pump-2", 3.0, "23:00", "23:59", reason="seal change"), 1)), NEXT)
    assert notify(ws, NEXT).sent == 0
    later = NEXT + timedelta(days=1)
    scored(ws, later, "pump-1", "pump-2")
    find(ws, frame(), later)
    told = "Recovered: pump-2 (normal again since 2026-03-26 00:00 UTC) and pump-1 (normal again since 00:00 UTC)"
    assert told in notify(ws, later).message


def test_a_recovery_is_told_with_the_latest_night_and_only_to_who_has_heard_of_the_incident(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night that is filled in tells none, but loses none; of a mild incident, the severe route hears nothing."""
    other = Server()
    monkeypatch.setenv("OPS", server.url)
    monkeypatch.setenv("ONCALL", other.url)
    ws = workspace(tmp_path, "OPS", routes=[{"urls_env": ["ONCALL"], "severity": 3}])
    find(ws, frame(anomaly("pump-1", 2.0, "20:00", "23:59")))
    scored(ws, DAY, "pump-1", anomalous=("20:00", "23:59"))
    notify(ws, DAY)
    for day in (NEXT + timedelta(days=1), NEXT):
        scored(ws, day, "pump-1")
        find(ws, frame(), day)
    assert [notify(ws, NEXT + timedelta(days=n)).sent for n in (0, 1, 1, 0)] == [0, 1, 0, 0]
    assert said(server) == ["pumps: 1 incident on 2026-03-25", "pumps: 1 recovered on 2026-03-27"]
    other.stop()
    assert other.received == []


# --- the dry run


def test_a_dry_run_shows_what_each_target_would_be_sent_and_sends_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of its variable and in its form, or why nothing; it is sent afterwards as if nobody had looked."""
    mild = {"urls_env": ["ONCALL"], "severity": 3}
    monkeypatch.setenv("OPS", f"{server.url} {server.url}?format=markdown")
    monkeypatch.setenv("ONCALL", server.url)
    monkeypatch.delenv("NOBODY", raising=False)
    ws = workspace(tmp_path, "OPS", routes=[mild, {"urls_env": ["NOBODY"]}])
    find(ws, frame(anomaly("pump-1", 2.0)))
    seen = preview(ws, DAY)
    assert [(one.target, one.form, one.title) for one in seen] == [
        ("OPS", "text", "pumps: 1 incident on 2026-03-25"),
        ("OPS (2)", "markdown", "pumps: 1 incident on 2026-03-25"),
        ("ONCALL", "text", ""),
        ("NOBODY", "text", "pumps: 1 incident on 2026-03-25"),
    ]
    assert seen[1].body.startswith("**pump-1**: from 14:02")
    assert seen[2].remark == "there is no incident for it"
    monkeypatch.setenv("ONCALL", f"nosuchservice://{SECRET}")
    find(ws, frame(anomaly("pump-1", 4.0)))
    assert preview(ws, DAY)[2].remark == "not a URL that Apprise knows"
    monkeypatch.setenv("ONCALL", server.url)
    find(ws, frame(anomaly("pump-1", 2.0)))
    assert "notify.routes names NOBODY, but this environment variable is not set" in seen[3].remark
    assert SECRET not in str(seen)
    assert server.received == []
    assert read_state(ws, DAY, "notify") is None
    monkeypatch.setenv("NOBODY", server.url)
    assert notify(ws, DAY).sent == 3
    assert [one.remark for one in preview(ws, DAY)][:2] == ["told before: 1 incident"] * 2
    assert [message["message"] for message in server.received[:2]] == [one.body for one in seen[:2]]


def test_the_command_shows_or_tells(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run needs no variable; without, one that is missing is wrong configuration, and then it tells once."""
    (tmp_path / "pumps.yaml").write_text(SENSOR + "notify: {urls_env: [OPS]}\n")
    ws = open_workspace("pumps", tmp_path, tmp_path)
    find(ws, frame(anomaly("pump-1", 2.0)))
    line = ["notify", "pumps", "--day", str(DAY), "--home", str(tmp_path), "--datasets", str(tmp_path)]
    monkeypatch.delenv("OPS", raising=False)
    assert _exit_code([*line, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("--- OPS (text): pumps.yaml: notify.urls_env names OPS, but this environment variable is n")
    assert "pump-1: from 14:02 to 15:40 UTC" in shown
    assert _exit_code(line) == 2
    monkeypatch.setenv("OPS", server.url)
    assert _exit_code([*line, "--dry-run", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["target"], one["title"]) == ("OPS", "pumps: 1 incident on 2026-03-25")
    assert server.received == []
    for _ in range(2):
        assert _exit_code(line) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pumps 2026-03-25: 1 incident, 1 new, 0 recovered; told to 1 target",
        "pumps 2026-03-25: 1 incident, 0 new, 0 recovered; told to 0 targets",
    ]
    assert len(server.received) == 1


def _exit_code(line: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(line)
    return int(ended.value.code or 0)


def test_a_dry_run_shows_what_somebody_would_be_sent_where_nobody_is_named(tmp_path: Path) -> None:
    """So that a message can be looked at before an address is at hand."""
    (one,) = preview(night(tmp_path, frame(anomaly("pump-1", 2.0))), DAY)
    assert (one.remark, one.title) == ("pumps.yaml: notify names nobody", "pumps: 1 incident on 2026-03-25")
