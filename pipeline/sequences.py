"""From clean rows to padded, masked tensors, and from scored windows back to rows.

Three layouts of the same steps, each a plain array:

- `Steps`: one entry a step, in order of entity and event time. A step is a row of `clean`; only readings of a sensor
  that fall into one cell of its cadence are one step.
- `Grid`: one entry a cell. A sensor's readings stand in the cells of its cadence, a missing reading is an empty cell; a
  transaction's events stand one after another. Sequences follow each other without a gap.
- `Windows`: each a stretch of one sequence's cells, `steps` segments of `rows` cells, so that a window is no more than
  its first cell and a range of places. Tensors are gathered from the grid in one pass, at the speed of memory.

For scoring, a window is cut for each segment that holds a target step: the segment itself, last, and up to `steps - 1`
segments of what came before it. So every target step is scored exactly once and never by a window that has seen a later
segment. For anything else, `cut_strided` covers the whole of every sequence.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from models.buckets import MOST, divide
from pipeline.config import Dataset, Window
from pipeline.errors import GateRefusedError
from pipeline.tables import key_schema

T = TypeVar("T", bound=np.generic)
Item = TypeVar("Item")
Encodings = Mapping[str, Mapping[str, float]]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

MOMENT = "_moment"
BLOCK = 1 << 14  # rows that are laid out at once
CHUNK = 1024  # windows gathered at once: they stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps of a stretch of `clean`, in order of entity and event time.

    frame: entity, event_time and (where declared) event_id of every row, `(rows,)`
    step: `(rows,)` int64, the step of each row
    values: `(n, channels)` float32, unscaled, 0 where not observed
    observed: `(n, channels)` bool
    entity: `(n,)` int64, code of the entity, numbered in order
    sequence: `(n,)` int64, code of the unbroken sequence
    position: `(n,)` int64, place in the sequence; a gap of one reading is a gap of one position
    """

    frame: pl.DataFrame
    step: Ints
    values: NDArray[np.float32]
    observed: Flags
    entity: Ints
    sequence: Ints
    position: Ints

    @property
    def first(self) -> Ints:
        """`(n,)` int64: the first row of each step."""
        return np.flatnonzero(np.r_[True, self.step[1:] != self.step[:-1]][: len(self.step)])

    @property
    def time(self) -> Ints:
        """`(n,)` int64 event times of the steps' first rows in microseconds since 1970, UTC."""
        return self.frame["event_time"].to_physical().to_numpy()[self.first]

    @property
    def names(self) -> list[str]:
        """The entities' names, in the order of their codes."""
        return self.frame["entity"].unique(maintain_order=True).to_list()

    @property
    def mask(self) -> Flags:
        """`(n,)` bool: a channel of the step is observed."""
        return any_channel(self.observed)


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of all sequences, one sequence behind the other.

    cell: `(n,)` int64, the cell of each step, each in one of its own
    first: `(sequences + 1,)` int64, the first cell of each sequence, and behind them the number of all cells
    """

    cell: Ints
    first: Ints

    def __len__(self) -> int:
        return int(self.first[-1])

    def lay(self, array: NDArray[T]) -> NDArray[T]:
        """`array` `(n, …)` of steps laid into `(cells, …)`, 0 (False) in empty cells; itself where there are none."""
        if len(self) == len(self.cell):
            return array
        out = np.zeros((len(self), *array.shape[1:]), array.dtype)
        out[self.cell] = array
        return out


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of cells, each of one sequence: place p of a window shows cell `start + p`.

    start: `(windows,)` int64, the cell at the first place
    begin, end: `(windows,)` int64, the places that show a cell, half-open; what stands before and behind is padding
    target: `(windows,)` int64, the segment that the window scores, its last
    steps, rows: segments of a window, cells of a segment
    """

    start: Ints
    begin: Ints
    end: Ints
    target: Ints
    steps: int
    rows: int

    def __len__(self) -> int:
        return len(self.start)

    @property
    def padding(self) -> float:
        """The share of the windows' places that is padding; 0 without windows."""
        places = len(self) * self.steps * self.rows
        return 1 - float((self.end - self.begin).sum()) / places if places else 0.0

    @property
    def index(self) -> Ints:
        """`(windows, steps, rows)` int64: the cell at each place, -1 where there is padding."""
        cell, shown = self._places()
        return np.where(shown, cell, -1).reshape(-1, self.steps, self.rows)

    @property
    def target_index(self) -> Ints:
        """`(windows, rows)` int64: the cells of the segment that each window scores, -1 where there is none."""
        place = self.target[:, None] * self.rows + np.arange(self.rows)
        shown = (place >= self.begin[:, None]) & (place < self.end[:, None])
        return np.where(shown, self.start[:, None] + place, -1)

    def take(self, which: Ints | slice, steps: int | None = None) -> "Windows":
        """The windows numbered `which`, perhaps with fewer segments, of which their cells must not need more."""
        start, begin, end, target = (part[which] for part in (self.start, self.begin, self.end, self.target))
        return Windows(start, begin, end, target, self.steps if steps is None else steps, self.rows)

    def batches(self, size: int) -> Iterator["Windows"]:
        """Yield the windows in order, at most `size` at a time."""
        for begin in range(0, len(self), size):
            yield self.take(slice(begin, begin + size))

    def gather(self, laid: NDArray[T]) -> NDArray[T]:
        """The tensor `(windows, steps, rows, …)` out of what `Grid.lay` gave, 0 (False) where there is no step."""
        length, rest = self.steps * self.rows, laid.shape[1:]
        out = np.empty((len(self), length, *rest), laid.dtype)
        # Every stretch of cells that a window can show, as a view: whole stretches are copied, not cells one by one.
        long_enough = len(laid) >= length
        stretches = np.moveaxis(sliding_window_view(laid, length, axis=0), -1, 1) if long_enough else laid[:0]
        for begin, part in zip(range(0, len(self), CHUNK), self.batches(CHUNK), strict=True):
            tensor = out[begin : begin + CHUNK]
            if (part.start >= 0).all() and (part.start < len(stretches)).all():
                tensor[...] = stretches[part.start]
            else:  # one that reaches over the first cell of all or the last
                np.take(laid, part._places()[0], axis=0, out=tensor, mode="clip")
            short = np.flatnonzero((part.begin > 0) | (part.end < length))
            window, place = np.nonzero(~part.take(short)._places()[1])
            tensor[short[window], place] = 0
        return out.reshape(len(self), self.steps, self.rows, *rest)

    def _places(self) -> tuple[Ints, Flags]:
        """`(windows, steps·rows)`: the cell at each place, and whether it belongs to the window."""
        place = np.arange(self.steps * self.rows)
        shown = (place >= self.begin[:, None]) & (place < self.end[:, None])
        return self.start[:, None] + place, shown


