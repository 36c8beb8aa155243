"""Nights of the past on demand: what the form asks for, why it is refused, which days to run, which are not done.

The DAG, the command line and the check of the form before a run is created (plugins/) share it, so nothing heavy stands
at the top.
"""

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from pipeline.config import days_between
from pipeline.errors import ConfigError, NightsiftError
from pipeline.progress import counted

if TYPE_CHECKING:
    from pipeline.night import Night
    from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.backfill")

MOST_DAYS = 1000  # Airflow maps a task over at most 1024 values
AT_ONCE = (1, 2, 4, 8, 16)  # how many days of one backfill may run at once
MOST_ROWS = 20_000_000  # landed rows that are read for the names of entities before a run is created


@dataclass(frozen=True, slots=True)
class Backfill:
    """What is asked for; the fields are those of the form.

    first, last: both are run
    entities: names and globs of the only entities to score; empty: all
    detector: champion, challenger, or a version's number or label
    overwrite: run every day again, not only what is missing
    at_once: how many days run at the same time, one of `AT_ONCE`
    """

    dataset: str
    first: date
    last: date
    entities: tuple[str, ...] = ()
    detector: str = "champion"
    overwrite: bool = False
    at_once: int = 2

    @property
    def days(self) -> list[date]:
        """Every day, both ends included."""
        return days_between(self.first, self.last)


@dataclass(frozen=True, slots=True)
class Plan:
    """The days to run, and the label of the one detector that scores them all."""

    days: list[date]
    detector: str


def read_form(form: Mapping[str, Any]) -> Backfill:
    """What the form asks for; raises `ConfigError` for a key that it does not have, or a value of the wrong type."""
    known = [each.name for each in fields(Backfill)]
    for key in form:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ConfigError(f"a backfill has no {key!r}; {f'did you mean {near[0]}?' if near else 'it has '}"
                              f"{'' if near else ', '.join(known)}")  # fmt: skip
    if not isinstance(form.get("entities") or [], list | tuple):
        raise ConfigError(f"entities is a list of names and globs, not {form['entities']!r}")
    if not form.get("dataset"):
        raise ConfigError("a backfill needs a dataset")
    try:
        days = {key: date.fromisoformat(form[key]) for key in ("first", "last")}
        return Backfill(**{**form, **days, "entities": tuple(form.get("entities") or ())})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"a backfill needs first and last as days such as 2026-01-31: {error}") from error


def refuse(ws: "Workspace", asked: Backfill, now: datetime | None = None) -> None:
    """Raise `ConfigError`, in a sentence, where what is asked for cannot be run.

    That is days that are none, too many or not ended, a detector that is not in the registry, and entities of which
    nothing was landed on these days. Where nothing at all was landed on them yet, entities are not judged.
    """
    from pipeline.tracking import label_of

    count, today = len(asked.days), ws.dataset.day_of(now or datetime.now(UTC))
    if not 1 <= count <= MOST_DAYS:
        raise ConfigError(f"from {asked.first} to {asked.last} are {count} days; a backfill takes 1 to {MOST_DAYS}")
    if asked.last >= today:
        raise ConfigError(f"{asked.last} has not ended: today is {today} in {ws.dataset.zone}")
    if asked.at_once not in AT_ONCE:
        raise ConfigError(f"at_once is {asked.at_once}; it can be {', '.join(map(str, AT_ONCE))}")
    label_of(ws, asked.detector)
    refuse_entities(ws, asked, MOST_ROWS)


def refuse_entities(ws: "Workspace", asked: Backfill, most_rows: int | None = None) -> None:
    """Raise `ConfigError` where a name or glob fits no entity of which rows were landed on these days.

    With `most_rows`, nothing is judged where more rows than that would have to be read, or none was landed yet.
    """
    import polars as pl

    from pipeline.score import matching
    from pipeline.tables import landing_schema

    landed = ws.lake.landed().filter(pl.col("day").is_between(asked.first, asked.last))["rows"].sum()
    if not asked.entities or (most_rows is not None and not 0 < landed <= most_rows):
        return
    rows = ws.lake.scan("landing", landing_schema(ws.dataset), asked.first, asked.last)
    names = rows.select("entity").drop_nulls().unique().collect(engine="streaming")["entity"]
    for pattern in asked.entities:
        if not matching([pattern], names):
            raise ConfigError(
                f"no entity of {asked.dataset} with rows from {asked.first} to {asked.last} fits {pattern!r}; rows "
                f"that are new at the source have to be landed first: nightsift ingest {asked.dataset}"
            )


