"""Baselines that cost a line or two, each for one entity at a time; learned on the training rows only.

Each takes `train` and `data` with entity, timestamp and features, and returns entity, timestamp and score for all rows
of `data`; the higher, the more anomalous.
"""

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

Rows = NDArray[np.float64]
WINDOW = 10  # rows that KMeansAD sees at once
CLUSTERS = 20


def mewma(train: pl.DataFrame, data: pl.DataFrame, weight: float = 0.3) -> pl.DataFrame:
    """Exponentially weighted mean of the z-scored rows, then its Mahalanobis distance (Lowry and others 1992).

    With `is_anomaly_pred`, by a threshold at 4/3 of the training rows' 0.999 quantile.
    """
    frames = []
    for rows, z, known in _entities(train, data):
        smooth = pl.DataFrame(z).select(pl.all().ewm_mean(alpha=weight, adjust=False)).to_numpy()
        inverse = np.linalg.pinv(np.atleast_2d(np.cov(smooth[known].T)))
        score = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", smooth, inverse, smooth), 0))
        alarm = score > np.quantile(score[known], 0.999) * 4 / 3
        frames.append(rows.with_columns(pl.Series("score", score), pl.Series("is_anomaly_pred", alarm)))
    return pl.concat(frames)


def kmeans(train: pl.DataFrame, data: pl.DataFrame) -> pl.DataFrame:
    """KMeansAD: how far a stretch of rows is from the nearest of 20 centres of the training stretches, row by row."""
    from sklearn.cluster import KMeans

    def distance(z: Rows, known: NDArray[np.bool_]) -> Rows:
        padded = np.concatenate([np.repeat(z[:1], WINDOW - 1, axis=0), z])
        stretches = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0).reshape(len(z), -1)
        model = KMeans(min(CLUSTERS, int(known.sum())), n_init=1, random_state=0).fit(stretches[known])
        nearest = model.transform(stretches).min(axis=1)
        return np.convolve(
            np.concatenate([nearest, np.repeat(nearest[-1:], WINDOW - 1)]), np.ones(WINDOW) / WINDOW, "valid"
        )

    return _each(train, data, distance)


def isolation_forest(train: pl.DataFrame, data: pl.DataFrame) -> pl.DataFrame:
    """How few random cuts isolate a row (Liu, Ting and Zhou 2008)."""
    from sklearn.ensemble import IsolationForest

    return _each(train, data, lambda z, known: -IsolationForest(random_state=0).fit(z[known]).score_samples(z))


def principal_components(train: pl.DataFrame, data: pl.DataFrame) -> pl.DataFrame:
    """Squared distance of a row to the plane that holds 90 % of the training rows' variance."""
    from sklearn.decomposition import PCA

    def distance(z: Rows, known: NDArray[np.bool_]) -> Rows:
        plane = PCA(0.9, svd_solver="full").fit(z[known])
        return ((z - plane.inverse_transform(plane.transform(z))) ** 2).sum(axis=1)

    return _each(train, data, distance)


def _each(train: pl.DataFrame, data: pl.DataFrame, score: Callable[[Rows, NDArray[np.bool_]], Rows]) -> pl.DataFrame:
    return pl.concat(
        [rows.with_columns(pl.Series("score", score(z, known))) for rows, z, known in _entities(train, data)]
    )


def _entities(train: pl.DataFrame, data: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, Rows, NDArray[np.bool_]]]:
    """The keys of each entity's rows in order of time, the rows z-scored by its training rows, and which those are."""
    keys = ["entity", "timestamp"]
    learned = train.select(*keys, known=pl.lit(value=True)).unique(keys)
    rows = data.unique(keys, keep="first").join(learned, on=keys, how="left").sort(keys)
    for part in rows.partition_by("entity", maintain_order=True):
        known = part["known"].fill_null(value=False).to_numpy()
        x = part.drop(*keys, "known").fill_null(strategy="forward").fill_null(0).to_numpy().astype(float)
        yield part.select(keys), (x - x[known].mean(axis=0)) / (x[known].std(axis=0) + 1e-6), known
