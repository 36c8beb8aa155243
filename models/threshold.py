"""From anomaly scores to p-values, and to a threshold that keeps a budget of false alarms.

A false alarm is an incident on normal data: a run of scores above the threshold, merged where the gaps are short. So
the budget (incidents per entity and day) is calibrated on the peaks of such runs, not on single steps. Beyond the
scores that calibration saw, the peaks' tail is a generalised Pareto distribution (peaks over threshold: Pickands 1975;
runs declustering: Coles 2001, chapter 5).

Entities differ in how high their normal scores go. Each has a factor on the threshold, shrunk to 1 as far as its two
halves of the calibration do not vouch for it, and a second one that later nights have taught: see `adapt`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import genpareto

TAIL_SHARE = 0.1  # the share of peaks, and of scores, that the tail is fitted to
MORE_SHARES = (0.2, 0.3, 0.5)  # of scores, that peaks are looked for in where a large budget allows more of them
MIN_TAIL = 20
SHAPE_PRIOR = 50  # points whose weight the exponential tail has
CAUTION = 0.5  # standard deviations
QUANTILES = 512
LEAST = 0.1  # incidents in all of the calibration: a tail says nothing about what is rarer still
FACTORS = (0.5, 2.0)  # between which calibration sets an entity's factor
ADAPTED = (0.8, 2.0)  # between which later nights move it: what scores twice the learned threshold is always called
GAIN = 0.1  # by how much, in the logarithm, a false alarm raises the threshold of its entity
ABOVE = 1.01  # times the peak of a dismissed incident is where the threshold is raised to


@dataclass(frozen=True, slots=True)
class Tail:
    """A generalised Pareto tail above `start`: `rate` is the share (or the daily count) of what exceeds `start`."""

    start: float
    shape: float
    scale: float
    rate: float

    def survival(self, score: NDArray[np.floating]) -> NDArray[np.float64]:
        """`rate` × P(exceed `score`), for scores at or above `start`."""
        excess = np.maximum(score - self.start, 0)
        return self.rate * genpareto.sf(excess, self.shape, scale=self.scale)

    def level(self, rate: float) -> float:
        """The score that is exceeded at `rate` (which is at most the tail's own)."""
        return float(self.start + genpareto.isf(rate / self.rate, self.shape, scale=self.scale))


@dataclass(frozen=True, slots=True)
class Rarity:
    """How often normal steps reach a value: split-conformal p-values (Vovk and others 2005), smoothed in the tail.

    quantiles: `(512,)` float64 of what was seen; `tail` continues them; steps: how many there were
    """

    quantiles: NDArray[np.float64]
    tail: Tail
    steps: int

    @classmethod
    def learn(cls, values: NDArray[np.floating], share: float = TAIL_SHARE) -> "Rarity":
        """From the finite `values` `(n,)`, the upper `share` of which make the tail; blank where there are none."""
        seen = values[np.isfinite(values)].astype(np.float64)
        if len(seen) == 0:
            return cls(np.zeros(QUANTILES), Tail(0.0, 0.0, 1.0, 1.0), 0)
        start = float(np.quantile(seen, 1 - share))
        tail = _fit(seen[seen > start], start, float(np.mean(seen > start)))
        return cls(np.quantile(seen, np.linspace(0, 1, QUANTILES)), tail, len(seen))

    def level(self, p_value: float) -> float:
        """The value that normal steps reach with `p_value`."""
        if p_value < self.tail.rate:
            return self.tail.level(p_value)
        return float(np.interp(1 - p_value, np.linspace(0, 1, len(self.quantiles)), self.quantiles))

    def p_value(self, value: NDArray[np.floating]) -> NDArray[np.float64]:
        """How often a normal step is at least this high; `(n,)` float64 in (0, 1], NaN where the value is."""
        grid = np.linspace(0, 1, len(self.quantiles))
        body = 1 - np.interp(value, self.quantiles, grid)
        p = np.where(value > self.tail.start, self.tail.survival(value), np.maximum(body, self.tail.rate))
        return np.where(np.isfinite(value), np.clip(p, 1e-300, 1), np.nan)


@dataclass(frozen=True, slots=True)
class Rule:
    """How the threshold is chosen: for so many false alarms per entity and day, or at a p-value, a quantile or a score.

    The p-value and the quantile are those of normal steps, after each entity's factor; a fixed score knows no factors.
    """

    kind: Literal["false_alarms", "p_value", "quantile", "score"]
    amount: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """What calibration learned.

    value: the score at which a step of an entity of factor 1 is called anomalous
    budget: the false incidents per entity and day that are promised: what was asked for, or with a rule that asks for
        something else, what calibration data lets expect at `value`
    aimed: those that `value` was chosen for; more, where there was too little time to tell
    expected: the incidents per entity and day that calibration data itself shows at `value`
    entity_days: how much normal time it was learned from
    rarity: of the calibration scores over their entities' factors, for p-values
    factors: by entity, how much higher than `value` its threshold is; 1 for those that are not named
    adapted: by entity, what nights since then have multiplied that by; 1 for those that are not named
    """

    value: float
    budget: float
    aimed: float
    expected: float
    entity_days: float
    rarity: Rarity
    factors: Mapping[str, float] = field(default_factory=dict)
    adapted: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def blank(cls) -> "Threshold":
        """The threshold before calibration: nothing is anomalous."""
        return cls(np.inf, 0.0, 0.0, 0.0, 0.0, Rarity.learn(np.empty(0)))

    def factor(self, names: Sequence[str]) -> NDArray[np.float64]:
        """How much higher than `value` the threshold of each of the named entities is; `(k,)` float64."""
        both = [self.factors.get(name, 1.0) * self.adapted.get(name, 1.0) for name in names]
        return np.array(both, np.float64)

    def sparing(self, dismissed: Mapping[str, float]) -> "Threshold":
        """The threshold that no longer calls scores up to those that an analyst dismissed.

        `dismissed`: by entity, the highest of them. Its own factor is raised to just above, but at most doubled.
        """
        names = list(dismissed)
        own = np.array([self.factors.get(name, 1.0) for name in names])
        wanted = ABOVE * np.array([dismissed[name] for name in names]) / (self.value * own)
        raised = own * np.clip(wanted, 1, ADAPTED[1])
        return replace(self, factors={**self.factors, **dict(zip(names, raised.tolist(), strict=True))})


def calibrate(
    score: NDArray[np.float64], run: NDArray[np.int64], time: NDArray[np.int64], *, names: Sequence[str], rule: Rule,
    merge: float, entity_days: float, tail_share: float = TAIL_SHARE,
) -> Threshold:  # fmt: skip
    """The threshold by `rule`, from scores of normal steps.

    score: `(n,)`, ordered by entity and time; run: `(n,)` code of the entity in `names`; time: `(n,)` microseconds;
    merge: microseconds up to which two anomalous steps are one incident; entity_days: how much time `score` covers;
    tail_share: of the scores, that the tail of p-values is fitted to.
    Raises `ValueError` where there are no finite scores.
    """
    kept = np.isfinite(score)
    score, run, time = score[kept].astype(np.float64), run[kept], time[kept]
    if len(score) == 0:
        raise ValueError("there are no scores to calibrate the threshold on")
    factors: dict[str, float] = {}
    if rule.kind != "score":
        own, others = entity_factors(score, run, time, merge, len(names))
        factors = {names[code]: factor for code, factor in enumerate(own.tolist()) if factor != 1}
        score = score / others
    start = float(np.quantile(score, 1 - TAIL_SHARE))
    peaks, rarity = cluster_peaks(score, run, time, start, merge), Rarity.learn(score, tail_share)
    if rule.kind == "false_alarms":
        allowed = max(cautious(rule.amount * entity_days), LEAST)
        for share in MORE_SHARES:
            if allowed < len(peaks):
                break
            lower = float(np.quantile(score, 1 - share))
            more = cluster_peaks(score, run, time, lower, merge)
            if len(more) <= len(peaks):
                break
            start, peaks = lower, more
        value = _level(peaks, allowed, start)
    else:
        value = _at(rule, score, rarity)
    shown = len(cluster_peaks(score, run, time, value, merge))
    tail = _tail(peaks, start)
    likely = (float(tail.survival(np.array(value))) if value > tail.start else shown) / entity_days
    budget = rule.amount if rule.kind == "false_alarms" else likely
    aimed = max(budget, LEAST / entity_days) if rule.kind == "false_alarms" else likely
    return Threshold(value, budget, aimed, shown / entity_days, entity_days, rarity, factors)


def _at(rule: Rule, score: NDArray[np.float64], rarity: Rarity) -> float:
    if rule.kind == "p_value":
        return rarity.level(rule.amount)
    return float(np.quantile(score, rule.amount)) if rule.kind == "quantile" else rule.amount


def entity_factors(
    score: NDArray[np.float64], run: NDArray[np.int64], time: NDArray[np.int64], merge: float, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The factors `(count,)` on the threshold of the entities, and `(n,)` those that each score is judged by.

    An entity is described by the mean logarithm of its peaks above its own 0.9 quantile. How far that is believed is
    empirical Bayes (Efron and Morris 1973): what sets entities apart (the estimate of DerSimonian and Laird 1986)
    against what sets the two halves of one entity's time apart. Where entities are alike, all factors are 1. A score is
    judged by the factor that the other half of its entity's time teaches, so that a threshold that stands on such
    scores promises nothing that new data does not keep.
    """
    later = later_half(run, count)
    whole = _typical_peaks(score, run, time, merge, count)
    early, late = (_typical_peaks(score[half], run[half], time[half], merge, count) for half in (~later, later))
    noise, spread, centre = _apart(whole, early, late)

    def shrunk(typical: "_Typical") -> NDArray[np.float64]:
        believed = spread * typical.peaks / np.maximum(spread * typical.peaks + noise, 1e-300)
        return np.clip(np.exp((typical.level - centre) * believed), *FACTORS)

    return shrunk(whole), np.where(later, shrunk(early)[run], shrunk(late)[run])


@dataclass(frozen=True, slots=True)
class _Typical:
    """By entity: the mean logarithm of its peaks (0 where there are none), and how many peaks."""

    level: NDArray[np.float64]
    peaks: NDArray[np.float64]


def later_half(run: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """`(n,)` bool: whether a score belongs to the later half of its entity's."""
    each = np.bincount(run, minlength=count)
    place = np.arange(len(run)) - np.r_[0, np.cumsum(each)][run]
    return place >= each[run] / 2


def _typical_peaks(
    score: NDArray[np.float64], run: NDArray[np.int64], time: NDArray[np.int64], merge: float, count: int
) -> _Typical:
    """What the peaks of each entity above its own 0.9 quantile are like."""
    each = np.bincount(run, minlength=count)
    there, first = each > 0, np.r_[0, np.cumsum(each)[:-1]]
    start = np.zeros(count)
    place = first + ((each - 1) * (1 - TAIL_SHARE)).astype(np.int64)
    start[there] = score[np.lexsort((score, run))][place[there]]
    above, begins = _clusters(score > start[run], run, time, merge)
    if len(above) == 0:
        return _Typical(np.zeros(count), np.zeros(count))
    level, whose = np.log(np.maximum.reduceat(score[above], begins)), run[above][begins]
    peaks = np.bincount(whose, minlength=count).astype(np.float64)
    return _Typical(np.bincount(whose, weights=level, minlength=count) / np.maximum(peaks, 1), peaks)


def _apart(whole: _Typical, early: _Typical, late: _Typical) -> tuple[float, float, float]:
    """Of the entities' levels: the variance that one peak has, the variance between entities, and the centre."""
    twice, there = (early.peaks > 0) & (late.peaks > 0), whole.peaks > 0
    if there.sum() < 2 or not twice.any():
        return 1.0, 0.0, 0.0
    off = (early.level - late.level)[twice] ** 2 / (1 / early.peaks[twice] + 1 / late.peaks[twice])
    noise = max(float(np.mean(off)), 1e-12)
    level, weight = whole.level[there], whole.peaks[there] / noise
    excess = float(weight @ (level - np.average(level, weights=weight)) ** 2) - (len(level) - 1)
    spread = max(excess / float(weight.sum() - (weight**2).sum() / weight.sum()), 0.0)
    return noise, spread, float(np.average(level, weights=1 / (spread + 1 / weight)))


def adapt(
    peak: NDArray[np.float64], covered: NDArray[np.float64], excused: NDArray[np.bool_],
    dismissed: NDArray[np.float64], budget: float,
) -> NDArray[np.float64]:  # fmt: skip
    """By how much nights have taught to multiply the thresholds of entities, `(entities,)` float64.

    peak: `(nights, entities)`, each night's highest score over the entity's learned threshold, NaN where it was not
    there; covered: the entity-days behind it; excused: whether an analyst has judged an incident of it; dismissed:
    `(entities,)`, the highest score over the learned threshold that an analyst dismissed, 0 where there is none.

    Adaptive conformal inference (Gibbs and Candès 2021) on the logarithm: an alarm that ends raises the threshold by
    `GAIN`, a quiet night lowers it by as much times the chance of an alarm under the budget, so that in the long run
    there are as many alarms as promised. An alarm that goes on over nights raises nothing while it does, one that
    reaches twice the learned threshold never does, nor does one that was judged: a fault cannot teach to be silent. A
    dismissed one raises the threshold to just above itself. All of it stays between 0.8 and 2.
    """
    level = np.zeros(peak.shape[1])
    lasting, teaches = np.zeros(len(level), bool), np.zeros(len(level), bool)
    for night in range(len(peak)):
        there = np.isfinite(peak[night])
        alarm = there & (peak[night] > np.exp(level))
        calm = there & ~alarm & ~excused[night]
        due = 1 - np.exp(-budget * covered[night])
        level = np.clip(level + GAIN * (calm & lasting & teaches) - GAIN * np.where(calm, due, 0), *np.log(ADAPTED))
        harmless = ~excused[night] & (peak[night] <= ADAPTED[1])
        teaches = np.where(alarm, harmless & (teaches | ~lasting), teaches & ~there)
        lasting = np.where(there, alarm, lasting)
    return np.maximum(np.exp(level), np.minimum(ABOVE * dismissed, ADAPTED[1]))


def cautious(allowed: float) -> float:
    """How many incidents calibration may show for the true rate to be at most `allowed`, two times out of three.

    A one-sided Poisson bound (normal approximation). What little calibration data says is taken with caution; with
    much of it the bound comes close to `allowed` itself.
    """
    return max(allowed - CAUTION * float(np.sqrt(allowed)), 0.5 * allowed)


def cluster_peaks(
    score: NDArray[np.float64], run: NDArray[np.int64], time: NDArray[np.int64], level: float, merge: float
) -> NDArray[np.float64]:
    """The highest score of each incident that a threshold at `level` would make, in order."""
    above, begins = _clusters(score > level, run, time, merge)
    return np.maximum.reduceat(score[above], begins) if len(above) else np.empty(0)


def _clusters(
    chosen: NDArray[np.bool_], run: NDArray[np.int64], time: NDArray[np.int64], merge: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the `chosen` steps, and where among them an incident begins."""
    above = np.flatnonzero(chosen)
    apart = (np.diff(time[above]) > merge) | (np.diff(run[above]) != 0)
    return above, np.flatnonzero(np.r_[len(above) > 0, apart])


def _level(peaks: NDArray[np.float64], allowed: float, start: float) -> float:
    """The level that about `allowed` of the peaks exceed: one of them, or one in the fitted tail beyond them."""
    if len(peaks) == 0:
        return float(np.nextafter(start, np.inf))
    if allowed >= len(peaks):
        return start
    tail = _tail(peaks, start)
    return float(np.sort(peaks)[::-1][int(allowed)]) if allowed > tail.rate / 2 else tail.level(allowed)


def _tail(peaks: NDArray[np.float64], start: float) -> Tail:
    """The tail of the highest of the peaks above `start`; its rate is how many there are."""
    high = np.sort(peaks)[::-1]
    upper = high[: max(MIN_TAIL, int(len(high) * TAIL_SHARE))]
    floor = float(high[len(upper)]) if len(high) > len(upper) else start
    return _fit(upper, floor, float(len(upper)))


def _fit(values: NDArray[np.float64], start: float, rate: float) -> Tail:
    """A generalised Pareto tail of `values` above `start`, the more like an exponential one the fewer they are.

    The shape is held between -0.2 and 0.5: outside, a few hundred points do not determine it, and a short tail would
    call the next larger score impossible. With n points it has the weight n / (n + 50), for its own error is about
    the root of 1 / n.
    """
    excess = np.maximum(values - start, 0)
    scale = float(np.mean(excess)) if len(excess) else 0.0
    if scale <= 0:
        return Tail(start, 0.0, max(abs(start) * 1e-3, 1e-9), max(rate, 1e-12))
    # Probability-weighted moments (Hosking and Wallis 1987): stable where maximum likelihood is not.
    ordered = np.sort(excess)
    ranks = (np.arange(1, len(ordered) + 1) - 0.35) / len(ordered)
    first = float(np.mean((1 - ranks) * ordered))
    shape = float(np.clip(2 - scale / (scale - 2 * first), -0.2, 0.5)) if scale > 2 * first else 0.0
    shape *= len(excess) / (len(excess) + SHAPE_PRIOR)
    return Tail(start, shape, scale * (1 - shape), max(rate, 1e-12))
