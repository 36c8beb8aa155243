"""Two processes that work on one dataset at the same time leave what they leave one after the other."""

import signal
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.backfill import Backfill, backfill
from tests.faults.harness import Running, left, logged, losses, one_entity, run, start, whole_night, workspace
from tests.faults.kills import walk
from tests.faults.stage import Stage
from tests.figures import long, recorded

COUNTED = {"pairs": 0, "kills": 0, "losses": 0}


_figures = recorded(
    "nights_at_once",
    "Two processes run nights, backfills, trainings of one dataset at the same time; a loss is what differs from "
    "what they leave one after the other.",
    lambda: COUNTED,
)


@pytest.fixture(scope="module")
def late(sensor) -> Stage:
    """A night that is to be run, and late rows of the one before."""
    return Stage(sensor, before=("late",))


def day_before(place: Path, night: date) -> dict[str, Any]:
    """A backfill of the night before alone."""
    ws = workspace(place)
    backfill(ws, Backfill("demo", night - timedelta(days=1), night - timedelta(days=1), overwrite=True))
    return logged(ws)


def the_night(place: Path, night: date) -> dict[str, Any]:
    """A backfill of the night alone."""
    ws = workspace(place)
    backfill(ws, Backfill("demo", night, night, overwrite=True))
    return logged(ws)


def trained_again(place: Path, night: date) -> dict[str, Any]:
    """A training on the days that the champion has learned from, whose detector stays a challenger."""
    from pipeline.train import train

    ws = workspace(place)
    never = ws.dataset.training.model_copy(update={"promotion": "never"})
    ws = replace(ws, dataset=ws.dataset.model_copy(update={"training": never}))
    start_of, end = (ws.dataset.day_bounds(night - timedelta(days=n))[0] for n in (6, 1))
    train(ws, start_of, end)
    return {}


def both(stage: Stage, *works: Any, strike: float | None = None) -> list[str]:
    """Run these at the same time, the first killed `strike` seconds after its first step began; then the night again.

    It is not killed, and not counted as a kill, where it has ended before.
    """
    stage.begin()
    running: list[Running] = [start(walk, work, stage.place, stage.night) for work in works]
    if strike is not None:
        assert running[0].heard() is not None, running[0].wait().said
        time.sleep(strike)
        running[0].kill()
    ended = [each.wait() for each in running]
    killed = strike is not None and ended[0].code == -signal.SIGKILL
    failed = [each.said for each in ended[killed:] if each.code]
    COUNTED["pairs"] += 1
    COUNTED["kills"] += killed
    lost = failed + (stage.torn() if killed else []) + stage.mended()
    COUNTED["losses"] += len(lost)
    return lost


LONG = pytest.mark.skipif(not long(), reason="in the long version")


def test_the_same_night_from_two_processes_at_once(stage):
    """Both end well, and the tables, pages and MLflow runs are those of one alone."""
    for _ in range(5 if long() else 1):
        lost = both(stage, whole_night, whole_night)
        assert not lost, "\n".join(lost)


@LONG
@pytest.mark.parametrize("works", [(the_night, day_before), (whole_night, day_before)], ids=["nights", "backfill"])
def test_two_nights_and_a_backfill_beside_a_night(late, works):
    """As one after the other, though each reads what the other writes."""
    for _ in range(5):
        lost = both(late, *works)
        assert not lost, "\n".join(lost)


@LONG
def test_a_training_beside_a_night_changes_nothing_of_it(stage):
    """The challenger that it registers, if any, is another; the night's champion and rows are as without it."""
    lost = both(stage, whole_night, trained_again)
    assert not lost, "\n".join(lost)


def test_one_of_two_nights_is_killed_and_the_other_ends_well(stage):
    """Whenever that is; nothing is lost, and nothing is there twice."""
    for n in range(1, 11 if long() else 2):
        lost = both(stage, whole_night, whole_night, strike=n * 0.4)
        assert not lost, "\n".join(lost)
    assert COUNTED["kills"], "each of them had ended before it was killed"


@LONG
def test_entities_alone_beside_a_whole_night_are_of_one_detector(stage):
    """Scored by the same detector, entities have the rows that they have in the whole night, whoever ends last."""
    stage.begin()
    assert run(whole_night, stage.place, stage.night).code == 0
    running = [start(work, stage.place, stage.night) for work in (one_entity, the_night)]
    alone, whole = (each.wait() for each in running)
    assert whole.code == 0, whole.said
    assert alone.code == 0 or "its scoring has not ended" in alone.said, alone.said  # of the whole night, that is
    again = run(the_night, stage.place, stage.night)
    lost = losses(left(stage.workspace, again.value), stage.expected)
    COUNTED["pairs"] += 1
    COUNTED["losses"] += len(lost)
    assert not lost, "\n".join(lost)