def add_sequence_features(frame: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """`frame` (sorted by entity and event time) with the declared sequence features, from earlier events only.

    time_since_last: log(1 + seconds); null for an entity's first event
    ratio_to_history: log((1 + value) / (1 + mean of the values at earlier times)); null without any
    rolling_count, rolling_sum: log(1 + count or sum) over the stretch that ends with, and includes, the event; of
        events at the same time those that stand later do not count
    label_rate: as it stands in `frame`, for it comes from other entities too (pipeline.labels); null where it does not
    """
    absent = [feature.name for feature in dataset.label_rates if feature.name not in frame.columns]
    frame = frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in absent)
    derived = [feature for feature in dataset.sequence_features if feature.kind != "label_rate"]
    if frame.is_empty():
        return frame.with_columns(pl.lit(None, pl.Float64).alias(feature.name) for feature in derived)
    if not derived:
        return frame
    begins = np.flatnonzero((frame["entity"].rle_id().diff() != 0).fill_null(value=True))
    moment = _one_line(frame, begins, max((_micros(f.over) for f in derived if f.over), default=0))
    if moment is None:
        half = begins[len(begins) // 2]
        return pl.concat([add_sequence_features(part, dataset) for part in (frame[:half], frame[half:])])
    later_one = np.ones(len(frame), bool)
    later_one[begins] = False
    frame = frame.with_columns(pl.Series(MOMENT, moment))
    expressions: list[pl.Expr] = []
    for feature in derived:
        value = pl.col(feature.of or "event_time")  # what counts where nothing is said: every event
        expression: pl.Expr
        over = f"{_micros(feature.over)}i" if feature.over else ""
        if feature.kind == "time_since_last":
            seconds = pl.col("event_time").diff().dt.total_microseconds() / 1e6
            expression = pl.when(pl.lit(pl.Series(later_one))).then(seconds.log1p())
        elif feature.kind == "ratio_to_history":
            mean = value.rolling_mean_by(MOMENT, over, closed="left", min_samples=1)
            expression = value.log1p() - mean.log1p()
        else:
            counted = value.is_not_null().cast(pl.Float64) if feature.kind == "rolling_count" else value
            later = _later(frame.select(counted).to_series(), moment)
            expression = (counted.rolling_sum_by(MOMENT, over, closed="right") - pl.lit(later)).log1p()
        expressions.append(expression.cast(pl.Float64).alias(feature.name))
    return frame.with_columns(expressions).drop(MOMENT)


def _one_line(frame: pl.DataFrame, begins: Ints, over: int) -> Ints | None:
    """Event times in microseconds, ascending through all entities; None where they do not fit into 63 bits.

    Entities are moved apart by more than `over`, so that no window reaches from one into another and one pass serves
    all: a pass for each is several times as slow where there are many.
    """
    time, entity = frame["event_time"].to_physical().to_numpy(), frame["entity"].rle_id().to_numpy()
    ends = np.r_[begins[1:], len(time)] - 1
    length = time[ends] - time[begins] + over + 1
    if length.sum(dtype=np.float64) > 2**62 and len(begins) > 1:
        return None
    moment: Ints = time - (time[begins] - np.r_[0, np.cumsum(length)[:-1]])[entity]
    return moment


def _later(values: pl.Series, moment: Ints) -> pl.Series:
    """For each event the sum of the values that stand behind it in the same moment."""
    again = moment[1:] == moment[:-1]
    tied = np.flatnonzero(np.r_[again, False] | np.r_[False, again])
    part = pl.DataFrame({"value": values[tied].fill_null(0), "moment": moment[tied]})
    behind = part.select((pl.col("value").cum_sum(reverse=True) - pl.col("value")).over("moment"))
    sums = np.zeros(len(values))
    sums[tied] = behind.to_series().to_numpy()
    return pl.Series(sums)


def learn_encodings(frame: pl.DataFrame, dataset: Dataset, *, index: bool = False) -> dict[str, dict[str, float]]:
    """For each categorical feature, what each category becomes; `""` stands for the unseen.

    The negative log of its smoothed share, or with `index` its place by falling frequency from 1, with 0 for the
    unseen: what an embedding layer in a model of one's own looks up.
    """
    encodings = {}
    for feature in dataset.features:
        if feature.type == "categorical":
            counts = (
                frame[feature.name].drop_nulls().value_counts().sort("count", feature.name, descending=[True, False])
            )
            total = float(counts["count"].sum()) + len(counts) + 1
            shares = -np.log((counts["count"].to_numpy() + 1) / total)
            codes = np.arange(1.0, len(counts) + 1) if index else shares
            encodings[feature.name] = dict(zip(counts[feature.name], codes.tolist(), strict=True))
            encodings[feature.name][""] = 0.0 if index else float(np.log(total))
    return encodings


def build_steps(clean: pl.DataFrame, dataset: Dataset, encodings: Encodings) -> Steps:
    """The steps of `clean` (any order of rows; see `in_order`) with their channels and positions.

    Channels are the dataset's features (log1p where declared, categories by `encodings`), then its sequence features.
    Raises `GateRefusedError` where a sensor's readings do not fit the cadence, as `grid` in the YAML has it.
    """
    ordered = _order(clean, dataset)
    place, frame = ordered.place, clean
    if dataset.sequence_features:
        frame = add_sequence_features(clean if place is None else clean[place], dataset)
        place = None
    values = _matrix(
        frame.select(
            *(_channel(feature.name, encodings.get(feature.name), feature.log) for feature in dataset.features),
            *(pl.col(feature.name) for feature in dataset.sequence_features),
        )
    )
    if place is not None:  # rows of the matrix, not of every column
        values = np.take(values, place, axis=0)
    observed = np.isfinite(values)
    if not observed.all():
        np.copyto(values, 0, where=~observed)
    keys = ordered.keys(clean, dataset)
    sequence, position = _positions(ordered.code, keys, dataset)
    steps = Steps(keys, np.arange(len(keys)), values, observed, ordered.code, sequence, position)
    return steps if dataset.cadence is None else _one_value_a_cell(steps, dataset)


def in_order(clean: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """`clean` by entity and event time; ties by event_id and features, so whatever order the rows came in."""
    place = _order(clean, dataset).place
    return clean if place is None else clean[place]


@dataclass(frozen=True, slots=True)
class _Order:
    """Rows in order of entity and event time.

    place: `(rows,)` int64, where each of them stands; None where they stand in order already
    names: the entities, ascending; code: `(rows,)` int64, which of them; time: `(rows,)` int64 microseconds
    """

    place: Ints | None
    names: pl.Series
    code: Ints
    time: Ints

    def keys(self, clean: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
        """The key columns of `clean`, in order."""
        keys = clean[list(key_schema(dataset))]
        if self.place is None:
            return keys
        return keys.select(  # entity and time are at hand in order: nothing is fetched from all over the memory
            self.names.gather(self.code).alias("entity"),
            pl.Series("event_time", self.time).cast(clean.schema["event_time"]),
            *(clean[name].gather(self.place) for name in keys.columns[2:]),
        )


def _order(clean: pl.DataFrame, dataset: Dataset) -> _Order:
    """How the rows are put in order: by one whole number a row.

    Sorting by a column of names takes several times as long.
    """
    entity, time = clean["entity"], clean["event_time"].to_physical().to_numpy()
    if clean.is_empty():
        return _Order(None, entity, time, time)
    runs = entity.rle().struct.unnest() if entity.head(BLOCK).is_sorted() else None
    if runs is not None and runs["value"].is_sorted():
        names, length = runs["value"], runs["len"].to_numpy()
        code = np.repeat(np.arange(len(names)), length)
        backwards = np.flatnonzero(time[1:] <= time[:-1])
        if (code[backwards] < code[backwards + 1]).all():  # as a day of `clean` is stored
            return _Order(None, names, code, time)
    else:
        names = entity.unique().sort()
        code = entity.cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
    order = [*key_schema(dataset), *(feature.name for feature in dataset.features)]
    begin, span = int(time.min()), int(np.ptp(time)) + 1
    if len(names) * span >= 2**63:
        place = clean.select(pl.arg_sort_by(order)).to_series().cast(pl.Int64).to_numpy()
        return _Order(place, names, code[place], time[place])
    number = code * span + (time - begin)
    place = pl.Series(number).arg_sort().cast(pl.Int64).to_numpy(writable=True)
    number = number[place]
    again = number[1:] == number[:-1]
    tied = np.flatnonzero(np.r_[False, again] | np.r_[again, False])
    if len(tied):
        rows = clean[place[tied]].with_columns(key=pl.Series(number[tied]))
        place[tied] = place[tied][rows.select(pl.arg_sort_by("key", *order)).to_series().to_numpy()]
    code = number // span
    return _Order(place, names, code, number - code * span + begin)


def _channel(name: str, encoding: Mapping[str, float] | None, log: bool) -> pl.Expr:
    column = pl.col(name)
    if encoding is not None:
        known = list(encoding)
        codes = column.replace_strict(known, list(encoding.values()), default=encoding[""], return_dtype=pl.Float64)
        return pl.when(column.is_null()).then(None).otherwise(codes).alias(name)
    return column.log1p() if log else column


def _matrix(channels: pl.DataFrame) -> NDArray[np.float32]:
    """`(n, channels)` float32, NaN where null; written by blocks of rows that stay in the processor's cache."""
    columns = [channel.cast(pl.Float32).to_numpy() for channel in channels]
    out = np.empty((len(channels), len(columns)), np.float32)
    for begin in range(0, len(out), BLOCK):
        for place, column in enumerate(columns):
            out[begin : begin + BLOCK, place] = column[begin : begin + BLOCK]
    return out


def _positions(entity: Ints, frame: pl.DataFrame, dataset: Dataset) -> tuple[Ints, Ints]:
    """Sequence code and position of each step; a sensor's position is the cell of its cadence that it is nearest to."""
    if len(entity) == 0:
        return entity, entity
    time = frame["event_time"].to_physical().to_numpy()
    new = np.r_[True, entity[1:] != entity[:-1]]
    if dataset.cadence is None:
        sequence = np.cumsum(new) - 1
        return sequence, np.arange(len(entity)) - np.flatnonzero(new)[sequence]
    cadence, grid = _micros(dataset.cadence), dataset.grid
    if grid.span == "own":
        new |= np.r_[True, np.diff(time) > _micros(dataset.longest_gap)]
    sequence = np.cumsum(new)
    sequence -= 1
    since = time - (time[new][sequence] if grid.span == "own" else time.min() // cadence * cadence)
    position = since + cadence // 2
    position //= cadence
    if grid.tolerance is not None:
        off = np.abs(since - position * cadence)
        if (off > _micros(grid.tolerance)).any():
            row = int(np.argmax(off > _micros(grid.tolerance)))
            raise GateRefusedError(
                f"{_place(dataset, frame, row)} is {off[row] / 1e6:g} s off the cadence of {dataset.cadence}, and "
                f"grid.tolerance allows {grid.tolerance}; allow more, or correct cadence"
            )
    return sequence, position


def _one_value_a_cell(steps: Steps, dataset: Dataset) -> Steps:
    """The steps, where several share a cell joined to one: the last reading of each channel there, or the mean.

    So sensors of one machine whose readings come in rows of their own, at rates of their own, are joined: a row that
    has no reading of a channel takes none away.
    """
    again = (steps.sequence[1:] == steps.sequence[:-1]) & (steps.position[1:] == steps.position[:-1])
    if not again.any():
        return steps
    head = np.r_[True, ~again]
    heads, cell = np.flatnonzero(head), np.cumsum(head) - 1
    seen = np.add.reduceat(steps.observed, heads, axis=0, dtype=np.int64)
    rule, lost = dataset.grid.duplicates, int(np.maximum(seen - 1, 0).sum())
    if lost and (rule == "error" or (rule == "last" and 2 * lost > steps.observed.sum())):
        row = int(heads[np.argmax((seen > 1).any(axis=1))])
        cure = "set grid.duplicates to last or mean, or mend the source"
        if rule == "last":
            cure = "most readings would be dropped: shorten cadence, or take their mean with grid.duplicates: mean"
        raise GateRefusedError(
            f"{_place(dataset, steps.frame, row)} shares its cell of the cadence of {dataset.cadence} with another "
            f"reading; {cure}"
        )
    if rule == "mean":
        total = np.add.reduceat(steps.values, heads, axis=0, dtype=np.float64)
        values = (total / np.maximum(seen, 1)).astype(np.float32)
    else:
        rows = np.where(steps.observed, np.arange(len(cell))[:, None], -1)
        values = np.take_along_axis(steps.values, np.maximum(np.maximum.reduceat(rows, heads, axis=0), 0), axis=0)
        values[seen == 0] = 0
    places = (part[heads] for part in (steps.entity, steps.sequence, steps.position))
    return Steps(steps.frame, cell, values, seen > 0, *places)


def _micros(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)


def _place(dataset: Dataset, frame: pl.DataFrame, row: int) -> str:
    return f"{dataset.name}: the reading of {frame['entity'][row]} at {frame['event_time'][row]:%Y-%m-%d %H:%M:%S.%f}"


def make_grid(steps: Steps) -> Grid:
    """The grid on which the steps stand: each sequence from its first position to its last."""
    ends = np.flatnonzero(np.r_[steps.sequence[1:] != steps.sequence[:-1], True][: len(steps.sequence)])
    first = np.r_[0, np.cumsum(steps.position[ends] + 1)]
    return Grid(first[steps.sequence] + steps.position, first)


def cut_windows(steps: Steps, grid: Grid, targets: Flags, window: Window) -> Windows:
    """The windows that score the steps where `targets` `(n,)` is True, each exactly once."""
    chosen = np.flatnonzero(targets)
    sequence, position = steps.sequence[chosen], steps.position[chosen]
    begins = np.r_[True, sequence[1:] != sequence[:-1]][: len(chosen)]
    first = position[begins][np.cumsum(begins) - 1]
    segment = (position - first) // window.rows
    heads = begins | np.r_[True, segment[1:] != segment[:-1]][: len(chosen)]
    sequence, origin = sequence[heads], (first + (segment - window.steps + 1) * window.rows)[heads]
    lead = np.maximum(-origin, 0) // window.rows  # segments from before the sequence began become padding at the end
    target, place = window.steps - 1 - lead, origin + lead * window.rows
    length = np.diff(grid.first)[sequence]
    end = np.minimum((target + 1) * window.rows, length - place)
    return Windows(grid.first[sequence] + place, np.maximum(-place, 0), end, target, window.steps, window.rows)


def cut_strided(grid: Grid, window: Window, stride: int) -> Windows:
    """Windows from the first cell of every sequence on, `stride` cells apart, until its last cell is covered.

    A sequence that is shorter than a window, and the end of a longer one, are padded at the end.
    """
    length, most = np.diff(grid.first), window.steps * window.rows
    number = 1 + -(-np.maximum(length - most, 0) // stride)
    sequence = np.repeat(np.arange(len(length)), number)
    place = (np.arange(len(sequence)) - np.repeat(np.cumsum(number) - number, number)) * stride
    end = np.minimum(most, length[sequence] - place)
    begin, target = np.zeros_like(end), (end - 1) // window.rows
    return Windows(grid.first[sequence] + place, begin, end, target, window.steps, window.rows)


def by_size(windows: Windows) -> Iterator[tuple[Ints, Windows]]:
    """Yield the windows by the segments that they need, as `(numbers, windows)` of at most six sizes.

    The sizes depend on what a window can hold, not on what the others hold, so that a window is computed in the same
    shape whichever shard it is in.
    """
    if len(windows):
        sizes = np.unique(-(-windows.steps * np.arange(1, MOST + 1) // MOST))
        for bucket in divide(windows.target + 1, sizes.tolist()):
            yield bucket.places, windows.take(bucket.places, bucket.size)


def scatter(index: Ints, tensor: NDArray[T], out: NDArray[T]) -> None:
    """Put what stands in a tensor at the places of `index` (its leading axes), but for -1, to those cells of `out`."""
    out[index[index >= 0]] = tensor[index >= 0]


def any_channel(observed: Flags) -> Flags:
    """`(…, channels)` bool to `(…,)` bool: any of them; several times as fast as `any` over a short axis."""
    found: Flags = observed @ np.ones(observed.shape[-1], bool)
    return found


def range_starts(names: pl.Series, rows: pl.Series, most: int) -> pl.Series:
    """Where ranges of neighbouring names begin that have about `most` rows each; no name is divided.

    `rows` tells how many rows there are of each of `names`, which may repeat; no name (null) counts as an empty one.
    """
    each = pl.DataFrame({"name": names.fill_null(""), "rows": rows.cast(pl.Int64)})
    each = each.group_by("name").agg(pl.col("rows").sum()).sort("name")
    part = (each["rows"].cum_sum() - each["rows"]) // most
    return each.group_by(part.alias("part"), maintain_order=True).agg(pl.first("name"))["name"]


def within(column: str, begin: str | None, end: str | None) -> pl.Expr:
    """Whether `column` is not before `begin` and is before `end`; None: no bound."""
    everything, name = pl.lit(value=True), pl.col(column)
    return (everything if begin is None else name >= begin) & (everything if end is None else name < end)


def ranges(column: str, starts: pl.Series) -> Iterator[pl.Expr]:
    """Of each of the ranges that begin at `starts`, in order, what `column` has to be."""
    for begin, end in pairwise([*starts, None]):
        yield within(column, begin, end)


def entity_parts(rows: pl.LazyFrame, most: int) -> Iterator[pl.DataFrame]:
    """Yield the rows of a scan, neighbouring entities together, about `most` rows at a time; at least one frame.

    An entity is never divided, so one with more rows is a part of its own. Only the column `entity` is read ahead;
    where the files are sorted by it, as `clean` is, each part reads its own row groups only.
    """
    count = rows.group_by("entity").len().collect(engine="streaming")
    starts = range_starts(count["entity"], count["len"], most)
    if starts.is_empty():
        yield rows.collect()
    for own in ranges("entity", starts):
        yield rows.filter(own).collect()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, while a thread makes the next one; an error comes where its item would."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Any] = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item
