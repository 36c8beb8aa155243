"""SIGKILL anywhere in a night loses nothing: run again, it ends with the tables, pages and MLflow runs of one alone."""

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.harness import Work, backfilled, one_entity, reviewed, run, whole_night
from tests.faults.kills import STEPS, Kill, walk
from tests.faults.stage import Stage
from tests.figures import long, recorded

SEED = 8
KILLED = Counter({"at a point": 0, "in a step": 0, "losses": 0})


_figures = recorded(
    "kills",
    "A night, a backfill or a review is killed (SIGKILL) at commits, files and transactions that it passes and at "
    "random moments of its steps, and run again; a loss is a day of a table, a page or an MLflow run that differs "
    "from an undisturbed run's, or that a reader saw half-written in between.",
    lambda: {"kills": KILLED.total() - KILLED["losses"], **KILLED},
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Work that is killed, by name, after what was done or delivered `before`; and how many kills, short and long."""

    name: str
    work: Work
    before: tuple[str, ...] = ()
    kills: tuple[int, int] = (1, 20)


SCENARIOS = (
    Scenario("sensor night", whole_night, (), (9, 60)),
    Scenario("transaction night with late rows and labels", whole_night, ("late",), (5, 40)),
    Scenario("sensor entity", one_entity, ("night",), (4, 30)),
    Scenario("sensor review", reviewed, ("night",), (2, 10)),
    Scenario("sensor night with late rows", whole_night, ("late",), (0, 20)),
    Scenario("transaction night", whole_night, (), (0, 30)),
    Scenario("transaction backfill", backfilled, ("night", "late"), (0, 20)),
)


def kills(stage: Stage, chosen: random.Random) -> Iterator[Kill]:
    """Points, spread over all that there are, and moments in the steps, in turn; without end."""
    points = list(range(1, len(stage.walked.points) + 1))
    chosen.shuffle(points)
    steps = [step for step in STEPS if step in stage.walked.seconds]
    while True:
        for place in points:
            yield Kill(point=place)
            if steps:
                step = chosen.choice(steps)
                yield Kill(step=step, seconds=chosen.uniform(0, stage.walked.seconds[step]))


def strike(stage: Stage, kill: Kill) -> list[str] | None:
    """Kill there and run again: what was lost, each in words; None where the work had ended before."""
    stage.begin()
    killed = run(walk, stage.work, stage.place, stage.night, kill.point, watch=kill.watch)
    if killed.code != -signal.SIGKILL:
        assert kill.step, f"the process did not pass the point: {killed.said}"
        return None
    return [*stage.torn(), *stage.mended()]


def where(name: str, stage: Stage, kill: Kill) -> str:
    """The place of a kill, and how it is repeated alone."""
    told = f"{kill}" if kill.step else f"{kill} of {len(stage.walked.points)}, {stage.walked.points[kill.point - 1]}"
    return f"{name}, killed at {told}; alone: NIGHTSIFT_KILL='{name}@{kill}'"


def chosen_scenarios() -> list[Scenario]:
    """The one that NIGHTSIFT_KILL names, or without it all that have kills; raises where it names none."""
    if (wanted := os.environ.get("NIGHTSIFT_KILL")) is None:
        return [each for each in SCENARIOS if each.kills[long()]]
    name, at, _ = wanted.partition("@")
    found = [each for each in SCENARIOS if at and each.name == name]
    assert found, f"NIGHTSIFT_KILL is {wanted}, not NAME@KILL with one of {', '.join(each.name for each in SCENARIOS)}"
    return found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", chosen_scenarios(), ids=lambda each: each.name)
def test_what_is_killed_anywhere_is_mended_by_the_next_run(scenario, request):
    """Sensor and transaction nights, late rows and labels, entities alone, a backfill, a review from a spreadsheet.

    Killed before and after each commit, file and SQL transaction, and at random moments in each step. Before the next
    run each table can be read, and each of its days is what it was or what it will be; after it nothing differs.
    """
    alone = os.environ.get("NIGHTSIFT_KILL", "").partition("@")[2]
    stage = Stage(request.getfixturevalue(scenario.name.split()[0]), scenario.work, scenario.before)
    chances = iter([Kill.read(alone)]) if alone else kills(stage, random.Random(f"{SEED} {scenario.name}"))
    wanted, lost = 1 if alone else scenario.kills[long()], list[str]()
    while wanted:
        kill = next(chances)
        found = strike(stage, kill)
        if found is not None:
            wanted -= 1
            KILLED["in a step" if kill.step else "at a point"] += 1
            lost += [f"{where(scenario.name, stage, kill)}: {what}" for what in found]
    KILLED["losses"] += len(lost)
    assert not lost, "\n".join(lost)
