"""From clean rows to padded, masked tensors, and from scored windows back to rows.

Steps are laid on positions: a sensor's readings on its cadence (a missing reading is an empty position), a
transaction's events one after another. A window is cut for each segment of `rows` positions that holds a target step:
the segment itself, last, and up to `steps - 1` segments of what came before it. So every target step is scored exactly
once and never by a window that has seen a later segment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config import Dataset, Window
from pipeline.tables import key_schema

T = TypeVar("T", bound=np.generic)
Encodings = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps of a stretch of `clean`, in order of entity and event time.

    frame: entity, event_time and (where declared) event_id, `(n,)` rows
    values: `(n, channels)` float32, unscaled, 0 where not observed
    observed: `(n, channels)` bool
    entity: `(n,)` int64, code of the entity, numbered in order
    sequence: `(n,)` int64, code of the unbroken sequence
    position: `(n,)` int64, place in the sequence; a gap of one reading is a gap of one position
    """

    frame: pl.DataFrame
    values: NDArray[np.float32]
    observed: NDArray[np.bool_]
    entity: NDArray[np.int64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]

    @property
    def time(self) -> NDArray[np.int64]:
        """`(n,)` int64 event times in microseconds since 1970, UTC."""
        return self.frame["event_time"].to_physical().to_numpy()

    @property
    def names(self) -> list[str]:
        """The entities' names, in the order of their codes."""
        return self.frame["entity"].unique(maintain_order=True).to_list()


@dataclass(frozen=True, slots=True)
class Windows:
    """Which step stands where.

    index: `(windows, steps, rows)` int64, the step's row in `Steps`, -1 where there is none
    target: `(windows,)` int64, the segment whose steps the window scores; what follows it is padding
    """

    index: NDArray[np.int64]
    target: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """`(windows, steps, rows)` bool: a real step stands there."""
        return self.index >= 0

    @property
    def target_index(self) -> NDArray[np.int64]:
        """`(windows, rows)` int64: the steps that each window scores, -1 where there is none."""
        return self.index[np.arange(len(self.index)), self.target]

    def take(self, which: NDArray[np.int64]) -> "Windows":
        """The windows numbered `which`."""
        return Windows(self.index[which], self.target[which])

    def gather(self, array: NDArray[T]) -> NDArray[T]:
        """`array` `(n, channels)` laid out as `(windows, steps, rows, channels)`, 0 (False) where there is no step."""
        out = np.take(array, np.maximum(self.index, 0), axis=0)
        out[~self.mask] = 0
        return out


