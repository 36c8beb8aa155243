"""Errors become scores that see one loud channel, ignore what is missing, and never look ahead."""

import numpy as np
import pytest

from models.injections import INJECTIONS
from models.scores import combine, repeats, slow_baseline, smooth, stuck


def test_contributions_add_up_and_missing_cells_do_not_count():
    """Shares sum to one over the observed channels; a step with nothing observed has no score."""
    score, share = combine(np.array([[1.0, 2.0, np.nan], [0.0, 0.0, 0.0], [np.nan] * 3]))
    assert score[0] == pytest.approx(((1 + 16) / 2) ** 0.25)
    assert share[0, :2] == pytest.approx([1 / 17, 16 / 17])
    assert np.isnan(share[0, 2])
    assert score[1] == 0
    assert share[1].sum() == pytest.approx(1)
    assert np.isnan(score[2])


def test_one_loud_channel_among_many_is_heard():
    """One channel at 8 among forty quiet ones scores higher than all of them at 2."""
    loud = np.zeros((1, 40))
    loud[0, 3] = 8
    assert combine(loud)[0][0] > combine(np.full((1, 40), 2.0))[0][0]


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
    """An injected anomaly stays in one channel and does not touch the data it was made from."""
    values = np.zeros((16, 3))
    out = INJECTIONS[kind](values, np.ones(3), np.random.default_rng(0))
    assert (np.abs(out).max(axis=0) > 1).sum() == 1
    assert (values == 0).all()


def test_slow_baseline_takes_a_drift_along_and_a_fault_hardly():
    """A large step moves it by one deviation in tau steps at most, and only from the past of its own sequence."""
    error = np.zeros((400, 1), np.float32)
    error[100:200] = 30.0
    sequence = np.repeat([0, 1], 200)
    baseline = slow_baseline(error, sequence, tau=100)
    assert (baseline[:101] == 0).all()
    assert baseline[199, 0] == pytest.approx(0.99, abs=0.02)
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
        now += 0.0 if np.isnan(value) else float(np.clip(value - now, -1, 1)) / 7
    np.testing.assert_allclose(whole[:5, 0], expected, atol=1e-6)
    assert (slow_baseline(error, sequence, tau=0) == 0).all()


def test_a_sensor_that_stands_still_is_told_by_its_run_of_equal_readings():
    """Runs are counted per sequence over observed readings, and count as errors in proportion to what is usual."""
    values = np.array([[1.0], [1.0], [9.0], [1.0], [2.0], [2.0]], np.float32)
    observed = np.array([[True], [True], [False], [True], [True], [True]])
    runs = repeats(values, observed, np.array([0, 0, 0, 0, 0, 1]))
    assert runs[:, 0].tolist() == [1, 2, 0, 3, 1, 1]
    assert stuck(np.array([[8, 16]]), np.array([8, 4])).tolist() == [[4.0, 16.0]]
