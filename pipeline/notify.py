"""The last step of the night: one log line always, and a message to whoever the dataset names, if there is news.

What was told is remembered, for each target, with the step `notify` of its day: a night that is run again says nothing
twice, and an incident that goes on, or that late data has changed, is not told anew. It is remembered right after a
target took it; a message is sent twice only where the process dies between the two.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import words
from pipeline.alerts import Target, complain, read_targets, send
from pipeline.config import Dataset
from pipeline.errors import NightsiftError
from pipeline.report import report_file
from pipeline.state import State, read_state, state_of, states, write_state
from pipeline.tables import incidents_schema, stretches_schema
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.notify")
STEP = "notify"
TOP = 5  # incidents in a summary


@dataclass(frozen=True, slots=True)
class Notified:
    """What was said of `day` (ISO): of how many incidents it has, and how many of them were news.

    message: what was sent, empty where nothing was; sent: how many targets took it; failed: the names of the others
    """

    day: str
    incidents: int
    message: str
    sent: int
    failed: list[str]
    news: int = 0


@dataclass(frozen=True, slots=True)
class News:
    """What is to be told of a day.

    incidents: those that are new, the others are `known`; planned: those that the calendar explains
    summary: whether they are more than are told one by one; update: whether the day was told of before
    """

    incidents: pl.DataFrame
    known: int = 0
    planned: pl.DataFrame | None = None
    summary: bool = False
    update: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What was told of the days around, and how much of tonight's budget is used up.

    told: for each target the stretches (entity, start, end, kind) that it has heard of
    singly: for each target, the incidents that it was told one by one since midnight
    summary: the targets to which a summary of an earlier day went out since
    update: whether anything was told of this day before
    """

    told: Mapping[str, pl.DataFrame]
    singly: Mapping[str, int]
    summary: Collection[str] = ()
    update: bool = False


def notify(ws: Workspace, day: date, now: datetime | None = None) -> Notified:
    """Log the night in one line; tell every target what it has not heard of its incidents.

    At most `notify.most` incidents a night are told to a target one by one, later looks at earlier days included;
    above, a summary is sent instead: one for the latest night, and one for all earlier days together, after which those
    are silent.

    Raises `ConfigError` where a variable of `notify.urls_env` is not set, before anything is sent, and `NightsiftError`
    where the incidents were not looked for yet, or where a target failed, after all were tried.
    """
    if read_state(ws, day, "incidents") is None:
        raise NightsiftError(
            f"{ws.dataset.name} {day}: its incidents were not looked for yet, so there is nothing to tell"
        )
    incidents = ws.lake.scan("incidents", incidents_schema(), day, day).collect()
    log.info("%s", words.summary_line(ws.dataset, day, incidents))
    tonight = ws.dataset.day_of(now or datetime.now(UTC))
    failed, sent, message, news = [], 0, "", 0
    targets = list(read_targets(ws.dataset))
    memory, late = _recall(ws, day, tonight), _is_late(ws, day)
    for target in targets:
        found = find_news(incidents, memory, target.name, ws.dataset.notify.most)
        withheld = found.summary and late and target.name in memory.summary
        if len(found.incidents) and not withheld:
            title, body = build_message(ws.dataset, day, found, report_file(ws, day))
            if why := send(target, title, body):
                failed.append(why)
                continue
            sent, message, news = sent + 1, f"{title}\n{body}", max(news, len(found.incidents))
        elif withheld:
            log.info("%s %s: %d incidents stand in the report alone", ws.dataset.name, day, len(found.incidents))
        _remember(ws, day, tonight, target, incidents, found, late=late)
    complain(f"{ws.dataset.name} {day}", failed, len(targets))
    return Notified(str(day), len(incidents), message, sent, failed, news)


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


def find_news(incidents: pl.DataFrame, memory: Memory, target: str, most: int) -> News:
    """What `target` has not heard of the `incidents`; pure."""
    open_ones = incidents.filter(pl.col("reason").is_null())
    heard = memory.told.get(target)
    new = open_ones if heard is None else _unheard(open_ones, heard)
    return News(
        incidents=new,
        known=len(open_ones) - len(new),
        planned=incidents.filter(pl.col("reason").is_not_null()),
        summary=memory.singly.get(target, 0) + len(new) > most,
        update=memory.update and heard is not None,
    )


