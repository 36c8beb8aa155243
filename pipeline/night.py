"""A whole night of one dataset, and many of them: what the command line and the backfill run."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import metrics, tracking
from pipeline.calendar import read_calendar
from pipeline.errors import NightsiftError
from pipeline.incidents import Found, entity_days, find_incidents, incidents_digest
from pipeline.ingest import ingest
from pipeline.promise import read_promise
from pipeline.report import write_report
from pipeline.score import Scored, context_days, night_digest, plan_shards, prepare, publish, read_scored, score_shard
from pipeline.state import State, read_state, states
from pipeline.tables import MOMENT, key_schema, scores_schema
from pipeline.validate import validate
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.night")


@dataclass(frozen=True, slots=True)
class Night:
    """What a night ended with; `skipped` where it had been done before with the same input and detector.

    unseen: how many entities were not there in training
    drifting: how many features of entities have moved slowly
    """

    day: str
    rows_in: int
    rows_clean: int
    rows_quarantined: int
    rows_duplicate: int
    steps: int
    anomalous: int
    incidents: int
    silent: int
    unseen: int
    drifting: int
    detector: str
    report: str
    skipped: bool


def run_night(ws: Workspace, day: date, *, overwrite: bool = True) -> Night:
    """Ingest, validate, score, incidents, report of one day.

    With `overwrite=False` a day that was done with this input and detector is left as it is, and one on which only the
    calendar has changed is not scored again. Raises what the steps raise; the tables of the steps that were not reached
    keep what they held.
    """
    ingest(ws, context_days(ws.dataset, day)[0], day)
    done = not overwrite and is_done(ws, day)
    if not done and not overwrite and _is_current(ws, read_state(ws, day, "score")):
        find_incidents(ws, day)
    elif not done:
        score_day(ws, day)
    page = ws.home.reports / ws.dataset.name / f"{day}.html"
    if not done or not page.exists():
        page = report_night(ws, day)
    return summary(ws, day, page, skipped=done)


def score_day(ws: Workspace, day: date) -> Scored:
    """Validate, score and find the incidents of one day whose source is ingested."""
    prepare(ws, day)
    shards = plan_shards(ws, day)
    for shard in shards:
        score_shard(ws, shard)
    scored = publish(ws, shards)
    find_incidents(ws, day)
    return scored


def score_days(ws: Workspace, days: list[date], say: Callable[[Scored], None] = lambda _: None) -> list[Scored]:
    """Ingest, then score each of `days` (in order); `say` hears of each as it is done."""
    ingest(ws, context_days(ws.dataset, days[0])[0], days[-1])
    results = []
    for day in days:
        results.append(score_day(ws, day))
        say(results[-1])
    return results


def export_scores(ws: Workspace, start: datetime, end: datetime, target: Path) -> int:
    """Write the scores from `start` to `end` (half-open) to the Parquet file `target`, whole or not at all; the rows.

    Raises `NightsiftError` where nothing was scored in that time.
    """
    dataset = ws.dataset
    first, last = dataset.day_of(start), dataset.day_of(end - timedelta(microseconds=1))
    scores = ws.lake.scan("scores", scores_schema(dataset), first, last)
    columns = [*key_schema(dataset), "score", "p_value", "threshold", "is_anomaly"]
    frame = scores.filter(pl.col("event_time").is_between(start, end, "left")).select(columns).collect()
    if len(frame) == 0:
        raise NightsiftError(
            f"{dataset.name} has no scores from {start} to {end}; run: nightsift score {dataset.name} --from … --to …"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    frame.sort("entity", "event_time").write_parquet(partial)
    partial.replace(target)
    return len(frame)


def is_done(ws: Workspace, day: date) -> bool:
    """Whether the day's incidents were made from today's input by today's champion, under today's calendar.

    Or by one that differs from it in what nights have taught its thresholds: that is for the nights to come.
    """
    state = read_state(ws, day, "incidents")
    if state is None or state.config_digest != incidents_digest(ws.dataset, day, read_calendar(ws)):
        return False
    return _is_current(ws, state)


def _is_current(ws: Workspace, state: State | None) -> bool:
    """Whether a step was done with today's input, by today's champion or one of the same scores."""
    if state is None or state.input_digest != night_digest(ws, state.day):
        return False
    return state.detector_version in tracking.siblings(ws, tracking.champion(ws).label)[1]


def summary(ws: Workspace, day: date, page: Path, *, skipped: bool) -> Night:
    """What the tables say of a day that was scored."""
    valid, scored = validate(ws, day), read_scored(ws, day)
    state = read_state(ws, day, "incidents")
    found = Found(**state.counts) if state is not None else Found(str(day), 0, 0)
    return Night(
        day=str(day), rows_in=valid.rows_in, rows_clean=valid.rows_clean, rows_quarantined=valid.rows_quarantined,
        rows_duplicate=valid.rows_duplicate, steps=scored.steps, anomalous=scored.anomalous,
        incidents=found.incidents, silent=found.silent, unseen=scored.unseen, drifting=scored.drifting,
        detector=scored.detector, report=str(page), skipped=skipped,
    )  # fmt: skip


def report_night(ws: Workspace, day: date) -> Path:
    """Write the report and log the night to MLflow; the report's file."""
    page = write_report(ws, day)
    night = summary(ws, day, page, skipped=False)
    numbers = night_metrics(ws, day, night, read_scored(ws, day))
    tracking.log_night(ws, day, numbers, {"detector": night.detector}, page)
    send_metrics(ws, day, numbers, datetime.now(UTC))
    return page


