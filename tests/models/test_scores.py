"""Errors become scores that see one loud channel, ignore what is missing, and never look ahead."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.injections import EVENT_INJECTIONS, INJECTIONS
from models.scaler import RobustScaler
from models.scores import (
    LABELLED,
    Odds,
    Signals,
    View,
    absences,
    measure,
    most_surprised,
    own_levels,
    quadratic_form,
    repeats,
    signals,
    slow_baseline,
    smooth,
    stuck,
    surprise,
    wander,
)
from models.threshold import Rarity


def view(cells: np.ndarray, *, inputs: bool = False) -> View:
    """A view that was learned from such cells."""
    scaler = RobustScaler({}, np.zeros((1, cells.shape[1])), np.ones((1, cells.shape[1])))
    return View(inputs, 1.0, False, 0.0, scaler, quadratic_form(cells, inputs=inputs))


def test_contributions_add_up_and_missing_cells_do_not_count():
    """Shares sum to one over the observed channels; a step with nothing observed has no score."""
    normal = np.random.default_rng(0).normal(size=(5000, 3))
    score, share = measure(np.array([[1.0, 4.0, np.nan], [0.0, 0.0, 0.0], [np.nan] * 3]), view(normal))
    assert np.nansum(share[0]) == pytest.approx(1)
    assert share[0, 1] > 0.9
    assert np.isnan(share[0, 2])
    assert score[1] == 0
    assert share[1] == pytest.approx(1 / 3)
    assert np.isnan(score[2])
    same = measure(np.array([[2.0, 2.0, 2.0], [2.0, 2.0, np.nan]]), view(normal))[0]
    assert same[1] == pytest.approx(same[0], rel=0.05)


def test_a_view_hears_what_is_loud_and_what_breaks_a_relation():
    """One step in a hundred normal ones scores above 1; two channels that go apart score as a loud one does."""
    rng = np.random.default_rng(1)
    common = rng.normal(size=(20_000, 1))
    normal = np.concatenate([common + 0.1 * rng.normal(size=(20_000, 2)), rng.normal(size=(20_000, 8))], axis=1)
    learned = view(normal[:10_000])
    assert np.mean(measure(normal[10_000:], learned)[0] > 1) == pytest.approx(0.01, abs=0.004)
    step = np.zeros((3, 10))
    step[0, :2], step[1, :2], step[2, 5] = (2, 2), (2.5, -2.5), 8
    together, apart, loud = measure(step, learned)[0]
    assert together < 1 < apart / 1.1
    assert loud > 1
    assert measure(step, learned)[1].argmax(axis=1)[2] == 5


def test_inputs_are_measured_by_size_alone():
    """Two inputs that went together in normal data may go apart: which levels meet is no law, as errors follow one."""
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(5000, 1)) + 0.1 * rng.normal(size=(5000, 2))
    step = np.array([[2.0, 2.0], [2.0, -2.0], [0.0, 5.0]])
    score, share = measure(step, view(normal, inputs=True))
    assert score[0] == pytest.approx(score[1])
    assert score[2] > score[0]
    np.testing.assert_allclose(share, [[0.5, 0.5], [0.5, 0.5], [0, 1]])
    errors = measure(step, view(normal))[0]
    assert errors[1] > 1.5 * errors[0]


def test_a_quiet_channel_alone_is_heard_beside_loud_ones():
    """What is nothing for a loud channel is much for a quiet one; its own burst is not much for the loud one."""
    rng = np.random.default_rng(4)
    normal = rng.normal(size=(50_000, 20))
    normal[:, 0] *= np.where(rng.random(50_000) < 0.01, 15, 1)
    cells = np.zeros((5, 20))
    cells[0, 3], cells[1, 0], cells[2, 3], cells[3, 3], cells[4] = 10, 10, -10, 1e9, np.nan
    learned = replace(view(normal), alone=True, form=own_levels(normal))
    score, share = measure(cells, learned)
    assert score[0] > 4
    assert score[1] < 1
    assert score[2] == score[0]
    assert score[3] < 30
    assert np.isnan(score[4])
    assert share[0, 3] == 1
    assert np.mean(measure(rng.normal(size=(50_000, 20)), learned)[0] > 1.5) < 1e-3


def test_a_channel_that_never_moved_has_a_level_of_its_own():
    """Four deviations at least; without cells there are levels too."""
    still = np.zeros((1000, 2))
    still[:, 1] = np.nan
    form = own_levels(still)
    assert form[0, 0] == pytest.approx(1 / 16)
    assert 0 < form[1, 1] <= 1 / 16
    assert np.isfinite(own_levels(np.empty((0, 2)))).all()


def test_a_level_that_moved_in_training_widens_the_scale_of_its_own_entity():
    """By the distance of its halves' medians; one that was never learned has what all have together."""
    rng = np.random.default_rng(5)
    entity, later = np.repeat([0, 1, 2], 400), np.tile(np.repeat([False, True], 200), 3)
    inputs = rng.normal(size=(1200, 2)).astype(np.float32)
    inputs[(entity == 1) & later, 0] += 6
    inputs[entity == 2] = np.nan
    moved = wander(inputs, entity, later, 3)
    np.testing.assert_allclose(moved, [[0, 0], [6, 0], [0, 0]], atol=0.3)
    learned = RobustScaler({"a": 1, "b": 2}, np.zeros((3, 2)), np.full((3, 2), 0.5)).widened(moved, ["a", "b", "c"])
    assert learned.scale[2, 0] == pytest.approx(6, rel=0.1)
    assert learned.scale[1, 0] == pytest.approx(0.5, rel=0.2)
    assert learned.scale[0, 0] == pytest.approx(np.hypot(0.5, 6 / np.sqrt(3)), rel=0.1)
    assert wander(np.empty((0, 2), np.float32), entity[:0], later[:0], 0).shape == (0, 2)


