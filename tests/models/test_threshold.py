"""A threshold keeps its budget of false alarms on data that it has not seen, within and beyond what it was shown."""

import numpy as np
import pytest
from scipy.signal import lfilter

from models.threshold import ADAPTED, GAIN, Rarity, Rule, Threshold, adapt, calibrate, cluster_peaks, entity_factors

MINUTE = 60_000_000
MERGE = 16 * MINUTE


def normal_scores(entities, steps, seed, scale=1.0):
    """Absolute values of an autocorrelated process, a step a minute: score, entity, time, entity-days.

    `scale`, one for all entities or one each, is how loud they are.
    """
    noise = np.random.default_rng(seed).normal(size=(entities, steps)) * np.reshape(scale, (-1, 1))
    score = np.abs(lfilter([0.6], [1, -0.8], noise, axis=1)).ravel()
    time = np.tile(np.arange(steps) * MINUTE, entities)
    return score, np.repeat(np.arange(entities), steps), time, entities * steps / 1440


def learned(score, run, time, days, budget=0.2, **changes):
    """The threshold of a calibration on entities called e0, e1 and so on."""
    rule = changes.pop("rule", Rule("false_alarms", budget))
    names = [f"e{code}" for code in range(int(run.max()) + 1)]
    return calibrate(score, run, time, names=names, rule=rule, merge=MERGE, entity_days=days, **changes)


def rates(threshold, score, run, time, days):
    """The false alarms per day of each entity, `(entities,)`."""
    factor = threshold.factor([f"e{code}" for code in range(int(run.max()) + 1)])
    counts = [
        len(cluster_peaks(score[run == e] / f, run[run == e], time[run == e], threshold.value, MERGE))
        for e, f in enumerate(factor)
    ]
    return np.array(counts) * len(factor) / days


@pytest.mark.parametrize("budget", [0.05, 0.2, 1.0, 5.0])
def test_realised_false_alarms_are_within_a_factor_of_two_of_the_budget(budget):
    """Calibrated on 70 entity-days, counted on 2,800 others, averaged over ten calibrations."""
    realised = []
    score, run, time, days = normal_scores(400, 10_080, seed=99)
    for seed in range(10):
        threshold = learned(*normal_scores(20, 5040, seed), budget)
        realised.append(len(cluster_peaks(score, run, time, threshold.value, MERGE)) / days)
    assert 0.5 < np.mean(realised) / budget < 2


def test_a_budget_of_more_than_every_tenth_event_is_kept():
    """As with cards that are used three times a day: each event is an incident of its own."""
    rng = np.random.default_rng(6)
    run, day = np.repeat(np.arange(50), 180), np.tile(np.arange(180) / 3, 50)
    time = (day * 1440).astype(np.int64) * MINUTE
    for budget in (0.2, 0.6, 1.2):
        threshold = learned(rng.gamma(2, size=9000), run, time, 3000.0, budget)
        fresh = rng.gamma(2, size=9000)
        assert np.sum(fresh > threshold.value) / 3000 == pytest.approx(budget, rel=0.15)
    everything = learned(rng.gamma(2, size=9000), run, time, 3000.0, 10.0)
    assert np.mean(rng.gamma(2, size=9000) > everything.value) == pytest.approx(0.5, abs=0.05)


def test_p_values_are_the_share_of_normal_steps_that_score_as_high():
    """Within the sample they are counted, beyond it they go on falling and never reach 0."""
    score, run, time, days = normal_scores(20, 5040, seed=1)
    threshold = learned(score, run, time, days)
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
        threshold = learned(score, np.zeros(n, int), np.arange(n) * MINUTE, 0.1)
        assert np.isfinite(threshold.value)
        assert threshold.value >= score.max()


def test_no_scores_is_an_error_and_blank_calls_nothing_anomalous():
    """Nothing to learn from is said in a sentence."""
    with pytest.raises(ValueError, match="no scores"):
        learned(np.array([np.nan]), np.zeros(1, int), np.zeros(1, int), 1)
    assert Threshold.blank().value == np.inf


@pytest.mark.parametrize("rule", [Rule("p_value", 1e-3), Rule("quantile", 0.999), Rule("score", 4.0)])
def test_a_threshold_that_is_asked_for_otherwise_says_what_it_lets_expect(rule):
    """The p-value, quantile or score is met, and the budget is the rate of alarms that comes with it."""
    score, run, time, days = normal_scores(20, 5040, seed=3)
    threshold = learned(score, run, time, days, rule=rule)
    fresh = normal_scores(100, 5040, seed=4)
    if rule.kind == "score":
        assert threshold.value == 4.0
        assert threshold.factors == {}
    else:
        assert np.mean(fresh[0] >= threshold.value) == pytest.approx(1e-3, rel=0.25)
    assert threshold.budget == threshold.aimed == pytest.approx(np.mean(rates(threshold, *fresh)), rel=0.35)


