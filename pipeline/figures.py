"""Figures for MLflow: how training went, and whether the threshold keeps its promise."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from models.threshold import Threshold


def _axes(title: str, x: str, y: str) -> tuple["Figure", "Axes"]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def learning_curve(history: Mapping[str, Sequence[float]]) -> "Figure":
    """Loss on the training and on the early-stopping windows, by epoch."""
    figure, axes = _axes("Learning curve", "epoch", "loss per observed cell")
    for name, label in (("loss", "training"), ("val_loss", "early stopping")):
        if history.get(name):
            axes.plot(np.arange(1, len(history[name]) + 1), history[name], label=label)
    axes.set_yscale("log")
    axes.legend()
    return figure


def calibration(calibrated: NDArray[np.float64], held_out: NDArray[np.float64], threshold: "Threshold") -> "Figure":
    """How many steps score above each level, on calibration and on holdout data, with the threshold.

    Where the two curves lie together, the threshold means on new data what it meant where it was learned.
    """
    figure, axes = _axes("Calibration", "anomaly score", "share of steps above")
    for scores, label in ((calibrated, "calibration"), (held_out, "holdout")):
        kept = np.sort(scores[np.isfinite(scores)])
        if len(kept):
            axes.step(kept, 1 - np.arange(len(kept)) / len(kept), where="post", label=f"{label}, {len(kept):,} steps")
    axes.axvline(threshold.value, color="C3", label=f"threshold for {threshold.budget:g} false alarms/entity/day")
    axes.set_yscale("log")
    axes.legend()
    return figure
