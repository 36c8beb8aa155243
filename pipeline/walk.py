"""Incidents on a terminal: in a table, one in words, and an analyst's walk through them with a verdict on each."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from pipeline.config import Dataset
from pipeline.links import incident_link
from pipeline.review import LONGEST_NOTE, OPEN, WITHDRAWN, history, latest_verdicts, record
from pipeline.terminal import Column, wrapped
from pipeline.words import (
    LEAST,
    MONTHS,
    NOTHING,
    clean_text,
    count,
    duration,
    feature_label,
    in_words,
    leading,
    local_time,
    number,
    percent,
    rarity,
    stretch,
    what_drove,
    who,
)
from pipeline.workspace import Workspace

STYLES = {OPEN: "bold yellow", "confirmed": "red", "dismissed": "green"}
KEYS = {"c": "confirmed", "d": "dismissed", "s": "skip", "n": "note", "u": "undo", "q": "quit"}
NAMED = 3  # drivers, and earlier verdicts, that are told of one incident
LABEL = 12  # characters of the words in front


def in_columns(incidents: pl.DataFrame, dataset: Dataset) -> list[list[Column]]:
    """The incidents of `read_reviewed` as columns, for a wide terminal and for ever narrower ones."""
    rows = list(incidents.iter_rows(named=True))
    ids = Column("id", [row["incident_id"] for row in rows])
    entity = Column("entity", [who(row) for row in rows])
    severity = Column("severity", [_severity(row) for row in rows], right=True)
    state = Column("state", [row["state"] for row in rows], styles=STYLES)
    first, last = ([_local(row[end], dataset) for row in rows] for end in ("start", "end"))
    planned = [clean_text(row["reason"] or "") for row in rows]
    wide = [ids, entity, Column("from", first), Column("to", last), severity, state,
            Column("driven by", [what_drove(row) for row in rows])]  # fmt: skip
    if any(planned):
        wide.append(Column("calendar", planned))
    short = [f"calendar: {reason}" if reason else what_drove(row) for row, reason in zip(rows, planned, strict=True)]
    when = Column("when", [_when(row, dataset) for row in rows])
    drivers = Column("driven by", short, least=10)
    return [
        wide,
        [ids, replace(entity, least=12), when, severity, state, drivers],
        [ids, replace(entity, least=8), Column("began", [text[:12] for text in when.cells]), severity, state],
    ]


def _severity(incident: Mapping[str, Any]) -> str:
    return NOTHING if incident["severity"] is None else f"{incident['severity']:.2f}"


def _local(moment: datetime, dataset: Dataset, form: str = "%Y-%m-%d %H:%M") -> str:
    return local_time(moment, dataset.tz, form)


def _when(incident: Mapping[str, Any], dataset: Dataset) -> str:
    """The incident's time without the year: `24 Mar 09:32–10:42`, or `24 Mar 09:32–26 Mar` into another day."""
    start, end = (incident[name].astimezone(dataset.tz) for name in ("start", "end"))
    day, last_day = (f"{t.day:>2} {MONTHS[t.month - 1]}" for t in (start, end))
    first, last = (_local(t, dataset, "%H:%M") for t in (start, end))
    if start.date() != end.date():
        return f"{day} {first}–{last_day.lstrip()}"
    return f"{day} {first}" + (f"–{last}" if last != first else "")


def in_lines(ws: Workspace, incident: Mapping[str, Any], room: int | None) -> list[str]:
    """One incident in words: who, when, how severe and how rare, what drove it, and what was said of that entity.

    room: how many characters a line may have; None: any number
    """
    return [line for label, text in _told(ws, incident) for line in wrapped(label, text, LABEL, room)]


