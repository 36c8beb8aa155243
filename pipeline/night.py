"""A whole night of one dataset: what the command line and the backfill run."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import metrics, tracking
from pipeline.calendar import read_calendar
from pipeline.config import days_between
from pipeline.drift import scores_shift
from pipeline.errors import NightsiftError
from pipeline.incidents import Found, entity_days, find_incidents, incidents_digest, renew_incidents
from pipeline.ingest import ingest, newest_event
from pipeline.logbook import drift_shares, incident_counts, night_page
from pipeline.progress import counted
from pipeline.promise import Promise, read_promise
from pipeline.report import STEP as REPORT
from pipeline.report import done_state, is_reported, report_file, report_state, write_report
from pipeline.score import (
    Scored,
    context_days,
    matching,
    night_digest,
    night_digests,
    part_of,
    parts,
    plan_shards,
    publish,
    read_scored,
    score_shard,
)
from pipeline.state import State, day_states, newest_day, read_state, state_of, states, write_state
from pipeline.tables import clean_schema, key_schema, scores_schema
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.night")
LOG = "log"  # the step that takes a night to MLflow


@dataclass(frozen=True, slots=True)
class Night:
    """What a night ended with; `skipped` where it had been done before with the same input and detector.

    Where some entities alone were scored: steps, anomalous steps, incidents and the detector are theirs, and there is
    no report, unless the whole day is scored too.

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


def run_night(
    ws: Workspace,
    day: date,
    *,
    overwrite: bool = True,
    detector: str = "",
    entities: Sequence[str] = (),
    labels: Collection[str] = (),
    landed: bool = False,
) -> Night:
    """Ingest, validate, score, incidents, report of one day; without ingest where all has `landed` before.

    With `overwrite=False` a day that was done with this input and detector is left as it is, and one on which only the
    calendar has changed is not scored again. `detector` is the version to score with, as `pipeline.tracking.version`
    takes it, without making it the champion; `labels` are those whose scores count as done (empty: as `accepted` has
    it); `entities` are names and globs of the only entities to score. Raises what the steps raise; the tables of the
    steps that were not reached keep what they held.
    """
    seconds: dict[str, float] = {}
    if not landed:
        with timed(seconds, "ingest"):
            ingest(ws, context_days(ws.dataset, day)[0], day)
    why = OVERWRITE if overwrite else why_missing(ws, day, labels or accepted(ws, detector), entities)
    done = not why
    if why == PLANNED:
        find_incidents(ws, day)
    elif why:
        score_day(ws, day, detector, entities, seconds)
    page = report_file(ws, day)
    if read_state(ws, day, "incidents") is not None and not (done and page.exists() and is_told(day_states(ws, day))):
        page = report_night(ws, day, seconds)
    return summary(ws, day, page if page.exists() else "", skipped=done, entities=entities)


def score_day(
    ws: Workspace,
    day: date,
    detector: str = "",
    entities: Sequence[str] = (),
    seconds: MutableMapping[str, float] | None = None,
) -> Scored:
    """Validate, score and find the incidents of one day whose source is ingested; `seconds` hears how long each took.

    The steps are those that the tasks of the nightly DAG take, by the same names.
    """
    seconds = {} if seconds is None else seconds
    with timed(seconds, "validate"):
        shards = plan_shards(ws, day, detector, entities)
    with timed(seconds, "score"):
        for shard in shards:
            score_shard(ws, shard)
    with timed(seconds, "incidents"):
        scored = publish(ws, shards)
        find_incidents(ws, day, entities)
    return scored


@contextmanager
def timed(seconds: MutableMapping[str, float], step: str) -> Iterator[None]:
    """Put into `seconds` how long the block took, under the name of `step`."""
    began = time.monotonic()
    yield
    seconds[step] = time.monotonic() - began


def score_days(ws: Workspace, days: list[date], say: Callable[[Scored], None] = lambda _: None) -> list[Scored]:
    """Ingest, then score each of `days` (in order); `say` hears of each as it is done."""
    ingest(ws, context_days(ws.dataset, days[0])[0], days[-1])
    results = []
    for day in counted("nights", days):
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


def accepted(ws: Workspace, detector: str = "") -> set[str]:
    """The labels of the detectors whose scores count as those of `detector`: of that version alone.

    Of the champion (or empty): also those that differ from it in what nights have taught its thresholds alone, for that
    is for the nights to come. Raises `ConfigError` where there is no such version.
    """
    label = tracking.label_of(ws, detector or tracking.CHAMPION)
    return tracking.siblings(ws, label)[1] if detector in ("", tracking.CHAMPION) else {label}


