"""From reconstruction errors to one anomaly score per step.

A sensor is looked at in four views, and the one that is most surprised decides: its errors as they are, for what is
sudden, and smoothed over some ten steps, for what is small and stays; its inputs smoothed likewise, for what the
network has learned to expect as soon as it sees it; and its inputs smoothed over three steps, each channel alone. In
the first three a step is measured by a quadratic form. That of errors is the mean square and with a quarter of its
weight the Mahalanobis distance, so that a loud channel and a broken relation between quiet ones both show; that of
inputs is the mean square alone, as it must hold for levels that were not seen together. In the last it is measured by
the channel that is farthest beyond what it ever is on its own: so that a quiet one is heard where others are loud every
day.

An event is judged by how rare it is: its amount, its amount against history and expectation, the errors of what else
was measured, and, with less weight, those of categories and of habits such as the time since the last event. What is
known of it from the labels of earlier events, such as a shop's share of frauds, counts as much as a surprise that was
followed by an anomaly as often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from models.scaler import RobustScaler
from models.threshold import Rarity

LIMIT = 20.0  # standardised cells beyond this are as bad as this: keeps one absurd reading from deafening the rest
TYPICAL = 8.0  # up to this they teach the covariance
SHRINK = 0.1  # of the covariance, towards its diagonal (Ledoit and Wolf 2004)
MAHALANOBIS = 0.25  # weight of the Mahalanobis distance beside the mean square of errors
UNIT = 0.99  # the quantile of normal scores that is a view's 1
RARE = 1e-4  # how often a channel by itself is beyond its own level
SMALL = 4.0  # deviations: no channel's own level is less
INFLUENCE = 2.0  # deviations, at which an error moves the slow baseline most
MINOR = 0.5  # weight of a minor channel
POWER = 3  # of the surprises that are added up: several moderate ones count, many small ones hardly
LABELLED = 20  # anomalies among the labels, from which on they tell how often a surprise is one
BEYOND = 2.0  # decades beyond what calibration has seen, up to which it can tell how rare something is


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a sensor.

    inputs: whether it looks at the scaled inputs, or at the errors
    alpha: weight of the newest step in the smoothing; 1: none
    alone: whether the largest term of the form is the score, or the root of them all
    tau: steps in which the slow baseline follows
    scaler: of the smoothed cells, by entity
    form: `(channels, channels)` float64, the quadratic form of a step
    """

    inputs: bool
    alpha: float
    alone: bool
    tau: float
    scaler: RobustScaler
    form: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Odds:
    """How often an event of a score is anomalous, as labels have it: never less often than one of a lower score.

    score, share: `(m,)` float64, both ascending
    """

    score: NDArray[np.float64]
    share: NDArray[np.float64]

    @classmethod
    def learn(cls, score: NDArray[np.float64], anomalous: NDArray[np.float64]) -> "Odds | None":
        """From labelled events: `score` `(n,)`, `anomalous` `(n,)` 0 or 1; None where too few are anomalous.

        By isotonic regression (Barlow and others 1972), each block of which stands at the mean of its scores.
        """
        if np.sum(anomalous) < LABELLED:
            return None
        order = np.lexsort((-anomalous, score))  # so that equal scores are in one block
        fitted = isotonic_regression(anomalous[order])
        starts, count = fitted.blocks[:-1], np.diff(fitted.blocks)
        return cls(np.add.reduceat(score[order], starts) / count, fitted.x[starts])

    def surprise(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """The score at which the `share` `(n,)` of the events is anomalous; 0 below what any score has."""
        return np.interp(share, self.share, self.score, left=0.0)


@dataclass(frozen=True, slots=True)
class Signals:
    """What an event is judged by.

    amounts: for each amount the numbers of its channel and of the channel with its ratio to history, and whether the
        channel holds its logarithm already
    minor: the numbers of the channels that have less weight
    rarities: of each channel's signal, and behind them of each amount's ratio to what was expected, as `signals` has it
    rates: the numbers of the channels that hold a share of labelled events that were anomalous
    odds: of a score without the rates; None where too few labels are known
    """

    amounts: tuple[tuple[int, int, bool], ...]
    minor: tuple[int, ...]
    rarities: tuple[Rarity, ...]
    rates: tuple[int, ...] = ()
    odds: Odds | None = None


def smooth(error: NDArray[np.float32], sequence: NDArray[np.int64], alpha: float) -> NDArray[np.float32]:
    """Exponentially weighted mean of `error` `(n, channels)` along each sequence, from the past only.

    NaN (not observed) neither counts nor moves the mean, and stays NaN. `alpha` is the weight of the newest step
    (Roberts 1959); 1 returns `error` itself.
    """
    if alpha >= 1 or len(error) == 0:
        return error
    frame = pl.DataFrame({str(c): error[:, c] for c in range(error.shape[1])}).fill_nan(None)
    mean = pl.exclude("sequence").ewm_mean(alpha=alpha, adjust=True, ignore_nulls=True).over("sequence")
    means = frame.with_columns(pl.Series("sequence", sequence)).select(mean)
    smoothed = means.cast(pl.Float32).to_numpy(order="c")
    return np.where(np.isnan(error), np.float32(np.nan), smoothed)


def slow_baseline(error: NDArray[np.float32], sequence: NDArray[np.int64], tau: float) -> NDArray[np.float32]:
    """What each standardised error `(n, channels)` was slowly drifting around before its step, along each sequence.

    `b += u / (1 + (u / 2)²) / tau` with `u = error - b`, from 0: a machine that ages takes its baseline along, while a
    fault moves it the less the larger it is (an exponentially weighted mean with Cauchy's redescending influence).
    From the past only; NaN does not move it. All sequences are run side by side, a step of each at a time.
    """
    if tau <= 0 or len(error) == 0:
        return np.zeros_like(error)
    starts = np.flatnonzero(np.r_[True, sequence[1:] != sequence[:-1]])
    length = np.diff(np.r_[starts, len(sequence)])
    by_length = np.argsort(-length, kind="stable")  # so that the sequences that still run are the first ones
    starts, length = starts[by_length], length[by_length]
    running = np.searchsorted(-length, -np.arange(length[0]), side="left")
    now = np.zeros((len(starts), error.shape[1]), np.float32)
    out = np.empty_like(error)
    for step in range(length[0]):
        alive = running[step]
        rows = starts[:alive] + step
        out[rows] = now[:alive]
        off = error[rows] - now[:alive]
        now[:alive] += np.nan_to_num(off / (1 + (off / np.float32(INFLUENCE)) ** 2)) / np.float32(tau)
    return out


def repeats(values: NDArray[np.float32], observed: NDArray[np.bool_], sequence: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many observed readings in a row, this one included, a channel has held exactly its value: `(n, channels)`.

    Missing readings neither count nor interrupt; 0 where not observed. From the past of the same sequence only.
    """
    out = np.zeros(values.shape, np.int64)
    for channel in range(values.shape[1]):
        rows = np.flatnonzero(observed[:, channel])
        if len(rows) == 0:
            continue
        held, run = values[rows, channel], sequence[rows]
        new = np.r_[True, (held[1:] != held[:-1]) | (run[1:] != run[:-1])]
        starts = np.flatnonzero(new)
        out[rows, channel] = np.arange(len(rows)) - starts[np.cumsum(new) - 1] + 1
    return out


def wander(
    inputs: NDArray[np.float32], entity: NDArray[np.int64], later: NDArray[np.bool_], count: int
) -> NDArray[np.float64]:
    """How far the level of each channel moved from an entity's earlier half to its later one: `(count, channels)`.

    The distance of the medians of the `inputs` `(n, channels)`; NaN cells do not count. 0 where a half has none. What
    moved while it was normal will move again: a scale that knows only minutes would call every hour abnormal.
    """
    cells = pl.DataFrame({str(c): inputs[:, c] for c in range(inputs.shape[1])}).fill_nan(None)
    halves = cells.with_columns(entity=pl.Series(entity), later=pl.Series(later))
    out = np.zeros((count, inputs.shape[1]))
    levels = halves.group_by("entity", "later").median().sort("entity", "later")
    for code, both in levels.partition_by("entity", as_dict=True, include_key=False).items():
        if len(both) == 2:
            level = both.drop("later").cast(pl.Float64).to_numpy()
            out[code[0]] = np.nan_to_num(np.abs(level[1] - level[0]))
    return out


def absences(observed: NDArray[np.bool_], sequence: NDArray[np.int64]) -> NDArray[np.int64]:
    """For how many steps of its sequence, this one included, a channel has not been observed: `(n, channels)`."""
    number = np.arange(len(sequence))[:, None]
    begins = np.r_[True, sequence[1:] != sequence[:-1]][: len(sequence)]
    begin = np.maximum.accumulate(np.where(begins, np.arange(len(sequence)), 0))[:, None]
    return number - np.maximum(np.maximum.accumulate(np.where(observed, number, -1), axis=0), begin - 1)


def stuck(repeated: NDArray[np.int64], usual: NDArray[np.int64]) -> NDArray[np.float32]:
    """`repeated` `(n, channels)` as standardised errors: 8 at twice the longest run that is `usual` `(channels,)`.

    A network that sees a sensor stand still soon expects it to; what gives the sensor away is that the noise is gone.
    Likewise of a sensor that sends nothing while others do, `repeated` steps long.
    """
    return (4 * repeated / np.maximum(usual, 1)).astype(np.float32)


def quadratic_form(cells: NDArray[np.floating], *, inputs: bool) -> NDArray[np.float64]:
    """The form `(channels, channels)` of a view, learned from the `cells` `(n, channels)` of normal steps.

    The mean square, and but for `inputs` with a quarter of its weight the Mahalanobis distance under a covariance
    shrunk to its diagonal, each in the unit that 1 % of the steps exceed. NaN counts as 0; without steps it is the mean
    square.
    """
    steps: NDArray[np.float64] = np.nan_to_num(cells.astype(np.float64))
    width = steps.shape[1]
    even: NDArray[np.float64] = np.eye(width)
    if len(steps) == 0:
        return even / width
    if inputs:
        return _in_units(even, steps)
    covariance = np.atleast_2d(np.cov(np.clip(steps, -TYPICAL, TYPICAL).T)) if len(steps) > 1 else even
    diagonal = np.diag(np.maximum(np.diag(covariance), 1e-3))
    precision = np.linalg.inv((1 - SHRINK) * covariance + SHRINK * diagonal + 1e-6 * even).astype(np.float64)
    form: NDArray[np.float64] = _in_units(even, steps) + MAHALANOBIS * _in_units(precision, steps)
    return _in_units(form, steps)


def own_levels(cells: NDArray[np.floating]) -> NDArray[np.float64]:
    """The form `(channels, channels)` of a view of channels alone, learned from the `cells` `(n, channels)`.

    A channel's term is 1 where it reaches what one normal cell of it in ten thousand does, by a generalised Pareto
    tail, and at least four deviations.
    """
    sizes = np.minimum(np.abs(cells), LIMIT)
    levels = [Rarity.learn(size).level(RARE) for size in sizes.T]
    return np.diag(np.maximum(levels, SMALL) ** -2.0)


def _in_units(form: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    steps = np.clip(steps, -LIMIT, LIMIT)
    square = np.einsum("ij,ij->i", steps @ form, steps)
    return form / max(float(np.quantile(square, UNIT)), 1e-12)


def measure(cells: NDArray[np.floating], view: View) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score `(n,)` and contributions `(n, channels)` of a view's `cells` `(n, channels)`; NaN cells do not count.

    The score is the root of the quadratic form, in proportion to the cells that are observed, or the largest term of
    channels that stand alone; NaN where none is observed. A channel's contribution is the share of its own terms of the
    form, where they are positive.
    """
    seen = np.isfinite(cells)
    steps = np.clip(np.nan_to_num(cells.astype(np.float64)), -LIMIT, LIMIT)
    terms = (steps @ view.form) * steps
    count = seen.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = terms.sum(axis=1) * cells.shape[1] / count
        score = terms.max(axis=1) if view.alone else np.sqrt(np.maximum(whole, 0))
    own = shares(np.where(seen, np.maximum(terms, 0), np.nan))
    return np.where(count > 0, score, np.nan), own


def shares(part: NDArray[np.float64]) -> NDArray[np.float64]:
    """`part` `(n, channels)` ≥ 0 over its sum by step, NaN where it is NaN; equal shares where all parts are 0."""
    seen = np.isfinite(part)
    count, total = seen.sum(axis=1, keepdims=True), np.nansum(part, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(seen, np.where(total > 0, part / total, 1 / count), np.nan)


def most_surprised(
    results: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of several scores and contributions, each step's largest score with its contributions."""
    scores = np.stack([score for score, _ in results])
    winner = np.argmax(np.nan_to_num(scores, nan=-1), axis=0)
    contributions = np.stack([contribution for _, contribution in results])
    at = np.arange(scores.shape[1])
    return scores[winner, at], contributions[winner, at]


def signals(
    values: NDArray[np.float32],
    expected: NDArray[np.float32],
    error: NDArray[np.float32],
    amounts: Sequence[tuple[int, int, bool]],
    rates: Sequence[int] = (),
) -> NDArray[np.float64]:
    """What events are judged by, `(n, channels + amounts)`: the higher, the more suspicious; NaN where not observed.

    An amount, its ratio to history and a rate of labels stand for themselves, every other channel for the size of its
    error. Behind them each amount's log ratio to what was expected. `values` and `expected` `(n, channels)` are in the
    channels' own units, `error` is standardised.
    """
    out = np.abs(error).astype(np.float64)
    ratios = []
    for channel in (*rates, *(channel for amount, ratio, _ in amounts for channel in (amount, ratio))):
        out[:, channel] = np.where(np.isnan(error[:, channel]), np.nan, values[:, channel])
    for amount, _, logged in amounts:
        seen, wanted = (part[:, amount].astype(np.float64) for part in (values, expected))
        off = seen - wanted if logged else np.log1p(np.maximum(seen, 0)) - np.log1p(np.maximum(wanted, 0))
        ratios.append(np.where(np.isnan(error[:, amount]), np.nan, off))
    return np.column_stack([out, *ratios])


def surprise(signal: NDArray[np.float64], about: Signals) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score `(n,)` and contributions `(n, channels)` of events by their `signal` `(n, channels + amounts)`.

    The score is the 3-norm of the channels' surprises, each the negative decimal logarithm of how
    often a normal event has such a signal. An amount surprises by itself or by its two ratios together, whichever is
    more; a minor channel has less weight, and no more surprise than calibration can vouch for. A rate of labels lifts
    the score to the one at which as many events are anomalous, where that is known.
    """
    rare = np.column_stack([-np.log10(r.p_value(signal[:, c])) for c, r in enumerate(about.rarities)])
    channels = signal.shape[1] - len(about.amounts)
    part, minor = rare[:, :channels] ** POWER, list(about.minor)
    known = np.array([np.log10(max(about.rarities[channel].steps, 1)) + BEYOND for channel in minor])
    part[:, minor] = (MINOR * np.minimum(rare[:, minor], known)) ** POWER
    for place, (amount, ratio, _) in enumerate(about.amounts):
        pair = np.stack([rare[:, ratio], rare[:, channels + place]])
        count = np.isfinite(pair).sum(axis=0)
        both = np.where(count > 0, np.nansum(pair, axis=0) / np.maximum(count, 1), np.nan)
        half = np.where(both > rare[:, amount], both**POWER / 2, np.nan)  # for each of the two that tell it
        part[:, amount] = np.where(np.isnan(half), rare[:, amount] ** POWER, half)
        part[:, ratio] = np.where(np.isnan(part[:, ratio]), np.nan, np.nan_to_num(half))
        part[:, amount] += np.where(np.isnan(part[:, ratio]), np.nan_to_num(half), 0)
    if about.odds is not None:
        _lift(part, signal, about.rates, about.odds)
    seen = np.isfinite(part).any(axis=1)
    return np.where(seen, np.nansum(part, axis=1) ** (1 / POWER), np.nan), shares(part)


def _lift(part: NDArray[np.float64], signal: NDArray[np.float64], rates: Sequence[int], odds: Odds) -> None:
    """Give each rate's channel of `part` `(n, channels)`, in place, what it lifts the sum by."""
    part[:, list(rates)] = np.where(np.isnan(signal[:, list(rates)]), np.nan, 0)
    for channel in rates:
        lifted = odds.surprise(signal[:, channel]) ** POWER - np.nansum(part, axis=1)
        part[:, channel] = np.where(np.isnan(part[:, channel]), np.nan, np.maximum(lifted, 0))
