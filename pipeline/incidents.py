"""Scores to incidents: neighbouring anomalous steps of one entity, and entities that fell silent."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta

import polars as pl

from pipeline.config import Dataset
from pipeline.score import SILENCE, among, context_days, matching, part_of, parts, read_scored
from pipeline.state import day_states, write_state
from pipeline.tables import clean_schema, incidents_schema, scores_schema
from pipeline.workspace import Workspace

EVERYONE = "(all)"  # the entity of an incident that concerns the whole source
DRIVERS = 5


@dataclass(frozen=True, slots=True)
class Found:
    """How many incidents a day has, and how many of them are silences."""

    day: str
    incidents: int
    silent: int


def find_incidents(ws: Workspace, day: date, entities: Sequence[str] = ()) -> Found:
    """Make the day's incidents from its scores and replace what was there, in one commit.

    entities: names and globs of the only entities whose incidents are made and replaced; empty: all

    An incident that began the day before, and goes on, stands on both days under the same id; so the day after is made
    anew too where it was scored earlier, and the order in which nights run does not matter. Raises `NightsiftError`
    where the day, or these entities of it, are not scored.
    """
    read_scored(ws, day, entities)
    following = day + timedelta(days=1)
    states = day_states(ws, following)
    if "score" in states:
        _make_incidents(ws, following, entities)
    for part in parts(states) if "score" not in states else ():
        _make_incidents(ws, following, part.counts["only"])
    return _make_incidents(ws, day, entities)


def _make_incidents(ws: Workspace, day: date, entities: Sequence[str]) -> Found:
    days = context_days(ws.dataset, day)
    scores = ws.lake.scan("scores", scores_schema(ws.dataset), day - timedelta(days=1), day).filter("is_anomaly")
    seen = ws.lake.scan("clean", clean_schema(ws.dataset), days[0], day).select("entity", "event_time")
    frame = pl.concat([anomalies(scores.collect(), ws.dataset, day), silences(seen.collect(), ws.dataset, day)])
    frame = frame.sort("severity", "entity", "start", descending=[True, False, False], nulls_last=True)
    if not entities:
        ws.lake.replace("incidents", day, frame)
        return _record(ws, day, "score", "incidents", _found(day, frame))
    standing = ws.lake.scan("incidents", incidents_schema(), day, day)
    names = matching(entities, {*standing.collect()["entity"], *frame["entity"]} - {EVERYONE})
    frame = frame.filter(pl.col("entity").is_in(names))
    if names:
        ws.lake.replace("incidents", day, frame, where=among(names))
    if "incidents" in day_states(ws, day):
        everything = ws.lake.scan("incidents", incidents_schema(), day, day).collect()
        _record(ws, day, "score", "incidents", _found(day, everything))
    return _record(ws, day, part_of("score", entities), part_of("incidents", entities), _found(day, frame))


def _found(day: date, incidents: pl.DataFrame) -> Found:
    return Found(str(day), len(incidents), int((incidents["kind"] == "silent").sum()))


def _record(ws: Workspace, day: date, scored: str, step: str, found: Found) -> Found:
    """Record under `step` that the incidents were made of what is recorded under `scored`."""
    state = day_states(ws, day).get(scored)
    if state is not None:
        write_state(ws, replace(state, step=step, config_digest=ws.dataset.digest(), counts=asdict(found)))
    return found


def anomalies(scores: pl.DataFrame, dataset: Dataset, day: date) -> pl.DataFrame:
    """The incidents of `day`: anomalous steps of an entity that lie within `merge_within` of one another.

    `scores` holds the day and the day before it; an incident is the day's when at least one of its steps is.
    """
    steps = scores.filter("is_anomaly").sort("entity", "event_time")
    apart = (pl.col("event_time").diff() > dataset.merge_within).fill_null(value=True).cum_sum().over("entity")
    peak = pl.all().sort_by("score", "event_time", descending=[True, False]).first()
    merged = (
        steps.with_columns(apart.alias("number"))
        .group_by("entity", "number")
        .agg(
            pl.col("event_time").min().alias("start"),
            pl.col("event_time").max().alias("end"),
            pl.len().cast(pl.Int64).alias("steps"),
            pl.col("day").max().alias("last_day"),
            peak.name.suffix("_at_peak"),
        )
        .filter(pl.col("last_day") == day)
    )
    at_peak = {name: pl.col(f"{name}_at_peak") for name in scores.columns if name != "entity"}
    return _shape(
        merged.select(
            "entity",
            "start",
            "end",
            "steps",
            at_peak["event_time"].alias("peak_time"),
            at_peak["score"].alias("peak_score"),
            at_peak["threshold"].alias("threshold"),
            at_peak["p_value"].alias("p_value"),
            (at_peak["score"] / at_peak["threshold"]).alias("severity"),
            _drivers(dataset, at_peak).alias("drivers"),
            pl.lit("anomaly").alias("kind"),
            at_peak["detector_version"].alias("detector_version"),
        )
    )


def read_incidents(ws: Workspace, first: date, last: date) -> pl.DataFrame:
    """The incidents of the days from `first` to `last`, the most severe first; each once, as its last day tells it."""
    rows = ws.lake.scan("incidents", incidents_schema(), first, last).sort("day").collect()
    rows = rows.unique("incident_id", keep="last", maintain_order=True)
    return rows.sort("severity", "start", "entity", descending=[True, False, False], nulls_last=True)


def _drivers(dataset: Dataset, at_peak: dict[str, pl.Expr]) -> pl.Expr:
    """The channels with the largest contributions at the peak, the largest first."""
    each = [
        pl.struct(
            pl.lit(channel).alias("feature"),
            at_peak[f"contribution_{channel}"].fill_null(0.0).alias("share"),
            at_peak[f"observed_{channel}"].alias("observed"),
            at_peak[f"expected_{channel}"].alias("expected"),
        )
        for channel in dataset.channels
    ]
    by_share = pl.element().sort_by(pl.element().struct.field("share"), descending=True).head(DRIVERS)
    return pl.concat_list(each).list.eval(by_share)


def silences(seen: pl.DataFrame, dataset: Dataset, day: date) -> pl.DataFrame:
    """Incidents for what sent nothing: a sensor's entity for longer than a window, or the whole source on the day.

    `seen` holds entity and event_time of the week up to and including `day`. An entity counts from its first reading
    on, so that one that joins at noon was not silent in the morning.
    """
    start, end = dataset.day_bounds(day)
    today = seen.filter(pl.col("event_time").is_between(start, end, "left"))
    if len(today) == 0:
        return _silent(pl.DataFrame({"entity": [EVERYONE], "start": [start], "end": [end]}))
    if dataset.cadence is None:
        return _silent(pl.DataFrame({"entity": [], "start": [], "end": []}))
    known = seen.filter(pl.col("event_time") >= start - SILENCE).select(pl.col("entity").unique().sort())["entity"]
    before = seen.filter(pl.col("event_time") < start)["entity"].unique()
    ends = pl.DataFrame({"entity": known, "event_time": [end] * len(known)}, schema_overrides={"event_time": _MOMENT})
    begins = pl.DataFrame(
        {"entity": before, "event_time": [start] * len(before)}, schema_overrides={"event_time": _MOMENT}
    )
    marks = pl.concat([begins, today.select("entity", "event_time"), ends]).sort("entity", "event_time")
    gaps = marks.with_columns(pl.col("event_time").shift().over("entity").alias("start")).rename({"event_time": "end"})
    longest = dataset.cadence * dataset.window_length
    return _silent(gaps.filter(pl.col("end") - pl.col("start") > longest).select("entity", "start", "end"))


_MOMENT = pl.Datetime("us", "UTC")


def _silent(gaps: pl.DataFrame) -> pl.DataFrame:
    return _shape(
        gaps.with_columns(
            pl.col("start").alias("peak_time"),
            pl.lit("silent").alias("kind"),
            *(
                pl.lit(None).alias(name)
                for name in ("peak_score", "threshold", "p_value", "severity", "detector_version")
            ),
            pl.lit(0).alias("steps"),
            pl.lit(None).alias("drivers"),
        )
    )


def _shape(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with the columns of `incidents` in order, and each incident's id: the same for the same incident."""
    schema = {name: kind for name, kind in incidents_schema().items() if name not in ("day", "incident_id")}
    frame = frame.select(pl.col(name).cast(kind) for name, kind in schema.items())
    ids = [incident_id(*row) for row in frame.select("entity", "start", "kind").iter_rows()]
    return frame.with_columns(pl.Series("incident_id", ids, dtype=pl.String)).select("incident_id", *schema)


def incident_id(entity: str, start: datetime, kind: str) -> str:
    """12 hex digits that name the incident of `entity` that begins at `start`."""
    text = f"{entity}\n{start.astimezone(UTC).isoformat()}\n{kind}"
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def entity_days(steps: pl.DataFrame, dataset: Dataset) -> float:
    """How many entity-days `steps` (with `entity` and `day`) cover: what a rate of false alarms is counted over.

    A sensor's time is its readings times the cadence; a card or account counts on the days on which it was used.
    Never 0, so that a rate can be taken: an hour at least.
    """
    if dataset.cadence is not None:
        return max(len(steps) * (dataset.cadence / timedelta(days=1)), 1 / 24)
    return max(float(steps.select("entity", "day").unique().height), 1 / 24)
