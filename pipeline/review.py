"""Verdicts: what an analyst says of an incident, kept for good and used by the next training.

The table `verdicts` is only ever appended to: the latest verdict on an incident counts, the earlier ones are its
history. A verdict that was given by mistake is withdrawn, which makes the incident open again.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from pipeline.errors import ConfigError
from pipeline.incidents import incident_id, read_incidents
from pipeline.score import matching
from pipeline.tables import incidents_schema, verdicts_schema
from pipeline.words import clean_text, drivers_in_words, listing, who
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


def choose(
    reviewed: pl.DataFrame, entities: Sequence[str] = (), severity: float | None = None, state: str | None = None
) -> pl.DataFrame:
    """Those of the incidents of one of `entities` (names and globs), at least so severe, and in this `state`; pure.

    What is left out or empty asks for nothing. An incident without a severity, a silence, is none of those that are
    severe enough.
    """
    if entities:
        reviewed = reviewed.filter(pl.col("entity").is_in(matching(entities, reviewed["entity"])))
    if severity is not None:
        reviewed = reviewed.filter(pl.col("severity") >= severity)
    return reviewed if state is None else reviewed.filter(state=state)


def read_one(ws: Workspace, incident: str) -> pl.DataFrame:
    """The incident with that id, as `read_reviewed` gives it on its last day; raises `ConfigError` without one."""
    day = _known(ws, [Verdict(incident, "")])[incident]["day"]
    return read_reviewed(ws, day, day).filter(incident_id=incident)


SHEET = ("id", "entity", "start", "end", "severity", "driven by", "state", "verdict", "note")
_TOUCHY = re.compile(r"['=+\-@\t\r]")  # what makes a spreadsheet compute a cell, and our own mark against it
_NUMBER = re.compile(r"\d+(e\d+)?")  # an id that a spreadsheet would take for a number


def sheet(reviewed: pl.DataFrame, ws: Workspace) -> str:
    """The incidents as CSV, with empty columns for a verdict and a note on each; times in the dataset's zone.

    A cell that a spreadsheet would compute or take for a number has an apostrophe in front.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(SHEET)
    for row in reviewed.iter_rows(named=True):
        start, end = (row[name].astimezone(ws.dataset.tz).isoformat(" ", "seconds") for name in ("start", "end"))
        severity = "" if row["severity"] is None else f"{row['severity']:.2f}"
        driven_by = "sent nothing" if row["kind"] == "silent" else drivers_in_words(row)
        cells = (row["incident_id"], who(row), start, end, severity, driven_by, row["state"], "", "")
        writer.writerow(harmless(cell) for cell in cells)
    return text.getvalue()


def harmless(cell: str) -> str:
    """The cell, with an apostrophe in front where a spreadsheet would not leave it alone; `as_written` takes it off."""
    return f"'{cell}" if _TOUCHY.match(cell) or _NUMBER.fullmatch(cell) else cell


def as_written(cell: str) -> str:
    """The cell without the apostrophe that `harmless` has put in front."""
    rest = cell[1:]
    return rest if cell[:1] == "'" and (_TOUCHY.match(rest) or _NUMBER.fullmatch(rest)) else cell


def read_sheet(ws: Workspace, content: bytes) -> list[Verdict]:
    """The verdicts in a CSV that `sheet` began and somebody has filled in, whatever program has saved it.

    Columns that are not id, verdict or note, and lines without a verdict, are passed over. Raises `ConfigError` that
    names each line that cannot be taken as it stands, and why.
    """
    lines = list(_filled(content))
    known = _ids(ws, {said.incident for _, said in lines if isinstance(said, Verdict)})
    latest = {row["incident_id"]: row for row in _latest(ws).iter_rows(named=True)}
    said, wrong = dict[str, tuple[int, Verdict]](), list[str]()
    for number, each in lines:
        if isinstance(each, str):
            wrong.append(f"line {number}: {each}")
            continue
        first, told = said.setdefault(each.incident, (number, each))
        if each.incident not in known:
            problem = f"{ws.dataset.name} has no incident {clean_text(each.incident)!r}"
        elif told != each:
            problem = f"line {first} says something else of incident {each.incident}"
        else:
            problem = _problem(each, latest.get(each.incident))
        wrong += [f"line {number}: {problem}"] if problem else []
    if wrong:
        raise ConfigError("\n".join([*wrong, "nothing was recorded; mend these lines and import the file again"]))
    return [each for _, each in said.values()]


def _problem(said: Verdict, before: Mapping[str, Any] | None) -> str:
    try:
        _check(said, before)
    except ConfigError as error:
        return str(error)
    return ""


def _ids(ws: Workspace, ids: set[str]) -> set[str]:
    """Those of the ids that are incidents."""
    rows = ws.lake.scan("incidents", incidents_schema()).filter(pl.col("incident_id").is_in(list(ids)))
    return set(rows.select("incident_id").collect()["incident_id"])


def _filled(content: bytes) -> Iterator[tuple[int, Verdict | str]]:
    """The line number and what is said, of each line that says something; why, of one that cannot be read."""
    text = _decoded(content)
    head = "".join(text.splitlines()[:1])
    delimiter = max(",;\t", key=head.count)
    lines = _lines(text, delimiter)
    names = _columns(next(lines, (1, []))[1])
    for number, cells in lines:
        if isinstance(cells, str):
            yield number, cells
        elif any(cell.strip() for cell in cells[len(names) :]):
            yield number, (f"{len(cells)} cells where the first line has {len(names)}; put the cell with "
                           f"{delimiter!r} in it in quotes")  # fmt: skip
        elif (said := _said(dict(zip(names, cells, strict=False)))) is not None:
            yield number, said


def _lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The cells of each row, or why it cannot be read, with the number of the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"{error}; a cell that begins with a quote ends with one, and those within are doubled"
        else:
            yield number, cells


def _columns(head: list[str] | str) -> list[str]:
    """The names of the columns; raises `ConfigError` where one that is needed is not there once."""
    if isinstance(head, str):
        raise ConfigError(f"line 1: {head}")
    names = [name.strip().casefold() for name in head]
    for name, least in {"id": 1, "verdict": 1, "note": 0}.items():
        if not least <= names.count(name) <= 1:
            raise ConfigError(f"the file needs one column {name!r}, not {names.count(name)}; nightsift review NAME "
                              "--export FILE writes one to fill in")  # fmt: skip
    return names


def _said(row: Mapping[str, str]) -> Verdict | None:
    """What a row's cells, by column, say; None where that is nothing."""
    incident, verdict = (as_written(row.get(name, "").strip()).casefold() for name in ("id", "verdict"))
    note = as_written(row.get("note", "").strip()).replace("\r\n", "\n").strip()
    return Verdict(incident, verdict, note) if verdict or note else None


def _decoded(content: bytes) -> str:
    """The text of the file; what is not Unicode is what Western spreadsheets have always written."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
