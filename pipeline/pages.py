"""The pages that are shown inside Airflow: the list of incidents, one incident, the form of a backfill, a message.

What they say comes from `pipeline.browse` and the tables, how they look from the templates; who may see what is told by
a `Reader`. They hold no clock: the same tables give the same bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

import polars as pl

from pipeline import words
from pipeline.browse import MOST_NIGHTS, NIGHTS, SORTS, Found, Question
from pipeline.config import Dataset
from pipeline.links import PREFIX, incident_path
from pipeline.rendering import digest, environment
from pipeline.report import reach, read_entry, surroundings
from pipeline.review import KINDS, LONGEST_NOTE, OPEN, STATES, WITHDRAWN, harmless, history
from pipeline.tables import EVERYONE, incidents_schema, landing_schema
from pipeline.workspace import Workspace

SCRIPTS = ("page.js", "chart.js")


@dataclass(frozen=True, slots=True)
class Reader:
    """Who looks at a page, and from where.

    airflow: where Airflow is, as a path without a slash at its end; empty at the root of its server
    datasets: those that the reader may see; judges: those on whose incidents the reader may record a verdict
    backfills: whether the reader may start a backfill
    """

    airflow: str
    name: str = ""
    datasets: tuple[str, ...] = ()
    judges: frozenset[str] = frozenset()
    backfills: bool = False

    @property
    def root(self) -> str:
        """Where these pages are."""
        return self.airflow + PREFIX

    def incident(self, dataset: str, day: date, incident: str, rest: str = "") -> str:
        """The address of an incident's page, or of what stands below it."""
        return f"{self.airflow}{incident_path(dataset, day, incident)}{rest}"


@dataclass(frozen=True, slots=True)
class Row:
    """An incident in a line of the list."""

    address: str
    verdicts: str
    dataset: str
    who: str
    day: str
    when: str
    severity: str
    drivers: str
    state: str
    said: str
    reason: str
    open: bool
    judged: bool


def render_list(found: Found, datasets: Mapping[str, Dataset], reader: Reader, said: str = "") -> str:
    """The list; `said` is the incident on which a verdict was just recorded, if one was: `DATASET.ID`.

    `datasets` are those of the incidents that are found.
    """
    question = found.question
    rows = [_row(row, datasets[row["dataset"]], question, reader) for row in found.shown().iter_rows(named=True)]
    name, _, incident = said.rpartition(".")
    just = found.judged(name, incident) if said else None
    return _page("incidents.html.jinja").render(
        title="Incidents",
        reader=reader,
        question=question,
        found=found,
        rows=rows,
        just=None if just is None else _row(just, datasets[name], question, reader),
        summary=summary(found),
        tabs=list(_tabs(found)),
        kinds=KINDS,
        sorts=SORTS,
        several=len(reader.datasets) > 1,
        judging=bool(reader.judges & {row.dataset for row in rows}),
        back=question.query(),
        nights=NIGHTS,
        most=MOST_NIGHTS,
    )


def render_wrong(question: Question, reader: Reader, why: str) -> str:
    """The list of nothing, with the sentence that says why the question cannot be answered."""
    nothing = pl.DataFrame(schema=dict.fromkeys(("dataset", "incident_id", "state"), pl.String))
    return render_list(Found(question, nothing, nothing, None, (why,)), {}, reader)


def summary(found: Found) -> str:
    """How many incidents there are, of which nights, and in which states, in a sentence; empty where none was read."""
    total = sum(found.states.values())
    if found.nights is None:
        return "" if found.trouble else "No night was scored yet, or none of those that are asked for."
    first, last = found.nights
    nights = f"in the night {first}" if first == last else f"in the nights {first} to {last}"
    if not total:
        return f"No incident was found {nights}."
    states = words.listing([f"{found.states[state]:,} {state}" for state in STATES if state in found.states])
    return f"{words.count(total, 'incident')} {nights}: {states}."


def _tabs(found: Found) -> Iterable[tuple[str, int, str, bool]]:
    """Each state, and all of them: its name, how many incidents, the query that shows them, whether it is shown."""
    asked = found.question
    yield "all", sum(found.states.values()), asked.query(state="", page=1), not asked.state
    for state in STATES:
        yield state, found.states.get(state, 0), asked.query(state=state, page=1), asked.state == state


def _row(row: Mapping[str, Any], dataset: Dataset, question: Question, reader: Reader) -> Row:
    query = question.query()
    return Row(
        address=reader.incident(row["dataset"], row["day"], row["incident_id"], f"?{query}" if query else ""),
        verdicts=reader.incident(row["dataset"], row["day"], row["incident_id"], "/verdict"),
        dataset=row["dataset"],
        who=words.who(row),
        day=str(row["day"]),
        when=words.stretch(row["start"], row["end"], dataset.tz, row["day"]),
        severity=_severity(row),
        drivers=words.what_drove(row) or words.NOTHING,
        state=row["state"],
        said="" if row["state"] == OPEN else _said(row),
        reason=words.clean_text(row["reason"] or ""),
        open=row["state"] == OPEN,
        judged=row["dataset"] in reader.judges,
    )


