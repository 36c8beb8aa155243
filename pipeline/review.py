"""Verdicts: what an analyst says of an incident, kept for good and used by the next training."""

from datetime import UTC, datetime
from typing import Any

import polars as pl

from pipeline.errors import ConfigError
from pipeline.tables import incidents_schema, verdicts_schema
from pipeline.workspace import Workspace

VERDICTS = ("confirmed", "dismissed")


def record(ws: Workspace, incident: str, verdict: str, note: str, reviewer: str) -> dict[str, Any]:
    """Append a verdict on `incident` and return it; raises `ConfigError` for an unknown incident or verdict."""
    if verdict not in VERDICTS:
        raise ConfigError(f"{verdict!r} is no verdict; say {' or '.join(VERDICTS)}")
    found = ws.lake.scan("incidents", incidents_schema()).filter(pl.col("incident_id") == incident).collect()
    if len(found) == 0:
        raise ConfigError(
            f"{ws.dataset.name} has no incident {incident!r}; list them: nightsift incidents {ws.dataset.name}"
        )
    entry = {
        **{name: found[name][0] for name in ("day", "incident_id", "entity", "start", "end")},
        "verdict": verdict, "note": note, "reviewer": reviewer, "reviewed_at": datetime.now(UTC),
    }  # fmt: skip
    ws.lake.append("verdicts", pl.DataFrame([entry], schema=verdicts_schema()))
    return entry


def confirmed(ws: Workspace) -> pl.DataFrame:
    """The stretches (entity, start, end) whose latest verdict is `confirmed`: known to be abnormal."""
    return _judged(ws, "confirmed")


def dismissed(ws: Workspace) -> pl.DataFrame:
    """The stretches (entity, start, end) whose latest verdict is `dismissed`: known to be normal."""
    return _judged(ws, "dismissed")


def latest_verdicts(ws: Workspace) -> pl.DataFrame:
    """The latest verdict on each incident that has one, with all that was recorded of it."""
    rows = ws.lake.scan("verdicts", verdicts_schema()).sort("reviewed_at")
    return rows.group_by("incident_id").agg(pl.all().last()).sort("incident_id").collect()


def _judged(ws: Workspace, verdict: str) -> pl.DataFrame:
    return latest_verdicts(ws).filter(verdict=verdict).select("entity", "start", "end").sort("entity", "start")
