"""Nights on days of 23 and 25 hours, on a leap day and at New Year, and by a clock that goes backwards."""

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import time_machine

from pipeline.errors import GateRefusedError
from pipeline.ingest import ingest
from pipeline.night import report_night, run_night, score_day
from pipeline.score import stale_days
from pipeline.state import states
from pipeline.tables import MOMENT
from pipeline.validate import REFUSED, validate
from tests.conftest import deliver, tables
from tests.faults.harness import (
    TEXTS,
    Contents,
    command,
    contents,
    left,
    local_day,
    logged,
    losses,
    night_command,
    run,
    workspace,
)
from tests.figures import long, recorded

COUNTED = {"days": 0, "clocks": 0, "losses": 0}
SPRING, AUTUMN = date(2024, 3, 31), date(2024, 10, 27)


_figures = recorded(
    "clock",
    "Days of 23 and 25 hours, a leap day, New Year, by a naive clock, each twice and against rows counted by hand, "
    "and nights by clocks that are set back, slow or fast; a loss is a row that is not where it must be, or differs.",
    lambda: COUNTED,
)


# --- days


def nonexistent() -> pl.DataFrame:
    """An hour of readings by a clock that did not go forward."""
    times = [datetime(2024, 3, 31, 2, minute) for minute in range(0, 60, 10)]
    return pl.DataFrame({"machine": "m0", "time": times, "flow": 0.0, "heat": 0.0}).with_columns(
        pl.col("time").cast(pl.Datetime("us"))
    )


# By day: rows that come in, those that are clean, and first and last moment of the day in UTC; four machines each.
COUNTED_BY_HAND = {
    date(2024, 2, 29): (4 * 144, 4 * 144, "2024-02-28T23:00", "2024-02-29T22:50"),
    SPRING: (4 * 138 + 6, 4 * 138, "2024-03-30T23:00", "2024-03-31T21:50"),
    AUTUMN: (4 * 150, 4 * (150 - 12), "2024-10-26T22:00", "2024-10-27T22:50"),
    date(2024, 12, 31): (4 * 144, 4 * 144, "2024-12-30T23:00", "2024-12-31T22:50"),
    date(2025, 1, 1): (4 * 144, 4 * 144, "2024-12-31T23:00", "2025-01-01T22:50"),
}


def odd_days(place: Path, _night: date) -> list[dict[str, Any]]:
    """Each of the days run twice: what was counted, and whether the second time changed anything."""
    ws = workspace(place)
    for day in COUNTED_BY_HAND:
        rows = local_day(day)
        deliver(ws, pl.concat([rows, nonexistent()]) if day == SPRING else rows, str(day))
    found = []
    for day in COUNTED_BY_HAND:
        night = run_night(ws, day)
        once = contents(ws)
        run_night(ws, day)
        times = ws.lake.scan("clean", {"event_time": MOMENT}, day, day).collect()["event_time"]
        counted = (night.rows_in, night.rows_clean, night.rows_quarantined, night.rows_duplicate, night.steps)
        found.append({"counted": counted, "times": (times.min(), times.max()), "changed": contents(ws) != once})
    return found


def test_days_of_odd_length_and_at_odd_dates_have_the_rows_that_were_counted_by_hand(stage):
    """What the clock shows twice, or never, goes to quarantine; all else is clean and scored, twice the same."""
    stage.begin()
    ended = run(odd_days, stage.place, stage.night)
    assert ended.code == 0, ended.said
    for (day, (came, clean, first, last)), found in zip(COUNTED_BY_HAND.items(), ended.value, strict=True):
        moments = tuple(datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (first, last))
        COUNTED["days"] += 1
        COUNTED["losses"] += came - found["counted"][1] - found["counted"][2]
        assert found == {"counted": (came, clean, came - clean, 0, clean), "times": moments, "changed": False}, day


def test_an_hour_that_comes_twice_is_scored_whole_where_times_name_their_offset(make_workspace):
    """The same day, of 25 hours, from a source whose clock says which of the two hours it means."""
    ws = make_workspace(TEXTS["sensor"])
    start = datetime(2024, 10, 26, 22, tzinfo=UTC)
    times = [(start + timedelta(minutes=10 * n)).astimezone(ws.dataset.tz).isoformat() for n in range(150)]
    deliver(ws, pl.DataFrame({"machine": "m0", "time": times, "flow": 0.0, "heat": 0.0}), "day")
    ingest(ws)
    found = validate(ws, AUTUMN)
    COUNTED["days"] += 1
    assert (found.rows_in, found.rows_clean) == (150, 150)
    assert tables(ws, "clean")["clean"]["event_time"].n_unique() == 150


