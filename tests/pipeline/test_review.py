"""Verdicts: which of them counts on which incident, also where a night was scored again since."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import ConfigError
from pipeline.review import (
    LONGEST_NOTE,
    Verdict,
    confirmed,
    dismissed,
    history,
    latest_verdicts,
    read_lost,
    read_reviewed,
    read_sheet,
    record,
    record_all,
)
from pipeline.tables import incidents_schema
from pipeline.workspace import Workspace
from tests.lake import DAY, at, incident, pumps, silence, table, workspace

VIBRATION = ("vibration", 1.0, 15.1, 3.0)
OLD = incident("pump-1", at("14:00"), at("15:00"), VIBRATION)
MOVED = incident("pump-1", at("13:50"), at("15:00"), VIBRATION)
AFTER = incident("pump-1", at("14:30"), at("16:00"), VIBRATION, day=DAY + timedelta(days=1))


def score(ws: Workspace, *found: dict) -> None:
    """Make the night's incidents these."""
    ws.lake.replace("incidents", DAY, table(list(found), incidents_schema()))


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A night whose only incident bob has confirmed."""
    ws = workspace(tmp_path, pumps())
    score(ws, OLD)
    record(ws, OLD["incident_id"], "confirmed", "bearing", "bob")
    return ws


def states(ws: Workspace) -> dict[str, str]:
    return dict(read_reviewed(ws, DAY, DAY).select("incident_id", "state").iter_rows())


def told(ws: Workspace, row: dict) -> list[tuple[str, str]]:
    return list(history(ws, row["incident_id"]).select("verdict", "reviewer").iter_rows())


def test_a_verdict_on_an_incident_that_is_gone_can_be_found_and_only_withdrawn(ws: Workspace) -> None:
    """It counts in training until then; also a CSV can take it back; twice is once."""
    gone = OLD["incident_id"]
    score(ws, silence("pump-1", at("14:00"), at("15:00")))
    assert read_lost(ws)["incident_id"].to_list() == [gone]
    with pytest.raises(ConfigError, match=f"incident {gone} no more.* can only be withdrawn"):
        record(ws, gone, "dismissed", "", "ann")
    assert read_sheet(ws, f"id,verdict\n{gone},withdrawn\n".encode()) == [Verdict(gone, "withdrawn")]
    entry = record(ws, gone, "withdrawn", "", "ann")
    assert (entry["entity"], entry["start"], entry["end"]) == ("pump-1", at("14:00"), at("15:00"))
    assert confirmed(ws).is_empty()
    assert read_lost(ws).is_empty()
    assert record(ws, gone, "withdrawn", "", "ann") == entry
    with pytest.raises(ConfigError, match="no incident 'abc'"):
        record(ws, "abc", "withdrawn", "", "ann")


def test_what_was_said_of_a_moved_incident_is_told_and_can_be_withdrawn(ws: Workspace) -> None:
    """It is that incident's under its new id, and open again afterwards."""
    score(ws, MOVED)
    assert states(ws) == {MOVED["incident_id"]: "confirmed"}
    assert told(ws, MOVED) == [("confirmed", "bob")]
    assert read_lost(ws).is_empty()
    entry = record(ws, MOVED["incident_id"], "withdrawn", "", "ann")
    assert states(ws) == {MOVED["incident_id"]: "open"}
    assert latest_verdicts(ws).is_empty()
    assert told(ws, MOVED) == [("withdrawn", "ann"), ("confirmed", "bob")]
    version = ws.lake.version("verdicts")
    assert record(ws, MOVED["incident_id"], "withdrawn", "", "ann") == entry
    assert ws.lake.version("verdicts") == version


def test_a_moved_incident_that_is_judged_again_has_one_verdict(ws: Workspace) -> None:
    """What stood under its old id is withdrawn in the same commit; said again, or imported again, nothing is added."""
    score(ws, MOVED)
    before = ws.lake.version("verdicts")
    for _ in range(2):
        record_all(ws, [Verdict(MOVED["incident_id"], "dismissed")], "ann")
    assert ws.lake.version("verdicts") == before + 1
    assert confirmed(ws).is_empty()
    assert dismissed(ws)["start"].to_list() == [MOVED["start"]]
    assert told(ws, MOVED) == [("dismissed", "ann"), ("confirmed", "bob")]


def test_an_incident_has_one_state_whichever_nights_are_asked_for(ws: Workspace) -> None:
    """A verdict on an incident of another night is on that alone, though this one overlaps it."""
    ws.lake.replace("incidents", AFTER["day"], table([AFTER], incidents_schema()))
    for first in (DAY, AFTER["day"]):
        found = read_reviewed(ws, first, AFTER["day"]).filter(pl.col("incident_id") == AFTER["incident_id"])
        assert found["state"].to_list() == ["open"]


def test_a_note_is_as_long_as_it_was_typed(ws: Workspace) -> None:
    """A form ends its lines with two characters; one is kept, and counted."""
    note = "a\n" * (LONGEST_NOTE // 2)
    assert record(ws, OLD["incident_id"], "confirmed", note.replace("\n", "\r\n"), "ann")["note"] == note.strip()
