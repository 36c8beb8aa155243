"""From reconstruction errors to one anomaly score per step."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

# Between the plain mean square (2), which hides a fault of one channel among many, and the maximum (infinity), which
# hears only one: the 4-norm lets one loud channel through and still adds up several quiet ones.
NORM = 4
LIMIT = 50.0  # standardised errors beyond this are as bad as this: keeps one absurd reading from deafening the tail


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

    `b += clip(error - b, -1, 1) / tau` from 0: a machine that ages takes its baseline along, while a fault can move it
    by one standard deviation in `tau` steps at most (Huber's clipped innovations in an exponentially weighted mean).
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
        now[:alive] += np.nan_to_num(np.clip(error[rows] - now[:alive], -1, 1)) / np.float32(tau)
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


def stuck(repeated: NDArray[np.int64], usual: NDArray[np.int64]) -> NDArray[np.float32]:
    """`repeated` `(n, channels)` as standardised errors: 8 at twice the longest run that is `usual` `(channels,)`.

    A network that sees a sensor stand still soon expects it to; what gives the sensor away is that the noise is gone.
    """
    return (4 * repeated / np.maximum(usual, 1)).astype(np.float32)


def combine(error: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score `(n,)` and contributions `(n, channels)` of standardised errors `(n, channels)`; NaN cells do not count.

    The score is the 4-norm of the errors, averaged over the observed channels; a channel's contribution is its share
    of the sum and NaN where it is not observed. A step with nothing observed has score NaN.
    """
    power = np.minimum(np.abs(error.astype(np.float64)), LIMIT) ** NORM
    seen = np.isfinite(power)
    count = seen.sum(axis=1)
    total = np.where(seen, power, 0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.where(count > 0, (total / count) ** (1 / NORM), np.nan)
        share = np.where(seen, np.where(total[:, None] > 0, power / total[:, None], 1 / count[:, None]), np.nan)
    return score, share
