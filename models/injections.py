"""Anomalies put into normal data on purpose, to see what a detector finds. No label of real data is used."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

Injection = Callable[[NDArray[np.float64], NDArray[np.float64], np.random.Generator], NDArray[np.float64]]


def _spike(values: NDArray[np.float64], scale: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    out = values.copy()
    channel = rng.integers(values.shape[1])
    out[rng.integers(len(values)), channel] += rng.choice([-1, 1]) * rng.uniform(6, 12) * scale[channel]
    return out


def _shift(values: NDArray[np.float64], scale: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    out = values.copy()
    channel = rng.integers(values.shape[1])
    out[:, channel] += rng.choice([-1, 1]) * rng.uniform(3, 6) * scale[channel]
    return out


def _noise(values: NDArray[np.float64], scale: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    channel = rng.integers(values.shape[1])
    out = values.copy()
    out[:, channel] += rng.normal(0, rng.uniform(3, 6) * scale[channel], len(values))
    return out


def _drift(values: NDArray[np.float64], scale: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    channel = rng.integers(values.shape[1])
    out = values.copy()
    out[:, channel] += rng.choice([-1, 1]) * np.linspace(0, rng.uniform(4, 8) * scale[channel], len(values))
    return out


def _stuck(values: NDArray[np.float64], scale: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    del scale
    out = values.copy()
    channel = rng.integers(values.shape[1])
    seen = np.flatnonzero(np.isfinite(values[:, channel]))
    out[seen, channel] = values[seen[:1], channel]
    return out


def _swapped(values: NDArray[np.float64], scale: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    del scale
    out = values.copy()
    pair = rng.choice(values.shape[1], 2, replace=False)
    out[:, pair] = values[:, pair[::-1]]
    return out


def _missing(values: NDArray[np.float64], scale: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    del scale
    out = values.copy()
    out[:, rng.integers(values.shape[1])] = np.nan
    return out


# Each takes a stretch `(steps, channels)` of modelled values, NaN where not observed, and the channels' scales
# `(channels,)`, and returns the stretch with one channel, or a pair of them swapped, made abnormal.
INJECTIONS: Mapping[str, Injection] = {
    "spike": _spike, "shift": _shift, "noise": _noise, "drift": _drift, "stuck": _stuck, "swapped": _swapped,
    "missing": _missing,
}  # fmt: skip
AMONG_OTHERS = {"swapped", "missing"}  # what can be told only where there are other channels

BURST, WITHIN = 6, 600  # events that a velocity injection adds, and the seconds that they are spread over


def _amount(
    event: pl.DataFrame, amounts: Sequence[str], categories: Sequence[str], rng: np.random.Generator
) -> pl.DataFrame:
    del categories
    return event.with_columns(pl.col(name) * rng.uniform(4, 10) for name in amounts)


def _velocity(
    event: pl.DataFrame, amounts: Sequence[str], categories: Sequence[str], rng: np.random.Generator
) -> pl.DataFrame:
    del amounts, categories
    seconds = np.r_[0, np.sort(rng.integers(1, WITHIN, BURST))]
    later = pl.Series(seconds * 1_000_000).cast(pl.Duration("us"))
    return pl.concat([event] * (BURST + 1)).with_columns(pl.col("event_time") + later)


def _merchant(
    event: pl.DataFrame, amounts: Sequence[str], categories: Sequence[str], rng: np.random.Generator
) -> pl.DataFrame:
    del amounts, rng
    return event.with_columns(pl.lit("never seen").alias(name) for name in categories)


EventInjection = Callable[[pl.DataFrame, Sequence[str], Sequence[str], np.random.Generator], pl.DataFrame]
# Each takes one event (a row with event_time and the features), the names of the amounts and of the categories, and
# returns the events that stand in its place: of many times the amount, in quick succession, of categories never seen.
EVENT_INJECTIONS: Mapping[str, EventInjection] = {"amount": _amount, "velocity": _velocity, "merchant": _merchant}
