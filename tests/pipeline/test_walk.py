"""Incidents on a terminal: in columns, in words, and a walk through them that records what is said at once."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import ConfigError
from pipeline.review import LONGEST_NOTE, history, read_one, read_reviewed, record
from pipeline.terminal import fit
from pipeline.walk import in_columns, in_lines, walk
from pipeline.workspace import Workspace
from tests.lake import DAY, at, fill, incident, pumps, readings, silence, workspace

VIBRATION = ("vibration", 0.62, 15.1, 3.0)
FLOW = ("flow", 0.004, 100.4, 100.0)
LONG = "a pump whose name somebody has typed with much care"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Two incidents, one of them planned, with a name that would move the cursor, and a silence over midnight."""
    ws = workspace(tmp_path, pumps(zone="Europe/Berlin"))
    found = [
        incident("pump-1\x1b[2J", at("14:00"), at("15:30"), VIBRATION, FLOW, severity=4.0),
        incident(LONG, at("03:00"), at("03:00"), VIBRATION, reason="seal change"),
        silence("pump-9", at("06:00") - timedelta(days=1), at("23:00")),
    ]
    fill(ws, readings(ws.dataset, ["pump-1"]), found)
    return ws


def table(ws: Workspace, room: int | None) -> dict[str, tuple[list[str], int]]:
    """By title the cells of each column, and its width."""
    fitted = fit(in_columns(read_reviewed(ws, DAY, DAY), ws.dataset), room)
    assert room is None or sum(size for _, size in fitted) + 2 * (len(fitted) - 1) <= room
    return {column.title: (list(column.cells), size) for column, size in fitted}


def test_where_there_is_room_everything_is_in_the_table(ws: Workspace) -> None:
    """Times with their date in the dataset's zone, drivers, the calendar's reason; no control character."""
    columns = {title: cells for title, (cells, _) in table(ws, None).items()}
    assert list(columns) == ["id", "entity", "from", "to", "severity", "state", "driven by", "calendar"]
    assert columns["entity"] == ["pump-1 [2J", LONG, "pump-9"]
    assert columns["from"] == ["2026-03-25 15:00", "2026-03-25 04:00", "2026-03-24 07:00"]
    assert columns["severity"] == ["4.00", "2.00", "–"]
    assert columns["driven by"] == ["vibration (62 %)", "vibration (62 %)", "sent nothing"]
    assert columns["calendar"] == ["", "seal change", ""]


@pytest.mark.parametrize("room", [200, 120, 80, 66, 54])
def test_a_narrower_terminal_leaves_out_what_is_said_elsewhere(ws: Workspace, room: int) -> None:
    """The line fits; id, time, severity and state are whole however narrow it is."""
    columns = table(ws, room)
    for title in ("id", "severity", "state"):
        assert columns[title][1] == max(len(cell) for cell in (title, *columns[title][0]))
    if room == 80:
        assert columns["when"][0] == ["25 Mar 15:00–16:30", "25 Mar 04:00", "24 Mar 07:00–26 Mar"]
        assert columns["driven by"][0][1] == "calendar: seal change"
    if room == 54:
        assert columns["began"][0] == ["25 Mar 15:00", "25 Mar 04:00", "24 Mar 07:00"]


def test_an_hour_that_comes_twice_names_its_offset(ws: Workspace) -> None:
    """On the night when the clocks go back, 02:30 alone would say nothing."""
    day = date(2026, 10, 25)
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    both = [
        incident("pump-1", first + timedelta(hours=n), first + timedelta(hours=n), VIBRATION, day=day) for n in (0, 1)
    ]
    columns = in_columns(pl.DataFrame(both).with_columns(state=pl.lit("open"), reason=pl.lit(None)), ws.dataset)
    assert list(columns[0][2].cells) == ["2026-10-25 02:30 CEST", "2026-10-25 02:30 CET"]


def test_one_incident_in_words_says_who_when_how_rare_why_and_what_was_said_before(ws: Workspace) -> None:
    """Observed and expected with their unit; a driver that hardly counts is left out; notes are on one line."""
    one, other, silent = read_reviewed(ws, DAY, DAY)["incident_id"].to_list()
    record(ws, one, "dismissed", "two\nlines", "ann\x1b[1m")
    told = in_lines(ws, read_one(ws, one).row(0, named=True), None)
    assert told == [
        f"who         pump-1 [2J   (incident {one}, dismissed)",
        "when        2026-03-25, from 15:00 to 16:30 Europe/Berlin (1 h 30 min)",
        "severity    4.00: the score reached 20, the threshold is 5",
        "how rare    about once in 50,000 normal steps",
        "driven by   vibration (62 %): observed 15.1\N{NO-BREAK SPACE}mm/s, expected 3\N{NO-BREAK SPACE}mm/s",
        "verdicts    dismissed by ann [1m: two lines",
        "earlier     no verdict on any other incident of this entity",
    ]
    planned = in_lines(ws, read_one(ws, other).row(0, named=True), 60)
    assert "calendar    seal change" in planned
    assert max(map(len, planned)) <= 60
    assert "what        it sent nothing" in in_lines(ws, read_one(ws, silent).row(0, named=True), None)


