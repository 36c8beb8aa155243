"""Windows put back together give the input again, whatever the lengths, gaps and order of rows."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Dataset, Window
from pipeline.sequences import (
    add_sequence_features,
    build_steps,
    cut_windows,
    learn_encodings,
    scatter,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = {"path": "x.parquet"}
SENSOR = Dataset(name="s", kind="sensor", source=SOURCE, entity="e", event_time="t", cadence="1m",
                 features=[{"name": "flow"}, {"name": "heat"}], window={"steps": 3, "rows": 4})  # fmt: skip
CARDS = Dataset(
    name="c", kind="transaction", source=SOURCE, entity="e", event_time="t", event_id="i",
    features=[{"name": "amount", "min": 0, "log": True}, {"name": "shop", "type": "categorical"}],
    sequence_features=[
        {"name": "since", "kind": "time_since_last"},
        {"name": "ratio", "kind": "ratio_to_history", "of": "amount", "over": "1h"},
        {"name": "count", "kind": "rolling_count", "over": "1h"},
        {"name": "total", "kind": "rolling_sum", "of": "amount", "over": "1h"},
    ],
)  # fmt: skip


def readings(minutes: dict[str, list[int]], seed: int = 0) -> pl.DataFrame:
    """A clean frame of readings of each entity at the given minutes; a tenth of the cells is missing."""
    rng = np.random.default_rng(seed)
    rows = [(e, START + timedelta(minutes=m)) for e, times in minutes.items() for m in sorted(times)]
    frame = pl.DataFrame(rows, schema={"entity": pl.String, "event_time": pl.Datetime("us", "UTC")}, orient="row")
    cells = rng.normal(size=(len(rows), 2))
    cells[rng.random(cells.shape) < 0.1] = np.nan
    return frame.with_columns(flow=pl.Series(cells[:, 0]).fill_nan(None), heat=pl.Series(cells[:, 1]).fill_nan(None))


fleets = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.lists(st.integers(0, 90), min_size=1, unique=True), min_size=1
)
windows = st.builds(Window, steps=st.integers(1, 5), rows=st.integers(1, 6))


@settings(max_examples=150, deadline=None)
@given(fleets, windows, st.integers(0, 2**32 - 1))
def test_every_target_step_stands_in_exactly_one_target_segment(minutes, window, seed):
    """Each target is scored once, no other step is, and what is put back is what was laid out."""
    steps = build_steps(readings(minutes, seed), SENSOR, {})
    targets = np.random.default_rng(seed).random(len(steps.entity)) < 0.7
    cut = cut_windows(steps, targets, window)
    used = cut.target_index[cut.target_index >= 0]
    assert len(used) == len(set(used))
    assert set(np.flatnonzero(targets)) <= set(used)
    out = np.full(steps.values.shape, np.nan, np.float32)
    scatter(cut, cut.gather(steps.values)[np.arange(len(cut)), cut.target], out)
    np.testing.assert_array_equal(out[used], steps.values[used])
    assert np.isnan(np.delete(out, used, axis=0)).all()


@settings(max_examples=150, deadline=None)
@given(fleets, windows)
def test_windows_hold_one_sequence_in_order_and_end_with_their_target(minutes, window):
    """A window holds one entity's steps in order of time, and nothing after the segment that it scores."""
    steps = build_steps(readings(minutes), SENSOR, {})
    cut = cut_windows(steps, np.ones(len(steps.entity), bool), window)
    for index, target in zip(cut.index, cut.target, strict=True):
        rows = index[index >= 0]
        assert len(np.unique(steps.sequence[rows])) == 1
        assert (np.diff(rows) > 0).all()
        assert (index[target] >= 0).any()
        assert (index[target + 1 :] == -1).all()