def send_metrics(ws: Workspace, day: date, numbers: Mapping[str, float], now: datetime) -> None:
    """Send the night's numbers, and its `delay` in seconds after the end of the day, if no later night is scored."""
    if states(ws, "score")["day"].max() == day:
        delay = (now - ws.dataset.day_bounds(day)[1]).total_seconds()
        metrics.gauges(ws.dataset.name, {**numbers, "delay": delay})


def night_metrics(ws: Workspace, day: date, night: Night, scored: Scored) -> dict[str, float]:
    """The numbers that compare from night to night."""
    scores = ws.lake.scan("scores", scores_schema(ws.dataset), day, day).select("day", "entity").collect()
    days = entity_days(scores, ws.dataset)
    counts: dict[str, Any] = asdict(night)
    promise = read_promise(ws, day)
    low, high = promise.lately.bounds or (0.0, 0.0)
    names = ("rows_in", "rows_clean", "rows_quarantined", "rows_duplicate", "steps", "anomalous", "incidents", "silent",
             "unseen", "drifting")  # fmt: skip
    return {
        **{name: float(counts[name]) for name in names},
        "entities": float(scored.entities),
        "false_alarms_promised": promise.promised or 0.0,
        "false_alarms_realised": promise.lately.rate or 0.0,
        "false_alarms_realised.low": low,
        "false_alarms_realised.high": high,
        "false_alarms_realised.nights": float(promise.lately.nights),
        "incidents_per_entity_day": (night.incidents - night.silent) / days if days else 0.0,
        "quarantine_share": night.rows_quarantined / night.rows_in if night.rows_in else 0.0,
        "freshness": freshness(ws, day),
    }


def freshness(ws: Workspace, day: date) -> float:
    """Seconds from the newest event of the day that has come to the day's end; a whole day where none has."""
    start, end = ws.dataset.day_bounds(day)
    events = ws.lake.scan("landing", {"event_time": MOMENT}, day, day).filter(pl.col("event_time") < end)
    newest = events.select(pl.col("event_time").max())
    return float((end - (newest.collect().item() or start)).total_seconds())


def days_between(first: date, last: date) -> Iterator[date]:
    """The days from `first` to `last`, both included."""
    return (first + timedelta(days=n) for n in range((last - first).days + 1))


def backfill(
    ws: Workspace, first: date, last: date, *, overwrite: bool, say: Callable[[Night], None] = lambda _: None
) -> list[Night]:
    """Every night from `first` to `last`, both included, oldest first; `say` hears of each as it is done."""
    nights = []
    for day in days_between(first, last):
        nights.append(run_night(ws, day, overwrite=overwrite))
        say(nights[-1])
    return nights


def missing_days(ws: Workspace, first: date, last: date) -> list[date]:
    """The days from `first` to `last` whose incidents are not there or not up to date."""
    return [day for day in days_between(first, last) if not is_done(ws, day)]
