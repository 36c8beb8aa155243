"""Baselines that cost a line or two, each for one entity at a time; learned on the training rows only.

Each is fitted to an entity's training rows, z-scored and in order of time, and gives a function from all of its rows
to their scores `(n,)`; the higher, the more anomalous.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Fit = Callable[[Rows], Callable[[Rows], Rows]]
WINDOW = 10  # rows that KMeansAD sees at once
CLUSTERS = 20
KEYS = ["entity", "timestamp"]


def run(fit: Fit, train: pl.DataFrame, test: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, float]]:
    """Entity, timestamp, score and alarm of all rows, and the seconds of fitting and of scoring.

    `is_anomaly_pred` is a score above 4/3 of the training rows' 0.999 quantile. `train` and `test` have entity,
    timestamp and features; training rows come first in an entity's time.
    """
    frames, seconds = [], {"fit": 0.0, "score": 0.0}
    for keys, z, known in _entities(train, test):
        began = time.monotonic()
        score_rows = fit(z[:known])
        fitted = time.monotonic()
        score = score_rows(z)
        seconds["score"] += time.monotonic() - fitted
        seconds["fit"] += fitted - began
        alarm = score > np.quantile(score[:known], 0.999) * 4 / 3
        frames.append(keys.with_columns(pl.Series("score", score), pl.Series("is_anomaly_pred", alarm)))
    return pl.concat(frames), seconds


def mewma(known: Rows, weight: float = 0.3) -> Callable[[Rows], Rows]:
    """Exponentially weighted mean of the z-scored rows, then its Mahalanobis distance (Lowry and others 1992)."""

    def smooth(z: Rows) -> Rows:
        return pl.DataFrame(z).select(pl.all().ewm_mean(alpha=weight, adjust=False)).to_numpy()

    inverse = np.linalg.pinv(np.atleast_2d(np.cov(smooth(known).T)))

    def distance(z: Rows) -> Rows:
        mean = smooth(z)
        return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", mean, inverse, mean), 0))

    return distance


def kmeans(known: Rows) -> Callable[[Rows], Rows]:
    """KMeansAD: how far a stretch of rows is from the nearest of 20 centres of the training stretches, row by row."""
    from sklearn.cluster import KMeans

    def stretches(z: Rows) -> Rows:
        padded = np.concatenate([np.repeat(z[:1], WINDOW - 1, axis=0), z])
        return np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0).reshape(len(z), -1)

    model = KMeans(min(CLUSTERS, len(known)), n_init=1, random_state=0).fit(stretches(known))

    def distance(z: Rows) -> Rows:
        nearest = model.transform(stretches(z)).min(axis=1)
        ahead = np.concatenate([nearest, np.repeat(nearest[-1:], WINDOW - 1)])
        return np.convolve(ahead, np.ones(WINDOW) / WINDOW, "valid")

    return distance


def isolation_forest(known: Rows) -> Callable[[Rows], Rows]:
    """How few random cuts isolate a row (Liu, Ting and Zhou 2008)."""
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(random_state=0).fit(known)
    return lambda z: -forest.score_samples(z)


def principal_components(known: Rows) -> Callable[[Rows], Rows]:
    """Squared distance of a row to the plane that holds 90 % of the training rows' variance."""
    from sklearn.decomposition import PCA

    plane = PCA(0.9, svd_solver="full").fit(known)
    return lambda z: ((z - plane.inverse_transform(plane.transform(z))) ** 2).sum(axis=1)


def _entities(train: pl.DataFrame, test: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, Rows, int]]:
    """The keys of each entity's rows in order of time, the rows z-scored by its training rows, and how many those are.

    Of rows with the same keys the first counts.
    """
    frames = [frame.with_columns(known=pl.lit(value=known)) for frame, known in ((train, True), (test, False))]
    rows = pl.concat(frames).unique(KEYS, keep="first", maintain_order=True).sort(*KEYS)
    for part in rows.partition_by("entity", maintain_order=True):
        known = int(part["known"].sum())
        if not part["known"].head(known).all():
            raise ValueError(f"{part['entity'][0]}: a row to test on comes before one to learn from")
        x = part.drop(*KEYS, "known").fill_null(strategy="forward").fill_null(0).to_numpy().astype(float)
        yield part.select(KEYS), (x - x[:known].mean(axis=0)) / (x[:known].std(axis=0) + 1e-6), known


RIVALS: dict[str, Fit] = {
    "MEWMA": mewma,
    "KMeansAD": kmeans,
    "IsolationForest": isolation_forest,
    "PCA": principal_components,
}