def test_a_shard_without_an_entity_has_scores_of_length_zero():
    """As when a night of two machines is divided into two shards."""
    normal = np.random.default_rng(2).normal(size=(500, 6))
    for inputs in (False, True):
        score, share = most_surprised([measure(np.empty((0, 6)), view(normal, inputs=inputs))] * 2)
        assert score.shape == (0,)
        assert share.shape == (0, 6)


def test_the_more_surprised_view_decides():
    """Its contributions come with its score; a view that saw nothing does not count."""
    score, share = most_surprised([
        (np.array([1.0, 3.0, np.nan, np.nan]), np.array([[1, 0], [1, 0], [1, 0], [np.nan] * 2])),
        (np.array([2.0, 1.0, 0.5, np.nan]), np.array([[0, 1], [0, 1], [0, 1], [np.nan] * 2])),
    ])  # fmt: skip
    np.testing.assert_array_equal(score, [2.0, 3.0, 0.5, np.nan])
    np.testing.assert_array_equal(share[:3], [[0, 1], [1, 0], [0, 1]])


AMOUNTS = ((0, 2, False),)  # amount, shop, ratio


def judged(values: list[list[float]], expected: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Score and contributions of events with the channels amount, shop and ratio to history, and 20,000 normal ones."""
    rng = np.random.default_rng(3)
    normal = np.stack([rng.gamma(4, 10, 20_000), rng.normal(3, 1, 20_000), rng.normal(0, 0.5, 20_000)], axis=1)
    usual = np.tile([40.0, 3.0, 0.0], (20_000, 1))
    learned = signals(*(part.astype(np.float32) for part in (normal, usual, normal - usual)), AMOUNTS)
    about = Signals(AMOUNTS, (1,), tuple(Rarity.learn(one, 0.01) for one in learned.T))
    seen, wanted = np.array(values, np.float32), np.array(expected, np.float32)
    return surprise(signals(seen, wanted, seen - wanted, AMOUNTS), about)


def test_events_are_judged_by_how_rare_they_are():
    """A large amount surprises, by itself or against history and expectation; a small one does not."""
    expected = [[40, 3, 0]] * 6
    score, share = judged(
        [[40, 3, 0], [400, 3, 2.3], [1, 3, -2], [40, 9, 0], [np.nan, 3, np.nan], [np.nan] * 3], expected
    )
    usual, large, small, odd, no_amount, nothing = score
    assert usual < 1
    assert large > 4
    assert share[1].argmax() == 0
    assert small < 1
    assert large > odd > 1
    assert share[3].argmax() == 1
    assert no_amount < 1
    assert np.isnan(share[4, 0])
    assert np.isnan(nothing)


def test_a_minor_channel_surprises_no_more_than_calibration_can_vouch_for():
    """Less weight, and at most two decades beyond the events that were seen."""
    score, _ = judged([[40, 1e3, 0], [40, 1e6, 0]], [[40, 3, 0]] * 2)
    assert score[0] == score[1] == pytest.approx(0.5 * (np.log10(20_000) + 2), rel=0.02)


def with_rates(rates: list[float], surprise_of: float, odds: Odds | None) -> tuple[np.ndarray, np.ndarray]:
    """Score and contributions of events with an amount of that surprise, a ratio, and a rate, normally below 0.1."""
    rng = np.random.default_rng(4)
    normal = np.stack([rng.exponential(1, 50_000), rng.normal(0, 1, 50_000), rng.uniform(0, 0.1, 50_000)], axis=1)
    about = Signals(((0, 1, False),), (), tuple(Rarity.learn(one, 0.01) for one in normal.T), (2,), odds)
    amount = -np.log(10.0**-surprise_of)
    signal = np.array([[amount, 0.0, rate, 0.0] for rate in rates])
    return surprise(signal, replace(about, rarities=(*about.rarities, about.rarities[1])))


def test_a_rate_of_labels_counts_as_a_surprise_that_is_as_often_anomalous():
    """It lifts the score to that of the odds, never lowers it; its contribution is what it lifts by."""
    odds = Odds(np.array([1.0, 2.0, 3.0]), np.array([0.01, 0.1, 0.9]))
    score, share = with_rates([0.0, 0.005, 0.1, 0.5, 1.0, np.nan], 1.0, odds)
    assert score[[0, 1, 5]] == pytest.approx(score[0])
    assert score[2:5] == pytest.approx([2.0, 2.5, 3.0])
    assert share[:5].sum(axis=1) == pytest.approx(1)
    assert share[0, 2] == 0
    assert share[3, 2] == pytest.approx(1 - (score[0] / 2.5) ** 3)
    assert np.isnan(share[5, 2])
    louder, _ = with_rates([0.0, 0.5], 4.0, odds)
    assert louder[0] == louder[1] > 3.5


def test_a_rate_of_labels_stands_for_its_own_rarity_where_too_few_labels_are_known():
    """The higher the rarer, and none the less at full weight."""
    score, share = with_rates([0.0, 0.05, 0.5], 1.0, None)
    assert score[2] > 2.5 > score[1] > score[0]
    assert share[2].argmax() == 2


@given(st.lists(st.tuples(st.sampled_from(range(12)), st.booleans()), min_size=LABELLED, max_size=200))
def test_odds_are_the_nearest_that_never_fall(events):
    """Shares between 0 and 1 that ascend with the score, right on average; none of fewer than 20 anomalies."""
    score, anomalous = (np.array(part, float) for part in zip(*events, strict=True))
    odds = Odds.learn(score, anomalous)
    if anomalous.sum() < LABELLED:
        assert odds is None
        return
    assert odds is not None
    assert (np.diff(odds.share) > 0).all()
    assert (np.diff(odds.score) > 0).all()
    assert 0 <= odds.share[0] <= odds.share[-1] <= 1
    assert odds.surprise(odds.share) == pytest.approx(odds.score)


def test_smoothing_uses_the_past_of_its_own_sequence_only():
    """Changing the future, or another sequence, changes nothing; NaN stays NaN and does not count."""
    rng = np.random.default_rng(0)
    error = rng.normal(size=(20, 2)).astype(np.float32)
    error[5, 0] = np.nan
    sequence = np.repeat([0, 1], 10)
    base = smooth(error, sequence, 0.3)
    later = error.copy()
    later[7:] += 100
    np.testing.assert_array_equal(smooth(later, sequence, 0.3)[:7], base[:7])
    assert np.isnan(base[5, 0])
    assert base[10] == pytest.approx(error[10], rel=1e-6)
    np.testing.assert_array_equal(smooth(error, sequence, 1.0), error)


@pytest.mark.parametrize("kind", INJECTIONS)
def test_injections_change_one_channel_and_leave_the_original(kind):
    """An injected anomaly stays in one channel, or swaps two, and does not touch the data it was made from."""
    values = np.random.default_rng(1).normal((0, 100, 200), size=(16, 3))
    before = values.copy()
    out = INJECTIONS[kind](values, np.ones(3), np.random.default_rng(0))
    np.testing.assert_array_equal(values, before)
    moved = (out != values).any(axis=0)
    assert moved.sum() == (2 if kind == "swapped" else 1)
    if kind in ("spike", "shift", "noise", "drift"):
        assert np.abs(out - values).max() > 1
    if kind == "stuck":
        assert len(np.unique(out[:, moved])) == 1
    if kind == "missing":
        assert np.isnan(out[:, moved]).all()


def test_absences_are_counted_in_their_own_sequence():
    """Steps without a reading, from the sequence's beginning or the last reading on."""
    observed = np.array([[1, 0], [0, 0], [0, 1], [1, 0], [0, 0], [0, 0]], bool)
    sequence = np.array([0, 0, 0, 0, 1, 1])
    assert absences(observed, sequence).T.tolist() == [[0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 1, 2]]
    assert absences(np.empty((0, 2), bool), np.empty(0, int)).shape == (0, 2)


@pytest.mark.parametrize(("kind", "events"), [("amount", 1), ("velocity", 7), ("merchant", 1)])
def test_event_injections_change_what_they_are_named_after(kind, events):
    """Several times the amount, several events within ten minutes, or categories never seen; nothing else."""
    time = datetime(2026, 1, 1, tzinfo=UTC)
    event = pl.DataFrame({"entity": ["c"], "event_time": [time], "amount": [10.0], "km": [3.0], "shop": ["s"]})
    made = EVENT_INJECTIONS[kind](event, ["amount"], ["shop"], np.random.default_rng(0))
    assert len(made) == events
    assert made["km"].unique().to_list() == [3.0]
    assert (made["amount"].min() >= 40) == (kind == "amount")
    assert (made["shop"][0] == "s") == (kind != "merchant")
    assert made["event_time"].is_sorted()
    assert made["event_time"][-1] - time < timedelta(minutes=10)


def test_slow_baseline_takes_a_drift_along_and_a_fault_hardly():
    """The larger a fault, the less it moves it; only from the past of its own sequence."""
    error = np.zeros((400, 1), np.float32)
    error[100:200] = 30.0
    sequence = np.repeat([0, 1], 200)
    baseline = slow_baseline(error, sequence, tau=100)
    assert (baseline[:101] == 0).all()
    assert baseline[199, 0] == pytest.approx(0.13, abs=0.02)
    assert slow_baseline(error / 10, sequence, tau=100)[199, 0] > 0.9
    assert (baseline[200:] == 0).all()
    drift = np.linspace(0, 2, 2000, dtype=np.float32)[:, None]
    assert abs(drift[-1] - slow_baseline(drift, np.zeros(2000, int), tau=100)[-1]) < 0.15


def test_slow_baseline_of_sequences_of_different_length_is_that_of_each_alone():
    """Running sequences side by side changes none of them, and NaN does not move it."""
    rng = np.random.default_rng(0)
    lengths = [5, 1, 40, 17]
    error = rng.normal(size=(sum(lengths), 2)).astype(np.float32)
    error[3, 0] = np.nan
    sequence = np.repeat(np.arange(4), lengths)
    whole = slow_baseline(error, sequence, tau=7)
    for number in range(4):
        mine = sequence == number
        np.testing.assert_array_equal(whole[mine], slow_baseline(error[mine], np.zeros(mine.sum(), int), tau=7))
    expected, now = [], 0.0
    for value in error[:5, 0]:
        expected.append(now)
        now += 0.0 if np.isnan(value) else float((value - now) / (1 + ((value - now) / 2) ** 2)) / 7
    np.testing.assert_allclose(whole[:5, 0], expected, atol=1e-6)
    assert (slow_baseline(error, sequence, tau=0) == 0).all()


def test_a_sensor_that_stands_still_is_told_by_its_run_of_equal_readings():
    """Runs are counted per sequence over observed readings, and count as errors in proportion to what is usual."""
    values = np.array([[1.0], [1.0], [9.0], [1.0], [2.0], [2.0]], np.float32)
    observed = np.array([[True], [True], [False], [True], [True], [True]])
    runs = repeats(values, observed, np.array([0, 0, 0, 0, 0, 1]))
    assert runs[:, 0].tolist() == [1, 2, 0, 3, 1, 1]
    assert stuck(np.array([[8, 16]]), np.array([8, 4])).tolist() == [[4.0, 16.0]]