def test_earlier_verdicts_on_the_same_entity_are_told(ws: Workspace) -> None:
    """With the beginning of the incident that each is on; of many the latest three, and how many more."""
    again = [incident("pump-1", at(f"1{n}:00"), at(f"1{n}:10"), VIBRATION) for n in range(6)]
    fill(ws, readings(ws.dataset, ["pump-1"]), again)
    first, *rest = (row["incident_id"] for row in again)
    for n, name in enumerate(rest):
        record(ws, name, "confirmed", f"number {n}", "ann")
    told = in_lines(ws, read_one(ws, first).row(0, named=True), None)
    assert told[-4:] == [
        "earlier     2026-03-25 16:00: confirmed by ann: number 4",
        "            2026-03-25 15:00: confirmed by ann: number 3",
        "            2026-03-25 14:00: confirmed by ann: number 2",
        "            and 2 more verdicts",
    ]


def typed(keys: str) -> Callable[[], str]:
    """Somebody who presses these keys, then closes the terminal."""
    waiting: Iterator[str] = iter(keys)

    def key() -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    return key


def go(ws: Workspace, keys: str, note: str = "") -> tuple[dict[str, int], list[str]]:
    """Walk through the open incidents with these keys; the counts, and what was shown."""
    shown: list[str] = []
    found = read_reviewed(ws, DAY, DAY).filter(state="open")
    counts = walk(ws, found, "ann", tell=shown.append, key=typed(keys), ask=lambda _: note)
    return dict(counts), shown


def states(ws: Workspace) -> list[str]:
    return read_reviewed(ws, DAY, DAY)["state"].to_list()


def test_each_key_records_its_verdict_and_goes_on(ws: Workspace) -> None:
    """The note goes with the next verdict only; keys that mean nothing do nothing; capitals count too."""
    counts, shown = go(ws, "xnCsD", note="bearing replaced")
    assert counts == {"confirmed": 1, "skip": 1, "dismissed": 1}
    assert states(ws) == ["confirmed", "open", "dismissed"]
    assert read_reviewed(ws, DAY, DAY)["note"].to_list() == ["bearing replaced", None, ""]
    assert [line.strip() for line in shown if " of 3" in line] == ["1 of 3", "2 of 3", "3 of 3"]


@pytest.mark.parametrize("keys", ["cq", "c", "cn"])
def test_who_leaves_keeps_what_was_said(ws: Workspace, keys: str) -> None:
    """By the key, or because the terminal is closed, also in the middle of a note."""

    def closed(_: str) -> str:
        raise KeyboardInterrupt

    found = read_reviewed(ws, DAY, DAY)
    counts = walk(ws, found, "ann", tell=lambda _: None, key=typed(keys), ask=closed)
    assert dict(counts) == {"confirmed": 1}
    assert states(ws) == ["confirmed", "open", "open"]


def test_undo_takes_back_the_verdict_before(ws: Workspace) -> None:
    """What was open is open again; what had a verdict before the walk has it again; at the first there is nothing."""
    counts, _ = go(ws, "ucudq")
    assert counts == {"dismissed": 1}
    first = read_reviewed(ws, DAY, DAY)["incident_id"][0]
    assert history(ws, first)["verdict"].to_list() == ["dismissed", "withdrawn", "confirmed"]
    walk(ws, read_one(ws, first), "bob", tell=lambda _: None, key=typed("c"), ask=str)
    found = read_reviewed(ws, DAY, DAY)
    walk(ws, found, "eve", tell=lambda _: None, key=typed("duq"), ask=str)
    assert states(ws)[0] == "confirmed"


def test_undo_restores_who_has_said_it(ws: Workspace) -> None:
    """Eve's walk leaves bob's verdict and note bob's, also where late data has moved the incident since."""
    first = read_reviewed(ws, DAY, DAY)["incident_id"][0]
    record(ws, first, "confirmed", "bearing", "bob")
    moved = incident("pump-1\x1b[2J", at("13:00"), at("15:30"), VIBRATION)
    fill(ws, readings(ws.dataset, ["pump-1"]), [moved, silence("pump-9", at("06:00"), at("23:00"))])
    found = read_reviewed(ws, DAY, DAY)
    walk(ws, found, "eve", tell=lambda _: None, key=typed("duq"), ask=str)
    names = ("state", "note", "reviewer")
    assert read_reviewed(ws, DAY, DAY).select(names).row(0) == ("confirmed", "bearing", "bob")
    told = in_lines(ws, found.row(0, named=True), None)
    assert "verdicts    confirmed by bob: bearing" in told
    assert told[-1] == "earlier     no verdict on any other incident of this entity"


def test_a_note_that_is_too_long_is_asked_for_again(ws: Workspace) -> None:
    """The walk goes on, with the note that is short enough."""
    notes, shown = iter(["x" * (LONGEST_NOTE + 1), "short"]), list[str]()
    walk(ws, read_reviewed(ws, DAY, DAY), "ann", tell=shown.append, key=typed("nc"), ask=lambda _: next(notes))
    assert read_reviewed(ws, DAY, DAY)["note"].to_list() == ["short", None, None]
    assert "it has 2,001 characters; at most 2,000 are kept" in shown


def test_an_incident_that_nobody_knows_is_an_error(ws: Workspace) -> None:
    """With the command that lists them."""
    with pytest.raises(ConfigError, match="no incident 'abc'; list them: nightsift incidents pumps"):
        read_one(ws, "abc")
