"""The deadline: what is missing of a night, who is told of it, and how often."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest

from pipeline.errors import DeadlineMissedError, NightsiftError
from pipeline.ingest import ingest
from pipeline.report import report_file, report_state
from pipeline.score import context_days, night_digest
from pipeline.state import State, day_states, write_state
from pipeline.validate import validate
from pipeline.watch import find_missing, watch
from pipeline.workspace import Workspace
from tests.conftest import SENSOR, deliver, sensor_day
from tests.pipeline.test_notify import SECRET, Server

DAY = date(2026, 1, 5)
TEXT = SENSOR + 'notify: {urls_env: [OPS]}\nschedule: "30 2 * * *"\ndeadline: "06:00"\n'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    one = Server()
    monkeypatch.setenv("OPS", one.url)
    yield one
    one.stop()


@pytest.fixture
def ws(make_workspace: Any) -> Workspace:
    made: Workspace = make_workspace(TEXT)
    return made


def done(ws: Workspace, step: str) -> None:
    write_state(ws, State(DAY, step, night_digest(ws, DAY), ws.dataset.digest(), "1-abc", {}))


def test_each_step_that_is_missing_is_named(ws: Workspace) -> None:
    """From nothing that has landed to the report; then nothing is missing, until the data changes."""
    assert find_missing(ws, DAY).startswith("nothing of the day has landed")
    deliver(ws, sensor_day(0), "day-0")
    ingest(ws)
    assert find_missing(ws, DAY) == "its data has landed, but was not validated"
    for day in context_days(ws.dataset, DAY):
        validate(ws, day)
    assert find_missing(ws, DAY) == "its data is valid, but was not scored"
    done(ws, "score")
    assert find_missing(ws, DAY) == "it is scored, but its incidents were not looked for"
    done(ws, "incidents")
    assert find_missing(ws, DAY) == "its incidents are found, but there is no report"
    report_file(ws, DAY).parent.mkdir(parents=True)
    report_file(ws, DAY).touch()
    assert find_missing(ws, DAY) == "its incidents are found, but there is no report"  # that one is of an earlier run
    made_of = report_state(day_states(ws, DAY))
    assert made_of is not None
    write_state(ws, made_of)
    assert find_missing(ws, DAY) == ""
    assert watch(ws, DAY) == "demo 2026-01-05 is done"
    deliver(ws, sensor_day(0).head(300), "day-0")
    ingest(ws)
    assert find_missing(ws, DAY) == "its data has changed since it was scored, and was not scored again"


def test_a_refusal_is_told_with_its_reason(ws: Workspace) -> None:
    """As the gate gave it."""
    good = sensor_day(0).head(1).with_columns(time=pl.lit("2026-01-05T00:00:00Z"))
    deliver(ws, pl.concat([sensor_day(0).head(9).with_columns(time=pl.lit("soon")), good]), "day-0")
    ingest(ws)
    with pytest.raises(NightsiftError, match="refused this day"):
        validate(ws, DAY)
    assert find_missing(ws, DAY).startswith("the data gate refused the day: 10.0% of the rows can be read")


def test_a_missed_deadline_is_told_once_for_each_night(ws: Workspace, server: Server) -> None:
    """However often it is looked at; the task fails each time. Another night is another message."""
    for _ in range(3):
        with pytest.raises(DeadlineMissedError, match=r"^demo: 2026-01-05 is not done by 06:00 UTC\. What is missing"):
            watch(ws, DAY)
    (message,) = server.received
    assert message["title"] == "demo: 2026-01-05 is not done by 06:00 UTC"
    assert message["message"].startswith("What is missing: nothing of the day has landed")
    with pytest.raises(DeadlineMissedError):
        watch(ws, DAY + timedelta(days=1))
    assert len(server.received) == 2


def test_a_target_that_was_not_reached_is_tried_again(ws: Workspace, server: Server) -> None:
    """The failure is another one then, and names the variable, not what it holds."""
    server.status = 500
    with pytest.raises(NightsiftError, match="1 of 1 notifications failed: OPS: the server answered 500") as error:
        watch(ws, DAY)
    assert not isinstance(error.value, DeadlineMissedError)
    assert SECRET not in str(error.value)
    server.status = 200
    with pytest.raises(DeadlineMissedError):
        watch(ws, DAY)
    assert len(server.received) == 2
