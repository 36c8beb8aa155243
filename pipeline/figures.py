"""Figures for MLflow: how training went, how scores lie about the threshold, and what has drifted."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.score import DRIFTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from models.threshold import Threshold

# Scores are counted by their ratio to the threshold, in bins of equal width in its logarithm.
LOWEST, HIGHEST, PER_DECADE = -2, 2, 20
BINS = (HIGHEST - LOWEST) * PER_DECADE
EDGES = 10.0 ** np.linspace(LOWEST, HIGHEST, BINS + 1)
MOST_LINES = 8  # features that are drawn
MOST_POINTS = 500  # of a curve
COLOURS = ("#3b6fb6", "#d9822b", "#2f8f6b", "#8a5fb0", "#5b6b7b", "#b0892f", "#3aa0b5", "#a04f72")
CALLED, INK = "#c23b3b", "#333b45"


def _axes(title: str, x: str, y: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_prop_cycle(color=COLOURS)
    return figure, axes


def learning_curve(history: Mapping[str, Sequence[float]]) -> "Figure":
    """Loss on the training and on the early-stopping windows, by epoch."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes("Learning curve", "epoch", "loss per observed cell")
    for name, label in (("loss", "training"), ("val_loss", "early stopping")):
        if history.get(name):
            axes.plot(np.arange(1, len(history[name]) + 1), history[name], label=label, marker=".")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def calibration(calibrated: NDArray[np.float64], held_out: NDArray[np.float64], threshold: "Threshold") -> "Figure":
    """How many steps score above each level, on calibration and on holdout data, with the threshold.

    Where the two curves lie together, the threshold means on new data what it meant where it was learned.
    """
    figure, axes = _axes("Calibration", "anomaly score", "share of steps above")
    for scores, label in ((calibrated, "calibration"), (held_out, "holdout")):
        kept = np.sort(scores[np.isfinite(scores)])
        if len(kept):
            above = np.unique(np.geomspace(1, len(kept), MOST_POINTS).astype(np.int64))[::-1]
            axes.step(kept[-above], above / len(kept), where="post", label=f"{label}, {len(kept):,} steps")
    label = f"threshold for {threshold.budget:g} false alarms/entity/day"
    axes.axvline(threshold.value, color=CALLED, linestyle="--", label=label)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return figure


def scores(title: str, parts: Mapping[str, pl.DataFrame]) -> "Figure":
    """How scores lie about the threshold: of each part the share of steps by score over threshold.

    A part is counted as `pipeline.logbook.score_histogram` does. What lies above 1 was called; the axis is the same in
    every figure, so that nights can be laid side by side.
    """
    figure, axes = _axes(title, "score, as a multiple of the threshold", "share of steps")
    for counted, (name, part) in enumerate(parts.items()):
        steps = np.zeros(BINS)
        steps[part["place"].to_numpy()] = part["steps"].to_numpy()
        if steps.sum():
            label = f"{name}: {steps.sum():,.0f} steps, {part['called'].sum():,} above the threshold"
            axes.stairs(steps / steps.sum(), EDGES, fill=counted == 0, alpha=0.6 if counted == 0 else 1,
                        color=COLOURS[counted], linewidth=1.6, label=label)  # fmt: skip
            axes.set_yscale("log")
            axes.set_ylim(top=3)  # room for the legend
    axes.axvspan(1, EDGES[-1], color=CALLED, alpha=0.07, linewidth=0)
    axes.axvline(1, color=CALLED, linestyle="--", label="threshold")
    axes.set_xscale("log")
    axes.set_xlim(EDGES[0], EDGES[-1])
    axes.set_xticks([0.01, 0.1, 1, 10, 100], ["≤ 0.01", "0.1", "1", "10", "≥ 100"])
    axes.legend(loc="upper right", edgecolor="none", framealpha=0.9)
    return figure


def drift(name: str, drifts: pl.DataFrame, nights: Sequence[date]) -> "Figure":
    """How far features have moved from where training knew them, night by night; says so where none has.

    `drifts`: day, feature, largest and median, as `pipeline.logbook.drifts_by_night` gives them; `nights`: the scored
    ones. A night in which a feature has not moved leaves a gap.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    over = f"the {len(nights)} nights up to {nights[-1]}" if len(nights) > 1 else f"the night of {nights[-1]}"
    figure, axes = _axes(f"Slow drift of {name} over {over}", "night", "deviations from training")
    every = pl.DataFrame({"day": nights}, schema={"day": pl.Date}).sort("day")
    for feature in _furthest(drifts):
        rows = every.join(drifts.filter(feature=feature), on="day", how="left", maintain_order="left")
        days = rows["day"].to_numpy()
        (line,) = axes.plot(days, rows["largest"].to_numpy(), marker="o", label=feature.replace("_", " "))
        axes.plot(days, rows["median"].to_numpy(), marker=".", linestyle=":", color=line.get_color())
    if drifts.is_empty():
        axes.set_ylim(0, DRIFTED + 1)
        axes.plot(every["day"].to_numpy(), np.zeros(len(every)), linestyle="none", marker="|", color=COLOURS[4])
        axes.text(0.5, 0.5, "No feature of any entity has drifted.", transform=axes.transAxes, ha="center", color=INK)
    else:
        axes.set_ylim(0, None)
        title = "the furthest entity; dotted: the median of those that moved"
        axes.legend(frameon=False, ncols=2, title=title, alignment="left", loc="lower left")
    axes.axhline(DRIFTED, color=CALLED, linestyle="--", linewidth=1)
    half = timedelta(hours=12)
    first, last = (datetime.combine(day, time()) for day in (nights[0], nights[-1]))
    axes.set_xlim(first - half, last + half)  # type: ignore[arg-type]  # matplotlib takes dates
    place = axes.get_yaxis_transform()
    axes.text(0.995, DRIFTED * 0.98, "counts as drift", transform=place, color=CALLED, ha="right", va="top")
    locator = AutoDateLocator(minticks=1, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return figure


def _furthest(drifts: pl.DataFrame) -> list[str]:
    """The features that have moved furthest in any night, the first of them first."""
    far = drifts.group_by("feature").agg(pl.col("largest").max())
    return far.sort("largest", "feature", descending=[True, False])["feature"].head(MOST_LINES).to_list()
