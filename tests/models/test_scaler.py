"""The scaler learns robustly, shrinks what little data says, and never divides by nothing."""

import numpy as np
import pytest

from models.scaler import RobustScaler


def learn(values, entity, names, observed=None):
    values = np.asarray(values, np.float32)
    observed = np.ones(values.shape, bool) if observed is None else observed
    return RobustScaler.learn(values, observed, np.asarray(entity), names)


def test_outliers_do_not_move_centre_or_scale():
    """A twentieth of absurd values changes centre and scale by little."""
    values = np.random.default_rng(0).normal(3, 2, (5000, 1))
    values[::20] = 1e6
    scaler = learn(values, np.zeros(5000, int), ["a"])
    assert scaler.center[1, 0] == pytest.approx(3, abs=0.3)
    assert scaler.scale[1, 0] == pytest.approx(2, rel=0.15)


def test_entities_of_different_levels_keep_their_own_and_an_unknown_one_gets_the_common():
    """Levels that lie far apart are not pulled together; row 0 serves whoever was not there."""
    rng = np.random.default_rng(1)
    values = np.r_[rng.normal(0, 1, (300, 1)), rng.normal(100, 1, (300, 1))]
    scaler = learn(values, np.repeat([0, 1], 300), ["a", "b"])
    assert scaler.center[1:, 0] == pytest.approx([0, 100], abs=0.5)
    assert scaler.rows(np.array([0, 1, 2]), ["b", "new", "a"]).tolist() == [2, 0, 1]


def test_an_entity_with_one_step_is_close_to_the_others():
    """One value says little about an entity when the others agree."""
    values = np.r_[np.random.default_rng(2).normal(0, 1, (1000, 1)), [[4.0]]]
    scaler = learn(values, np.r_[np.repeat(np.arange(10), 100), 10], [f"e{i}" for i in range(11)])
    assert abs(scaler.center[11, 0]) < 0.5
    assert scaler.scale[11, 0] == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_constant_channel_and_one_never_observed_have_a_positive_scale(value):
    """Constant and missing channels scale to finite numbers."""
    values = np.full((100, 2), value, np.float32)
    observed = np.stack([np.ones(100, bool), np.zeros(100, bool)], axis=1)
    scaler = learn(values, np.zeros(100, int), ["a"], observed)
    assert (scaler.scale > 0).all()
    scaled = scaler.transform(values, observed, np.ones(100, int))
    assert np.isfinite(scaled).all()
    assert (scaled[:, 1] == 0).all()


def test_inverse_undoes_transform():
    """What is scaled comes back in its own units."""
    values = np.random.default_rng(3).normal(7, 3, (200, 2)).astype(np.float32)
    scaler = learn(values, np.zeros(200, int), ["a"])
    rows = np.ones(200, int)
    back = scaler.inverse(scaler.transform(values, np.ones(values.shape, bool), rows), rows)
    np.testing.assert_allclose(back, values, atol=1e-5)
