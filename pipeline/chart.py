"""The geometry of a report's charts: rows around an incident to SVG paths and tick labels.

A chart is a stack of panels over one time axis: the driving features, observed against expected, then the score
against its threshold. Paths live in a box of 10000 × 10000 that the page stretches to its width; labels are placed in
per cent. The axes say which times and values the box spans, so that a script can read both back from the paths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.words import MONTHS, number

WIDTH, HEIGHT = 10_000, 10_000
MOST_POINTS = 240  # of a line; a longer one keeps each stretch's lowest and highest point
MOST_CATEGORIES = 6
MOST_TICKS = 6
GAP = 2.5  # readings further apart than this many cadences are not joined by a line
TICK_SECONDS = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tick:
    """A label on an axis: its place in per cent from the left or the top, its text, and a second line below it."""

    place: float
    text: str
    below: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where each row stands from left to right.

    x: `(n,)` int64, 0 to `WIDTH`
    segment: `(n,)` int64; rows of one segment are joined by a line
    dash: how wide the level is that is drawn for a row that stands alone; 0 for a dot
    ticks: the labels
    shade: left edge and width of the incident
    start: the first row's time, in seconds since 1970
    times: seconds after `start` at equally spaced places, of which the first is `edge` from the left, the last from the
        right; between two of them time runs evenly
    points: how many points a line has at most
    """

    x: Ints
    segment: Ints
    ticks: list[Tick]
    shade: tuple[int, int]
    start: float
    times: tuple[float, ...]
    edge: int = 0
    dash: int = 0
    points: int = MOST_POINTS


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands over a panel: its name with the unit, a note, and the sentence that is read out for the picture."""

    name: str
    note: str
    spoken: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One feature, or the score: paths of what was observed, what was expected and which steps were anomalous.

    `low` and `high` are the values at the bottom and the top; None where heights stand for categories.
    """

    heading: Heading
    ticks: list[Tick]
    observed: str
    marks: str
    expected: str = ""
    threshold: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Panels over one axis; `dots` draws each row as a dot (events) instead of a line (readings)."""

    panels: list[Panel]
    axis: Axis
    dots: bool


def clock_axis(
    rows: pl.DataFrame, start: datetime, end: datetime, zone: ZoneInfo, cadence: float, points: int = MOST_POINTS
) -> Axis:
    """Readings on their time; `cadence` in seconds. `rows` is sorted by `event_time` and not empty."""
    seconds = rows["event_time"].to_physical().to_numpy() / 1e6
    first, last = float(seconds[0]), float(seconds[-1])
    span = max(last - first, cadence)

    def place(moment: Any) -> Any:
        return np.clip((moment - first) / span * WIDTH, 0, WIDTH)

    segment = np.cumsum(np.r_[False, np.diff(seconds) > GAP * cadence])
    left, right = (float(place(t)) for t in (start.timestamp() - cadence / 2, end.timestamp() + cadence / 2))
    return Axis(
        np.rint(place(seconds)).astype(np.int64),
        segment.astype(np.int64),
        _clock_ticks(first, span, zone),
        (round(left), max(round(right - left), WIDTH // 500)),
        start=first,
        times=(0.0, span),
        points=points,
    )


def _clock_ticks(first: float, span: float, zone: ZoneInfo) -> list[Tick]:
    """Round times of the zone's clock, with the date below the first one and wherever it changes."""
    step = next((s for s in TICK_SECONDS if span / s <= MOST_TICKS), 604800 * math.ceil(span / 604800 / MOST_TICKS))
    begin = datetime.fromtimestamp(first, UTC).astimezone(zone)
    shift = begin.utcoffset()
    offset = shift.total_seconds() if shift else 0.0
    moment = math.ceil((first + offset) / step) * step - offset
    ticks, date_before = [], ""
    while moment <= first + span:
        local = datetime.fromtimestamp(moment, UTC).astimezone(zone)
        date = f"{local.day} {MONTHS[local.month - 1]}"
        text = local.strftime("%H:%M:%S" if step < 60 else "%H:%M")
        ticks.append(Tick(round((moment - first) / span * 100, 2), text, date if date != date_before else ""))
        moment, date_before = moment + step, date
    return ticks