def add_sequence_features(frame: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """`frame` (sorted by entity and event time) with the declared sequence features, from earlier events only.

    time_since_last: log(1 + seconds); null for an entity's first event
    ratio_to_history: log((1 + value) / (1 + mean of the earlier values)); null without earlier values
    rolling_count, rolling_sum: log(1 + count or sum) over the stretch that ends with, and includes, the event
    """
    expressions = []
    for feature in dataset.sequence_features:
        value = pl.col(feature.of) if feature.of else pl.lit(1.0)
        over = feature.over
        if feature.kind == "time_since_last":
            seconds = pl.col("event_time").diff().dt.total_microseconds() / 1e6
            expression = seconds.log1p().over("entity")
        elif feature.kind == "ratio_to_history":
            assert over is not None
            mean = value.rolling_mean_by("event_time", over, closed="left", min_samples=1).over("entity")
            expression = value.log1p() - mean.log1p()
        else:
            assert over is not None
            counted = value.is_not_null().cast(pl.Float64) if feature.kind == "rolling_count" else value
            if feature.of is None:
                counted = pl.col("event_time").is_not_null().cast(pl.Float64)
            expression = counted.rolling_sum_by("event_time", over, closed="right").over("entity").log1p()
        expressions.append(expression.cast(pl.Float64).alias(feature.name))
    return frame.with_columns(expressions)


def learn_encodings(frame: pl.DataFrame, dataset: Dataset) -> dict[str, dict[str, float]]:
    """For each categorical feature: category to the negative log of its smoothed share; `""` stands for the unseen."""
    encodings = {}
    for feature in dataset.features:
        if feature.type == "categorical":
            counts = frame[feature.name].drop_nulls().value_counts().sort(feature.name)
            total = float(counts["count"].sum()) + len(counts) + 1
            shares = -np.log((counts["count"].to_numpy() + 1) / total)
            encodings[feature.name] = dict(zip(counts[feature.name], shares.tolist(), strict=True))
            encodings[feature.name][""] = float(np.log(total))
    return encodings


def build_steps(clean: pl.DataFrame, dataset: Dataset, encodings: Encodings) -> Steps:
    """The steps of `clean` (any order of rows) with their channels and positions.

    Channels are the dataset's features (log1p where declared, categories by `encodings`), then its sequence features.
    """
    order = list(key_schema(dataset))
    frame = add_sequence_features(clean.sort([*order, *(f.name for f in dataset.features)]), dataset)
    channels = frame.select(
        *(_channel(feature.name, encodings.get(feature.name), feature.log) for feature in dataset.features),
        *(pl.col(feature.name) for feature in dataset.sequence_features),
    )
    matrix = channels.cast(pl.Float32).to_numpy(order="c").reshape(len(frame), len(dataset.channels))
    observed = np.isfinite(matrix)
    entity = frame["entity"].rle_id().cast(pl.Int64).to_numpy()
    sequence, position = _positions(entity, frame["event_time"].to_physical().to_numpy(), dataset)
    return Steps(frame.select(order), np.where(observed, matrix, np.float32(0)), observed, entity, sequence, position)


def _channel(name: str, encoding: Mapping[str, float] | None, log: bool) -> pl.Expr:
    column = pl.col(name)
    if encoding is not None:
        known = list(encoding)
        codes = column.replace_strict(known, list(encoding.values()), default=encoding[""], return_dtype=pl.Float64)
        return pl.when(column.is_null()).then(None).otherwise(codes).alias(name)
    return column.log1p() if log else column


def _positions(
    entity: NDArray[np.int64], time: NDArray[np.int64], dataset: Dataset
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequence code and position of each step.

    A sensor's sequence ends where more than a window's length is missing: nothing before could still be context. Two
    readings that fall on one position (a clock that jitters or runs fast) keep their order: the later one moves on.
    """
    if len(entity) == 0:
        return entity, entity
    new = np.r_[True, entity[1:] != entity[:-1]]
    if dataset.cadence is None:
        sequence = np.cumsum(new) - 1
        starts = np.flatnonzero(new)
        return sequence, np.arange(len(entity)) - starts[sequence]
    cadence = dataset.cadence.total_seconds() * 1e6
    new |= np.r_[True, np.diff(time) > cadence * dataset.window_length]
    sequence = np.cumsum(new) - 1
    starts = np.flatnonzero(new)
    ordinal = np.arange(len(entity)) - starts[sequence]
    slack = np.rint((time - time[starts][sequence]) / cadence).astype(np.int64) - ordinal
    # A running maximum within each sequence: sequences are lifted apart so that one pass serves all.
    lift = sequence * (int(np.ptp(slack)) + 1)
    return sequence, ordinal + np.maximum.accumulate(slack + lift) - lift


def cut_windows(steps: Steps, targets: NDArray[np.bool_], window: Window) -> Windows:
    """The windows that score the steps where `targets` `(n,)` is True, each exactly once."""
    chosen = np.flatnonzero(targets)
    if len(chosen) == 0:
        return Windows(np.empty((0, window.steps, window.rows), np.int64), np.empty(0, np.int64))
    sequence, position = steps.sequence[chosen], steps.position[chosen]
    begins = np.r_[True, sequence[1:] != sequence[:-1]]
    first = position[begins][np.cumsum(begins) - 1]
    segment = (position - first) // window.rows
    heads = begins | np.r_[True, segment[1:] != segment[:-1]]
    sequence, origin = sequence[heads], (first + (segment - window.steps + 1) * window.rows)[heads]
    lead = np.maximum(-origin, 0) // window.rows  # segments from before the sequence began become padding at the end
    target = window.steps - 1 - lead
    cell = np.arange(window.steps * window.rows)
    places = (origin + lead * window.rows)[:, None] + cell
    used = (places >= 0) & (cell < ((target + 1) * window.rows)[:, None])
    index = _look_up(steps, sequence, places, used)
    return Windows(index.reshape(-1, window.steps, window.rows), target)


def _look_up(
    steps: Steps, sequence: NDArray[np.int64], places: NDArray[np.int64], used: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The step at each place of each sequence, -1 where the place is empty or not used."""
    ends = np.flatnonzero(np.r_[steps.sequence[1:] != steps.sequence[:-1], True])
    lengths = steps.position[ends] + 1
    offset = np.cumsum(lengths) - lengths
    table = np.full(int(lengths.sum()), -1, np.int64)
    table[offset[steps.sequence] + steps.position] = np.arange(len(steps.sequence))
    used = used & (places < lengths[sequence][:, None])
    flat = np.where(used, places + offset[sequence][:, None], 0)
    return np.where(used, table[flat], -1)


def scatter(windows: Windows, scored: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Put window results `(windows, rows, channels)` of the target segments to their steps in `out` `(n, channels)`."""
    where = windows.target_index
    out[where[where >= 0]] = scored[where >= 0]
