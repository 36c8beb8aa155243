"""What stands behind an incident: how its entity fared in the nights before, and the source rows that it came from."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import polars as pl

from pipeline import words
from pipeline.config import Dataset
from pipeline.review import STATES, read_reviewed
from pipeline.state import states
from pipeline.tables import MOMENT, drifts_schema
from pipeline.workspace import Workspace

NIGHTS = 28  # before the incident's own
MOST_FILES = 3
FEW = 4  # rows that are named one by one
QUIET, UNKNOWN = "quiet", "unknown"  # kinds of nights beside the states


@dataclass(frozen=True, slots=True)
class Past:
    """An entity's nights before an incident: in a sentence, night by night, and each night with an incident in words.

    nights: of each night, the oldest first, `quiet`, `unknown` where it was not scored, or the state of its incident;
        of several incidents the one of most weight: confirmed, then open, then dismissed
    """

    told: str
    nights: tuple[str, ...]
    spoken: str


@dataclass(frozen=True, slots=True)
class Backgrounds:
    """What `read_backgrounds` has found for the incidents of one day.

    reviewed: the incidents of the entities in the nights before and in this one, as `read_reviewed` has them
    scored: which of the nights before were scored
    raw: incident_id, source, rows (how many), first and last (numbers, from 1), few (the first numbers, in order)
    """

    reviewed: pl.DataFrame
    scored: frozenset[date]
    raw: pl.DataFrame


def read_backgrounds(ws: Workspace, day: date, incidents: pl.DataFrame) -> Backgrounds:
    """The background of `incidents` of `day`, a part of the table `incidents`."""
    first = day - timedelta(days=NIGHTS)
    recorded = states(ws, "score", first, day - timedelta(days=1))
    mine = pl.col("entity").is_in(incidents["entity"].unique().implode())
    reviewed = read_reviewed(ws, first, day).filter(mine)
    return Backgrounds(reviewed, frozenset(recorded["day"]), read_raw(ws, day, incidents))


def read_raw(ws: Workspace, day: date, incidents: pl.DataFrame) -> pl.DataFrame:
    """`Backgrounds.raw`: which rows of which source files an incident's entity sent while it lasted."""
    origin = {"entity": pl.String, "event_time": MOMENT, "source": pl.String, "source_row": pl.Int64}
    began = incidents["start"].min()
    first = min(ws.dataset.day_of(began), day) if began is not None else day  # type: ignore[arg-type]
    landed = ws.lake.scan("landing", origin, first, day)
    lasted = incidents.lazy().select("incident_id", "entity", "start", "end")
    rows = landed.join(lasted, on="entity").filter(pl.col("event_time").is_between("start", "end"))
    number = (pl.col("source_row") + 1).sort()
    summary = {"rows": pl.len(), "first": number.first(), "last": number.last(), "few": number.head(FEW)}
    found = rows.group_by("incident_id", "source").agg(value.alias(name) for name, value in summary.items())
    return found.sort("incident_id", "source").collect(engine="streaming")


def raw_lines(raw: pl.DataFrame) -> tuple[str, ...]:
    """Source files and row numbers of one incident, such as `a.parquet, rows 12,034 to 12,102`; pure."""
    lines = [f"{words.clean_text(row['source'])}, {_numbers(row)}" for row in raw.head(MOST_FILES).to_dicts()]
    more = len(raw) - len(lines)
    return (*lines, f"and rows of {words.count(more, 'more file')}") if more else tuple(lines)


def _numbers(row: Mapping[str, Any]) -> str:
    rows, first, last = row["rows"], f"{row['first']:,}", f"{row['last']:,}"
    if rows == 1:
        return f"row {first}"
    if rows == row["last"] - row["first"] + 1:
        return f"rows {first} to {last}"
    if rows <= FEW:
        return f"rows {words.listing([f'{number:,}' for number in row['few']])}"
    return f"{rows:,} rows between {first} and {last}"


