"""Cells into canonical types: what cannot be read becomes a problem of its row, never a crash and never a guess.

A source gives `Rows`; `canonical` turns them into the columns that every later step relies on. A row that cannot be
read keeps its place, with the reason in `problems` and the whole source row in `raw`. A column that as a whole is not
what the dataset says is another matter: it stops the night with a sentence.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.config import YEARS, Dataset
from pipeline.errors import GateRefusedError
from pipeline.tables import MOMENT, canonical_schema

# How a missing number is written in text; an empty cell is missing everywhere.
MISSING = ("na", "n/a", "nan", "null", "none")
# ISO 8601, after T became a space and a decimal comma a point.
NAIVE = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
ZONED = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
# An epoch's unit is told by its size: up to each bound, this many units make a second.
EPOCH_UNITS = ((1e11, 1), (1e14, 1e3), (1e17, 1e6), (math.inf, 1e9))
SHOWN = 60  # characters of a bad cell that a message shows


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as a source gave them.

    `frame` holds the source's columns; `trouble` says why a line could not be read as a row (null where it could);
    `lines` is the line's text (null where `frame` holds all of it). `label` names the source in messages.
    """

    label: str
    frame: pl.DataFrame
    trouble: pl.Series
    lines: pl.Series

    @classmethod
    def whole(cls, label: str, frame: pl.DataFrame) -> "Rows":
        """Rows of which every line could be read."""
        return cls(label, frame, nulls(frame.height), nulls(frame.height))


@dataclass(frozen=True, slots=True)
class Cells:
    """A column's values in their canonical type, and for each cell that could not be read a message (else null)."""

    values: pl.Series
    problems: pl.Series


def source_columns(dataset: Dataset) -> dict[str, str]:
    """Canonical name → source column, in the order of `canonical_schema`."""
    event_id = {"event_id": dataset.event_id} if dataset.event_id else {}
    features = {feature.name: feature.column for feature in dataset.features}
    return {"entity": dataset.entity, "event_time": dataset.event_time, **event_id, **features}


def canonical(rows: Rows, dataset: Dataset) -> pl.DataFrame:
    """The rows in canonical names and types, then `source_row`, `problems` and `raw`; as many rows as were given.

    Raises `GateRefusedError` where a column is missing or as a whole not of its type.
    """
    require_columns(rows.label, rows.frame.columns, dataset)
    cells = {name: _read(rows.frame[column], name, dataset) for name, column in source_columns(dataset).items()}
    for name, column in source_columns(dataset).items():
        _refuse_wrong_type(rows, column, cells[name], dataset)
    problems = _gather(rows, [cell.problems for cell in cells.values()])
    return pl.DataFrame(
        [cell.values.alias(name) for name, cell in cells.items()]
        + [
            pl.int_range(rows.frame.height, dtype=pl.Int64, eager=True).alias("source_row"),
            problems,
            _raw(rows, problems),
        ]
    )


def require_columns(label: str, present: Iterable[str], dataset: Dataset) -> None:
    """Raise `GateRefusedError` where one of the dataset's columns is not among `present`."""
    there = list(present)
    for name, column in source_columns(dataset).items():
        if column not in there:
            raise GateRefusedError(
                f"{label}: there is no column {column!r} (needed as {name}); the columns are "
                f"{', '.join(there) or 'none'}. Mend the file, or name the right column in {dataset.file.name}"
            )


def parse_number(cells: pl.Series, name: str) -> Cells:
    """Cells as Float64: NaN and the usual words for a missing value are null, infinity is a problem.

    True and false are 1 and 0, of whatever type.
    """
    if not _is_scalar(cells) or cells.dtype.is_temporal():
        return _unreadable(cells, name, "not a number", pl.Float64)
    text = cells.dtype == pl.String
    given = _blank_to_null(cells) if text else cells
    values = given.cast(pl.Float64, strict=False)
    bad = values.is_null() & given.is_not_null()
    if text and bad.any():
        values, bad = _read_words(given, values)
    values = values.fill_nan(None)
    infinite = values.is_infinite().fill_null(False)
    if not bad.any() and not infinite.any():
        return Cells(values, nulls(cells.len()))
    problems = pl.select(
        pl.when(bad).then(_quoted(name, given, "is not a number")).when(infinite).then(pl.lit(f"{name}: infinite"))
    ).to_series()
    return Cells(values.set(infinite, None), problems)


