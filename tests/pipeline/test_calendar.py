"""The calendar: what an entry covers, what is read from a table, and what it keeps out of incidents and learning."""

import itertools
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calendar import (
    Planned,
    cut,
    digest,
    planned,
    planned_stretches,
    read_calendar,
    stretches,
    touching,
    with_plan,
)
from pipeline.config import CalendarEntry, Dataset
from pipeline.errors import ConfigError
from pipeline.tables import EVERYONE
from pipeline.train import within
from tests.conftest import SENSOR

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def dataset(zone: str = "UTC") -> Dataset:
    return Dataset(name="demo", kind="sensor", source={"path": "x.parquet"}, entity="pump", event_time="time",
                   cadence="1m", features=[{"name": "flow"}], zone=zone)  # fmt: skip


def entry(start: datetime, end: datetime, *entities: str, reason: str = "seals", suppress: bool = False) -> Planned:
    return Planned(start, end, entities, reason, suppress)


@pytest.mark.parametrize(
    ("given_entry", "zone", "start", "end"),
    [
        ({"start": "2026-12-25"}, "UTC", "2026-12-25T00:00Z", "2026-12-26T00:00Z"),
        ({"start": "2026-12-24", "end": "2026-12-26"}, "UTC", "2026-12-24T00:00Z", "2026-12-27T00:00Z"),
        ({"start": date(2026, 3, 29)}, "Europe/Berlin", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        ({"start": "2026-03-04T08:00", "end": "2026-03-04T12:00"}, "Europe/Berlin", "2026-03-04T07:00Z",
         "2026-03-04T11:00Z"),
        ({"start": "2026-03-04T08:00Z", "end": "2026-03-05"}, "Europe/Berlin", "2026-03-04T08:00Z",
         "2026-03-05T23:00Z"),
    ],
)  # fmt: skip
def test_days_are_whole_and_moments_half_open_in_the_zone(given_entry: Any, zone: str, start: str, end: str) -> None:
    """A day as end is included, a moment is not; a day alone is that day, of 23 hours where clocks change."""
    found = planned(CalendarEntry(**given_entry, reason="x"), dataset(zone))
    assert (found.start, found.end) == (datetime.fromisoformat(start), datetime.fromisoformat(end))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("{start: soon, reason: x}", "calendar.entries.0.start: 'soon' is neither a day such as 2026-12-24 nor a"),
        ("{start: 2026-12-24}", "calendar.entries.0.reason: this key is missing"),
        ("{start: 2026-12-24T08:00, reason: x}", "calendar.entries.0: a moment as start needs end:"),
        ("{start: 2026-12-24, end: 2026-12-23, reason: x}", "calendar.entries.0: start 2026-12-24 must be before end"),
        ("{start: 2026-12-24, reason: x, action: hide}", "calendar.entries.0.action: .*'mark' or 'suppress'"),
        ("{start: 2026-12-24, reson: x}", "calendar.entries.0.reson: there is no such key; did you mean reason"),
    ],
)
def test_a_wrong_entry_is_told_with_file_place_and_remedy(make_workspace: Any, declared: str, words: str) -> None:
    """As every mistake in the YAML is."""
    with pytest.raises(ConfigError, match=rf"demo\.yaml: {words}"):
        make_workspace(f"{SENSOR}calendar:\n  entries:\n    - {declared}\n")


def test_a_table_gives_entries_beside_those_of_the_yaml(make_workspace: Any, tmp_path: Path) -> None:
    """A CSV's cells and a Parquet table's dates and lists mean the same; empty cells are left out."""
    (tmp_path / "plan.csv").write_text(
        "start,end,entities,reason,action\n2026-03-04 08:00,2026-03-04 12:00,m1; m2*,seals,suppress\n"
        "2026-12-25,,,rest,\n"
    )
    text = f"{SENSOR}calendar:\n  path: ../plan.csv\n  entries:\n    - {{start: 2026-01-01, reason: new year}}\n"
    found = read_calendar(make_workspace(text))
    eight, midnight = datetime(2026, 3, 4, 8, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    christmas = datetime(2026, 12, 25, tzinfo=UTC)
    assert found == [
        entry(eight, eight + 4 * HOUR, "m1", "m2*", suppress=True),
        entry(midnight, midnight + 24 * HOUR, reason="new year"),
        entry(christmas, christmas + 24 * HOUR, reason="rest"),
    ]
    rows = {"start": [eight.replace(tzinfo=None)], "end": [datetime(2026, 3, 4, 12)], "entities": [["m1", "m2*"]],
            "reason": ["seals"], "action": ["suppress"]}  # fmt: skip
    pl.DataFrame(rows).write_parquet(tmp_path / "plan.parquet")
    assert read_calendar(make_workspace(f"{SENSOR}calendar: {{path: ../plan.parquet}}\n")) == found[:1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"no source file matches .*plan\.csv.*calendar of demo\.yaml"),
        ("start,end\n2026-12-25,\n", r"plan\.csv: there is no column 'reason'; a calendar has the columns start, end"),
        ("start,reason,color\n2026-12-25,x,red\n", r"plan\.csv: 'color' is no column of a calendar"),
        ("start,reason\n2026-12-25,x\nsoon,y\n", r"plan\.csv: row 2: start: 'soon' is neither a day"),
        ("start,reason\n2026-12-25,\n", r"plan\.csv: row 1: reason is missing; mend the row"),
        ("start,end,reason\n2026-12-25,2026-12-24,x\n", r"plan\.csv: row 1: start 2026-12-25 must be before end"),
        ("start,reason,action\n2026-12-25,x,hide\n", r"plan\.csv: row 1: action: Input should be 'mark' or 'suppress'"),
    ],
)
def test_a_wrong_table_is_told_with_file_row_and_remedy(
    make_workspace: Any, tmp_path: Path, content: str | None, words: str
) -> None:
    """A table that is missing is an error, too: a holiday would be learned from."""
    if content is not None:
        (tmp_path / "plan.csv").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_calendar(make_workspace(f"{SENSOR}calendar: {{path: ../plan.csv}}\n"))