def plan(ws: "Workspace", asked: Backfill) -> Plan:
    """Land what is new, and choose the days to run and the version that scores them.

    Raises `ConfigError` as `refuse` does.
    """
    from pipeline.ingest import ingest
    from pipeline.score import context_days
    from pipeline.tracking import label_of

    refuse(ws, asked)
    ingest(ws, context_days(ws.dataset, asked.first)[0], asked.last)
    refuse_entities(ws, asked)  # now that all rows are landed
    label = label_of(ws, asked.detector)
    return Plan(asked.days if asked.overwrite else list(unfinished(ws, asked, label)), label)


def unfinished(ws: "Workspace", asked: Backfill, label: str) -> dict[date, str]:
    """The days that were asked for and are not done by the detector `label`, and why."""
    from pipeline.night import why_missing
    from pipeline.score import night_digests

    labels, digests = accepted(ws, asked, label), night_digests(ws, asked.days)
    reasons = {day: why_missing(ws, day, labels, asked.entities, digest) for day, digest in digests.items()}
    return {day: why for day, why in reasons.items() if why}


def accepted(ws: "Workspace", asked: Backfill, label: str) -> set[str]:
    """The labels of the detectors whose scores count as those of the detector `label` that was chosen.

    Where the champion was asked for, versions of it that differ in adapted thresholds alone count too.
    """
    from pipeline.tracking import CHAMPION, siblings

    return siblings(ws, label)[1] if asked.detector == CHAMPION else {label}


def verify(ws: "Workspace", asked: Backfill, label: str, failed: Mapping[date, str]) -> str:
    """Say that every day is done; raises `NightsiftError` that names each day that is not, or `failed`, and why.

    `label` is the detector's, or what was asked for where nothing was to be run.
    """
    from pipeline.tracking import label_of

    label = label_of(ws, label)
    reasons = {**foreign(ws, asked, label), **unfinished(ws, asked, label), **failed}
    if reasons:
        told = "; ".join(f"{day}: {why}" for day, why in sorted(reasons.items()))
        raise NightsiftError(f"{len(reasons)} of {len(asked.days)} days are not done: {told}")
    return f"all {len(asked.days)} days are done"


def foreign(ws: "Workspace", asked: Backfill, label: str) -> dict[date, str]:
    """The days on which rows of another detector than `label` stand, as they are after two runs at the same time."""
    import polars as pl

    from pipeline.score import matching
    from pipeline.tables import scores_schema

    keys = ["day", "detector_version", *(["entity"] if asked.entities else [])]
    rows = ws.lake.scan("scores", scores_schema(ws.dataset), asked.first, asked.last).select(keys).unique()
    foreign_rows = rows.filter(~pl.col("detector_version").is_in(list(accepted(ws, asked, label)))).sort(keys)
    others = foreign_rows.collect(engine="streaming")
    if asked.entities:
        others = others.filter(pl.col("entity").is_in(matching(asked.entities, others["entity"])))
    return {day: f"scores of detector {other} stand there" for day, other, *_ in others.iter_rows()}


def run_day(ws: "Workspace", asked: Backfill, day: date, label: str) -> "Night":
    """Run a day that was planned, by the detector `label`; one that is done stays as it is without `overwrite`.

    What `plan` has landed counts: to look for new files again for each day would be to read every file each time.
    """
    from pipeline.night import run_night

    labels = accepted(ws, asked, label)
    return run_night(
        ws, day, overwrite=asked.overwrite, detector=label, entities=asked.entities, labels=labels, landed=True
    )


def backfill(ws: "Workspace", asked: Backfill, say: Callable[["Night"], None] = lambda _: None) -> list["Night"]:
    """Run what is asked for, oldest day first, one after the other; `say` hears of each day as it is done.

    A day that fails keeps no other from being run; at last `NightsiftError` names every day that is not done.
    """
    planned = plan(ws, asked)
    nights, failed = [], dict[date, str]()
    for day in counted("nights", asked.days):
        try:
            nights.append(run_day(ws, asked, day, planned.detector))
            say(nights[-1])
        except NightsiftError as error:
            log.warning("%s %s: %s", asked.dataset, day, error)
            failed[day] = str(error)
    verify(ws, asked, planned.detector, failed)
    return nights