def parse_text(cells: pl.Series, name: str, *, required: bool = False) -> Cells:
    """Cells as String without blanks around; whole numbers lose the `.0` that a missing neighbour gave them.

    A `required` text is a name: missing, or with a line break in it (two lines in one, by a quote), it is a problem.
    """
    if not _is_scalar(cells):
        return _unreadable(cells, name, "not a text", pl.String)
    values = _blank_to_null(_as_text(cells))
    return Cells(values, _name_problems(values, name) if required else nulls(cells.len()))


def parse_time(cells: pl.Series, name: str, zone: str) -> Cells:
    """Cells as UTC microseconds; times without a zone are taken in `zone`.

    ISO 8601 text (with or without a zone), datetimes and dates are read, and numbers as time since 1970, in seconds,
    milliseconds, microseconds or nanoseconds by their size (`EPOCH_UNITS`); a number before 1980 is no time, as it is
    more likely a counter or a date such as 20240131. When clocks change, a local time that happens twice or never is a
    problem; its row keeps a near instant, so that it stands with its own day. Any other unreadable cell is null.
    """
    if cells.dtype.is_numeric():
        return _complete(cells, name, _epoch(cells), nulls(cells.len()))
    if isinstance(cells.dtype, pl.Datetime) and cells.dtype.time_zone:
        return _complete(cells, name, cells.cast(MOMENT), nulls(cells.len()))
    if cells.dtype in (pl.Date, pl.Datetime):
        return _complete(cells, name, *_localise(cells.cast(pl.Datetime("us")), name, zone))
    if cells.dtype == pl.String:
        return _complete(cells, name, *_parse_iso(_blank_to_null(cells), name, zone))
    if cells.dtype == pl.Null:
        return _complete(cells, name, pl.Series([None] * cells.len(), dtype=MOMENT), nulls(cells.len()))
    return _unreadable(cells, name, "not a time", MOMENT)


def nulls(count: int) -> pl.Series:
    """`count` null strings."""
    return pl.repeat(None, count, dtype=pl.String, eager=True)


def to_json(row: dict[str, Any]) -> str:
    """One source row as JSON; what JSON does not know (times, decimals, NaN, infinity) as text."""
    safe = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(safe, ensure_ascii=False, default=str)


def _read(cells: pl.Series, name: str, dataset: Dataset) -> Cells:
    if cells.dtype in (pl.Categorical, pl.Enum):
        cells = cells.cast(pl.String)
    if name == "event_time":
        return parse_time(cells, name, dataset.zone)
    if name in ("entity", "event_id"):
        return parse_text(cells, name, required=True)
    return parse_number(cells, name) if canonical_schema(dataset)[name] == pl.Float64 else parse_text(cells, name)


def _refuse_wrong_type(rows: Rows, column: str, cells: Cells, dataset: Dataset) -> None:
    """A column of which nothing, and of several cells at least half, cannot be read is not a matter of single rows."""
    readable = rows.trouble.is_null()
    given = rows.frame[column].is_not_null() & readable
    lost = given & cells.problems.is_not_null() & cells.values.is_null()
    bad = lost.sum()
    if bad < 2 or bad < given.sum() or 2 * bad < readable.sum():
        return
    example = cells.problems.filter(lost)[0]
    raise GateRefusedError(
        f"{rows.label}: no value of column {column!r} can be read ({example}; {bad} rows like it). "
        f"Mend the file, or the column's name and type in {dataset.file.name}"
    )


