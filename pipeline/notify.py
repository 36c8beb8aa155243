"""The last step of the night: one log line always, and a message to whoever the dataset names, if there is news.

What was told is remembered, for each target, with the step `notify` of its day: a night that is run again says nothing
twice, and an incident that goes on, or that late data has changed, is not told anew. It is remembered right after a
target took it; a message is sent twice only where the process dies between the two.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import words
from pipeline.alerts import Target, complain, compose, list_targets, missing_variable, read_targets, send
from pipeline.config import Dataset, Notify, Route
from pipeline.errors import NightsiftError
from pipeline.incidents import read_incidents
from pipeline.links import incident_link, report_link
from pipeline.message import Block, Form, Link, Message, render
from pipeline.promise import read_promise
from pipeline.report import report_file
from pipeline.score import SILENCE
from pipeline.state import State, newest_day, read_state, state_of, states, write_state
from pipeline.tables import EVERYONE, incidents_schema, stretches_schema
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.notify")
STEP = "notify"
TOP = 5  # entities in a summary
NAMED = 10  # entities in one line
ALSO = 3  # further incidents of an entity that are told with their time
WORSE = 2.0  # so many times as severe as what was told of an entity, and its cool-down is over


@dataclass(frozen=True, slots=True)
class Notified:
    """What was said of `day` (ISO): of how many incidents it has, and how many of them were news.

    message: what was sent, empty where nothing was; sent: how many targets took it
    recovered: of how many entities it was told that they are normal again, or send again
    """

    day: str
    incidents: int
    message: str
    sent: int
    news: int = 0
    recovered: int = 0


@dataclass(frozen=True, slots=True)
class Preview:
    """What a target would be sent of a day now: in which form, and why nothing, or what is amiss."""

    target: str
    form: Form
    title: str
    body: str
    remark: str = ""

    @property
    def lines(self) -> list[str]:
        """For a terminal."""
        who = f"--- {self.target or 'nobody'}{f' ({self.form})' if self.body else ''}"
        return [
            who + (f": {self.remark}" if self.remark else ""),
            *([self.title, "", self.body, ""] if self.body else []),
        ]


@dataclass(frozen=True, slots=True)
class News:
    """What is to be told of a day.

    incidents: those that are new, the others are `known`; again: those of entities that were told of lately
    heard: all of these as they are remembered: with the severity that was last told of their entity in full
    planned: those that the calendar explains; recovered: those that are over, with `since`
    summary: whether they are more than are told one by one; update: whether the day was told of before
    """

    incidents: pl.DataFrame
    known: int = 0
    heard: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=incidents_schema()))
    planned: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=incidents_schema()))
    again: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=incidents_schema()))
    recovered: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_recovered_schema()))
    summary: bool = False
    update: bool = False

    @property
    def count(self) -> int:
        """How many incidents are new."""
        return len(self.incidents) + len(self.again)

    @property
    def back(self) -> pl.DataFrame:
        """Who has recovered, each once, since the last of its incidents that are over."""
        return self.recovered.sort("since", "entity").unique("entity", keep="last", maintain_order=True)


@dataclass(frozen=True, slots=True)
class Memory:
    """What was told of the days around, and how much of tonight's budget is used up.

    told: for each target the stretches (entity, start, end, kind) that it has heard of, with severity, and the day on
        which they stood
    recovered: for each target the stretches that it has heard to be over
    singly: for each target, the incidents that it was told one by one since midnight
    summary: the targets to which a summary of an earlier day went out since
    """

    told: Mapping[str, pl.DataFrame]
    recovered: Mapping[str, pl.DataFrame]
    singly: Mapping[str, int]
    summary: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Night:
    """What there is to tell of a day, whoever hears it.

    over: the incidents of the nights before that are over, with `since`; late: whether a later day has been scored
    chance: how many incidents chance alone may have made, in words; report: where its file is
    """

    day: date
    tonight: date
    incidents: pl.DataFrame
    over: pl.DataFrame
    memory: Memory
    late: bool
    chance: str
    report: Path


def notify(ws: Workspace, day: date, now: datetime | None = None) -> Notified:
    """Log the night in one line; tell every target what it has not heard of its incidents, and which are over.

    At most `notify.most` incidents a night are told to a target one by one, later looks at earlier days included;
    above, a summary is sent instead: one for the latest night, and one for all earlier days together, after which those
    are silent.

    Raises `ConfigError` where a variable that `notify` names is not set, before anything is sent, and `NightsiftError`
    where the incidents were not looked for yet, or where a target failed, after all were tried.
    """
    night = _read_night(ws, day, now)
    log.info("%s", words.summary_line(ws.dataset, day, night.incidents))
    targets = read_targets(ws.dataset, ws.dataset.notify.all_routes)
    failed, told = [], []
    for target in targets:
        news = find_news(night, target, ws.dataset.notify)
        message = _message(ws.dataset, night, target, news)
        if message is not None:
            if why := send(target, message):
                failed.append(why)
                continue
            told.append((news, f"{message.title}\n{render(message)}"))
        elif news.count:
            log.info("%s %s: %d incidents stand in the report alone", ws.dataset.name, day, news.count)
        _remember(ws, night, target, news)
    complain(f"{ws.dataset.name} {day}", failed, len(targets))
    return Notified(
        str(day), len(night.incidents), told[-1][1] if told else "", len(told),
        max((news.count for news, _ in told), default=0), max((len(news.back) for news, _ in told), default=0),
    )  # fmt: skip


def notify_all(ws: Workspace, days: Sequence[date]) -> list[Notified]:
    """`notify` of several days; one of which somebody could not be told keeps nobody from hearing of the others.

    Raises `NightsiftError` with all that went wrong, in the end.
    """
    done, failed = [], []
    for day in days:
        try:
            done.append(notify(ws, day))
        except NightsiftError as error:
            failed.append(str(error))
    if failed:
        raise NightsiftError("\n".join(failed))
    return done


def preview(ws: Workspace, day: date, now: datetime | None = None) -> list[Preview]:
    """What `notify` would send to each target now, also where its variable is not set; nothing is sent or remembered.

    Where the YAML names nobody, what somebody would be sent who is told of everything. Raises `NightsiftError` where
    the incidents were not looked for yet.
    """
    night = _read_night(ws, day, now)
    targets = list(list_targets(ws.dataset.notify.all_routes)) or [Target("", "", Route(urls_env=[""]))]
    return [_preview(ws, night, target) for target in targets]


def _preview(ws: Workspace, night: Night, target: Target) -> Preview:
    remark = "" if target.url else f"{ws.dataset.name}.yaml: notify names nobody"
    if target.name and not target.url:
        remark = missing_variable(ws.dataset, target)
    news = find_news(night, target, ws.dataset.notify)
    message = _message(ws.dataset, night, target, news)
    if message is None:
        return Preview(target.name, "text", "", "", "; ".join(part for part in (remark, _why_nothing(news)) if part))
    form, body, problem = compose(target, message)
    return Preview(target.name, form, message.title, body, remark or problem)


def _why_nothing(news: News) -> str:
    if news.count:
        return "a summary of earlier days went out tonight; these incidents stand in the report alone"
    return f"told before: {words.count(news.known, 'incident')}" if news.known else "there is no incident for it"


def _read_night(ws: Workspace, day: date, now: datetime | None) -> Night:
    """All that the tables say; raises `NightsiftError` where the day's incidents were not looked for yet."""
    if read_state(ws, day, "incidents") is None:
        raise NightsiftError(
            f"{ws.dataset.name} {day}: its incidents were not looked for yet, so there is nothing to tell"
        )
    tonight, late = ws.dataset.day_of(now or datetime.now(UTC)), _is_late(ws, day)
    incidents = ws.lake.scan("incidents", incidents_schema(), day, day).collect()
    return Night(
        day=day,
        tonight=tonight,
        incidents=incidents,
        over=pl.DataFrame(schema=_recovered_schema()) if late else find_recovered(ws, day),
        memory=_recall(ws, day, tonight),
        late=late,
        chance=words.chance_line(read_promise(ws, day)) if incidents["severity"].count() else "",
        report=report_file(ws, day),
    )