def _severity(row: Mapping[str, Any]) -> str:
    return words.NOTHING if row["severity"] is None else f"{row['severity']:,.3g} ×"


def _said(row: Mapping[str, Any]) -> str:
    """Who has judged, and the note."""
    note = words.clean_text(row["note"] or "")
    return f"{row['reviewer']}: {note}" if note else str(row["reviewer"])


def render_one(ws: Workspace, row: Mapping[str, Any], reader: Reader, found: Found) -> str:
    """The page of one incident, a row as `pipeline.browse.find_incident` gives it.

    `found` is the list that the reader came from: where before and after lead.
    """
    dataset, day, query = ws.dataset, row["day"], found.question.query()
    before, after = found.beside(dataset.name, row["incident_id"])
    incident = {name: row[name] for name in incidents_schema()}
    here = reader.incident(dataset.name, day, row["incident_id"])
    entry = None if row["kind"] == "silent" else replace(read_entry(ws, incident), csv=f"{here}/rows.csv")
    return _page("one.html.jinja").render(
        title=f"{words.who(row)} · {dataset.name} {day}",
        reader=reader,
        dataset=dataset,
        day=day,
        row=_row({**row, "dataset": dataset.name}, dataset, found.question, reader),
        entry=entry,
        length=words.duration(row["end"] - row["start"]) if row["end"] > row["start"] else "one moment",
        history=[_remark(said, dataset.tz) for said in history(ws, row["incident_id"]).iter_rows(named=True)],
        withdrawn=WITHDRAWN,
        here=here,
        csv=f"{here}/rows.csv",
        before=_beside(before, reader, query),
        after=_beside(after, reader, query),
        next_open="" if row["state"] == OPEN else _beside(found.first_open(), reader, query),
        query=query,
        longest=LONGEST_NOTE,
        judging=dataset.name in reader.judges,
        backfill=urlencode({"dataset": dataset.name, "first": day, "last": day, **_entity(row)}),
        report=f"{reader.root}/reports/{quote(dataset.name)}/{day}",
    )


def _entity(row: Mapping[str, Any]) -> dict[str, str]:
    return {} if row["entity"] == EVERYONE else {"entities": row["entity"]}


def _beside(row: Mapping[str, Any] | None, reader: Reader, query: str) -> str:
    """The address of a neighbour in the list; empty without one."""
    rest = f"?{query}" if query else ""
    return "" if row is None else reader.incident(row["dataset"], row["day"], row["incident_id"], rest)


def _remark(said: Mapping[str, Any], zone: ZoneInfo) -> dict[str, str]:
    """A line of an incident's history, its time in the dataset's zone."""
    moment: datetime = said["reviewed_at"].astimezone(zone)
    return {
        "verdict": said["verdict"], "note": said["note"] or "", "who": said["reviewer"],
        "when": f"{moment:%Y-%m-%d %H:%M} {zone.key}", "stamp": moment.isoformat(timespec="seconds"),
    }  # fmt: skip


def render_backfill(reader: Reader, names: Sequence[str], form: Mapping[str, str]) -> str:
    """The form of a backfill, filled in with `form`; a script sends it to Airflow's own route, which judges it."""
    return _page("backfill.html.jinja").render(title="Run nights again", reader=reader, names=names, form=form)


def render_message(title: str, sentence: str, reader: Reader, link: tuple[str, str] | None = None) -> str:
    """A page that says one thing; `link` is where to go on: its address and words."""
    return _page("notice.html.jinja").render(title=title, sentence=sentence, reader=reader, link=link)


def _page(name: str) -> Any:
    return environment().get_template(name)


@cache
def policy() -> str:
    """What a page may load and run: nothing but its own styles and our scripts; only our own pages may frame it."""
    ours = " ".join(f"'{digest(name)}'" for name in SCRIPTS)
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {ours}; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'self'"
    )


def raw_rows(ws: Workspace, row: Mapping[str, Any]) -> pl.DataFrame:
    """The source rows of an incident's entity around it, as they have landed, with what the pipeline made of them.

    The columns are those of `landing` but for its digest; problems are one text.
    """
    dataset = ws.dataset
    first, last = (dataset.day_of(moment) for moment in (row["start"] - reach(dataset), row["end"] + reach(dataset)))
    rows = ws.lake.scan("landing", landing_schema(dataset), first, last)
    if row["entity"] != EVERYONE:
        rows = rows.filter(pl.col("entity") == row["entity"])
    sorted_rows = rows.drop("source_digest").sort("event_time", "source", "source_row").collect()
    shown = surroundings(sorted_rows, row["start"], row["end"], dataset)
    return shown.with_columns(pl.col("problems").list.join("; "))


def harmless_csv(frame: pl.DataFrame) -> str:
    """The frame as CSV for spreadsheets: `harmless`, and with a mark at its beginning by which they know UTF-8."""
    guarded = frame.with_columns(pl.col(pl.String).map_elements(harmless, return_dtype=pl.String))
    return guarded.write_csv(include_bom=True, datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")
