"""What nights and analysts have taught the thresholds, as a version of the detector of its own.

Nothing adapts by itself while a night is scored: scores are of a version, and a night that is run again is equal. What
`adapt` makes is a function of the tables alone, always counted from the trained thresholds: it is the same whenever,
in whatever order and however often nights and it were run.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import logbook, tracking
from pipeline.calendar import planned_stretches
from pipeline.config import Dataset
from pipeline.errors import ConfigError
from pipeline.review import confirmed, dismissed
from pipeline.score import load_detector
from pipeline.state import states
from pipeline.tables import scores_schema
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from models.detector import Detector

log = logging.getLogger("nightsift.adapt")

NIGHTS = 28  # the latest, which adaptation remembers
TOLERANCE = 0.05  # a change of all thresholds by less than this is not worth a version


@dataclass(frozen=True, slots=True)
class Adapted:
    """What adaptation ended with.

    version: label of the champion now; nights: how many it was counted from, up to `last` (ISO, empty without any)
    raised, lowered: how many entities have another threshold than training gave them
    """

    version: str
    changed: bool
    reason: str
    nights: int
    last: str
    raised: int
    lowered: int


@dataclass(frozen=True, slots=True)
class Nights:
    """What the latest nights hold, as `models.threshold.adapt` wants it.

    names: the entities; peak, covered, excused: `(nights, entities)`; dismissed: `(entities,)`; peaks are over `value`
    times the entity's learned factor
    """

    days: list[date]
    names: list[str]
    peak: NDArray[np.float64]
    covered: NDArray[np.float64]
    excused: NDArray[np.bool_]
    dismissed: NDArray[np.float64]


def adapt(ws: Workspace) -> Adapted:
    """Make a version with adapted thresholds the champion, where they differ from the champion's by 5 % or more.

    Raises `ConfigError` where the threshold is a fixed score, each group has its own, or there is no champion.
    """
    from models.threshold import adapt as learn

    if ws.dataset.threshold.score is not None:
        raise ConfigError(f"{ws.dataset.name}.yaml asks for a fixed threshold.score, which nothing adapts; ask for "
                          "threshold.false_alarms instead")  # fmt: skip
    champion = tracking.champion(ws)
    detector = load_detector(champion.folder)
    if detector.members:
        raise ConfigError(f"{ws.dataset.name}: the thresholds of detectors of groups are not adapted; dismissed "
                          "incidents inform them at the next training")  # fmt: skip
    trained, labels = tracking.siblings(ws, champion.label)
    nights = read_nights(ws, detector, labels)
    level = learn(nights.peak, nights.covered, nights.excused, nights.dismissed, detector.threshold.budget)
    adapted = {name: float(factor) for name, factor in zip(nights.names, level, strict=True) if factor != 1}
    counts = (len(nights.days), str(nights.days[-1]) if nights.days else "",
              int((level > 1).sum()), int((level < 1).sum()))  # fmt: skip
    if _largest_change(detector.threshold.adapted, adapted) < TOLERANCE:
        reason = f"the thresholds of detector {champion.label} stay as they are after {len(nights.days)} nights"
        return Adapted(champion.label, False, reason, *counts)
    about = {**detector.about, "adapted": {"trained": trained, "from": champion.label, "to": counts[1]}}
    changed = replace(detector, about=about, threshold=replace(detector.threshold, adapted=adapted))
    label = _register(ws, changed, trained, counts[1])
    return Adapted(
        label, True, f"detector {label}, adapted to {counts[0]} nights up to {counts[1]}: thresholds of {counts[2]} "
        f"entities raised, of {counts[3]} lowered since the training of {trained}", *counts,
    )  # fmt: skip


def read_nights(ws: Workspace, detector: "Detector", labels: set[str]) -> Nights:
    """The latest nights that detectors of the same scores have scored, at most `NIGHTS`."""
    recorded = states(ws, "score").filter(pl.col("detector_version").is_in(sorted(labels)))
    days = recorded["day"].to_list()[-NIGHTS:]
    if not days:
        none = np.empty((0, 0))
        return Nights([], [], none, none, none.astype(bool), np.empty(0))
    scores = ws.lake.scan("scores", scores_schema(ws.dataset), days[0], days[-1]).filter(
        pl.col("day").is_in(days) & pl.col("detector_version").is_in(sorted(labels))
    )
    each = scores.group_by("day", "entity").agg(pl.col("score").max(), pl.len().alias("steps"))
    table = each.collect(engine="streaming").sort("entity", "day")
    names = table["entity"].unique().sort().to_list()
    shape = (len(days), len(names))
    at = _place(table.select("day", "entity"), days, names)
    learned = np.array([detector.threshold.factors.get(name, 1.0) for name in names]) * detector.threshold.value
    peak, covered, excused = np.full(shape, np.nan), np.zeros(shape), np.zeros(shape, bool)
    peak[at] = table["score"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    covered[at] = _coverage(table["steps"], ws.dataset)
    known, spared = confirmed(ws), dismissed(ws)
    planned = planned_stretches(ws, names, ws.dataset.day_bounds(days[0])[0], ws.dataset.day_bounds(days[-1])[1])
    excused[_place(touched(pl.concat([known, spared, planned]), ws.dataset), days, names)] = True
    highest = np.zeros(len(names))
    for name, score in _peaks(scores, spared):
        highest[names.index(name)] = score
    return Nights(days, names, peak / learned, covered, excused, highest / learned)


def _place(pairs: pl.DataFrame, days: list[date], names: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each pair (day, entity) in a table of `days` by `names`; those that are not in it left out."""
    rows = pl.DataFrame({"day": days}, schema={"day": pl.Date}).with_row_index("row")
    columns = pl.DataFrame({"entity": names}, schema={"entity": pl.String}).with_row_index("column")
    found = pairs.join(rows, on="day", maintain_order="left").join(columns, on="entity", maintain_order="left")
    return found["row"].to_numpy(), found["column"].to_numpy()


