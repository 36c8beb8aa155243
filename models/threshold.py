"""From anomaly scores to p-values, and to a threshold that keeps a budget of false alarms.

A false alarm is an incident on normal data: a run of scores above the threshold, merged where the gaps are short. So
the budget (incidents per entity and day) is calibrated on the peaks of such runs, not on single steps. Beyond the
scores that calibration saw, the peaks' tail is a generalised Pareto distribution (peaks over threshold: Pickands 1975;
runs declustering: Coles 2001, chapter 5).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import genpareto

TAIL_SHARE = 0.1  # the share of peaks, and of scores, that the tail is fitted to
MIN_TAIL = 20
SHAPE_PRIOR = 50  # points whose weight the exponential tail has
CAUTION = 0.5  # standard deviations
QUANTILES = 512
LEAST = 0.1  # incidents in all of the calibration: a tail says nothing about what is rarer still


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
    """How often normal steps reach a value.

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

    def p_value(self, value: NDArray[np.floating]) -> NDArray[np.float64]:
        """How often a normal step is at least this high; `(n,)` float64 in (0, 1], NaN where the value is."""
        grid = np.linspace(0, 1, len(self.quantiles))
        body = 1 - np.interp(value, self.quantiles, grid)
        p = np.where(value > self.tail.start, self.tail.survival(value), np.maximum(body, self.tail.rate))
        return np.where(np.isfinite(value), np.clip(p, 1e-300, 1), np.nan)


@dataclass(frozen=True, slots=True)
class Threshold:
    """What calibration learned.

    value: the score at which a step is called anomalous
    budget: the false incidents per entity and day that were asked for
    aimed: those that `value` was chosen for; more, where there was too little time to tell
    expected: the incidents per entity and day that calibration data itself shows at `value`
    entity_days: how much normal time it was learned from
    rarity: of the calibration scores, for p-values
    """

    value: float
    budget: float
    aimed: float
    expected: float
    entity_days: float
    rarity: Rarity

    @classmethod
    def blank(cls, budget: float) -> "Threshold":
        """The threshold before calibration: nothing is anomalous."""
        return cls(np.inf, budget, budget, 0.0, 0.0, Rarity.learn(np.empty(0)))


def calibrate(
    score: NDArray[np.float64], run: NDArray[np.int64], time: NDArray[np.int64], *, merge: float, budget: float,
    entity_days: float, tail: float = TAIL_SHARE,
) -> Threshold:  # fmt: skip
    """The threshold for `budget` false incidents per entity and day, from scores of normal steps.

    score: `(n,)`, ordered by entity and time; run: `(n,)` code of the entity; time: `(n,)` microseconds;
    merge: microseconds up to which two anomalous steps are one incident; entity_days: how much time `score` covers;
    tail: the share of the scores that the tail of p-values is fitted to.
    Raises `ValueError` where there are no finite scores.
    """
    kept = np.isfinite(score)
    score, run, time = score[kept].astype(np.float64), run[kept], time[kept]
    if len(score) == 0:
        raise ValueError("there are no scores to calibrate the threshold on")
    start = float(np.quantile(score, 1 - TAIL_SHARE))
    peaks = cluster_peaks(score, run, time, start, merge)
    value = _level(peaks, max(cautious(budget * entity_days), LEAST), start)
    return Threshold(
        value=value,
        budget=budget,
        aimed=max(budget, LEAST / entity_days),
        expected=len(cluster_peaks(score, run, time, value, merge)) / entity_days,
        entity_days=entity_days,
        rarity=Rarity.learn(score, tail),
    )


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
    above = np.flatnonzero(score > level)
    if len(above) == 0:
        return np.empty(0)
    apart = (np.diff(time[above]) > merge) | (np.diff(run[above]) != 0)
    return np.maximum.reduceat(score[above], np.flatnonzero(np.r_[True, apart]))


def _level(peaks: NDArray[np.float64], allowed: float, start: float) -> float:
    """The level that about `allowed` of the peaks exceed: one of them, or one in the fitted tail beyond them."""
    if len(peaks) == 0:
        return float(np.nextafter(start, np.inf))
    if allowed >= len(peaks):
        return start
    high = np.sort(peaks)[::-1]
    upper = high[: max(MIN_TAIL, int(len(high) * TAIL_SHARE))]
    if allowed > len(upper) / 2:
        return float(high[int(allowed)])
    floor = float(high[len(upper)]) if len(high) > len(upper) else start
    return _fit(upper, floor, float(len(upper))).level(allowed)


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