def find_news(night: Night, target: Target, limits: Notify) -> News:
    """What `target` has not heard of a night; pure."""
    open_ones = _concerning(target.route, night.incidents.filter(pl.col("reason").is_null()))
    told = night.memory.told.get(target.name, _stretches([]))
    before = told.filter(pl.col("day") < night.day)
    new = _unheard(open_ones, told.filter((pl.col("day") - night.day).abs() <= timedelta(days=1)))
    lately = told.filter(pl.col("day") >= night.day - timedelta(days=limits.cooldown))
    again = _cooling(new, _worst(lately.filter(pl.col("day") < night.day)))
    single = new.join(again, on="incident_id", how="anti")
    heard = night.over.join(_unheard(night.over, before), on="incident_id", how="anti")
    return News(
        incidents=single,
        known=len(open_ones) - len(new),
        heard=_as_heard(open_ones, single, _worst(lately)),
        planned=night.incidents.filter(pl.col("reason").is_not_null()),
        again=again,
        recovered=_unheard(heard, night.memory.recovered.get(target.name, _stretches([]))),
        summary=night.memory.singly.get(target.name, 0) + len(single) > limits.most,
        update=night.day in told["day"],
    )


def _concerning(route: Route, incidents: pl.DataFrame) -> pl.DataFrame:
    """Those of the incidents that the route is for."""
    severe = (pl.col("severity") >= route.severity) | (pl.col("kind") == "silent")
    return incidents.filter(severe & pl.col("kind").is_in(route.kinds))


