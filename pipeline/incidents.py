"""Scores to incidents: neighbouring anomalous steps of one entity, and entities that fell silent."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta

import polars as pl
from polars.lazyframe.group_by import LazyGroupBy

from pipeline.calendar import Planned, cut, digest, read_calendar, touching, with_plan
from pipeline.config import Dataset
from pipeline.errors import NightsiftError
from pipeline.score import SILENCE, among, config_digest, context_days, matching, part_of, parts, read_scored
from pipeline.state import State, day_states, states, write_state
from pipeline.tables import EVERYONE, MOMENT, clean_schema, incidents_schema, scores_schema, stretches_schema
from pipeline.workspace import Workspace

DRIVERS = 5
TRIES = 5  # to make the incidents of a day whose scores change meanwhile
QUIET_DAY = timedelta(hours=12)  # transactions come at any time: of their source, less than this is no silence


@dataclass(frozen=True, slots=True)
class Found:
    """How many incidents a day has; how many of them are silences, and how many the calendar explains."""

    day: str
    incidents: int
    silent: int
    marked: int = 0


def find_incidents(ws: Workspace, day: date, entities: Sequence[str] = ()) -> Found:
    """Make the day's incidents from its scores and replace what was there, in one commit.

    entities: names and globs of the only entities whose incidents are made and replaced; empty: all

    An incident that began the day before, and goes on, stands on both days under the same id; so the day after is made
    anew too where it was scored earlier, and the order in which nights run does not matter. Raises `NightsiftError`
    where the day, or these entities of it, are not scored, or where others publish scores of it all the time.
    """
    read_scored(ws, day, entities)
    following = day + timedelta(days=1)
    after = day_states(ws, following)
    if "score" in after:
        _make_incidents(ws, following, entities)
    for part in parts(after) if "score" not in after else ():
        _make_incidents(ws, following, part.counts["only"])
    return _make_incidents(ws, day, entities)


def stale_incidents(ws: Workspace) -> list[date]:
    """The scored days whose incidents were made under another calendar than today's, in order.

    Days whose scores are out of date are not among them: those are `pipeline.score.stale_days`.
    """
    calendar = read_calendar(ws)
    scored = states(ws, "score").filter(pl.col("config_digest") == config_digest(ws.dataset))
    made = states(ws, "incidents").join(scored, on=["day", "input_digest", "detector_version"], how="semi")
    return [
        day
        for day, config in made.select("day", "config_digest").iter_rows()
        if config != incidents_digest(ws.dataset, day, calendar)
    ]


def renew_incidents(ws: Workspace) -> list[date]:
    """Make anew, without scoring, the incidents of the days on which the calendar has changed; these days."""
    days = stale_incidents(ws)
    for day in days:
        _make_incidents(ws, day)
    return days


def incidents_digest(dataset: Dataset, day: date, calendar: Sequence[Planned]) -> str:
    """What decides a day's incidents beside its scores: the YAML, and the calendar where it says something."""
    start, end = dataset.day_bounds(day)
    told = digest(touching(calendar, start - SILENCE, end))
    return hashlib.sha256(f"{dataset.digest()} {told}".encode()).hexdigest()[:16] if told else dataset.digest()


def _make_incidents(ws: Workspace, day: date, entities: Sequence[str] = ()) -> Found:
    """Make the day's incidents, again where scores that they are made of were published meanwhile.

    Who publishes commits scores and record before making incidents, so whoever wrote last from older scores sees it.
    """
    for _ in range(TRIES):
        scored = _scored(ws, day)
        found = _replace_incidents(ws, day, entities, scored)
        if _scored(ws, day) == scored:
            return found
    raise NightsiftError(f"{ws.dataset.name} {day}: the day is being scored by others; run it again")


def _scored(ws: Workspace, day: date) -> dict[tuple[date, str], State]:
    """What is recorded of the scores that the day's incidents are made of: those of the day before, and its own."""
    around = (day - timedelta(days=1), day)
    return {(d, step): state for d in around for step, state in day_states(ws, d).items() if step.startswith("score")}


def _replace_incidents(
    ws: Workspace, day: date, entities: Sequence[str], scored: Mapping[tuple[date, str], State]
) -> Found:
    days, calendar = context_days(ws.dataset, day), read_calendar(ws)
    scores = ws.lake.scan("scores", scores_schema(ws.dataset), day - timedelta(days=1), day).filter("is_anomaly")
    seen = thinned(ws.lake.scan("clean", clean_schema(ws.dataset), days[0], day), ws.dataset, day)
    seen = seen if len(seen) else _latest(ws, days[0])
    anomalous = scores.collect(engine="streaming")
    found = [anomalies(anomalous, ws.dataset, day, calendar), silences(seen, ws.dataset, day, calendar)]
    frame = pl.concat(found).sort("severity", "entity", "start", descending=[True, False, False], nulls_last=True)
    config = incidents_digest(ws.dataset, day, calendar)
    whole, part = scored.get((day, "score")), scored.get((day, part_of("score", entities)))
    if not entities:
        ws.lake.replace("incidents", day, frame)
        return _record(ws, whole, "incidents", config, _found(day, frame))
    standing = ws.lake.scan("incidents", incidents_schema(), day, day)
    names = matching(entities, {*standing.collect()["entity"], *frame["entity"]} - {EVERYONE})
    frame = frame.filter(pl.col("entity").is_in(names))
    if names:
        ws.lake.replace("incidents", day, frame, where=among(names))
    if "incidents" in day_states(ws, day):
        everything = ws.lake.scan("incidents", incidents_schema(), day, day).collect()
        _record(ws, whole, "incidents", config, _found(day, everything))
    return _record(ws, part, part_of("incidents", entities), config, _found(day, frame))