def test_levels_are_where_their_p_values_are():
    """`Rarity.level` undoes `p_value`, within what was seen and beyond it."""
    rarity = Rarity.learn(normal_scores(20, 5040, seed=5)[0])
    for p_value in (0.5, 0.11, 0.09, 1e-3, 1e-7):
        assert rarity.p_value(np.array([rarity.level(p_value)]))[0] == pytest.approx(p_value, rel=0.01)


def test_thresholds_of_their_own_bring_entities_of_different_noise_nearer_to_the_budget(monkeypatch):
    """Loud and quiet entities alike have about the promised rate; one threshold for all gives it to few of them."""
    budget, own, common = 0.2, [], []
    for seed in range(5):
        scale = np.exp(np.random.default_rng(100 + seed).normal(0, 0.2, 20))
        known, fresh = normal_scores(20, 5040, seed, scale), normal_scores(20, 40 * 1440, 1000 + seed, scale)
        threshold = learned(*known, budget)
        factor = threshold.factor([f"e{code}" for code in range(20)])
        assert np.corrcoef(np.log(factor), np.log(scale))[0, 1] > 0.9
        own.append(rates(threshold, *fresh) / budget)
        with monkeypatch.context() as patch:
            patch.setattr("models.threshold.FACTORS", (1.0, 1.0))
            one_for_all = learned(*known, budget)
        assert one_for_all.factors == {}
        common.append(rates(one_for_all, *fresh) / budget)
    assert np.std(own) < 0.5 * np.std(common)
    assert 0.5 < np.mean(own) < 2


def test_entities_that_are_alike_lose_nothing_by_it(monkeypatch):
    """Without a difference between entities the factors are all but 1, and the threshold is that for all."""
    for seed in range(5):
        known = normal_scores(20, 5040, seed)
        own, _ = entity_factors(*known[:3], MERGE, 20)
        assert np.abs(np.log(own)).max() < 0.05
        with monkeypatch.context() as patch:
            patch.setattr("models.threshold.FACTORS", (1.0, 1.0))
            one_for_all = learned(*known)
        assert learned(*known).value == pytest.approx(one_for_all.value, rel=0.03)


def test_what_little_an_entity_shows_moves_its_factor_little():
    """Of three entities twice as loud as the others, one has a week, one an hour, one ten readings."""
    parts = [normal_scores(20, 5040, 0)]
    parts += [normal_scores(1, steps, 7 + steps, 2.0) for steps in (10_080, 60, 10)]
    score, time = (np.concatenate([part[n] for part in parts]) for n in (0, 2))
    run = np.concatenate([part[1] + (19 + n if n else 0) for n, part in enumerate(parts)])
    week, hour, few = entity_factors(score, run, time, MERGE, 23)[0][20:]
    assert week == pytest.approx(2, rel=0.1)
    assert 1 <= few < hour < week
    assert few < 1.4


def test_a_threshold_of_its_own_stands_on_what_it_was_not_learned_from():
    """A score is judged by the factor of the other half of its entity's time, and by that alone."""
    scale = np.exp(np.random.default_rng(1).normal(0, 0.3, 20))
    score, run, time, _ = normal_scores(20, 1440, 1, scale)
    later = time >= 720 * MINUTE
    _, before = entity_factors(score, run, time, MERGE, 20)
    _, after = entity_factors(np.where(later & (run == 0), 1.5 * score, score), run, time, MERGE, 20)
    assert (before[~later & (run == 0)] < after[~later & (run == 0)]).all()
    # Of entity 0's later half nothing but what is common to all has moved.
    moved = np.abs(after / before - 1)
    assert moved[later].max() < 0.1 < moved[~later & (run == 0)].min()


def test_an_entity_that_was_never_there_is_judged_by_what_is_common_to_all():
    """Its factor is 1, and so is that of every entity of a calibration that knows one only."""
    known = normal_scores(20, 5040, 0, np.exp(np.random.default_rng(0).normal(0, 0.3, 20)))
    assert learned(*known).factor(["e0", "stranger"])[1] == 1
    assert learned(*known).factor(["e0"])[0] != 1
    assert learned(*normal_scores(1, 5040, 0)).factors == {}