def why_missing(
    ws: Workspace, day: date, labels: Collection[str], entities: Sequence[str] = (), digest: str = ""
) -> str:
    """Why the day does not count as done by one of the detectors `labels`; empty where it does.

    A day of which some entities alone were scored since, by another detector, is not what one detector says of it.
    Where `entities` are given, it is enough that these are scored. `digest` is the day's of `night_digests`, for
    callers that ask for many days.
    """
    digest = digest or night_digest(ws, day)
    made = day_states(ws, day)
    reason = _why_missing(made.get("incidents"), digest, labels) or _why_unended(made)
    reason = reason or next((why for part in parts(made) if (why := _why_apart(part, made, labels))), "")
    if not reason and made["incidents"].config_digest != incidents_digest(ws.dataset, day, read_calendar(ws)):
        reason = PLANNED
    alone = made.get(part_of("incidents", entities))
    if reason in ("", PLANNED) or not entities or alone is None:
        return reason
    return _why_missing(alone, digest, labels) or _unscored(ws, day, labels, entities)


def _why_missing(state: State | None, digest: str, labels: Collection[str]) -> str:
    if state is None:
        return "it is not scored"
    if state.input_digest != digest:
        return "its input has changed since it was scored"
    return "" if state.detector_version in labels else f"it was scored by detector {state.detector_version}"


def _why_unended(made: Mapping[str, State]) -> str:
    scored, found = made.get("score"), made["incidents"]
    return "" if scored is None or _same_scores(scored, found) else "its scoring has not ended"


def _same_scores(scored: State, found: State) -> bool:
    """Whether the incidents of which `found` is the record were made of the scores of which `scored` is."""
    return (found.input_digest, found.detector_version) == (scored.input_digest, scored.detector_version)


def _why_apart(part: State, made: Mapping[str, State], labels: Collection[str]) -> str:
    only = ", ".join(part.counts["only"])
    found = made.get(part_of("incidents", part.counts["only"]))
    if found is None or not _same_scores(part, found):
        return f"the scoring of {only} alone has not ended"
    return "" if part.detector_version in labels else f"{only} were scored by detector {part.detector_version}"


def _unscored(ws: Workspace, day: date, labels: Collection[str], entities: Sequence[str]) -> str:
    """Which of the entities that are there on the day have no scores of one of these detectors."""
    there = ws.lake.scan("clean", clean_schema(ws.dataset), day, day).select("entity").unique()
    rows = ws.lake.scan("scores", scores_schema(ws.dataset), day, day).filter(
        pl.col("detector_version").is_in(list(labels))
    )
    scored = rows.select("entity").unique()
    missing = matching(entities, there.join(scored, on="entity", how="anti").collect(engine="streaming")["entity"])
    return f"entities are not scored: {', '.join(missing[:NAMED])}" if missing else ""


OVERWRITE, PLANNED = "it is asked for again", "the calendar has changed since its incidents were made"
NAMED = 10  # entities that are not scored, by name


def summary(ws: Workspace, day: date, page: Path | str, *, skipped: bool, entities: Sequence[str] = ()) -> Night:
    """What the tables say of a day that was scored, or of `entities` of it where they were scored alone."""
    made = day_states(ws, day)
    alone = entities if part_of("incidents", entities) in made else ()
    valid, scored = done_state(ws, day, "validate").counts, read_scored(ws, day, alone)
    state = made.get(part_of("incidents", alone))
    found = Found(**state.counts) if state is not None else Found(str(day), 0, 0)
    return Night(
        day=str(day), rows_in=valid["rows_in"], rows_clean=valid["rows_clean"],
        rows_quarantined=valid["rows_quarantined"], rows_duplicate=valid["rows_duplicate"], steps=scored.steps,
        anomalous=scored.anomalous, incidents=found.incidents, silent=found.silent, unseen=scored.unseen,
        drifting=scored.drifting, detector=scored.detector, report=str(page), skipped=skipped,
    )  # fmt: skip


def renew(ws: Workspace) -> list[date]:
    """Make the incidents of the days anew for which the calendar has changed, and their reports; these days.

    And the reports of days whose report, or its way to MLflow, was not ended since their incidents were made.
    """
    days = sorted({*renew_incidents(ws), *_untold(ws)})
    for day in days:
        report_night(ws, day)
    return days


