"""Anomalies put into normal data on purpose, to see what a detector finds. No label of real data is used."""

from collections.abc import Callable, Mapping

import numpy as np
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


# Each takes a stretch `(steps, channels)` of modelled values and the channels' scales `(channels,)`, and returns the
# stretch with one channel made abnormal.
INJECTIONS: Mapping[str, Injection] = {"spike": _spike, "shift": _shift, "noise": _noise, "drift": _drift}