def _gather(rows: Rows, messages: list[pl.Series]) -> pl.Series:
    """Each row's problems as a list; for a line that could not be read, that alone."""
    told = [series.alias(str(i)) for i, series in enumerate(messages) if series.null_count() < series.len()]
    frame = pl.DataFrame([rows.trouble.alias("trouble"), *told])
    each = pl.concat_list(pl.exclude("trouble")) if told else pl.lit([], dtype=pl.List(pl.String))
    whole = pl.concat_list("trouble")
    lists = pl.when(pl.col("trouble").is_null()).then(each).otherwise(whole).list.drop_nulls()
    return frame.select(lists.cast(pl.List(pl.String)).alias("problems")).to_series()


def _raw(rows: Rows, problems: pl.Series) -> pl.Series:
    """The whole source row as JSON where it has problems, else null."""
    bad = (problems.list.len() > 0).arg_true()
    raw: list[str | None] = [None] * problems.len()
    parts = zip(bad, rows.trouble[bad], rows.lines[bad], rows.frame[bad].iter_rows(named=True), strict=True)
    for place, trouble, line, row in parts:
        raw[place] = to_json({"line": line}) if trouble is not None else line or to_json(row)
    return pl.Series("raw", raw, dtype=pl.String)


def _read_words(given: pl.Series, values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The numbers with true and false as 1 and 0, and which texts are no number even so (and no word for missing)."""
    words = given.str.to_lowercase()
    values = values.set((words == "true").fill_null(False), 1.0).set((words == "false").fill_null(False), 0.0)
    return values, given.is_not_null() & values.is_null() & ~words.is_in(MISSING).fill_null(False)


def _is_scalar(cells: pl.Series) -> bool:
    return not cells.dtype.is_nested() and cells.dtype not in (pl.Binary, pl.Object, pl.Duration)


def _unreadable(cells: pl.Series, name: str, what: str, dtype: Any) -> Cells:
    """Every given cell is a problem, as the column's type cannot hold what is wanted."""
    message = f"{name}: a value of type {cells.dtype} is {what}"
    problems = pl.select(pl.when(cells.is_not_null()).then(pl.lit(message))).to_series()
    return Cells(pl.repeat(None, cells.len(), dtype=dtype, eager=True), problems)


def _blank_to_null(cells: pl.Series) -> pl.Series:
    text = cells.str.strip_chars()
    return text.set(text == "", None)


def _as_text(cells: pl.Series) -> pl.Series:
    if cells.dtype.is_float():
        numbers = cells.fill_nan(None)
        whole = (numbers == numbers.round()) & (numbers.abs() < 2**53)
        return pl.select(
            pl.when(whole).then(numbers.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(numbers.cast(pl.String))
        ).to_series()
    return cells.cast(pl.String)


def _quoted(name: str, cells: pl.Series, what: str) -> pl.Expr:
    shown = pl.lit(cells.cast(pl.String, strict=False).str.slice(0, SHOWN))
    return pl.concat_str([pl.lit(f"{name}: '"), shown, pl.lit(f"' {what}")])


def _name_problems(values: pl.Series, name: str) -> pl.Series:
    broken = pl.lit(values.str.contains("\n", literal=True))
    return pl.select(
        pl.when(values.is_null())
        .then(pl.lit(f"{name}: missing"))
        .when(broken)
        .then(pl.lit(f"{name}: has a line break"))
    ).to_series()


def _complete(cells: pl.Series, name: str, times: pl.Series, problems: pl.Series) -> Cells:
    """Times within sensible years, with a message for every cell that gave none."""
    sensible = times.dt.year().is_between(YEARS[0], YEARS[-1])
    times = times.set(~sensible.fill_null(True), None)
    if times.null_count() == 0 and problems.null_count() == problems.len():
        return Cells(times, problems)
    given = _blank_to_null(cells) if cells.dtype == pl.String else cells
    given = given.fill_nan(None) if given.dtype.is_float() else given
    unread = pl.when(times.is_null()).then(_quoted(name, given, "is not a time"))
    missing = pl.when(given.is_null()).then(pl.lit(f"{name}: missing"))
    return Cells(times, pl.select(pl.coalesce(missing, problems, unread)).to_series())


def _epoch(numbers: pl.Series) -> pl.Series:
    """Numbers as time since 1970, each in the unit that its size tells; null before 1980."""
    given = numbers.fill_nan(None) if numbers.dtype.is_float() else numbers
    size = pl.lit(given.cast(pl.Float64).abs())
    exact = pl.lit(given.cast(pl.Int64, strict=False) if given.dtype.is_integer() else given.cast(pl.Float64))
    micros = pl.lit(None, dtype=pl.Int64)
    for bound, per_second in reversed(EPOCH_UNITS):
        scaled = exact * int(1e6 / per_second) if per_second <= 1e6 else exact // int(per_second / 1e6)
        micros = pl.when(size < bound).then(scaled.round().cast(pl.Int64, strict=False)).otherwise(micros)
    times = pl.select(micros.cast(pl.Datetime("us"))).to_series().dt.replace_time_zone("UTC")
    return times.set((times.dt.year() < 1980).fill_null(False), None)


def _parse_iso(text: pl.Series, name: str, zone: str) -> tuple[pl.Series, pl.Series]:
    """ISO 8601 texts as UTC times, with messages about those that the change of clocks makes unclear."""
    tidy = text.str.replace(r"^(\d{4}-\d\d-\d\d)[Tt]", "$1 ").str.replace(",", ".", literal=True)
    has_zone = tidy.str.contains(r":[\d.]+ ?([Zz]|UTC|[+-]\d\d:?(\d\d)?)$").fill_null(False)
    times, problems = _localise(_first_format(tidy.set(has_zone, None), NAIVE), name, zone)
    if has_zone.any():
        plain = tidy.str.replace(r" ?(UTC|[Zz])$", "Z").str.replace(r" ([+-]\d\d:?\d*)$", "$1")
        times = times.zip_with(times.is_not_null(), _first_format(plain.set(~has_zone, None), ZONED).cast(MOMENT))
    if times.null_count() > text.null_count():
        numbers = text.set(times.is_not_null(), None).cast(pl.Float64, strict=False)
        times = times.zip_with(times.is_not_null(), _epoch(numbers))
    return times, problems


def _first_format(text: pl.Series, formats: tuple[str, ...]) -> pl.Series:
    """Each text as a datetime in the first of `formats` that fits; null where none does."""
    times = text.str.to_datetime(formats[0], strict=False, time_unit="us")
    for form in formats[1:]:
        rest = text.set(times.is_not_null(), None)
        if rest.null_count() < rest.len():
            times = times.zip_with(times.is_not_null(), rest.str.to_datetime(form, strict=False, time_unit="us"))
    return times


def _localise(naive: pl.Series, name: str, zone: str) -> tuple[pl.Series, pl.Series]:
    """Naive datetimes of `zone` as UTC, and the messages about times that the change of clocks skips or repeats."""
    exact = naive.dt.replace_time_zone(zone, non_existent="null", ambiguous="null")
    unclear = exact.is_null() & naive.is_not_null()
    if not unclear.any():
        return exact.cast(MOMENT), nulls(naive.len())
    earliest = naive.dt.replace_time_zone(zone, non_existent="null", ambiguous="earliest").cast(MOMENT)
    before = naive.dt.offset_by("-1d").dt.replace_time_zone(zone, non_existent="null", ambiguous="earliest")
    near = before.cast(MOMENT).dt.offset_by("24h")
    what = pl.when(earliest.is_null()).then(pl.lit("does not exist in ")).otherwise(pl.lit("happens twice in "))
    message = pl.concat_str(_quoted(name, naive, ""), what, pl.lit(f"{zone}, where clocks change then"))
    problems = pl.select(pl.when(unclear).then(message)).to_series()
    return pl.select(pl.coalesce(exact.cast(MOMENT), earliest, near)).to_series(), problems
