"""The calendar: stretches of time in which what happens is expected, such as maintenance or a holiday.

Its entries stand in the YAML, in a table that the YAML names, or in both. Nothing is learned from their steps; an
incident in one is marked with its reason and alerts nobody, or is not made at all.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import polars as pl
from pydantic import ValidationError

from pipeline.config import CalendarEntry, Dataset
from pipeline.errors import ConfigError, GateRefusedError
from pipeline.sources import SourceFile, list_matching, read_rows, resolve_path
from pipeline.tables import EVERYONE, stretches_schema
from pipeline.workspace import Workspace

COLUMNS = tuple(CalendarEntry.model_fields)
SEPARATOR = ";"  # between the entities in a cell of a table
INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Planned:
    """An entry of the calendar: half-open in UTC, of the `entities` (names or globs), of all where there are none."""

    start: datetime
    end: datetime
    entities: tuple[str, ...]
    reason: str
    suppress: bool

    def concerns(self, entity: str, everyone: Collection[str] = ()) -> bool:
        """Whether it is about `entity`; about the whole source where it is about `everyone` that is known."""
        if not self.entities:
            return True
        if entity == EVERYONE:
            return bool(everyone) and all(self.concerns(name) for name in everyone)
        return any(fnmatchcase(entity, name) for name in self.entities)


def read_calendar(ws: Workspace) -> list[Planned]:
    """All entries, those that suppress first.

    Raises `ConfigError` where the table is missing, or an entry of it cannot be used: with file, row and remedy.
    """
    declared = [planned(entry, ws.dataset) for entry in (*ws.dataset.calendar.entries, *_read_tables(ws))]
    return sorted(declared, key=lambda p: (not p.suppress, p.start, p.end, p.entities, p.reason))


def touching(calendar: Sequence[Planned], start: datetime, end: datetime) -> list[Planned]:
    """The entries that touch the time from `start` up to, but not including, `end`; in their order."""
    return [entry for entry in calendar if entry.start < end and entry.end > start]


def planned(entry: CalendarEntry, dataset: Dataset) -> Planned:
    """A declared entry as the pipeline uses it."""
    return Planned(*entry.bounds(dataset.tz), tuple(entry.entities), entry.reason, entry.action == "suppress")


def digest(calendar: Sequence[Planned]) -> str:
    """16 hex digits of what the entries say; empty without any."""
    return hashlib.sha256("\n".join(map(repr, calendar)).encode()).hexdigest()[:16] if calendar else ""


def with_plan(frame: pl.DataFrame, calendar: Sequence[Planned]) -> pl.DataFrame:
    """`frame` (entity, event_time) with `reason`, null outside the calendar, and `suppressed`."""
    names = frame["entity"].unique().to_list()
    hits = [_holds(entry, names) for entry in calendar]
    none = pl.lit(None, dtype=pl.String)
    reason = [pl.when(hit).then(pl.lit(entry.reason)) for hit, entry in zip(hits, calendar, strict=True)]
    hidden = [hit for hit, entry in zip(hits, calendar, strict=True) if entry.suppress]
    return frame.with_columns(
        pl.coalesce(*reason, none).alias("reason"),
        pl.any_horizontal(pl.lit(value=False), *hidden).alias("suppressed"),
    )


def _holds(entry: Planned, names: list[str]) -> pl.Expr:
    mine = [name for name in names if entry.concerns(name)]
    return pl.col("entity").is_in(mine) & pl.col("event_time").is_between(entry.start, entry.end, "left")


def stretches(calendar: Sequence[Planned], entities: Collection[str]) -> pl.DataFrame:
    """The stretches (entity, start, end; both ends included) of the calendar for each of the `entities`."""
    rows = [
        (entity, entry.start, entry.end - INSTANT)
        for entry in calendar
        for entity in sorted(entities)
        if entry.concerns(entity)
    ]
    return pl.DataFrame(rows, schema=stretches_schema(), orient="row")


def planned_stretches(ws: Workspace, entities: Collection[str], start: datetime, end: datetime) -> pl.DataFrame:
    """As `stretches`, of what the calendar says of the time from `start` up to `end`, cut to that time."""
    mine = touching(read_calendar(ws), start, end)
    return stretches([replace(p, start=max(p.start, start), end=min(p.end, end)) for p in mine], entities)


def cut(start: datetime, end: datetime, calendar: Sequence[Planned]) -> list[tuple[datetime, datetime, Planned | None]]:
    """The stretch from `start` to `end` cut at the borders of the entries, each piece with the entry that holds it.

    Neighbouring pieces of one entry, or of none, are one.
    """
    edges = {start, end, *(edge for p in calendar for edge in (p.start, p.end) if start < edge < end)}
    order = sorted(edges)
    pieces: list[tuple[datetime, datetime, Planned | None]] = []
    for left, right in itertools.pairwise(order):
        held = next((p for p in calendar if p.start <= left and right <= p.end), None)
        begin = pieces.pop()[0] if pieces and pieces[-1][2] == held else left
        pieces.append((begin, right, held))
    return pieces


# --- the table


def _read_tables(ws: Workspace) -> Iterator[CalendarEntry]:
    declared = ws.dataset.calendar
    if declared.path is None:
        return
    where = resolve_path(declared.path, ws.dataset.file.parent, ws.home)
    try:
        for file in list_matching(where, f"dataset {ws.dataset.name}, calendar"):
            yield from _read_table(ws.dataset, file)
    except GateRefusedError as error:
        raise ConfigError(f"{error}. The calendar of {ws.dataset.file.name} (calendar.path) is needed") from error


def _read_table(dataset: Dataset, file: SourceFile) -> Iterator[CalendarEntry]:
    frame = read_rows(file, dataset.calendar.guess_format() or "", list(COLUMNS)).frame
    wrong = [name for name in frame.columns if name not in COLUMNS]
    missing = [name for name in ("start", "reason") if name not in frame.columns]
    if wrong or missing:
        raise ConfigError(
            f"{file.uri}: there is no column {missing[0]!r}; a calendar has the columns {', '.join(COLUMNS)}"
            if missing
            else f"{file.uri}: {wrong[0]!r} is no column of a calendar; it has the columns {', '.join(COLUMNS)}"
        )
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        yield _entry(row, dataset, f"{file.uri}: row {number}")


def _entry(row: dict[str, Any], dataset: Dataset, place: str) -> CalendarEntry:
    given = {name: cell for name, cell in row.items() if cell is not None and str(cell).strip()}
    if isinstance(given.get("entities"), str):
        given["entities"] = [name.strip() for name in given["entities"].split(SEPARATOR) if name.strip()]
    try:
        entry = CalendarEntry(**given)
        entry.bounds(dataset.tz)
    except ValidationError as error:
        told = "; ".join(_told(problem) for problem in error.errors())
        raise ConfigError(f"{place}: {told}; mend the row") from error
    except ValueError as error:
        raise ConfigError(f"{place}: {error}; mend the row") from error
    return entry


def _told(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{key} is missing"
    return f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}"