# --- clocks


def set_back(place: Path, night: date, clocks: tuple[str, ...]) -> dict[str, Any]:
    """A night during which the clock jumps: before each step it shows the next of `clocks`."""
    ws = workspace(place)
    with time_machine.travel(clocks[0]):
        ingest(ws)
    with time_machine.travel(clocks[1]):
        for day in stale_days(ws, night):
            score_day(ws, day)
    with time_machine.travel(clocks[2]):
        report_night(ws, night)
        return logged(ws)


BY_HOURS = ("2024-04-01T01:00", "2024-03-31T20:00", "2024-04-01T02:00")
BY_YEARS = ("2031-01-01", "2026-01-01", "1999-01-01")


@pytest.mark.parametrize("clocks", [BY_YEARS, BY_HOURS] if long() else [BY_YEARS], ids=lambda clocks: clocks[1])
def test_a_clock_that_is_set_back_during_the_night_changes_nothing(stage, clocks):
    """By hours, before the end of the day that is scored, or by years."""
    stage.begin()
    ended = run(partial(set_back, clocks=clocks), stage.place, stage.night)
    assert ended.code == 0, ended.said
    lost = losses(left(stage.workspace, ended.value), stage.expected)
    COUNTED["clocks"] += 1
    COUNTED["losses"] += len(lost)
    assert not lost, "\n".join(lost)


def wrong_year(place: Path, night: date) -> None:
    """The command line by a clock that has lost its battery."""
    with time_machine.travel("2000-01-01"):
        command(place, *night_command(night))


def test_a_clock_of_another_century_refuses_the_night_and_the_next_has_all(stage):
    """All that comes is in the future then: no row is landed, or taken for known."""
    stage.begin()
    ended = run(wrong_year, stage.place, stage.night)
    assert ended.code in (1, 2, 3), ended.said
    assert "Traceback" not in ended.said
    lost = [*stage.torn(), *stage.mended()]
    COUNTED["clocks"] += 1
    COUNTED["losses"] += len(lost)
    assert not lost, "\n".join(lost)


def nights_by(place: Path, last: date, clocks: tuple[str, ...]) -> Contents:
    """What the tables have after a night by each of the clocks, one after the other, but for records of refusals."""
    ws = workspace(place)
    for clock in clocks:
        with time_machine.travel(clock):
            ingest(ws)
            for day in stale_days(ws, last):
                with suppress(GateRefusedError):  # a day of which most is in the future is not judged
                    run_night(ws, day)
    done = states(ws).filter(pl.col("step") != REFUSED)
    return {**contents(ws), "partitions": {"done": done.write_json()}}


RIGHT = "2024-04-05"


@pytest.mark.parametrize(
    "clock", ["2024-04-02T21:00", "2024-03-31T12:00", "2101-01-01"], ids=["slow", "slower", "fast"]
)
def test_what_a_wrong_clock_took_for_the_future_or_did_not_is_landed_anew_by_the_right_one(stage, clock):
    """A file of three days, and of a row of 2099, of which a night saw all but the last hours, half a day, or all."""
    last, found = stage.night + timedelta(days=3), []
    odd = local_day(last).head(1).with_columns(time=pl.lit(datetime(2099, 1, 1)).cast(pl.Datetime("us")))
    rows = pl.concat([*(local_day(stage.night + timedelta(days=n), "m1" * (n == 1)) for n in (1, 2, 3)), odd])
    for clocks in [(RIGHT,), (clock, RIGHT)]:
        stage.begin()
        deliver(stage.workspace, rows, "three-days")
        ended = run(nights_by, stage.place, last, clocks)
        assert ended.code == 0, ended.said
        found.append(ended.value)
    COUNTED["clocks"] += 1
    COUNTED["losses"] += found[0] != found[1]
    assert found[0] == found[1]
    held = stage.workspace.lake.scan("quarantine", {"reasons": pl.List(pl.String)}, stage.night, last).collect()
    assert held["reasons"].to_list()[-1] == ["event_time: 2098-12-31 23:00:00 is in the future"], held