def event_axis(rows: pl.DataFrame, start: datetime, end: datetime, zone: ZoneInfo, points: int = MOST_POINTS) -> Axis:
    """Events one after another, equally spaced, each labelled tick with its own time."""
    n = len(rows)
    x = np.rint((np.arange(n) + 0.5) / n * WIDTH).astype(np.int64)
    inside = np.flatnonzero(rows["event_time"].is_between(start, end).to_numpy())
    left, right = (inside[0] / n, (inside[-1] + 1) / n) if len(inside) else (1.0, 1.0)
    shown = np.unique(np.linspace(0, n - 1, min(n, 4)).round().astype(int))
    times = rows["event_time"].gather(shown.tolist()).to_list()
    ticks = []
    for i, moment in zip(shown, times, strict=True):
        local = moment.astimezone(zone)
        date = f"{local.day} {MONTHS[local.month - 1]}"
        ticks.append(Tick(round((i + 0.5) / n * 100, 2), local.strftime("%H:%M"), date))
    seconds = rows["event_time"].to_physical().to_numpy() / 1e6
    known = np.linspace(0, n - 1, min(n, points)).round().astype(int)
    return Axis(
        x,
        np.arange(n, dtype=np.int64),
        ticks,
        shade=(round(left * WIDTH), round((right - left) * WIDTH)),
        start=float(seconds[0]),
        times=tuple(float(t) for t in np.round(seconds[known] - seconds[0], 3)),
        edge=int(x[0]),
        dash=max(round(0.7 * WIDTH / n), WIDTH // 500),
        points=points,
    )


def feature_panel(rows: pl.DataFrame, axis: Axis, name: str, heading: Heading) -> Panel:
    """A numeric feature: its `observed_<name>` against its `expected_<name>`."""
    observed, expected = (_floats(rows[f"{side}_{name}"]) for side in ("observed", "expected"))
    low, high = _range(np.r_[observed, expected])
    level = _heights(expected, low, high)
    paths = _paths(rows, axis, _heights(observed, low, high))
    expectation = line(axis, level, axis.dash)
    return Panel(heading, _value_ticks(low, high), *paths, expected=expectation, low=low, high=high)


def category_panel(rows: pl.DataFrame, axis: Axis, name: str, heading: Heading) -> Panel:
    """A categorical feature: one height a category, the most frequent at the bottom; the rare ones share the top."""
    column = rows[f"observed_{name}"]
    names = column.rename("name").drop_nulls().value_counts().sort(["count", "name"], descending=[True, False])
    shown = names["name"].head(MOST_CATEGORIES).to_list()
    others = len(names) > len(shown)
    levels = len(shown) + others
    place = {category: level for level, category in enumerate(shown)}
    level = np.array([np.nan if c is None else place.get(c, levels - 1) for c in column], np.float64)
    labels = [*shown, "other"] if others else shown
    y = _heights(level, -0.5, max(levels, 1) - 0.5)
    ticks = [Tick(round(100 - (i + 0.5) / levels * 100, 2), str(label)) for i, label in enumerate(labels)]
    return Panel(heading, ticks, *_paths(rows, axis, y))


def score_panel(rows: pl.DataFrame, axis: Axis, threshold: float, heading: Heading) -> Panel:
    """The anomaly score over a dashed line at the threshold."""
    score = _floats(rows["score"])
    high = float(np.nanmax(np.r_[score, threshold * 1.2, 1e-9])) * 1.05
    y = _heights(score, 0.0, high)
    height = round(HEIGHT * (1 - threshold / high))
    paths = _paths(rows, axis, y)
    return Panel(heading, _value_ticks(0.0, high), *paths, threshold=height, low=0.0, high=high)


def line(axis: Axis, y: Floats, dash: int = 0, kept: Ints | None = None) -> str:
    """An SVG path through the points, or those `kept`; it breaks where a value is NaN or a new segment begins.

    All but the first point of a segment stand as steps from the one before, which is a third shorter than places.
    A point that begins a segment is a stroke of length `dash` (0: a dot, where the stroke's ends are round).
    """
    kept = _thin(y, axis.points) if kept is None else kept
    segment = (axis.segment + np.cumsum(np.isnan(y)))[kept]
    alone = np.diff(segment, prepend=-1) != 0
    right, down = axis.x[kept], np.rint(y[kept]).astype(np.int64)
    steps = zip(right, down, np.diff(right, prepend=0), np.diff(down, prepend=0), alone, strict=True)
    return "".join(
        f"M{x - dash // 2} {height}h{dash}" if new else f"l{dx}{dy:+}".replace("+", " ")
        for x, height, dx, dy, new in steps
    )


def _paths(rows: pl.DataFrame, axis: Axis, y: Floats) -> tuple[str, str]:
    """The observed values, and the anomalous ones among them drawn over: both through the same points."""
    anomalous = rows["is_anomaly"].fill_null(value=False).to_numpy()
    strange = np.where(anomalous, y, np.nan)
    kept = np.union1d(_thin(y, axis.points), _thin(strange, axis.points))
    return line(axis, y, kept=kept), line(axis, strange, kept=kept[anomalous[kept]])


def _thin(y: Floats, points: int) -> Ints:
    """Indices of at most `points` values that are not NaN: each stretch's lowest and highest."""
    valid = np.flatnonzero(~np.isnan(y))
    if len(valid) <= points:
        return valid
    stretch = np.arange(len(valid)) * (points // 2) // len(valid)
    by_value = np.lexsort((y[valid], stretch))
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    lowest, highest = by_value[starts], by_value[np.r_[starts[1:], len(valid)] - 1]
    return valid[np.union1d(lowest, highest)]


def _floats(column: pl.Series) -> Floats:
    values = column.cast(pl.Float64).fill_null(math.nan).to_numpy().copy()
    values[~np.isfinite(values)] = np.nan
    return values


def _range(values: Floats) -> tuple[float, float]:
    """The values' range with a margin; never empty."""
    finite = values[~np.isnan(values)]
    if len(finite) == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _heights(values: Floats, low: float, high: float) -> Floats:
    """Values as heights from the top, 0 to `HEIGHT`; NaN stays NaN."""
    return np.asarray(np.rint(HEIGHT * (high - values) / (high - low)), np.float64)


def _value_ticks(low: float, high: float) -> list[Tick]:
    """Three or four round values within the range."""
    rough = (high - low) / 3
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * nice for nice in (1, 2, 2.5, 5, 10) if scale * nice >= rough * 0.75)
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [Tick(round((high - value) / (high - low) * 100, 2), number(value)) for value in values]


def strip(nights: Sequence[str]) -> dict[str, str]:
    """One SVG path for each kind of night: a stroke for each such night, from left to right, 10 wide and 20 high.

    A `quiet` night is a short stroke; one that is `unknown` has none.
    """
    paths: dict[str, str] = {}
    for place, kind in enumerate(nights):
        if kind != "unknown":
            top = 16 if kind == "quiet" else 0
            paths[kind] = paths.get(kind, "") + f"M{place * 10 + 5} 20V{top}"
    return paths
