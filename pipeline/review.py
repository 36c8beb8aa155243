"""Verdicts: what an analyst says of an incident, kept for good and used by the next training.

The table `verdicts` is only ever appended to: the latest verdict on an incident counts, the earlier ones are its
history. A verdict that was given by mistake is withdrawn, which makes the incident open again.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from pipeline.errors import ConfigError
from pipeline.incidents import incident_id, read_incidents
from pipeline.score import matching
from pipeline.tables import incidents_schema, verdicts_schema
from pipeline.words import clean_text, listing, what_drove, who
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

    What the same reviewer has said last of an incident already is not said twice. What stands under an earlier id of
    the incident is withdrawn by what is said now, so that one verdict counts. An incident that is gone since can only
    have its verdict withdrawn.

    Raises `ConfigError` for an unknown incident or verdict, a note that is too long, or a withdrawal where there is no
    verdict.
    """
    before, entries, new = _read_before(ws, {each.incident for each in said}), list[dict[str, Any]](), []
    for each in map(_tidy, said):
        _check(ws, each, before)
        by = {"reviewer": reviewer, "reviewed_at": now or datetime.now(UTC)}
        rows = [other | {"verdict": WITHDRAWN, "note": ""} | by for other in before.elsewhere(each.incident)]
        entry = before.latest.get(each.incident)
        if entry is None or (entry["verdict"], entry["note"], entry["reviewer"]) != (each.verdict, each.note, reviewer):
            entry = before.place(each.incident) | {"verdict": each.verdict, "note": each.note} | by
            rows.append(entry)
        before.latest.update({row["incident_id"]: row for row in rows})
        entries.append(entry)
        new += rows
    if new:
        ws.lake.append("verdicts", pl.DataFrame(new, schema=verdicts_schema()))
    return entries


def _tidy(said: Verdict) -> Verdict:
    """The verdict with its note as it is kept: lines end as they do here, whatever a form or a spreadsheet sends."""
    return replace(said, note=said.note.replace("\r\n", "\n").strip())


@dataclass(frozen=True, slots=True)
class _Before:
    """What is known of some incidents before something is said of them.

    incidents: by id, what a verdict keeps of each, as its last day tells it; none for what is no incident
    latest: by id, the latest that was said of any incident, withdrawals included
    moved: by id, the ids that the incident had when something was said of it
    """

    incidents: Mapping[str, Mapping[str, Any]]
    latest: dict[str, dict[str, Any]]
    moved: Mapping[str, Sequence[str]]

    def place(self, incident: str) -> dict[str, Any]:
        """What a verdict on the incident keeps of it."""
        known = self.incidents.get(incident) or self.latest[incident]
        return {name: known[name] for name in ("day", "incident_id", "entity", "start", "end")}

    def elsewhere(self, incident: str) -> list[dict[str, Any]]:
        """The verdicts that stand under earlier ids of the incident."""
        said = (self.latest[name] for name in self.moved.get(incident, ()))
        return [row for row in said if row["verdict"] != WITHDRAWN]


def _read_before(ws: Workspace, ids: Collection[str]) -> _Before:
    known, latest = _known(ws, ids), _latest(ws)
    moved = moved_from(known, _orphans(ws, latest)).group_by("incident_id").agg("said_id")
    return _Before(
        {row["incident_id"]: row for row in known.iter_rows(named=True)},
        {row["incident_id"]: row for row in latest.iter_rows(named=True)},
        dict(moved.iter_rows()),
    )


def _known(ws: Workspace, ids: Collection[str]) -> pl.DataFrame:
    """Those of the ids that are incidents, each as its last day tells it."""
    rows = ws.lake.scan("incidents", incidents_schema()).filter(pl.col("incident_id").is_in(list(ids))).sort("day")
    found = rows.select("day", "incident_id", "entity", "kind", "start", "end").collect()
    return found.unique("incident_id", keep="last", maintain_order=True)


def _check(ws: Workspace, said: Verdict, before: _Before) -> None:
    if said.incident not in before.incidents and said.incident not in before.latest:
        raise _unknown(ws, said.incident)
    if said.verdict not in (*VERDICTS, WITHDRAWN):
        raise ConfigError(f"{said.verdict!r} is no verdict; say {', '.join(VERDICTS)} or {WITHDRAWN}")
    if said.incident not in before.incidents and said.verdict != WITHDRAWN:
        raise ConfigError(f"{ws.dataset.name} has incident {said.incident} no more, as the night was scored again; the "
                          f"verdict on it can only be {WITHDRAWN}")  # fmt: skip
    if len(said.note) > LONGEST_NOTE:
        raise ConfigError(f"the note on incident {said.incident} has {len(said.note):,} characters; at most "
                          f"{LONGEST_NOTE:,} are kept")  # fmt: skip
    if said.verdict == WITHDRAWN and said.incident not in before.latest and not before.elsewhere(said.incident):
        raise ConfigError(f"there is no verdict on incident {said.incident} that could be withdrawn")


def _unknown(ws: Workspace, incident: str) -> ConfigError:
    name = ws.dataset.name
    return ConfigError(f"{name} has no incident {clean_text(incident)!r}; list them: nightsift incidents {name}")


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
    """All that was ever said of an incident, under whichever id, withdrawals included, the latest first.

    That a verdict took another one's place, under an earlier id, is no withdrawal of its own.
    """
    earlier = moved_from(_known(ws, [incident]), _orphans(ws, _latest(ws)))["said_id"]
    mine = pl.col("incident_id") == incident
    rows = ws.lake.scan("verdicts", verdicts_schema()).filter(mine | pl.col("incident_id").is_in(earlier.implode()))
    said = rows.sort("reviewed_at", descending=True).collect()
    replacing = said.filter(mine)["reviewed_at"].implode()
    return said.filter(mine | (pl.col("verdict") != WITHDRAWN) | ~pl.col("reviewed_at").is_in(replacing))