def _told(ws: Workspace, incident: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    dataset, day = ws.dataset, incident["day"]
    lasted = incident["end"] - incident["start"]
    length = f" ({duration(lasted)})" if lasted > timedelta() else ""
    yield "who", f"{who(incident)}   (incident {incident['incident_id']}, {incident['state']})"
    yield "when", f"{day}, {stretch(incident['start'], incident['end'], dataset.tz, day)}{length}"
    if incident["kind"] == "silent":
        yield "what", "it sent nothing"
    else:
        peak, threshold = number(incident["peak_score"]), number(incident["threshold"])
        yield "severity", f"{_severity(incident)}: the score reached {peak}, the threshold is {threshold}"
        yield "how rare", rarity(incident["p_value"])
    for label, driver in zip(["driven by", *[""] * NAMED], leading(incident, NAMED, LEAST), strict=False):
        yield label, _driver(driver, dataset)
    if incident["reason"]:
        yield "calendar", clean_text(incident["reason"])
    yield from _said(ws, incident)
    if link := incident_link(dataset.name, day, incident["incident_id"]):
        yield "page", link


def _driver(driver: Mapping[str, Any], dataset: Dataset) -> str:
    name = driver["feature"]
    observed, expected = (in_words(dataset, name, driver[what]) for what in ("observed", "expected"))
    return f"{feature_label(name)} ({percent(driver['share'])}): observed {observed}, expected {expected}"


def _said(ws: Workspace, incident: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was said of the incident, then what counts of others of its entity; the latest first."""
    own = history(ws, incident["incident_id"])
    ids = [incident["incident_id"], *own["incident_id"]]
    theirs = latest_verdicts(ws).filter((pl.col("entity") == incident["entity"]) & ~pl.col("incident_id").is_in(ids))
    for label, said in (("verdicts", own), ("earlier", theirs.sort("reviewed_at", descending=True))):
        for n, row in enumerate(said.head(NAMED).iter_rows(named=True)):
            begun = "" if label == "verdicts" else f"{_local(row['start'], ws.dataset)}: "
            note = f": {clean_text(row['note'])}" if row["note"] else ""
            yield label if n == 0 else "", f"{begun}{row['verdict']} by {clean_text(row['reviewer'])}{note}"
        if len(said) > NAMED:
            yield "", f"and {count(len(said) - NAMED, 'more verdict')}"
    if theirs.is_empty():
        yield "earlier", "no verdict on any other incident of this entity"


def walk(
    ws: Workspace,
    incidents: pl.DataFrame,
    reviewer: str,
    *,
    tell: Callable[[str], None],
    key: Callable[[], str],
    ask: Callable[[str], str],
    room: int | None = None,
) -> Counter[str]:
    """Go through the incidents one by one and record each verdict at once; how many got which, or were skipped.

    tell: prints a line; key: waits for one key; ask: asks for a line of text
    Ends with the last incident, with the key q, or where `key` or `ask` raise EOFError or KeyboardInterrupt.
    """
    rows, at = list(incidents.iter_rows(named=True)), 0
    given: dict[int, str] = {}
    while at < len(rows):
        tell(f"\n{at + 1} of {len(rows)}")
        for line in in_lines(ws, rows[at], room):
            tell(line)
        answer, note = _answer(tell, key, ask)
        if answer == "quit":
            break
        if answer == "undo":
            at = max(at - 1, 0)
            if given.pop(at, "skip") != "skip":
                _restore(ws, rows[at], reviewer)
            continue
        if answer != "skip":
            record(ws, rows[at]["incident_id"], answer, note, reviewer)
        given[at] = answer
        at += 1
    return Counter(given.values())


def _restore(ws: Workspace, incident: Mapping[str, Any], reviewer: str) -> None:
    """Give the incident the state back that it had before the walk: what was said of it, by whoever has said it."""
    if incident["state"] == OPEN:
        record(ws, incident["incident_id"], WITHDRAWN, "", reviewer)
    else:
        record(ws, incident["incident_id"], incident["state"], incident["note"] or "", incident["reviewer"])


def _answer(tell: Callable[[str], None], key: Callable[[], str], ask: Callable[[str], str]) -> tuple[str, str]:
    """The word for the key that was pressed, and the note that was written before."""
    note = ""
    tell("  ".join(f"{letter} {word}" for letter, word in KEYS.items()))
    try:
        while True:
            word = KEYS.get(key().lower(), "")
            if word == "note":
                note = ask("note: ")
                while len(note) > LONGEST_NOTE:
                    tell(f"it has {len(note):,} characters; at most {LONGEST_NOTE:,} are kept")
                    note = ask("note: ")
            elif word:
                tell(f"→ {word}")
                return word, note
    except (EOFError, KeyboardInterrupt):
        return "quit", note