def _found(day: date, incidents: pl.DataFrame) -> Found:
    marked = len(incidents) - incidents["reason"].null_count()
    return Found(str(day), len(incidents), int((incidents["kind"] == "silent").sum()), marked)


def _record(ws: Workspace, scored: State | None, step: str, config: str, found: Found) -> Found:
    """Record under `step` that the incidents were made of the scores that `scored` is the record of."""
    if scored is not None:
        write_state(ws, replace(scored, step=step, config_digest=config, counts=asdict(found)))
    return found


def _latest(ws: Workspace, before: date) -> pl.DataFrame:
    """The last step of each entity on the last day before `before` with any: since when a source sends nothing."""
    landed = ws.lake.landed().filter((pl.col("day") < before) & (pl.col("rows") > 0))
    for day in landed["day"].unique().sort(descending=True):
        rows = ws.lake.scan("clean", clean_schema(ws.dataset), day, day)
        last = rows.group_by("entity").agg(pl.col("event_time").max()).collect()
        if len(last):
            return last
    return pl.DataFrame(schema={"entity": pl.String, "event_time": MOMENT})


def anomalies(scores: pl.DataFrame, dataset: Dataset, day: date, calendar: Sequence[Planned] = ()) -> pl.DataFrame:
    """The incidents of `day`: anomalous steps of an entity that lie within `merge_within` of one another.

    `scores` holds the day and the day before it; an incident is the day's when at least one of its steps is. It ends
    where an entry of the `calendar` begins or ends, so that a fault is not excused by the maintenance that follows it.
    """
    steps = with_plan(scores.filter("is_anomaly").sort("entity", "event_time"), calendar)
    late = pl.col("event_time").diff() > dataset.merge_within
    crossed = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in ("reason", "suppressed"))
    apart = (late | crossed).fill_null(value=True).cum_sum().over("entity")
    peak = pl.all().sort_by("score", "event_time", descending=[True, False]).first()
    merged = (
        steps.with_columns(apart.alias("number"))
        .filter(~pl.col("suppressed"))
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
            pl.col("reason_at_peak").alias("reason"),
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


def silences(seen: pl.DataFrame, dataset: Dataset, day: date, calendar: Sequence[Planned] = ()) -> pl.DataFrame:
    """Incidents for what sent nothing: a sensor's entity for longer than a window, or the whole source.

    `seen` holds entity and event_time of the week up to and including `day`. A silence begins with the last reading
    before it, so that one over several days is one incident. An entity that joins at noon was not silent in the
    morning, one that was not there for a week is not waited for, and what the whole source does not send no entity is
    blamed for. What the `calendar` covers does not count.
    """
    start, end = dataset.day_bounds(day)
    everyone = seen["entity"].unique().to_list()
    gaps = pl.concat([_source_gaps(seen, dataset, start, end), _own_gaps(seen, dataset, start, end)])
    pieces = [piece for who, a, b in gaps.iter_rows() for piece in _pieces(who, a, b, calendar, everyone)]
    silent = pl.DataFrame(pieces, schema=stretches_schema() | {"reason": pl.String}, orient="row")
    return _silent(silent.filter((pl.col("end") - pl.col("start") > _longest(dataset)) & (pl.col("end") > start)))


def thinned(seen: pl.LazyFrame, dataset: Dataset, day: date) -> pl.DataFrame:
    """Few of the steps `seen`, of which `silences` of `day` says what it says of them all.

    In each stretch of time that is too short for a silence the first and the last, of each entity of a sensor dataset
    (before the day only these), else of the source; so no silence begins or ends with another step. And one of each
    entity at least.
    """
    sensor, width = dataset.cadence is not None, _longest(dataset) // timedelta(microseconds=1)
    since = pl.col("event_time").to_physical() - pl.lit(dataset.day_bounds(day)[0], dtype=MOMENT).to_physical()
    # Of a source, a rest of half the longest silence matters: usual is up to twice the longest of them.
    stretch = (since // width).clip(-1) if sensor else since // (width // 2)
    steps = seen.select("entity", "event_time", stretch.alias("stretch"))
    if sensor:
        return _edges(steps.group_by("stretch", "entity"))
    kept = _edges(steps.group_by("stretch"), pl.col("entity").min())  # whose step it was does not matter
    latest = steps.group_by("entity").agg(pl.col("event_time").max()).collect(engine="streaming")
    return pl.concat([kept, latest.join(kept, on="entity", how="anti")])


def _edges(stretches: LazyGroupBy, *who: pl.Expr) -> pl.DataFrame:
    """The first step of each stretch, and the last, where that is another one: entity and event_time."""
    time = pl.col("event_time")
    found = stretches.agg(time.min().alias("first"), time.max().alias("last"), pl.len().alias("steps"), *who)
    each = found.collect(engine="streaming")
    several = each.filter(pl.col("steps") > 1)
    return pl.concat([each.select("entity", event_time="first"), several.select("entity", event_time="last")])


def _longest(dataset: Dataset) -> timedelta:
    """The longest silence that is none."""
    return QUIET_DAY if dataset.cadence is None else dataset.cadence * dataset.window_length


def _source_gaps(seen: pl.DataFrame, dataset: Dataset, start: datetime, end: datetime) -> pl.DataFrame:
    """When no entity sent anything: all of the day, or for longer than usual.

    Transactions rest at night and on Sundays: usual is up to twice the longest rest of the days before.
    """
    today, before = (seen.filter(pl.col("event_time").is_between(*part, "left"))["event_time"].sort()
                     for part in ((start, end), (_EVER, start)))  # fmt: skip
    if today.is_empty():
        row = {"entity": [EVERYONE], "start": [before.max() or start], "end": [end]}
        return pl.DataFrame(row, schema=stretches_schema())
    gaps = _gaps(seen.with_columns(pl.lit(EVERYONE).alias("entity")), start, end)
    usual = _longest(dataset)
    if dataset.cadence is None:
        rest = before.diff().max()
        usual = max(usual, 2 * rest) if isinstance(rest, timedelta) else end - start
    return gaps.filter(pl.col("end") - pl.col("start") > usual)


def _own_gaps(seen: pl.DataFrame, dataset: Dataset, start: datetime, end: datetime) -> pl.DataFrame:
    """When an entity of a sensor dataset sent nothing while others did."""
    if dataset.cadence is None:
        return pl.DataFrame(schema=stretches_schema())
    longest, source = _longest(dataset), _source_gaps(seen, dataset, start, end)
    if source["end"].to_list() == [end] and source["start"][0] <= start:
        return source.clear()  # nobody sent anything
    gaps = _gaps(seen, start, end).filter(pl.col("end") - pl.col("start") > longest)
    shared = gaps.join(source.drop("entity"), how="cross", suffix="_all").filter(
        (pl.col("start_all") - pl.col("start") <= longest) & (pl.col("end") - pl.col("end_all") <= longest)
    )
    return gaps.join(shared, on=["entity", "start"], how="anti")


def _gaps(seen: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    """The stretches between two readings of an entity, the last one before `start` and `end` among them."""
    before = seen.filter(pl.col("event_time") < start).group_by("entity").agg(pl.col("event_time").max())
    today = seen.filter(pl.col("event_time").is_between(start, end, "left")).select("entity", "event_time")
    known = seen.filter(pl.col("event_time") >= start - SILENCE).select(pl.col("entity").unique())
    ends = known.with_columns(pl.lit(end, dtype=MOMENT).alias("event_time"))
    marks = pl.concat([before, today, ends]).sort("entity", "event_time")
    gaps = marks.select("entity", pl.col("event_time").shift().over("entity").alias("start"), end="event_time")
    return gaps.drop_nulls("start")


def _pieces(
    entity: str, start: datetime, end: datetime, calendar: Sequence[Planned], everyone: Sequence[str]
) -> Iterator[tuple[str, datetime, datetime, str | None]]:
    """A gap without what the calendar suppresses, in pieces with the reason that the calendar gives."""
    mine = [entry for entry in touching(calendar, start, end) if entry.concerns(entity, everyone)]
    for left, right, held in cut(start, end, mine):
        if held is None or not held.suppress:
            yield entity, left, right, held.reason if held else None


_EVER = datetime(1, 1, 1, tzinfo=UTC)


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


def entity_days(steps: pl.DataFrame | pl.LazyFrame, dataset: Dataset) -> float:
    """How many entity-days `steps` (with `entity` and `day`) cover: what a rate of false alarms is counted over.

    A sensor's time is its readings times the cadence; a card or account counts on the days on which it was used.
    Never 0, so that a rate can be taken: an hour at least.
    """
    counted = steps.lazy() if dataset.cadence is not None else steps.lazy().select("entity", "day").unique()
    number = counted.select(pl.len()).collect(engine="streaming").item()
    return max(number * (1.0 if dataset.cadence is None else dataset.cadence / timedelta(days=1)), 1 / 24)