def read_reviewed(ws: Workspace, first: date, last: date) -> pl.DataFrame:
    """The incidents from `first` to `last` as `read_incidents` gives them, with their state, as `with_state` has it."""
    return read_states(ws, read_incidents(ws, first, last))


def read_states(ws: Workspace, incidents: pl.DataFrame) -> pl.DataFrame:
    """A part of the table `incidents`, with their state, as `with_state` has it."""
    verdicts = latest_verdicts(ws)
    return with_state(incidents, verdicts, _orphans(ws, verdicts))


def read_lost(ws: Workspace) -> pl.DataFrame:
    """The verdicts that count on what is no incident any more, under no id: a night was scored again since."""
    orphans = _orphans(ws, latest_verdicts(ws))
    if orphans.is_empty():
        return orphans
    theirs = pl.col("entity").is_in(orphans["entity"].unique().implode())
    incidents = ws.lake.scan("incidents", incidents_schema()).filter(theirs).collect()
    return orphans.join(moved_from(incidents, orphans), left_on="incident_id", right_on="said_id", how="anti")


def _orphans(ws: Workspace, verdicts: pl.DataFrame) -> pl.DataFrame:
    """Those of the verdicts whose id no incident of any night has."""
    return verdicts.join(_known(ws, verdicts["incident_id"].to_list()), on="incident_id", how="anti")


def with_state(incidents: pl.DataFrame, verdicts: pl.DataFrame, orphans: pl.DataFrame) -> pl.DataFrame:
    """The incidents with their `state` (open, confirmed, dismissed) and the note, reviewer and time of the verdict.

    A verdict is on the incident with its id. Where late data, or another detector, has moved the start of an incident,
    its id is another: then the latest of the `orphans` counts that is on it, as `moved_from` tells. `orphans` are the
    verdicts whose id no incident of any night has. Pure; keeps the order of rows.
    """
    names = ("state", *SAID)
    said = verdicts.select("incident_id", pl.col("verdict").alias("state"), *SAID)
    own = incidents.join(said, on="incident_id", how="left", maintain_order="left")
    moved = moved_from(own.filter(pl.col("state").is_null()), orphans)
    told = moved.join(
        orphans.select(pl.col("incident_id").alias("said_id"), pl.col("verdict").alias("state"), *SAID), on="said_id"
    )
    latest = told.sort("reviewed_at", "said_id").group_by("incident_id").agg(pl.col(name).last() for name in names)
    both = own.join(latest, on="incident_id", how="left", maintain_order="left", suffix="_moved")
    filled = (pl.coalesce(name, f"{name}_moved").alias(name) for name in names)
    return (
        both.with_columns(filled).drop(f"{name}_moved" for name in names).with_columns(pl.col("state").fill_null(OPEN))
    )


def moved_from(incidents: pl.DataFrame, orphans: pl.DataFrame) -> pl.DataFrame:
    """Which incident each of the `orphans` is on, verdicts on ids that are gone: `incident_id` and `said_id`; pure.

    It is on those incidents of the same entity and kind that overlap what it was said of.
    """
    kinds = pl.Series("kind", [_kind_of(row) for row in orphans.iter_rows(named=True)], dtype=pl.String)
    said = orphans.select("entity", kinds, *(pl.col(n).alias(f"said_{n}") for n in ("start", "end")),
                          pl.col("incident_id").alias("said_id"))  # fmt: skip
    pairs = incidents.select("incident_id", "entity", "kind", "start", "end").join(said, on=["entity", "kind"])
    overlapping = (pl.col("start") <= pl.col("said_end")) & (pl.col("end") >= pl.col("said_start"))
    return pairs.filter(overlapping).select("incident_id", "said_id").unique().sort("incident_id", "said_id")


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
    known = _known(ws, [incident])
    if known.is_empty():
        raise _unknown(ws, incident)
    day = known["day"][0]
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
        cells = (row["incident_id"], who(row), start, end, severity, what_drove(row), row["state"], "", "")
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
    before = _read_before(ws, {said.incident for _, said in lines if isinstance(said, Verdict)})
    said, wrong = dict[str, tuple[int, Verdict]](), list[str]()
    for number, each in lines:
        if isinstance(each, str):
            wrong.append(f"line {number}: {each}")
            continue
        first, told = said.setdefault(each.incident, (number, each))
        problem = _problem(ws, each, before)
        if told != each:
            problem = f"line {first} says something else of incident {clean_text(each.incident)}"
        wrong += [f"line {number}: {problem}"] if problem else []
    if wrong:
        raise ConfigError("\n".join([*wrong, "nothing was recorded; mend these lines and import the file again"]))
    return [each for _, each in said.values()]


def _problem(ws: Workspace, said: Verdict, before: _Before) -> str:
    try:
        _check(ws, said, before)
    except ConfigError as error:
        return str(error)
    return ""


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
    said = _tidy(Verdict(incident, verdict, as_written(row.get("note", ""))))
    return said if verdict or said.note else None


def _decoded(content: bytes) -> str:
    """The text of the file; what is not Unicode is what Western spreadsheets have always written."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