def test_an_entry_concerns_names_globs_or_all() -> None:
    """The whole source only where it is about everyone that is known."""
    some = entry(NOON, NOON + HOUR, "m1", "w-*")
    assert [some.concerns(name) for name in ("m1", "m11", "w-7", EVERYONE)] == [True, False, True, False]
    assert some.concerns(EVERYONE, ["m1", "w-1"])
    assert not some.concerns(EVERYONE, ["m1", "m2"])
    assert entry(NOON, NOON + HOUR).concerns(EVERYONE)


def test_steps_get_the_reason_of_the_entry_that_holds_them() -> None:
    """From the start up to, but not including, the end; what suppresses comes first."""
    rows = [("m1", NOON - HOUR), ("m1", NOON), ("m1", NOON + HOUR), ("m2", NOON), ("m2", NOON + 2 * HOUR)]
    frame = pl.DataFrame(rows, schema={"entity": pl.String, "event_time": pl.Datetime("us", "UTC")}, orient="row")
    told = with_plan(
        frame, [entry(NOON, NOON + HOUR, "m1", suppress=True, reason="a"), entry(NOON, NOON + 3 * HOUR, reason="b")]
    )
    assert told["reason"].to_list() == [None, "a", "b", "b", "b"]
    assert told["suppressed"].to_list() == [False, True, False, False, False]
    assert with_plan(frame, [])["reason"].null_count() == 5


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8), st.booleans()), max_size=5))
def test_a_stretch_is_cut_without_loss_or_overlap(spans: list[tuple[int, int, bool]]) -> None:
    """Law: the pieces follow one another from start to end, and each lies wholly within its entry, or in none."""
    calendar = [entry(NOON + a * HOUR, NOON + (a + b) * HOUR, suppress=c, reason=f"{a}") for a, b, c in spans]
    pieces = cut(NOON, NOON + 24 * HOUR, calendar)
    assert (pieces[0][0], pieces[-1][1]) == (NOON, NOON + 24 * HOUR)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(pieces))
    for start, end, held in pieces:
        assert start < end
        if held is not None:
            assert held.start <= start
            assert end <= held.end
        else:
            assert not touching(calendar, start, end)


def test_the_digest_is_of_what_touches_the_time_alone() -> None:
    """Another reason is another digest; what lies elsewhere does not count; nothing is nothing."""
    one, other = entry(NOON, NOON + HOUR), entry(NOON + 5 * HOUR, NOON + 6 * HOUR)
    assert digest(touching([one, other], NOON, NOON + HOUR)) == digest([one])
    assert digest([one]) != digest([entry(NOON, NOON + HOUR, reason="other")])
    assert touching([one], NOON + HOUR, NOON + 2 * HOUR) == []
    assert digest([]) == ""


def test_nothing_is_learned_from_what_the_calendar_covers(make_workspace: Any) -> None:
    """The stretches are those of the entities that an entry is about, cut to the time in question, ends included."""
    rows = [(name, NOON + n * HOUR) for name in ("m1", "m2") for n in range(4)]
    clean = pl.DataFrame(rows, schema={"entity": pl.String, "event_time": pl.Datetime("us", "UTC")}, orient="row")
    covered = stretches([entry(NOON + HOUR, NOON + 3 * HOUR, "m1"), entry(NOON, NOON + HOUR)], ["m1", "m2"])
    assert within(clean, covered).tolist() == [True, True, True, False, True, False, False, False]
    text = f"{SENSOR}calendar: {{entries: [{{start: 2026-03-01, end: 2026-03-31, reason: x, entities: [m2]}}]}}\n"
    found = planned_stretches(make_workspace(text), ["m1", "m2"], NOON, NOON + HOUR)
    assert found.rows() == [("m2", NOON, NOON + HOUR - timedelta(microseconds=1))]
