"""A threshold keeps its budget of false alarms on data that it has not seen, within and beyond what it was shown."""

import numpy as np
import pytest
from scipy.signal import lfilter

from models.threshold import Threshold, calibrate, cluster_peaks

MINUTE = 60_000_000
MERGE = 16 * MINUTE


def normal_scores(entities, steps, seed):
    """Absolute values of an autocorrelated process, a step a minute: score, entity, time, entity-days."""
    noise = np.random.default_rng(seed).normal(size=(entities, steps))
    score = np.abs(lfilter([0.6], [1, -0.8], noise, axis=1)).ravel()
    time = np.tile(np.arange(steps) * MINUTE, entities)
    return score, np.repeat(np.arange(entities), steps), time, entities * steps / 1440


@pytest.mark.parametrize("budget", [0.05, 0.2, 1.0, 5.0])
def test_realised_false_alarms_are_within_a_factor_of_two_of_the_budget(budget):
    """Calibrated on 70 entity-days, counted on 2,800 others, averaged over ten calibrations."""
    realised = []
    score, run, time, days = normal_scores(400, 10_080, seed=99)
    for seed in range(10):
        *known, known_days = normal_scores(20, 5040, seed)
        threshold = calibrate(*known, merge=MERGE, budget=budget, entity_days=known_days)
        realised.append(len(cluster_peaks(score, run, time, threshold.value, MERGE)) / days)
    assert 0.5 < np.mean(realised) / budget < 2


def test_p_values_are_the_share_of_normal_steps_that_score_as_high():
    """Within the sample they are counted, beyond it they go on falling and never reach 0."""
    score, run, time, days = normal_scores(20, 5040, seed=1)
    threshold = calibrate(score, run, time, merge=MERGE, budget=0.2, entity_days=days)
    fresh, *_ = normal_scores(100, 5040, seed=2)
    for level in (0.5, 1.0, 2.0, 3.0):
        assert threshold.rarity.p_value(np.array([level]))[0] == pytest.approx(np.mean(fresh >= level), rel=0.25)
    p = threshold.rarity.p_value(np.array([0.0, 1.0, 2.0, 4.0, 5.0, 50.0]))
    assert (np.diff(p) <= 0).all()
    assert p[-1] > 0
    assert np.isnan(threshold.rarity.p_value(np.array([np.nan]))[0])


def test_peaks_merge_within_an_entity_only():
    """Neighbours merge, distant ones and other entities do not; the highest score stands for the incident."""
    score = np.array([5.0, 7.0, 0.0, 6.0, 9.0])
    run = np.array([0, 0, 0, 0, 1])
    time = np.array([0, 10, 20, 60, 61]) * MINUTE
    assert cluster_peaks(score, run, time, 1.0, MERGE).tolist() == [7.0, 6.0, 9.0]
    assert cluster_peaks(score, run, time, 10.0, MERGE).size == 0


def test_constant_scores_and_few_scores_still_give_a_threshold():
    """A degenerate calibration gives a finite threshold above what was seen, not a crash."""
    for score in (np.ones(200), np.array([0.3, 0.1])):
        n = len(score)
        threshold = calibrate(score, np.zeros(n, int), np.arange(n) * MINUTE, merge=MERGE, budget=0.1, entity_days=0.1)
        assert np.isfinite(threshold.value)
        assert threshold.value >= score.max()


def test_no_scores_is_an_error_and_blank_calls_nothing_anomalous():
    """Nothing to learn from is said in a sentence."""
    with pytest.raises(ValueError, match="no scores"):
        calibrate(np.array([np.nan]), np.zeros(1, int), np.zeros(1, int), merge=1, budget=1, entity_days=1)
    assert Threshold.blank(0.1).value == np.inf
