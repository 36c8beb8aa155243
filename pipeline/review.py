"""Verdicts: what an analyst says of an incident, kept for good and used by the next training.

The table `verdicts` is only ever appended to: the latest verdict on an incident counts, the earlier ones are its
history. A verdict that was given by mistake is withdrawn, which makes the incident open again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from pipeline.errors import ConfigError
from pipeline.incidents import incident_id, read_incidents
from pipeline.tables import incidents_schema, verdicts_schema
from pipeline.words import listing
from pipeline.workspace import Workspace

VERDICTS = ("confirmed", "dismissed")
WITHDRAWN = "withdrawn"
OPEN = "open"
STATES = (OPEN, *VERDICTS)
KINDS = ("anomaly", "silent")  # of incidents
LONGEST_NOTE = 2000  # characters
SAID = ("note", "reviewer", "reviewed_at")  # what a verdict says beside itself


@dataclass(frozen=True, slots=True)
class Verdict:
    """What somebody says of the incident with the id `incident`: confirmed, dismissed or withdrawn, and why."""

    incident: str
    verdict: str
    note: str = ""


def record(ws: Workspace, incident: str, verdict: str, note: str, reviewer: str) -> dict[str, Any]:
    """Record one verdict, as `record_all` does, and return what stands in the table."""
    return record_all(ws, [Verdict(incident, verdict, note)], reviewer)[0]


def record_all(
    ws: Workspace, said: Sequence[Verdict], reviewer: str, now: datetime | None = None
) -> list[dict[str, Any]]:
    """Append verdicts in one commit, all or none, and return what stands in the table of each.

    What the same reviewer has said last of an incident already is not said twice. Raises `ConfigError` for an unknown
    incident or verdict, a note that is too long, or a withdrawal where there is no verdict.
    """
    known, latest = _known(ws, said), {row["incident_id"]: row for row in _latest(ws).iter_rows(named=True)}
    entries, new = [], []
    for each in said:
        before, note = latest.get(each.incident), each.note.strip()
        _check(each, before)
        if before and (before["verdict"], before["note"], before["reviewer"]) == (each.verdict, note, reviewer):
            entries.append(before)
            continue
        row = known[each.incident] | {
            "verdict": each.verdict, "note": note, "reviewer": reviewer, "reviewed_at": now or datetime.now(UTC)
        }  # fmt: skip
        latest[each.incident] = row
        entries.append(row)
        new.append(row)
    if new:
        ws.lake.append("verdicts", pl.DataFrame(new, schema=verdicts_schema()))
    return entries


def _known(ws: Workspace, said: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """Of each incident what a verdict keeps of it, as its last day tells it; raises `ConfigError` for unknown ones."""
    ids = sorted({each.incident for each in said})
    rows = ws.lake.scan("incidents", incidents_schema()).filter(pl.col("incident_id").is_in(ids)).sort("day")
    found = rows.select("day", "incident_id", "entity", "start", "end").collect()
    known = {row["incident_id"]: row for row in found.iter_rows(named=True)}
    if missing := [name for name in ids if name not in known]:
        raise ConfigError(
            f"{ws.dataset.name} has no incident {missing[0]!r}; list them: nightsift incidents {ws.dataset.name}"
        )
    return known


def _check(said: Verdict, before: Mapping[str, Any] | None) -> None:
    if said.verdict not in (*VERDICTS, WITHDRAWN):
        raise ConfigError(f"{said.verdict!r} is no verdict; say {', '.join(VERDICTS)} or {WITHDRAWN}")
    if len(said.note) > LONGEST_NOTE:
        raise ConfigError(f"the note on incident {said.incident} has {len(said.note):,} characters; at most "
                          f"{LONGEST_NOTE:,} are kept")  # fmt: skip
    if said.verdict == WITHDRAWN and before is None:
        raise ConfigError(f"there is no verdict on incident {said.incident} that could be withdrawn")


def confirmed(ws: Workspace) -> pl.DataFrame:
    """The stretches (entity, start, end) whose latest verdict is `confirmed`: known to be abnormal."""
    return _judged(ws, "confirmed")


def dismissed(ws: Workspace) -> pl.DataFrame:
    """The stretches (entity, start, end) whose latest verdict is `dismissed`: known to be normal."""
    return _judged(ws, "dismissed")


def latest_verdicts(ws: Workspace) -> pl.DataFrame:
    """The verdict that counts on each incident that has one, with all that was recorded of it."""
    return _latest(ws).filter(pl.col("verdict") != WITHDRAWN)


def _latest(ws: Workspace) -> pl.DataFrame:
    rows = ws.lake.scan("verdicts", verdicts_schema()).sort("reviewed_at", maintain_order=True)
    return (
        rows.group_by("incident_id").agg(pl.all().last()).sort("incident_id").select(list(verdicts_schema())).collect()
    )


def _judged(ws: Workspace, verdict: str) -> pl.DataFrame:
    return latest_verdicts(ws).filter(verdict=verdict).select("entity", "start", "end").sort("entity", "start")


def history(ws: Workspace, incident: str) -> pl.DataFrame:
    """All that was ever said of an incident, withdrawals included, the latest first."""
    rows = ws.lake.scan("verdicts", verdicts_schema()).filter(pl.col("incident_id") == incident)
    return rows.sort("reviewed_at", descending=True).collect()


def read_reviewed(ws: Workspace, first: date, last: date) -> pl.DataFrame:
    """The incidents from `first` to `last` as `read_incidents` gives them, with their state, as `with_state` has it."""
    return with_state(read_incidents(ws, first, last), latest_verdicts(ws))


def with_state(incidents: pl.DataFrame, verdicts: pl.DataFrame) -> pl.DataFrame:
    """The incidents with their `state` (open, confirmed, dismissed) and the note, reviewer and time of the verdict.

    A verdict is on the incident with its id. Where late data, or another detector, has moved the start of an incident,
    its id is another: then the latest verdict on an incident of the same entity and kind counts that overlaps it, and
    is on none of the `incidents` by id. Pure; keeps the order of rows.
    """
    said = verdicts.select("incident_id", pl.col("verdict").alias("state"), *SAID)
    own = incidents.join(said, on="incident_id", how="left", maintain_order="left")
    orphans = verdicts.join(incidents, on="incident_id", how="anti")
    if orphans.is_empty():
        return own.with_columns(pl.col("state").fill_null(OPEN))
    kinds = [_kind_of(row) for row in orphans.iter_rows(named=True)]
    moved = orphans.select(
        "entity", pl.Series("kind", kinds, dtype=pl.String), pl.col("start").alias("said_start"),
        pl.col("end").alias("said_end"), pl.col("verdict").alias("state"), *SAID,
    )  # fmt: skip
    pairs = own.filter(pl.col("state").is_null()).select("incident_id", "entity", "kind", "start", "end")
    overlapping = pairs.join(moved, on=["entity", "kind"]).filter(
        (pl.col("start") <= pl.col("said_end")) & (pl.col("end") >= pl.col("said_start"))
    )
    names = ("state", *SAID)
    told = overlapping.sort("reviewed_at").group_by("incident_id").agg(pl.col(name).last() for name in names)
    both = own.join(told, on="incident_id", how="left", maintain_order="left", suffix="_moved")
    filled = (pl.coalesce(name, f"{name}_moved").alias(name) for name in names)
    return (
        both.with_columns(filled).drop(f"{name}_moved" for name in names).with_columns(pl.col("state").fill_null(OPEN))
    )


def _kind_of(verdict: Mapping[str, Any]) -> str | None:
    """The kind of the incident that a verdict is on, which its id tells."""
    return next(
        (k for k in KINDS if incident_id(verdict["entity"], verdict["start"], k) == verdict["incident_id"]), None
    )


def count_states(reviewed: pl.DataFrame) -> str:
    """How many of the incidents are in each state, such as `3 open, 1 confirmed`; empty without any."""
    counts = dict(reviewed.group_by("state").len().iter_rows())
    return listing([f"{counts[state]:,} {state}" for state in STATES if state in counts])