def _unheard(incidents: pl.DataFrame, heard: pl.DataFrame) -> pl.DataFrame:
    """The incidents that overlap none that was told of their entity and kind."""
    pairs = incidents.select("incident_id", "entity", "kind", "start", "end").join(heard, on=["entity", "kind"])
    known = pairs.filter((pl.col("start") <= pl.col("end_right")) & (pl.col("end") >= pl.col("start_right")))
    return incidents.join(known, on="incident_id", how="anti")


def _worst(told: pl.DataFrame) -> pl.DataFrame:
    """The `worst` severity that was told of each entity and kind."""
    return told.group_by("entity", "kind").agg(pl.col("severity").max().alias("worst"))


def _cooling(incidents: pl.DataFrame, lately: pl.DataFrame) -> pl.DataFrame:
    """The incidents of whose entity one of that kind was told `lately`, without those that are far worse."""
    far_worse = (pl.col("severity") >= WORSE * pl.col("worst")).fill_null(value=False)
    return incidents.join(lately, on=["entity", "kind"]).filter(~far_worse).select(incidents.columns)


def _as_heard(incidents: pl.DataFrame, in_full: pl.DataFrame, lately: pl.DataFrame) -> pl.DataFrame:
    """The incidents as they are remembered.

    One that is only counted gets the severity that was told `lately`: it is what the next night is compared with, or an
    entity that gets worse by less than twice a night would never be told in full again.
    """
    others = incidents.join(in_full, on="incident_id", how="anti").join(lately, on=["entity", "kind"], how="left")
    return pl.concat([in_full, others.with_columns(severity="worst").select(in_full.columns)])


def find_recovered(ws: Workspace, day: date) -> pl.DataFrame:
    """The incidents that went on when a night of the week before ended and, by the end of `day`, are over.

    `since` is the first normal reading after them, and the first reading at all after a silence. What ended in time to
    be told as it was is not among them, nor who has an incident that goes on when `day` ends. Transactions come at any
    time: of theirs, only a silence can be over.
    """
    found = _with_ends(read_incidents(ws, day - SILENCE, day), ws.dataset)
    going = found.filter((pl.col("day") == day) & pl.col("goes_on"))
    asked = pl.lit(ws.dataset.cadence is not None) | (pl.col("kind") == "silent")
    owed = found.filter(asked & pl.col("reason").is_null() & pl.col("was_open")).join(going, on="entity", how="anti")
    if owed.is_empty():
        return pl.DataFrame(schema=_recovered_schema())
    steps = _with_everyone(ws.lake.scan("scores", _SEEN, min(owed["day"]), day), owed)
    after = steps.join(owed.lazy(), on="entity").filter(
        pl.when(pl.col("kind") == "silent")
        .then(pl.col("event_time") >= pl.col("end"))
        .otherwise((pl.col("event_time") > pl.col("end")) & ~pl.col("is_anomaly"))
    )
    seen = (pl.col("event_time") >= pl.col("decided_from")).any().alias("seen")
    each = after.group_by("incident_id").agg(pl.col("event_time").min().alias("since"), seen)
    since = each.filter("seen").collect(engine="streaming")
    return owed.join(since, on="incident_id").select(list(_recovered_schema())).sort("since", "entity", "kind")


_SEEN: dict[str, Any] = {"entity": pl.String, "event_time": pl.Datetime("us", "UTC"), "is_anomaly": pl.Boolean}


def _recovered_schema() -> dict[str, Any]:
    return {"incident_id": pl.String, **stretches_schema(), "kind": pl.String, "since": pl.Datetime("us", "UTC")}