def _coverage(steps: pl.Series, dataset: Dataset) -> NDArray[np.float64]:
    """The entity-days of nights of one entity with so many steps, as `pipeline.incidents.entity_days` counts them."""
    if dataset.cadence is None:
        return np.ones(len(steps))
    return steps.to_numpy() * (dataset.cadence / timedelta(days=1))


def touched(stretches: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """The pairs (day, entity) that the `stretches` (entity, start, end) touch."""
    days = [
        (dataset.day_of(start) + timedelta(days=n), entity)
        for entity, start, end in stretches.iter_rows()
        for n in range((dataset.day_of(end) - dataset.day_of(start)).days + 1)
    ]
    return pl.DataFrame(days, schema={"day": pl.Date, "entity": pl.String}, orient="row")


def _peaks(scores: pl.LazyFrame, stretches: pl.DataFrame) -> list[tuple[str, float]]:
    """The highest score in the `stretches` of each entity, by name."""
    rows = scores.select("entity", "event_time", "score").join(stretches.lazy(), on="entity")
    inside = rows.filter(pl.col("event_time").is_between(pl.col("start"), pl.col("end")))
    found = inside.group_by("entity").agg(pl.col("score").max()).drop_nulls().sort("entity")
    return list(found.collect(engine="streaming").iter_rows())


def _largest_change(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The largest difference of two sets of factors, in the logarithm; those that are not named are 1."""
    names = {*before, *after}
    return max((abs(float(np.log(before.get(name, 1.0) / after.get(name, 1.0)))) for name in names), default=0.0)


def _register(ws: Workspace, detector: "Detector", trained: str, last: str) -> str:
    """Log and register the adapted detector and make it the champion; its label."""
    import mlflow

    from pipeline.promotion import promote
    from pipeline.train import weights_digest

    name = f"{last}, {ws.dataset.name} adapted"
    with tracking.run(ws, "train", name) as active, TemporaryDirectory() as scratch:
        folder = Path(scratch) / "detector"
        detector.save(folder)
        window = f"{detector.about['from']} to {detector.about['to']}"
        tags, note = {"data_window": window, "trained": trained}, logbook.version_note(detector, None)
        note = f"Detector {trained}, its thresholds adapted to the nights up to {last}. {note}"
        rows = logbook.example(ws.dataset, detector)
        version = tracking.register(ws, folder, weights_digest(detector), tags, note, rows)
        told = [f"Detector **{version.label}**. {note}"]
        mlflow.set_tags(tracking.note_tags(active, told, {"Factors": "adapted.json"}))
        mlflow.log_dict(dict(detector.threshold.adapted), "adapted.json")
        mlflow.set_tags({"detector": version.label, "adapted_from": trained, "adapted_to": last})
        promote(ws, version.number)
    log.info("%s: detector %s, adapted to the nights up to %s", ws.dataset.name, version.label, last)
    return version.label
