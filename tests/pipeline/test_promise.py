"""Promised against realised: which nights and incidents count, and what such a count can tell."""

from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pipeline import words
from pipeline.promise import NIGHTS, Promise, Tally, read_promise
from pipeline.review import record
from pipeline.score import Scored
from pipeline.state import State, write_state
from pipeline.tables import incidents_schema

LAST = date(2026, 3, 31)


def night(ws, day, *incidents, promised=0.05, steps=1440, unseen=()):
    """What a night of ten machines leaves: (entity, first day, kind) of each incident."""
    scored = Scored(str(day), steps, 0, 10, "1-abc", promised, len(unseen), list(unseen))
    write_state(ws, State(day, "score", "i", "c", "1-abc", asdict(scored)))
    rows = [
        {
            "incident_id": f"{entity} {first}", "entity": entity, "kind": kind,
            "start": datetime.combine(first, datetime.min.time(), UTC),
            "end": datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=1),
        }
        for entity, first, kind in incidents
    ]  # fmt: skip
    schema = {name: kind for name, kind in incidents_schema().items() if name != "day"}
    ws.lake.replace("incidents", day, pl.DataFrame(rows, schema=schema))


def test_a_month_of_nights_is_counted_without_what_was_confirmed(make_workspace):
    """An incident over midnight counts once, a silence and a confirmed one not at all, nor a night long ago."""
    ws = make_workspace()
    night(ws, LAST - timedelta(days=NIGHTS), ("old", LAST - timedelta(days=NIGHTS), "anomaly"))
    for n in range(NIGHTS - 1, 1, -1):
        night(ws, LAST - timedelta(days=n))
    night(ws, LAST - timedelta(days=1), ("m1", LAST - timedelta(days=1), "anomaly"), ("m3", LAST, "silent"))
    night(ws, LAST, ("m1", LAST - timedelta(days=1), "anomaly"), ("m2", LAST, "anomaly"))
    promise = read_promise(ws, LAST)
    assert promise.promised == 0.05
    assert promise.tonight == Tally(1, 2, 10.0)
    assert promise.lately == Tally(NIGHTS, 2, 10.0 * NIGHTS)
    record(ws, f"m2 {LAST}", "confirmed", "", "ann")
    assert read_promise(ws, LAST).lately.incidents == 1
    record(ws, f"m2 {LAST}", "dismissed", "", "ann")
    assert read_promise(ws, LAST).lately.incidents == 2


def test_nights_of_another_promise_do_not_count(make_workspace):
    """A threshold is held to what it promised itself."""
    ws = make_workspace()
    night(ws, LAST - timedelta(days=1), ("m1", LAST - timedelta(days=1), "anomaly"), promised=1.0)
    night(ws, LAST)
    assert read_promise(ws, LAST).lately == Tally(1, 0, 10.0)


def test_the_bounds_hold_the_true_rate_nine_times_out_of_ten():
    """The Poisson interval covers what it says, for few incidents and for many."""
    rng = np.random.default_rng(0)
    for expected in (0.5, 3, 40):
        tallies = [Tally(1, int(n), 10.0) for n in rng.poisson(expected, 2000)]
        held = np.mean([low <= expected / 10 <= high for low, high in (tally.bounds or (0, 0) for tally in tallies)])
        assert 0.88 < held <= 1
    assert Tally(1, 0, 0.0).bounds is None


@pytest.mark.parametrize(
    ("incidents", "said"),
    [
        (13, "Over the last 28 nights there were 13 incidents that nobody confirmed in 280 entity-days, 0.046 per "
             "entity and day (0.027 to 0.074 by what such a count can tell), where at most 0.05 are promised: the "
             "promise is kept."),
        (1, "there was 1 incident that nobody confirmed in 280 entity-days, 0.0036 per entity and day"),
        (16, "where at most 0.05 are promised: more than promised, but no more than chance explains."),
        (40, "more than promised; confirm those that are real and dismiss the others"),
    ],
)  # fmt: skip
def test_a_sentence_compares_them(incidents, said):
    """What an analyst reads; it blames the threshold only where chance does not explain the count."""
    assert said in words.promise_line(Promise(0.05, Tally(1, 0, 10.0), Tally(28, incidents, 280.0)))
    assert words.promise_line(Promise(None, Tally(1, 0, 0.0), Tally(1, 0, 0.0))) == ""


def test_entities_that_training_did_not_know_are_named():
    """The first three by name, the others by their number."""
    assert words.unseen_line(Scored("d", 1, 0, 1, "v")) == ""
    one = words.unseen_line(Scored("d", 1, 0, 1, "v", 0.1, 1, ["m9"]))
    assert one == "m9 was not there in training and is judged on the scales of all"
    many = words.unseen_line(Scored("d", 1, 0, 9, "v", 0.1, 5, ["a", "b", "c", "d", "e"]))
    assert many == "a, b, c and 2 others were not there in training and are judged on the scales of all"
