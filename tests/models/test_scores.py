"""Errors become scores that see one loud channel, ignore what is missing, and never look ahead."""

import numpy as np
import pytest

from models.injections import INJECTIONS
from models.scores import combine, smooth


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