def _unheard(incidents: pl.DataFrame, heard: pl.DataFrame) -> pl.DataFrame:
    """The incidents that overlap none that was told of their entity and kind."""
    pairs = incidents.select("incident_id", "entity", "kind", "start", "end").join(heard, on=["entity", "kind"])
    known = pairs.filter((pl.col("start") <= pl.col("end_right")) & (pl.col("end") >= pl.col("start_right")))
    return incidents.join(known, on="incident_id", how="anti")


def build_message(dataset: Dataset, day: date, news: News, report: Path | None = None) -> tuple[str, str]:
    """Title and body in plain text: the most severe incidents, one a line, then where the report is; pure."""
    found = words.ranked(news.incidents)
    listed = found.head(TOP) if news.summary else found
    lines = [f"- {_line(row, dataset, day)}" for row in listed.iter_rows(named=True)]
    if len(found) > len(lines):
        lines.append(words.budget_line(found.slice(len(lines)), dataset.notify.most))
    if not lines:
        lines.append(words.summary_line(dataset, day, news.incidents))
    if news.known:
        lines.append(f"Told before: {words.count(news.known, 'incident')}")
    if news.planned is not None and len(news.planned):
        lines.append(words.planned_line(news.planned))
    if report is not None:
        lines.append(f"Report: {report}")
    noun = ("more incident", "more incidents") if news.update else ("incident", "incidents")
    return f"{dataset.name}: {words.count(len(found), *noun)} on {day}", "\n".join(lines)


def _line(incident: dict[str, Any], dataset: Dataset, day: date) -> str:
    line = words.incident_line(incident, dataset, day)
    if incident["severity"] is None:
        return line
    return f"{line}; {incident['severity']:,.3g} × the threshold; {words.rarity(incident['p_value'])}"


# --- what was told


def _is_late(ws: Workspace, day: date) -> bool:
    """Whether a later day has been scored: then `day` is not the night that somebody waits for."""
    latest = states(ws, "score")["day"].max()
    return isinstance(latest, date) and latest > day


def _recall(ws: Workspace, day: date, tonight: date) -> Memory:
    """What was told of `day` and of the days beside it, and of any day in this night."""
    records = [state_of(row) for row in states(ws, STEP).iter_rows(named=True)]
    near = [state for state in records if abs(state.day - day) <= timedelta(days=1)]
    names = {name for state in near for name in state.counts["told"]}
    told = {name: _stretches([row for s in near for row in s.counts["told"].get(name, [])]) for name in names}
    now = [state.counts for state in records if state.counts["on"] == str(tonight)]
    return Memory(
        told,
        singly=sum((Counter(counts["singly"]) for counts in now), Counter()),
        summary={name for counts in now for name in counts["summary"]},
        update=any(state.day == day for state in near),
    )


def _stretches(rows: Sequence[Sequence[str]]) -> pl.DataFrame:
    parsed = [(entity, *map(datetime.fromisoformat, moments), kind) for entity, *moments, kind in rows]
    return pl.DataFrame(parsed, schema=stretches_schema() | {"kind": pl.String}, orient="row")


def _remember(
    ws: Workspace,
    day: date,
    tonight: date,
    target: Target,
    incidents: pl.DataFrame,
    news: News,
    *,
    late: bool,
) -> None:
    """Record that `target` knows of all that the day has now; nothing where that is known."""
    before = read_state(ws, day, STEP)
    counts: dict[str, Any] = before.counts if before else {"on": str(tonight), "singly": {}, "summary": [], "told": {}}
    open_ones = incidents.filter(pl.col("reason").is_null()).sort("entity", "start", "kind")
    rows = [[e, s.isoformat(), t.isoformat(), k] for e, s, t, k in open_ones["entity", "start", "end", "kind"].rows()]
    heard = counts["told"].get(target.name, [])
    if not rows or all(row in heard for row in rows):
        return
    new = heard + [row for row in rows if row not in heard]
    if counts["on"] != str(tonight):
        counts = counts | {"on": str(tonight), "singly": {}, "summary": []}
    singly = counts["singly"].get(target.name, 0) + (0 if news.summary else len(news.incidents))
    summary = {*counts["summary"], *([target.name] if news.summary and late else [])}
    counts = counts | {
        "singly": counts["singly"] | {target.name: singly},
        "summary": sorted(summary),
        "told": counts["told"] | {target.name: new},
    }
    write_state(ws, State(day, STEP, "", "", counts=counts))