def _with_ends(incidents: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """With `goes_on` (it may, when its last day ends), `was_open` (it did, when some day ended), `decided_from`.

    The latter is the moment from which a normal step shows that it is over.
    """
    ends = [(day, *dataset.day_bounds(day)) for day in incidents["day"].unique()]
    schema = {"day": pl.Date, "begins": _SEEN["event_time"], "ends": _SEEN["event_time"]}
    reach = pl.when(pl.col("kind") == "silent").then(timedelta()).otherwise(dataset.merge_within)
    goes_on = pl.col("end") >= pl.col("ends") - reach
    return incidents.join(pl.DataFrame(ends, schema=schema, orient="row"), on="day").with_columns(
        goes_on.alias("goes_on"),
        (goes_on | (pl.col("start") < pl.col("begins"))).alias("was_open"),
        pl.when(goes_on).then("ends").otherwise("begins").alias("decided_from"),
    )


def _with_everyone(steps: pl.LazyFrame, incidents: pl.DataFrame) -> pl.LazyFrame:
    """The steps of the incidents' entities, and all of them once more for the whole source, where it is one."""
    own = steps.filter(pl.col("entity").is_in(incidents["entity"].unique().to_list()))
    if EVERYONE not in incidents["entity"]:
        return own
    return pl.concat([own, steps.with_columns(pl.lit(EVERYONE).alias("entity"))])


# --- the message


def _message(dataset: Dataset, night: Night, target: Target, news: News) -> Message | None:
    """What the target is to be sent; None where there is no news, or a summary went out that stands for it."""
    withheld = news.summary and night.late and target.name in night.memory.summary
    if withheld or not (news.count or len(news.recovered)):
        return None
    return build_message(dataset, night.day, news, night.report, night.chance)


def build_message(dataset: Dataset, day: date, news: News, report: Path | None = None, chance: str = "") -> Message:
    """The most severe entities first, each with all its incidents; then the rest in a line each.

    report: where its file is, which is told where it is not known where Airflow is, which shows it
    """
    groups = _by_entity(words.ranked(news.incidents))
    shown = groups[:TOP] if news.summary else groups
    left_out, page = groups[len(shown) :], report_link(dataset.name, day) if report is not None else None
    notes = [
        words.budget_line(pl.concat(left_out), dataset.notify.most) if left_out else "",
        _named("Again, told of lately", [_again(group) for group in _by_entity(words.ranked(news.again))]),
        _named("Recovered", [words.recovery(row, dataset, day) for row in news.back.iter_rows(named=True)]),
        f"Told before: {words.count(news.known, 'incident')}" if news.known else "",
        words.planned_line(news.planned) if len(news.planned) else "",
        chance if news.incidents["severity"].count() + news.again["severity"].count() else "",
        f"Report: {report}" if report is not None and page is None else "",
    ]
    blocks = tuple(_block(group, dataset, day) for group in shown)
    links = (Link("Report", page),) if page else ()
    return Message(_title(dataset, day, news), blocks, tuple(note for note in notes if note), links)


def _title(dataset: Dataset, day: date, news: News) -> str:
    noun = ("more incident", "more incidents") if news.update else ("incident", "incidents")
    parts = [words.count(news.count, *noun)] if news.count else []
    parts += [f"{len(news.back):,} recovered"] if len(news.back) else []
    return f"{dataset.name}: {', '.join(parts)} on {day}"


def _by_entity(incidents: pl.DataFrame) -> list[pl.DataFrame]:
    return incidents.partition_by("entity", maintain_order=True) if len(incidents) else []


def _named(label: str, names: Sequence[str]) -> str:
    shown = [*names[:NAMED], *([words.count(len(names) - NAMED, "other")] if len(names) > NAMED else [])]
    return f"{label}: {words.listing(shown)}" if names else ""


def _again(group: pl.DataFrame) -> str:
    worst = group.row(0, named=True)
    return f"{words.who(worst)} ({', up to '.join([words.count(len(group), 'incident'), *_severity(worst)])})"


def _block(group: pl.DataFrame, dataset: Dataset, day: date) -> Block:
    """The incidents of one entity, the most severe in full."""
    worst, *others = group.iter_rows(named=True)
    when = _when(worst, dataset, day)
    what = f"{words.count(len(group), 'incident')}, the most severe {when}" if others else when
    facts = [*words.peak_lines(worst, dataset), words.how_sure(worst), _others(others, dataset, day)]
    link = incident_link(dataset.name, day, worst["incident_id"]) or ""
    return Block(words.who(worst), what, tuple(fact for fact in facts if fact), link, len(group))


def _when(incident: Mapping[str, Any], dataset: Dataset, day: date) -> str:
    """From when to when, how long, whether nothing was sent, and whether it was over when the day ended."""
    start, end, silent = incident["start"], incident["end"], incident["kind"] == "silent"
    length = f" ({words.duration(end - start)})" if end > start else ""
    when = f"{words.stretch(start, end, dataset.tz, day)}{length}"
    asked = silent or dataset.cadence is not None
    goes_on = asked and end >= dataset.day_bounds(day)[1] - (timedelta() if silent else dataset.merge_within)
    return f"{'sent nothing ' if silent else ''}{when}{', not over when the day ended' if goes_on else ''}"


def _others(others: Sequence[Mapping[str, Any]], dataset: Dataset, day: date) -> str:
    told = [", ".join([_when(row, dataset, day), *_severity(row)]) for row in others[:ALSO]]
    rest = [words.count(len(others) - ALSO, "other")] if len(others) > ALSO else []
    return f"also {'; '.join([*told, *rest])}" if told else ""


def _severity(incident: Mapping[str, Any]) -> list[str]:
    """How severe it is in words; nothing for a silence."""
    return [] if incident["severity"] is None else [f"{incident['severity']:,.3g} × the threshold"]


# --- what was told


def _is_late(ws: Workspace, day: date) -> bool:
    """Whether a later day has been scored: then `day` is not the night that somebody waits for."""
    latest = newest_day(ws, "score")
    return latest is not None and latest > day


def _recall(ws: Workspace, day: date, tonight: date) -> Memory:
    """What was told of `day` and of the days around that matter for it, and of any day in this night."""
    records = [state_of(row) for row in states(ws, STEP).iter_rows(named=True)]
    back = max(SILENCE, timedelta(days=ws.dataset.notify.cooldown))
    near = [state for state in records if day - back <= state.day <= day + timedelta(days=1)]
    now = [state.counts for state in records if state.counts["on"] == str(tonight)]
    return Memory(
        told=_heard(near, "told"),
        recovered=_heard(near, "recovered"),
        singly=sum((Counter(counts["singly"]) for counts in now), Counter()),
        summary={name for counts in now for name in counts["summary"]},
    )


def _heard(records: Sequence[State], what: str) -> dict[str, pl.DataFrame]:
    """For each target what the records say that it was told of, or heard to be over."""
    lists = [(state.day, name, rows) for state in records for name, rows in state.counts.get(what, {}).items()]
    names = {name for _, name, _ in lists}
    return {name: _stretches([(day, row) for day, n, rows in lists if n == name for row in rows]) for name in names}


def _stretches(rows: Sequence[tuple[date, Sequence[Any]]]) -> pl.DataFrame:
    """Stretches with their kind, severity (which earlier versions did not keep), and the day on which they stood."""
    schema = stretches_schema() | {"kind": pl.String, "severity": pl.Float64, "day": pl.Date}
    parsed = [(row[0], *map(datetime.fromisoformat, row[1:3]), *[*row[3:], None][:2], day) for day, row in rows]
    return pl.DataFrame(parsed, schema=schema, orient="row")


def _remember(ws: Workspace, night: Night, target: Target, news: News) -> None:
    """Record that `target` knows of all that concerns it now; nothing where that is known."""
    before = read_state(ws, night.day, STEP)
    counts: dict[str, Any] = {"on": "", "singly": {}, "summary": [], "told": {}, "recovered": {}}
    counts |= before.counts if before else {}
    now = {"told": _rows(news.heard), "recovered": _rows(news.recovered.with_columns(severity=None))}
    added = {what: _without_known(rows, counts[what].get(target.name, [])) for what, rows in now.items()}
    if not any(added.values()):
        return
    if counts["on"] != str(night.tonight):
        counts |= {"on": str(night.tonight), "singly": {}, "summary": []}
    for what, rows in added.items():
        counts[what] = counts[what] | {target.name: counts[what].get(target.name, []) + rows}
    singly = counts["singly"].get(target.name, 0) + (0 if news.summary else len(news.incidents))
    counts["singly"] = counts["singly"] | {target.name: singly}
    counts["summary"] = sorted({*counts["summary"], *([target.name] if news.summary and night.late else [])})
    write_state(ws, State(night.day, STEP, "", "", counts=counts))


def _without_known(rows: list[list[Any]], known: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Those of the rows whose stretch is not among `known`."""
    stretches = {tuple(row[:4]) for row in known}
    return [row for row in rows if tuple(row[:4]) not in stretches]


def _rows(incidents: pl.DataFrame) -> list[list[Any]]:
    """Stretches as they stand in JSON."""
    told = incidents.sort("entity", "start", "kind")["entity", "start", "end", "kind", "severity"].rows()
    return [[entity, start.isoformat(), end.isoformat(), *rest] for entity, start, end, *rest in told]