def _untold(ws: Workspace) -> list[date]:
    """The days that were reported, but not what their incidents are now."""
    by_day: dict[date, dict[str, State]] = {}
    for row in states(ws).iter_rows(named=True):
        by_day.setdefault(row["day"], {})[row["step"]] = state_of(row)
    return [day for day, made in by_day.items() if REPORT in made and not is_told(made)]


def is_told(made: Mapping[str, State]) -> bool:
    """Whether the incidents of a day of which all steps have `made` that stand in its report, and in MLflow."""
    return is_reported(made) and is_reported(made, LOG)


def report_night(ws: Workspace, day: date, seconds: MutableMapping[str, float] | None = None) -> Path:
    """Write the report and log the night to MLflow, with the `seconds` that its steps took; the report's file."""
    seconds = {} if seconds is None else seconds
    with timed(seconds, "report"):
        page = write_report(ws, day)
    log_night(ws, day, seconds)
    return page


def log_night(ws: Workspace, day: date, seconds: Mapping[str, float] | None = None) -> dict[str, float]:
    """Log the night and its report to MLflow, send its numbers, and record of what they were; these numbers.

    `seconds` is how long its steps took, as far as they were taken: the tables hold no clock.
    """
    made = day_states(ws, day)
    made_of, report = report_state(made, LOG), report_file(ws, day)
    scored, promise = read_scored(ws, day), read_promise(ws, day)
    numbers = night_metrics(ws, day, summary(ws, day, report, skipped=False), scored, promise)
    took = {f"seconds/{step}": value for step, value in (seconds or {}).items()}
    tracking.log_night(ws, day, night_page(ws, day, numbers | took, scored, promise, made), report)
    send_metrics(ws, day, numbers, datetime.now(UTC))
    if made_of is not None:
        write_state(ws, made_of)
    return numbers


def send_metrics(ws: Workspace, day: date, numbers: Mapping[str, float], now: datetime) -> None:
    """Send the night's numbers, and its `delay` in seconds after the end of the day, if no later night is scored."""
    if newest_day(ws, "score") == day:
        delay = (now - ws.dataset.day_bounds(day)[1]).total_seconds()
        metrics.gauges(ws.dataset.name, {**numbers, "delay": delay})


def night_metrics(ws: Workspace, day: date, night: Night, scored: Scored, promise: Promise) -> dict[str, float]:
    """The numbers that compare from night to night."""
    days = entity_days(ws.lake.scan("scores", scores_schema(ws.dataset), day, day), ws.dataset)
    counts: dict[str, Any] = asdict(night)
    low, high = promise.lately.bounds or (0.0, 0.0)
    shift = scores_shift(ws, day)
    names = ("rows_in", "rows_clean", "rows_quarantined", "rows_duplicate", "steps", "anomalous", "incidents", "silent",
             "unseen", "drifting")  # fmt: skip
    return {
        **{name: float(counts[name]) for name in names},
        "entities": float(scored.entities),
        **incident_counts(ws, day),
        "false_alarms_promised": promise.promised or 0.0,
        "false_alarms_realised": promise.lately.rate or 0.0,
        "false_alarms_realised.low": low,
        "false_alarms_realised.high": high,
        "false_alarms_realised.nights": float(promise.lately.nights),
        "incidents_per_entity_day": (night.incidents - night.silent) / days if days else 0.0,
        "quarantine_share": night.rows_quarantined / night.rows_in if night.rows_in else 0.0,
        "freshness": freshness(ws, day),
        **({} if shift is None else {"drift/scores": shift}),
        **drift_shares(ws, day, scored.entities),
    }


def freshness(ws: Workspace, day: date) -> float:
    """Seconds from the newest event of the day that has come to the day's end; a whole day where none has."""
    start, end = ws.dataset.day_bounds(day)
    return (end - (newest_event(ws, day) or start)).total_seconds()


def missing_days(ws: Workspace, first: date, last: date) -> dict[date, str]:
    """The days from `first` to `last` whose incidents are not there or not up to date, and why."""
    labels = accepted(ws)
    digests = night_digests(ws, days_between(first, last))
    reasons = {day: why_missing(ws, day, labels, digest=digest) for day, digest in digests.items()}
    return {day: why for day, why in reasons.items() if why}