def past_of(
    incident: Mapping[str, Any], reviewed: pl.DataFrame, scored: frozenset[date], dataset: Dataset, day: date
) -> Past:
    """The nights before `day` of the incident's entity, of which `reviewed` are all incidents with their states; pure.

    An incident is one of every night from that in which it began to its last; `incident` itself is no earlier one.
    """
    began_before = pl.col("start") < dataset.day_bounds(day)[0]
    earlier = reviewed.filter(began_before, pl.col("incident_id") != incident["incident_id"]).sort("start")
    span = [day - timedelta(days=n) for n in range(NIGHTS, 0, -1)]
    by_night: dict[date, list[str]] = {}
    for start, last, state in earlier.select("start", "day", "state").iter_rows():
        for night in span:
            if dataset.day_of(start) <= night <= last:
                by_night.setdefault(night, []).append(state)
    known = sum(night in scored or night in by_night for night in span)
    return Past(
        told=_told(earlier, known, dataset, span[0]),
        nights=tuple(_kind(by_night.get(night, []), night in scored) for night in span),
        spoken=_spoken(by_night),
    )


def _kind(found: Sequence[str], scored: bool) -> str:
    if not found:
        return QUIET if scored else UNKNOWN
    return next(state for state in ("confirmed", "open", "dismissed") if state in found)


def _told(earlier: pl.DataFrame, known: int, dataset: Dataset, first: date) -> str:
    """How many, what became of them, and when the latest began, but not before the night `first`."""
    if known == 0:
        return f"none of the {NIGHTS} nights before was scored"
    over = f"in the {NIGHTS} nights before"
    if known < NIGHTS:
        over = f"in the {words.count(known, 'night')} scored of the {NIGHTS} before"
    if earlier.is_empty():
        return f"no incident {over}"
    latest = f"{'the latest ' if len(earlier) > 1 else ''}on {max(dataset.day_of(earlier['start'][-1]), first)}"
    return f"{words.count(len(earlier), 'incident')} {over}{_judged(earlier)}; {latest}"


def _judged(earlier: pl.DataFrame) -> str:
    """What analysts have said of them; empty where nobody has said anything."""
    counts = {state: int((earlier["state"] == state).sum()) for state in STATES}
    said = {state: n for state, n in counts.items() if n and state != "open"}
    if not said:
        return ", not judged" if len(earlier) == 1 else ", none of them judged"
    if len(earlier) == 1:
        return f", {next(iter(said))}"
    return f", {words.listing([f'{n} {state}' for state, n in said.items()])}"


def _spoken(by_night: Mapping[date, Sequence[str]]) -> str:
    """Each night with incidents, in words."""
    nights = [f"{night}: {words.listing(list(found))}" for night, found in sorted(by_night.items())]
    return f"incidents of the {NIGHTS} nights before: {'; '.join(nights) or 'none'}"


@dataclass(frozen=True, slots=True)
class Moved:
    """Since when a feature of an entity lies elsewhere than in training, night by night.

    since: the first of the nights without a break up to this one; only as far back as `NIGHTS` before
    nights: of each night, the oldest first, this one the last: `moved`, `quiet`, or `unknown` where it was not scored
    """

    since: date
    nights: tuple[str, ...]


def read_moved(ws: Workspace, day: date, drifts: pl.DataFrame, scored: frozenset[date]) -> dict[tuple[str, str], Moved]:
    """By entity and feature of `drifts` of `day`, since when they have moved."""
    first = day - timedelta(days=NIGHTS)
    seen = ws.lake.scan("drifts", drifts_schema(), first, day).select("entity", "feature", "day").unique().collect()
    mine = seen.join(drifts.select("entity", "feature").unique(), on=["entity", "feature"])
    found = mine.group_by("entity", "feature").agg("day").iter_rows()
    return {(entity, feature): moved_of({*nights, day}, scored, day) for entity, feature, nights in found}


def moved_of(nights: Collection[date], scored: frozenset[date], day: date) -> Moved:
    """`Moved` of a feature that had moved in `nights`; a night that was not scored is no break. Pure."""
    span = [day - timedelta(days=n) for n in range(NIGHTS + 1)]
    since = day
    for night in span:
        if night in nights:
            since = night
        elif night in scored:
            break
    kinds = ["moved" if night in nights else QUIET if night in scored else UNKNOWN for night in reversed(span)]
    return Moved(since, tuple(kinds))