def test_dismissed_scores_raise_their_own_entity_only_and_at_most_to_twice_its_threshold():
    """Just above the dismissed peak; what was below the threshold anyway changes nothing."""
    threshold = learned(*normal_scores(20, 5040, 0))
    before, names = threshold.factor(["e0", "e1", "e2", "e3"]), ["e0", "e1", "e2", "e3"]
    peaks = {"e0": 1.3, "e1": 50.0, "e2": 0.5}
    spared = threshold.sparing({name: share * threshold.value for name, share in peaks.items()})
    after = spared.factor(names)
    assert after[0] == pytest.approx(1.3 * 1.01)
    assert after[1] == pytest.approx(2 * before[1])
    assert (after[2:] == before[2:]).all()
    assert spared.value == threshold.value


def nights(peaks):
    """Nights of one entity: highest scores over the learned threshold, a whole day each, none of them judged."""
    peak = np.reshape(np.array(peaks, float), (-1, 1))
    return {"peak": peak, "covered": np.ones_like(peak), "excused": np.zeros(peak.shape, bool),
            "dismissed": np.zeros(1), "budget": 0.05}  # fmt: skip


def test_nights_teach_the_promised_rate_where_the_noise_has_changed():
    """Entities that became a fifth louder come back to about the budget; those that did not keep theirs."""
    budget, days, count = 0.05, 400, 400
    rng = np.random.default_rng(0)
    # Peaks of which the budget's share is above 1 each night: a Gumbel tail, as of the highest of many scores.
    loud = np.repeat([1.0, 1.2], count // 2)
    start, width = 0.5, 0.5 / -np.log(-np.log1p(-budget))
    peak = (start + width * rng.gumbel(size=(days, count))) * loud
    alarms = []
    for night in range(28, days):
        facts = nights(peak[night - 28 : night, 0])
        past = peak[night - 28 : night]
        facts |= {"peak": past, "covered": np.ones_like(past), "excused": np.zeros(past.shape, bool)}
        facts |= {"dismissed": np.zeros(count), "budget": budget}
        alarms.append(peak[night] > adapt(**facts))
    rate = np.mean(alarms, axis=0)
    before = np.mean(peak > 1, axis=0)
    quiet, louder = loud == 1, loud > 1
    assert before[louder].mean() > 2 * budget
    assert rate[louder].mean() < 0.75 * before[louder].mean()
    assert rate[quiet].mean() == pytest.approx(budget, rel=0.4)


@pytest.mark.parametrize("severity", [1.05, 1.5, 1.9, 3.0, 20.0])
def test_a_real_fault_cannot_teach_a_threshold_to_be_silent(severity):
    """Sixty nights, a fault from the 30th to the 39th: it is in alarm in each of its nights, whatever was before."""
    rng = np.random.default_rng(int(10 * severity))
    for _ in range(20):
        peak = rng.uniform(0.3, 0.9, 60)
        peak[30:40] = severity + rng.uniform(0, 0.1, 10)
        for night in range(30, 40):
            assert peak[night] > adapt(**nights(peak[max(night - 28, 0) : night]))[0]


def test_whatever_nights_teach_twice_the_learned_threshold_is_called():
    """The worst that false alarms, faults and dismissals can do together ends at 2, the longest quiet at 0.8."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        facts = nights(rng.choice([0.5, 1.2, 1.9, 5.0, np.nan], 200))
        low, high = ADAPTED
        assert low <= adapt(**facts)[0] <= high
        assert low <= adapt(**facts | {"dismissed": np.array([9.0])})[0] <= high
    assert adapt(**nights([0.5] * 1000))[0] == pytest.approx(0.8)
    assert adapt(**nights([1.9, 0.5] * 500))[0] > 1.8


def test_a_night_teaches_by_one_step_what_ended_and_was_not_judged():
    """Alarms of 1.5: a lasting one counts once and when it is over, a severe or a judged one not at all."""
    step = np.exp(GAIN)
    quiet = adapt(**nights([0.5]))[0]
    assert 0.99 < quiet < 1
    assert adapt(**nights([1.5]))[0] == 1
    assert adapt(**nights([1.5, 0.5]))[0] == pytest.approx(step * quiet)
    assert adapt(**nights([1.5, 1.5, np.nan, 1.5, 0.5]))[0] == pytest.approx(step * quiet)
    assert adapt(**nights([1.5, 2.5, 1.5, 0.5]))[0] == pytest.approx(quiet)
    judged = nights([1.5, 0.5])
    judged["excused"][0] = True
    assert adapt(**judged)[0] == pytest.approx(quiet)
    assert adapt(**judged | {"dismissed": np.array([1.5])})[0] == pytest.approx(1.5 * 1.01)
