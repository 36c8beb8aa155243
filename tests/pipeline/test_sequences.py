"""Windows put back together give the input again, whatever the lengths, gaps and order of rows."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Dataset, Window
from pipeline.config import Grid as GridOptions
from pipeline.errors import GateRefusedError
from pipeline.sequences import (
    Grid,
    Steps,
    add_sequence_features,
    ahead,
    build_steps,
    by_size,
    cut_strided,
    cut_windows,
    entity_parts,
    learn_encodings,
    make_grid,
    scatter,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = {"path": "x.parquet"}
SENSOR = Dataset(name="s", kind="sensor", source=SOURCE, entity="e", event_time="t", cadence="1m",
                 features=[{"name": "flow"}, {"name": "heat"}], window={"steps": 3, "rows": 4})  # fmt: skip
ANY = Dataset(name="a", kind="transaction", source=SOURCE, entity="e", event_time="t",
              features=[{"name": "flow"}, {"name": "heat"}])  # fmt: skip
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


def laid(minutes: dict[str, list[int]], seed: int = 0) -> tuple[Steps, Grid]:
    """The steps of such readings, and their grid."""
    steps = build_steps(readings(minutes, seed), SENSOR, {})
    return steps, make_grid(steps)


def at_seconds(seconds: list[float], **columns: list[float | None]) -> pl.DataFrame:
    """Readings of one entity at the given seconds."""
    times = pl.Series([START + timedelta(seconds=s) for s in seconds]).cast(pl.Datetime("us", "UTC"))
    empty = pl.Series([None] * len(seconds), dtype=pl.Float64)
    cells = {name: columns.get(name, empty) for name in ("flow", "heat")}
    return pl.DataFrame({"entity": ["a"] * len(seconds), "event_time": times, **cells})


@settings(max_examples=150, deadline=None)
@given(fleets, windows, st.integers(0, 2**32 - 1))
def test_every_target_step_stands_in_exactly_one_target_segment(minutes, window, seed):
    """Each target is scored once, no other segment is, and what is put back is what was laid out."""
    steps, grid = laid(minutes, seed)
    targets = np.random.default_rng(seed).random(len(steps.entity)) < 0.7
    cut = cut_windows(steps, grid, targets, window)
    used = cut.target_index[cut.target_index >= 0]
    assert len(used) == len(set(used))
    assert set(grid.cell[targets]) <= set(used)
    values = grid.lay(steps.values)
    out = np.full((len(grid), 2), np.nan, np.float32)
    scatter(cut.target_index, cut.gather(values)[np.arange(len(cut)), cut.target], out)
    np.testing.assert_array_equal(out[used], values[used])
    assert np.isnan(np.delete(out, used, axis=0)).all()


@settings(max_examples=150, deadline=None)
@given(fleets, windows, st.integers(0, 2**32 - 1))
def test_windows_hold_one_sequence_in_order_and_end_with_their_target(minutes, window, seed):
    """A window holds neighbouring cells of one sequence, in order, and nothing after the segment that it scores.

    Wherever the targets begin: a window that reaches over the beginning of a sequence shows nothing of the one before.
    """
    steps, grid = laid(minutes)
    sequence = np.repeat(np.arange(len(grid.first) - 1), np.diff(grid.first))
    cut = cut_windows(steps, grid, np.random.default_rng(seed).random(len(steps.entity)) < 0.5, window)
    for index, target in zip(cut.index, cut.target, strict=True):
        cells = index[index >= 0]
        assert len(np.unique(sequence[cells])) == 1
        assert (np.diff(cells) == 1).all()
        assert (index[target] >= 0).any()
        assert (index[target + 1 :] == -1).all()


@settings(max_examples=150, deadline=None)
@given(fleets, windows, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_strided_windows_put_back_together_are_the_input(minutes, window, stride, seed):
    """Bit for bit, for every length, stride, padding and gap; what is padding is 0 and counted as such."""
    steps, grid = laid(minutes, seed)
    length = window.steps * window.rows
    cut = cut_strided(grid, window, min(stride, length))
    values, real = grid.lay(steps.values), grid.lay(steps.mask)
    tensor, mask = cut.gather(values), cut.gather(real)
    out = np.full((len(grid), 2), np.nan, np.float32)
    scatter(cut.index, tensor, out)
    np.testing.assert_array_equal(out[grid.cell], steps.values)
    np.testing.assert_array_equal(out, values)
    assert (tensor[~mask] == 0).all()
    assert not mask[cut.index < 0].any()
    assert cut.padding == pytest.approx((cut.index < 0).mean())


@settings(max_examples=100, deadline=None)
@given(fleets, st.builds(Window, steps=st.integers(1, 24), rows=st.integers(1, 3)))
def test_windows_by_size_are_the_windows(minutes, window):
    """Every window comes once, with all its cells, in at most six sizes, of which none depends on the others."""
    steps, grid = laid(minutes)
    cut = cut_windows(steps, grid, np.ones(len(steps.entity), bool), window)
    seen = []
    for places, part in by_size(cut):
        seen += places.tolist()
        np.testing.assert_array_equal(part.index, cut.index[places][:, : part.steps])
        assert (cut.index[places][:, part.steps :] == -1).all()
        one = cut.take(places[:1])
        assert next(by_size(one))[1].steps == part.steps
    assert sorted(seen) == list(range(len(cut)))
    assert len(list(by_size(cut))) <= 6


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
    cuts = [cut_windows(steps, make_grid(steps), every, window).index for steps in (one, other)]
    np.testing.assert_array_equal(*cuts)


@settings(max_examples=50, deadline=None)
@given(fleets, st.integers(1, 200))
def test_parts_are_the_whole(minutes, most):
    """However many rows are read at once: every entity comes once and whole, in order, and none is divided."""
    frame = readings(minutes)
    parts = [part.sort("entity", "event_time") for part in ahead(entity_parts(frame.lazy(), most))]
    assert pl.concat(parts).equals(frame.sort("entity", "event_time"))
    assert sum(part["entity"].n_unique() for part in parts) == frame["entity"].n_unique()


def test_parts_of_nothing_are_one_empty_frame():
    """So that whoever joins the results has their columns."""
    (part,) = entity_parts(readings({"a": [1]}).head(0).lazy(), 10)
    assert part.is_empty()


def test_what_fails_ahead_fails_in_its_place():
    """The items before an error are yielded; then the error is raised, not lost in its thread."""

    def items():
        yield 1
        yield 2
        raise GateRefusedError("no more")

    coming = ahead(items())
    assert [next(coming), next(coming)] == [1, 2]
    with pytest.raises(GateRefusedError, match="no more"):
        next(coming)


def test_only_one_item_is_made_ahead():
    """So that memory stays bounded however slow the reader is; who stops reading stops the making."""
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    coming = ahead(items())
    assert next(coming) == 0
    coming.close()
    assert made == [0, 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 2)), min_size=1), st.randoms())
def test_rows_come_in_one_order_whatever_their_order_was(rows, random):
    """By entity and event time, and those of one moment by what else they hold."""
    frame = pl.DataFrame(
        [(e, START + timedelta(minutes=m), float(v), 0.0) for e, m, v in rows],
        schema={"entity": pl.String, "event_time": pl.Datetime("us", "UTC"), "flow": pl.Float64, "heat": pl.Float64},
        orient="row",
    )
    steps = build_steps(frame[random.sample(range(len(frame)), len(frame))], ANY, {})
    wanted = frame.sort("entity", "event_time", "flow", "heat")
    assert steps.frame.equals(wanted.select("entity", "event_time"))
    assert steps.values[:, 0].tolist() == wanted["flow"].to_list()


def test_times_too_far_apart_for_one_number_are_sorted_all_the_same():
    """Two entities over ten thousand years: more microseconds than fit beside the entity in 64 bits."""
    moments = [datetime(year, 1, 1, tzinfo=UTC) for year in (9000, 1, 9000, 1)]
    frame = pl.DataFrame({"entity": ["b", "b", "a", "a"] * 10, "event_time": moments * 10}).with_columns(
        pl.col("event_time").cast(pl.Datetime("us", "UTC")), flow=pl.Series(range(40), dtype=pl.Float64), heat=0.0
    )
    names = pl.concat([frame.with_columns(entity=pl.col("entity") + str(n)) for n in range(40)])
    steps = build_steps(names, ANY, {})
    assert steps.frame.equals(names.sort("entity", "event_time").select("entity", "event_time"))


def test_gap_is_empty_cells_and_never_a_value():
    """A missing reading leaves an empty cell; a gap longer than a window starts a new sequence."""
    steps, grid = laid({"a": [0, 1, 4, 40]})
    assert steps.position.tolist() == [0, 1, 4, 0]
    assert steps.sequence.tolist() == [0, 0, 0, 1]
    assert not grid.lay(steps.observed)[[2, 3]].any()
    cut = cut_windows(steps, grid, np.array([True] * 3 + [False]), Window(steps=2, rows=4))
    assert cut.index[0].tolist() == [[0, 1, 2, 3], [-1, -1, -1, -1]]
    assert cut.index[1].tolist() == [[0, 1, 2, 3], [4, -1, -1, -1]]


def test_longest_gap_is_declared():
    """With `max_gap` a shorter gap already ends a sequence."""
    strict = SENSOR.model_copy(update={"grid": GridOptions(max_gap="2m")})
    assert build_steps(readings({"a": [0, 1, 3, 6]}), strict, {}).sequence.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(("rule", "flow"), [("last", 3.0), ("mean", 2.0)])
def test_readings_of_one_cell_become_one_value(rule, flow):
    """By the declared rule; each of the readings knows its step, and the cells beside it have their own values."""
    dataset = SENSOR.model_copy(update={"grid": GridOptions(duplicates=rule)})
    frame = at_seconds([0, 60, 70, 80, 180], flow=[9.0, 1.0, 3.0, None, 7.0])
    steps = build_steps(frame, dataset, {})
    assert steps.step.tolist() == [0, 1, 1, 1, 2]
    assert steps.first.tolist() == [0, 1, 4]
    assert steps.position.tolist() == [0, 1, 3]
    assert steps.values[:, 0].tolist() == [9.0, flow, 7.0]
    assert steps.observed[:, 0].all()
    assert not steps.observed[:, 1].any()
    assert make_grid(steps).lay(steps.values)[:, 0].tolist() == [9.0, flow, 0.0, 7.0]


def test_two_readings_of_one_cell_can_be_an_error():
    """It names entity, time and remedy; two features that come in rows of their own are no double reading."""
    dataset = SENSOR.model_copy(update={"grid": GridOptions(duplicates="error")})
    apart = at_seconds([0, 10, 60], flow=[1.0, None, 2.0], heat=[None, 5.0, None])
    assert build_steps(apart, dataset, {}).values.tolist() == [[1, 5], [2, 0]]
    with pytest.raises(GateRefusedError, match=r"reading of a at 2026-01-01 00:00:00.*grid.duplicates to last or mean"):
        build_steps(at_seconds([0, 10, 60], flow=[1.0, 1.0, 2.0]), dataset, {})


def test_sensors_of_different_rates_are_joined():
    """A fast and a slow sensor of one machine in rows of their own: every cell has what was read in it."""
    frame = pl.concat([
        at_seconds([0, 60, 120, 180], flow=[1.0, 2.0, 3.0, 4.0]), at_seconds([5, 125], heat=[10.0, 30.0])
    ])  # fmt: skip
    steps = build_steps(frame, SENSOR, {})
    grid = make_grid(steps)
    assert grid.lay(steps.values).tolist() == [[1, 10], [2, 0], [3, 30], [4, 0]]
    assert grid.lay(steps.observed)[:, 1].tolist() == [True, False, True, False]


def test_jitter_is_snapped_within_the_tolerance():
    """Readings about a cell stand in it; one that is further off is an error with entity, time and remedy."""
    seconds = [0, 61, 118, 181.5, 240]
    strict = SENSOR.model_copy(update={"grid": GridOptions(tolerance="2s")})
    frame = at_seconds(seconds, flow=[1.0] * 5)
    assert build_steps(frame, strict, {}).position.tolist() == [0, 1, 2, 3, 4]
    stricter = SENSOR.model_copy(update={"grid": GridOptions(tolerance="1s")})
    with pytest.raises(GateRefusedError, match=r"reading of a at 2026-01-01 00:01:58.*is 2 s off.*or correct cadence"):
        build_steps(frame, stricter, {})


def test_cadence_that_drops_most_readings_is_an_error():
    """Not a quiet choice of every sixtieth reading; with the mean of a cell it is what the user asked for."""
    frame = at_seconds([float(s) for s in range(180)], flow=[float(s) for s in range(180)])
    with pytest.raises(GateRefusedError, match=r"reading of a at .*shorten cadence, or take their mean"):
        build_steps(frame, SENSOR, {})
    mean = SENSOR.model_copy(update={"grid": GridOptions(duplicates="mean")})
    assert build_steps(frame, mean, {}).values[1, 0] == np.mean(range(30, 90))


def test_common_span_counts_from_one_moment():
    """Cells of all entities are the same moments, from the earliest reading on."""
    common = SENSOR.model_copy(update={"grid": GridOptions(span="common")})
    steps = build_steps(readings({"a": [3, 4], "b": [0, 60, 61]}), common, {})
    assert steps.position.tolist() == [3, 4, 0, 60, 61]
    assert steps.sequence.tolist() == [0, 0, 1, 1, 1]
    assert len(make_grid(steps)) == 5 + 62


def test_odd_entities_have_their_steps():
    """One row, nothing observed, a clock that ran backwards: each has its sequence, in order of event time."""
    frame = pl.concat([
        at_seconds([60, 0, 120], flow=[2.0, 1.0, 3.0]),
        at_seconds([0]).with_columns(entity=pl.lit("b")),
        at_seconds([0, 60]).with_columns(entity=pl.lit("c")),
    ])  # fmt: skip
    steps, window = build_steps(frame, SENSOR, {}), Window(steps=1, rows=4)
    grid = make_grid(steps)
    assert steps.values[:3, 0].tolist() == [1, 2, 3]
    mask = cut_strided(grid, window, 4).gather(grid.lay(steps.mask))
    assert mask[:, 0].tolist() == [[True, True, True, False], [False] * 4, [False] * 4]


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


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 200), st.integers(0, 9)), min_size=1), st.integers(0, 1)
)
def test_sequence_features_are_those_of_the_definition(rows, far):
    """Worked out event by event, whatever the entities beside; with entities too many years apart for one line too."""
    rows = sorted(rows, key=lambda row: row[:2])
    start = datetime(1 if far else 2026, 1, 1, tzinfo=UTC)
    years = timedelta(days=365 * 8000 * far)
    times = [start + timedelta(minutes=10 * m) + years * (m > 100) for _, m, _ in rows]
    frame = pl.DataFrame({"entity": [e for e, _, _ in rows], "event_time": times, "event_id": "x", "shop": "p",
                          "amount": [None if v == 0 else float(v) for *_, v in rows]},
                         schema_overrides={"event_time": pl.Datetime("us", "UTC"), "amount": pl.Float64})  # fmt: skip
    found = add_sequence_features(pl.concat([frame, frame.with_columns(entity=pl.lit("e")).head(1)]), CARDS)
    assert found.columns[:5] == frame.columns
    for n, (entity, _, value) in enumerate(rows):
        before = [m for m in range(n) if rows[m][0] == entity]
        hour = timedelta(hours=1)
        near = [rows[m][2] or None for m in [*before, n] if times[n] - times[m] < hour]
        earlier = [rows[m][2] for m in before if rows[m][2] and timedelta(0) < times[n] - times[m] <= hour]
        row = found.row(n, named=True)
        assert row["count"] == pytest.approx(np.log1p(len(near)))
        assert (row["since"] is None) == (not before)
        if before:
            assert row["since"] == pytest.approx(np.log1p((times[n] - times[before[-1]]).total_seconds()))
        assert (row["ratio"] is None) == (not value or not earlier)
        if value and earlier:
            assert row["ratio"] == pytest.approx(np.log1p(value) - np.log1p(np.mean(earlier)))
        if any(near):
            assert row["total"] == pytest.approx(np.log1p(sum(v for v in near if v)))


def test_later_events_change_no_earlier_feature():
    """No feature looks ahead: cutting off the future changes nothing before it."""
    whole = add_sequence_features(payments(), CARDS)
    for n in (1, 2, 3):
        part = add_sequence_features(payments().head(n), CARDS)
        assert part.equals(whole.head(n))


def test_events_at_one_time_see_only_those_that_stand_before_them():
    """Of three payments in the same moment the first counts itself, the second two, the third three.

    Exactly an hour later none of them counts, as a stretch does not include its far end.
    """
    hour = START + timedelta(hours=1)
    frame = (
        payments()
        .head(4)
        .with_columns(pl.Series([START] * 3 + [hour]).cast(pl.Datetime("us", "UTC")).alias("event_time"))
    )
    found = add_sequence_features(frame, CARDS)
    assert found["count"].exp().round(3).to_list() == [2.0, 3.0, 4.0, 2.0]
    assert found["total"].exp().round(3).to_list() == [11.0, 31.0, 31.0, 41.0]
    assert found["ratio"].to_list() == [None, None, None, pytest.approx(np.log(41 / 16))]


def test_unseen_category_is_the_rarest_and_missing_one_is_not_observed():
    """Categories are the negative log of their share; a new one counts as rarer than all known, null as missing."""
    codes = learn_encodings(payments(), CARDS)
    assert codes["shop"]["p"] < codes["shop"]["q"] == codes["shop"]["r"] < codes["shop"][""]
    fresh = payments().with_columns(shop=pl.Series(["new", None, "p", "p", "p", "p"]))
    steps = build_steps(fresh, CARDS, codes)
    assert steps.values[0, 1] == pytest.approx(codes["shop"][""])
    assert not steps.observed[1, 1]


def test_categories_can_be_the_index_of_an_embedding():
    """From 1 by falling frequency, 0 for the unseen, nothing for the missing."""
    codes = learn_encodings(payments(), CARDS, index=True)
    assert codes["shop"] == {"p": 1, "q": 2, "r": 3, "": 0}
    fresh = payments().with_columns(shop=pl.Series(["new", None, "p", "p", "q", "r"]))
    steps = build_steps(fresh, CARDS, codes)
    assert steps.values[[0, 2, 3, 4, 5], 1].tolist() == [0, 1, 1, 2, 3]
    assert not steps.observed[1, 1]


def test_empty_input_gives_no_windows():
    """Nothing in, nothing out."""
    steps = build_steps(readings({"a": [1]}).head(0), SENSOR, {})
    grid = make_grid(steps)
    assert len(grid) == 0
    for cut in (cut_windows(steps, grid, np.empty(0, bool), Window()), cut_strided(grid, Window(), 1)):
        assert cut.gather(grid.lay(steps.values)).shape == (0, 8, 8, 2)
        assert cut.padding == 0
    none, some = (add_sequence_features(payments().head(n), CARDS) for n in (0, 1))
    assert none.schema == some.schema
    assert build_steps(payments().head(0), CARDS, learn_encodings(payments(), CARDS)).values.shape == (0, 6)