@settings(max_examples=50, deadline=None)
@given(fleets, windows, st.randoms())
def test_order_of_input_rows_changes_nothing(minutes, window, random):
    """Steps and windows are the same from shuffled rows."""
    frame = readings(minutes)
    shuffled = frame[random.sample(range(len(frame)), len(frame))]
    one, other = (build_steps(f, SENSOR, {}) for f in (frame, shuffled))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.position, other.position)
    every = np.ones(len(frame), bool)
    np.testing.assert_array_equal(cut_windows(one, every, window).index, cut_windows(other, every, window).index)


def test_gap_is_empty_positions_and_never_a_value():
    """A missing reading leaves an empty place; a gap longer than a window starts a new sequence."""
    steps = build_steps(readings({"a": [0, 1, 4, 40]}), SENSOR, {})
    assert steps.position.tolist() == [0, 1, 4, 0]
    assert steps.sequence.tolist() == [0, 0, 0, 1]
    cut = cut_windows(steps, np.array([True] * 3 + [False]), Window(steps=2, rows=4))
    assert cut.index[0].tolist() == [[0, 1, -1, -1], [-1, -1, -1, -1]]
    assert cut.index[1].tolist() == [[0, 1, -1, -1], [2, -1, -1, -1]]


def test_two_readings_on_one_position_both_keep_a_place():
    """A clock that jitters loses no reading: the later one moves on."""
    frame = readings({"a": [0, 1, 2, 3]}).with_columns(
        event_time=pl.Series([START + timedelta(seconds=s) for s in (0, 40, 70, 180)]).cast(pl.Datetime("us", "UTC"))
    )
    assert build_steps(frame, SENSOR, {}).position.tolist() == [0, 1, 2, 3]


def payments() -> pl.DataFrame:
    """Six payments of two cards."""
    times = [START + timedelta(minutes=m) for m in (0, 30, 45, 200, 10, 20)]
    return pl.DataFrame(
        {"entity": ["x"] * 4 + ["y"] * 2, "event_time": times, "event_id": list("abcdef"),
         "amount": [10.0, 20.0, None, 40.0, 5.0, 5.0], "shop": ["p", "p", "q", None, "p", "r"]}
    ).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))  # fmt: skip


def test_sequence_features_come_from_earlier_events_of_the_same_entity():
    """Worked out by hand: seconds since the last event, ratio to the earlier mean, count and sum with the event."""
    frame = add_sequence_features(payments(), CARDS)
    assert frame["since"].exp().round(3).to_list() == [None, 1801.0, 901.0, 9301.0, None, 601.0]
    assert frame["ratio"].exp().round(3).to_list() == [None, round(21 / 11, 3), None, None, None, 1.0]
    assert frame["count"].exp().round(3).to_list() == [2.0, 3.0, 4.0, 2.0, 2.0, 3.0]
    assert frame["total"].exp().round(3).to_list() == [11.0, 31.0, 31.0, 41.0, 6.0, 11.0]


def test_later_events_change_no_earlier_feature():
    """No feature looks ahead: cutting off the future changes nothing before it."""
    whole = add_sequence_features(payments(), CARDS)
    for n in (1, 2, 3):
        part = add_sequence_features(payments().head(n), CARDS)
        assert part.equals(whole.head(n))


def test_unseen_category_is_the_rarest_and_missing_one_is_not_observed():
    """Categories are the negative log of their share; a new one counts as rarer than all known, null as missing."""
    codes = learn_encodings(payments(), CARDS)
    assert codes["shop"]["p"] < codes["shop"]["q"] == codes["shop"]["r"] < codes["shop"][""]
    fresh = payments().with_columns(shop=pl.Series(["new", None, "p", "p", "p", "p"]))
    steps = build_steps(fresh, CARDS, codes)
    assert steps.values[0, 1] == pytest.approx(codes["shop"][""])
    assert not steps.observed[1, 1]


def test_empty_input_gives_no_windows():
    """Nothing in, nothing out."""
    steps = build_steps(readings({"a": [1]}).head(0), SENSOR, {})
    assert len(cut_windows(steps, np.empty(0, bool), Window())) == 0
