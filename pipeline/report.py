"""The night's report: one self-contained HTML page per dataset and day, for the analyst who reads it in the morning.

`read_facts` collects what the tables hold, `render_report` turns it into the page, `write_report` writes it. The page
holds no clock and no run id, and loads nothing; the one script that it may run is its own, named by its digest. The
same tables, and the same address of Airflow in the environment, give the same bytes.
"""

import calendar
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import words
from pipeline.background import Backgrounds, Moved, Past, past_of, raw_lines, read_backgrounds, read_moved
from pipeline.chart import (
    MOST_POINTS,
    Axis,
    Chart,
    Heading,
    Panel,
    category_panel,
    clock_axis,
    event_axis,
    feature_panel,
    score_panel,
    strip,
)
from pipeline.config import Dataset, Feature, SequenceFeature
from pipeline.errors import NightsiftError
from pipeline.incidents import entity_days
from pipeline.ingest import newest_event
from pipeline.labels import label_rates, with_label_rates
from pipeline.links import incident_link, incidents_link
from pipeline.promise import Promise, read_promise
from pipeline.rendering import environment, write_page
from pipeline.review import OPEN
from pipeline.score import count_scores, parts, read_scored, units_of
from pipeline.sequences import add_sequence_features, in_order
from pipeline.state import State, day_states, read_state, write_state
from pipeline.tables import (
    MOMENT,
    clean_schema,
    drifts_schema,
    incidents_schema,
    key_schema,
    quarantine_schema,
    scores_schema,
)
from pipeline.workspace import Workspace

STEP = "report"
OPEN_CARDS = 5
TOP_ROWS = 20  # incidents in the table before the fold
CONTEXT_EVENTS = 30  # events before a transaction incident, and a third as many after it
CONTEXT_READINGS = 45  # readings before and after a sensor incident, at least
CONTEXT_TIME = timedelta(hours=6)  # or as long as the incident was, up to this
MOST_REASONS = 20
EXAMPLES = 3
MOST_DRIFTS = 20
SECOND = timedelta(seconds=1)
MOST_SHOWN = 300  # characters of a quarantined row


@dataclass(frozen=True, slots=True)
class Detail:
    """How much of a picture is drawn: of how many features at most, with how many points in a line."""

    drivers: int
    points: int


# By rank, up to which there is so much detail: all of a night with 500 incidents is less than 5 MB.
DETAILS = ((30, Detail(3, MOST_POINTS)), (150, Detail(2, 90)), (1000, Detail(1, 48)))
MOST_CARDS = DETAILS[-1][0]  # the incidents beyond stand in the table alone


@dataclass(frozen=True, slots=True)
class Counts:
    """The night in numbers: rows that came in, how many were clean, quarantined or duplicates; what was scored.

    `entity_days` is the time that the scored steps cover, over all entities: what false alarms are counted over.
    """

    rows: int
    clean: int
    quarantined: int
    duplicates: int
    entities: int
    steps: int
    anomalous: int
    entity_days: float


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """All that a report says.

    incidents: the incidents of the day
    around: rows of the charted incidents' entities, a sensor's near incidents, sorted by entity and event time:
        entity, event_time, score, is_anomaly, and per channel observed_<channel> and expected_<channel> in its own unit
    quarantine: reason, rows, examples (list of what stood in the row), the most frequent reason first
    background: the nights before of the incidents' entities, what analysts have said, and the incidents' raw rows
    promise: how many false alarms were promised, and how many incidents there were
    drifts: features of entities that have moved slowly, as the table has them
    moved: of each (entity, feature) of these, since when
    newest: the newest event of the day that has landed
    warnings: what the validation found worth a look without refusing the data, and who was not there in training
    """

    dataset: Dataset
    day: date
    counts: Counts
    incidents: pl.DataFrame
    around: pl.DataFrame
    background: Backgrounds
    quarantine: pl.DataFrame
    promise: Promise
    drifts: pl.DataFrame
    moved: Mapping[tuple[str, str], Moved]
    newest: datetime | None = None
    warnings: tuple[str, ...] = ()
    detector_version: str = ""


@dataclass(frozen=True, slots=True)
class Driver:
    """A line of an incident's table of drivers, in words."""

    label: str
    meaning: str
    share: str
    width: float
    observed: str
    expected: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An incident in words; `left` and `width` place it in the day, in per cent.

    state, said: open, confirmed or dismissed, and by whom and why
    link, csv: the addresses of the incident and of its raw rows on the incidents page, where Airflow's is known
    raw: source files and row numbers that it came from
    past, strip: the nights before of its entity, in words and as paths by kind of night; `chart`: where it has one
    """

    rank: int
    who: str
    when: str
    expected: str
    length: str
    severity: str
    drivers: str
    left: float
    width: float
    story: str
    peak: str
    peak_time: str
    threshold: str
    rarity: str
    details: tuple[Driver, ...]
    state: str = OPEN
    said: str = ""
    link: str | None = None
    csv: str | None = None
    raw: tuple[str, ...] = ()
    past: Past | None = None
    strip: Mapping[str, str] = field(default_factory=dict)
    chart: Chart | None = None


@dataclass(frozen=True, slots=True)
class Silence:
    """What sent nothing, in words."""

    who: str
    when: str
    length: str
    expected: str
    state: str


@dataclass(frozen=True, slots=True)
class Drifted:
    """A slow drift in words, and its nights as paths by kind of night."""

    told: str
    strip: Mapping[str, str]
    spoken: str


def render_report(facts: ReportFacts) -> str:
    """The whole HTML page; the same facts give the same text."""
    found = words.ranked(facts.incidents)
    anomalies = found.filter(pl.col("kind") != "silent")
    silent = found.filter(pl.col("kind") == "silent")
    known = _known(facts.dataset, facts.day, facts.around, facts.background)
    entries, counts = list(_entries(anomalies, known)), facts.counts
    page = environment().get_template("report.html.jinja")
    return page.render(
        dataset=facts.dataset,
        day=facts.day,
        title=f"{facts.dataset.name} · {calendar.day_name[facts.day.weekday()]} {facts.day}",
        summary=words.summary_line(facts.dataset, facts.day, facts.incidents, counts.steps),
        chance=_chance(facts, anomalies["reason"].null_count()),
        waiting=_waiting(found, known),
        page=incidents_link(),
        figures=_figures(facts, anomalies["reason"].null_count()),
        quality=_quality(facts),
        quarantined=words.percent(counts.quarantined / counts.rows if counts.rows else None),
        counts=counts,
        entries=entries,
        top=TOP_ROWS,
        cards=MOST_CARDS,
        opened=OPEN_CARDS,
        thinned=DETAILS[0][0],
        silent=[_silent(row, known) for row in silent.iter_rows(named=True)],
        quarantine=facts.quarantine.head(MOST_REASONS).to_dicts(),
        more_reasons=max(len(facts.quarantine) - MOST_REASONS, 0),
        drifts=list(_drifted(facts)),
        more_drifts=max(len(facts.drifts) - MOST_DRIFTS, 0),
        warnings=facts.warnings,
        detector=facts.detector_version,
        promise=words.promise_line(facts.promise),
        budget=words.number(facts.promise.promised),
        count=words.count,
    )


def _drifted(facts: ReportFacts) -> Iterator[Drifted]:
    """The furthest of the drifts, in words, with since when."""
    furthest = facts.drifts.sort(pl.col("deviations").abs(), descending=True, maintain_order=True).head(MOST_DRIFTS)
    for row in furthest.iter_rows(named=True):
        moved = facts.moved[row["entity"], row["feature"]]
        nights = words.count(moved.nights.count("moved"), "night")
        since = f"since {moved.since}" if moved.since < facts.day else "for the first time"
        yield Drifted(
            f"{words.drift_line(row, facts.dataset)}, {since}",
            strip(moved.nights),
            f"drifted in {nights} of the {len(moved.nights)} up to {facts.day}",
        )


def _chance(facts: ReportFacts, incidents: int) -> str:
    """How many incidents chance alone may have made, and how many there are; empty where nothing was promised."""
    promised, days = facts.promise.promised, facts.counts.entity_days
    if not incidents or promised is None:
        return ""
    entity = facts.dataset.entity
    return (
        f"Chance alone would raise up to about {words.number(float(f'{days * promised:.1g}'))} in such a night (at "
        f"most {words.number(promised)} false alarms per {entity} and day are promised, over {words.short(days)} "
        f"{entity}-days); there {'is' if incidents == 1 else 'are'} {incidents:,}."
    )


def _waiting(found: pl.DataFrame, known: "_Known") -> tuple[int, str]:
    """How many have no verdict, and which of them all, such as `3 of 6 incidents and 1 silence`; empty without any."""
    waiting, parts = 0, []
    for noun, silent in (("incident", False), ("silence", True)):
        mine = found.filter((pl.col("kind") == "silent") == silent).select("incident_id")
        states = [known.said(row)["state"] for row in mine.iter_rows(named=True)]
        if n := states.count(OPEN):
            waiting += n
            parts.append(f"{f'{n:,} of ' if n < len(states) else ''}{words.count(len(states), noun)}")
    return waiting, words.listing(parts) if parts else ""


def _figures(facts: ReportFacts, incidents: int) -> list[tuple[str, str]]:
    """What was scored and what came of it, each number with its name."""
    counts = facts.counts
    share = counts.anomalous / counts.steps if counts.steps else None
    realised = incidents / counts.entity_days if counts.entity_days else None
    return [
        ("entities", f"{counts.entities:,}"),
        ("steps scored", f"{counts.steps:,}"),
        ("steps anomalous", words.percent(share)),
        ("false alarms promised per entity-day, at most", words.number(facts.promise.promised)),
        ("incidents per entity-day", words.number(realised)),
        (f"the same, not confirmed, over {words.count(facts.promise.lately.nights, 'night')}",
         words.short(facts.promise.lately.rate)),
    ]  # fmt: skip


def _quality(facts: ReportFacts) -> list[tuple[str, str]]:
    """The day's data in numbers, each with its name."""
    counts, newest, end = facts.counts, facts.newest, facts.dataset.day_bounds(facts.day)[1]
    before = "" if newest is None else f", {words.duration(timedelta(seconds=(end - newest) // SECOND))} before its end"
    return [
        ("rows in", f"{counts.rows:,}"),
        ("clean", f"{counts.clean:,}"),
        ("quarantined", f"{counts.quarantined:,}"),
        ("duplicates left out", f"{counts.duplicates:,}"),
        (f"newest {_noun(facts.dataset)} of the day{before}", _newest(facts)),
    ]


def _newest(facts: ReportFacts) -> str:
    if facts.newest is None:
        return words.NOTHING
    return words.clock(facts.newest, facts.dataset.tz, facts.day, seconds=True)


def _noun(dataset: Dataset) -> str:
    """What a step of the dataset is."""
    return "reading" if dataset.kind == "sensor" else "event"


@dataclass(frozen=True, slots=True)
class _Known:
    """What the entries of one day are told from: rows and earlier incidents by entity, the rest by incident."""

    dataset: Dataset
    day: date
    scored: frozenset[date]
    rows: Mapping[str, pl.DataFrame]
    reviewed: Mapping[str, pl.DataFrame]
    verdicts: Mapping[str, Mapping[str, Any]]
    raw: Mapping[str, pl.DataFrame]

    def said(self, incident: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state of the incident, and what was said of it."""
        return self.verdicts.get(incident["incident_id"], {"state": OPEN})


def _by(frame: pl.DataFrame, name: str) -> dict[str, pl.DataFrame]:
    """The frame divided by the values of a column."""
    return {key: part for (key,), part in frame.partition_by(name, as_dict=True).items()}


def _known(dataset: Dataset, day: date, around: pl.DataFrame, background: Backgrounds) -> _Known:
    """What the entries of one day are told from, by entity and by incident, each frame divided once."""
    reviewed = background.reviewed
    return _Known(
        dataset,
        day,
        background.scored,
        _by(around, "entity"),
        _by(reviewed, "entity"),
        {row["incident_id"]: row for row in reviewed.filter(day=day).iter_rows(named=True)},
        _by(background.raw, "incident_id"),
    )


def _entries(anomalies: pl.DataFrame, known: _Known) -> Iterator[Entry]:
    """The incidents in words, in as much detail as their rank has."""
    for rank, incident in enumerate(anomalies.iter_rows(named=True), start=1):
        detail = next((detail for most, detail in DETAILS if rank <= most), None)
        yield _entry(rank, incident, known, detail)


def read_entry(ws: Workspace, incident: Mapping[str, Any]) -> Entry:
    """One incident, a row of the table `incidents` that is no silence, in words and with its chart."""
    day, alone = incident["day"], pl.DataFrame([incident], schema=incidents_schema())
    known = _known(ws.dataset, day, _around(ws, day, alone), read_backgrounds(ws, day, alone))
    return _entry(1, incident, known, DETAILS[0][1])


def _entry(rank: int, incident: Mapping[str, Any], known: _Known, detail: Detail | None) -> Entry:
    """Without `detail` what the table of incidents tells, and no more."""
    dataset, day = known.dataset, known.day
    start, end = incident["start"], incident["end"]
    first, last = dataset.day_bounds(day)
    left, right = (min(max((t - first) / (last - first), 0.0), 1.0) * 100 for t in (start, end))
    rows = None if detail is None else known.rows.get(incident["entity"])
    peak = {} if rows is None else _row_at(rows, incident["peak_time"])
    details = tuple(_driver(d, dataset, peak) for d in words.leading(incident, None, words.LEAST))
    link = incident_link(dataset.name, day, incident["incident_id"])
    entry = Entry(
        rank=rank,
        who=words.who(incident),
        when=words.stretch(start, end, dataset.tz, day),
        expected=words.clean_text(incident["reason"] or ""),
        length=words.duration(end - start) if end > start else "one moment",
        severity=f"{incident['severity']:,.3g} ×",
        drivers=words.drivers_in_words(incident) or words.NOTHING,
        left=round(min(left, 99.0), 2),
        width=round(max(right - left, 1.0), 2),
        story=_story(incident, dataset, details),
        peak=words.number(incident["peak_score"]),
        peak_time=_moment(incident["peak_time"], dataset, day),
        threshold=words.number(incident["threshold"]),
        rarity=words.rarity(incident["p_value"]),
        details=details,
        state=known.said(incident)["state"],
        said=_said(known.said(incident), dataset),
        link=link,
        csv=link and f"{link}/rows.csv",
    )
    return entry if detail is None else _with_pictures(entry, incident, known, detail)


def _with_pictures(entry: Entry, incident: Mapping[str, Any], known: _Known, detail: Detail) -> Entry:
    """The entry with its chart, its raw rows and its entity's nights before."""
    rows, raw = known.rows.get(incident["entity"]), known.raw.get(incident["incident_id"])
    reviewed = known.reviewed.get(incident["entity"])
    past = None if reviewed is None else past_of(incident, reviewed, known.scored, known.dataset, known.day)
    return replace(
        entry,
        raw=() if raw is None else raw_lines(raw),
        past=past,
        strip={} if past is None else strip(past.nights),
        chart=None if rows is None else _chart(incident, rows, known.dataset, detail),
    )


def _said(verdict: Mapping[str, Any], dataset: Dataset) -> str:
    """By whom, when and why an incident was judged; empty for an open one."""
    if verdict["state"] == OPEN:
        return ""
    note = words.clean_text(verdict["note"] or "")
    when = dataset.day_of(verdict["reviewed_at"])
    return f"by {words.clean_text(verdict['reviewer'])} on {when}{f': {note}' if note else ''}"


def _moment(moment: datetime, dataset: Dataset, day: date) -> str:
    return words.stretch(moment, moment, dataset.tz, day).removeprefix("at ")


def _story(incident: Mapping[str, Any], dataset: Dataset, details: tuple[Driver, ...]) -> str:
    """What happened at the peak, in a sentence or two."""
    opening = f"{words.count(incident['steps'], f'anomalous {_noun(dataset)}')}."
    if not details:
        return opening
    lead = details[0]
    name = f"{lead.label} ({lead.meaning})" if lead.meaning else lead.label
    expected = "" if lead.expected == words.NOTHING else f" where {lead.expected} was expected"
    if lead.observed == words.NOTHING:
        return f"{opening} At the peak, {name} sent nothing{expected}."
    return f"{opening} At the peak, {name} was {lead.observed}{expected}."


def _row_at(rows: pl.DataFrame, moment: datetime) -> dict[str, Any]:
    """The row of one entity at `moment`; of several the strangest; empty where there is none."""
    found = rows.filter(pl.col("event_time") == moment).sort("score", descending=True, nulls_last=True)
    return found.row(0, named=True) if len(found) else {}


def _driver(driver: Mapping[str, Any], dataset: Dataset, peak: Mapping[str, Any]) -> Driver:
    """A driver in words; of a category, or its rate, also its name, where `peak`, the highest row, tells it."""
    name = driver["feature"]
    feature = words.declared(dataset, name)
    observed = words.in_words(dataset, name, driver["observed"])
    rate = isinstance(feature, SequenceFeature) and feature.kind == "label_rate"
    if rate or (isinstance(feature, Feature) and feature.type == "categorical"):
        category = peak.get(f"observed_{feature.of if isinstance(feature, SequenceFeature) else name}")
        observed = observed if category is None else f"{category}, {observed}"
    return Driver(
        label=words.feature_label(name),
        meaning=words.meaning(dataset, name),
        share=words.percent(driver["share"]),
        width=round(driver["share"] * 100, 1),
        observed=observed,
        expected=words.NOTHING if rate else words.in_words(dataset, name, driver["expected"]),
    )


def _silent(incident: Mapping[str, Any], known: _Known) -> Silence:
    """Who, when and how long nothing came, and why that was expected, where it was."""
    start, end = incident["start"], incident["end"]
    return Silence(
        words.who(incident),
        words.stretch(start, end, known.dataset.tz, known.day),
        words.duration(end - start),
        words.clean_text(incident["reason"] or ""),
        known.said(incident)["state"],
    )


def _chart(incident: Mapping[str, Any], entity_rows: pl.DataFrame, dataset: Dataset, detail: Detail) -> Chart | None:
    """The leading drivers and the score around the incident; None where its rows are no longer in the tables."""
    rows = surroundings(entity_rows, incident["start"], incident["end"], dataset)
    if rows.is_empty():
        return None
    around = rows, incident["start"], incident["end"], dataset.tz
    if dataset.cadence is None:
        axis = event_axis(*around, points=detail.points)
    else:
        axis = clock_axis(*around, dataset.cadence.total_seconds(), detail.points)
    drivers = [d for d in words.leading(incident, None, words.LEAST) if d["feature"] in dataset.channels][
        : detail.drivers
    ]
    panels = [_panel(rows, axis, driver, incident, dataset) for driver in drivers]
    panels.append(_score_panel(rows, axis, incident))
    return Chart(panels, axis, dots=dataset.cadence is None)


def reach(dataset: Dataset) -> timedelta:
    """How far from an incident the rows of its `surroundings` may lie, at most."""
    return dataset.lookback if dataset.cadence is None else max(dataset.cadence * CONTEXT_READINGS, CONTEXT_TIME)


def surroundings(rows: pl.DataFrame, start: datetime, end: datetime, dataset: Dataset) -> pl.DataFrame:
    """The rows of one entity from some time, or some events, before the incident to some after it."""
    if dataset.cadence is not None:
        margin = _margin(end - start, dataset)
        return rows.filter(pl.col("event_time").is_between(start - margin, end + margin))
    before = rows.filter(pl.col("event_time") < start).tail(CONTEXT_EVENTS)
    during = rows.filter(pl.col("event_time").is_between(start, end))
    return pl.concat([before, during, rows.filter(pl.col("event_time") > end).head(CONTEXT_EVENTS // 3)])


def _panel(
    rows: pl.DataFrame, axis: Axis, driver: Mapping[str, Any], incident: Mapping[str, Any], dataset: Dataset
) -> Panel:
    name = driver["feature"]
    feature, label, unit = words.declared(dataset, name), words.feature_label(name), words.unit_of(dataset, name)
    if isinstance(feature, SequenceFeature) and feature.kind == "time_since_last":
        cells = [f"observed_{name}", f"expected_{name}"]
        rows, unit = rows.with_columns(pl.col(cells) / 3600), "hours"
    heading = Heading(
        f"{label}, {unit}" if unit else label,
        f"{words.percent(driver['share'])} of the score at the peak",
        f"{label} of {words.who(incident)}: at the peak {words.in_words(dataset, name, driver['observed'])} observed, "
        f"{words.in_words(dataset, name, driver['expected'])} expected",
    )
    categorical = isinstance(feature, Feature) and feature.type == "categorical"
    return (category_panel if categorical else feature_panel)(rows, axis, name, heading)


def _score_panel(rows: pl.DataFrame, axis: Axis, incident: Mapping[str, Any]) -> Panel:
    peak, threshold = words.number(incident["peak_score"]), words.number(incident["threshold"])
    spoken = f"anomaly score of {words.who(incident)}: {peak} at the peak, threshold {threshold}"
    return score_panel(rows, axis, incident["threshold"], Heading("score", f"dashed: threshold {threshold}", spoken))


def write_report(ws: Workspace, day: date) -> Path:
    """Write the report of `day`, record what it was made of, and return its file.

    That is `reports/NAME/DAY.html` in the state folder, replaced as a whole. Raises `NightsiftError` where the day has
    no incidents step yet, or where the file cannot be written.
    """
    page, made_of = report_file(ws, day), report_state(day_states(ws, day))
    write_page(page, render_report(read_facts(ws, day)))
    if made_of is not None:
        write_state(ws, made_of)
    return page


def report_file(ws: Workspace, day: date) -> Path:
    """Where the report of `day` stands."""
    return ws.home.reports / ws.dataset.name / f"{day}.html"


def report_state(made: Mapping[str, State], step: str = STEP) -> State | None:
    """The record of a report that is made now of a day of which all steps have `made` that; None without incidents.

    It names what the day's incidents were made of, those of entities that were scored apart included. A verdict makes
    no report stale: the page says how the night was told, and one that is made again shows what was said since. The
    incidents page always does. With another `step`, the record of that step, where it is made of the same.
    """
    if "incidents" not in made:
        return None
    found = [state for name, state in sorted(made.items()) if name.startswith("incidents")]
    text = "\n".join(f"{each.step} {each.input_digest} {each.config_digest} {each.detector_version}" for each in found)
    told = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return replace(made["incidents"], step=step, input_digest=told, counts={})


def is_reported(made: Mapping[str, State], step: str = STEP) -> bool:
    """Whether the report, or `step`, was made of the incidents that a day of which all steps have `made` that has."""
    return step in made and made[step] == report_state(made, step)


def read_facts(ws: Workspace, day: date) -> ReportFacts:
    """What the tables say of `day`; raises `NightsiftError` where its incidents were not looked for yet."""
    state = done_state(ws, day, "incidents")
    incidents = ws.lake.scan("incidents", incidents_schema(), day, day).collect()
    apart = [
        f"{', '.join(part.counts['only'])}: scored apart from the others, by detector {part.detector_version}"
        for part in parts(day_states(ws, day))
    ]
    validated, unseen = done_state(ws, day, "validate").counts, words.unseen_line(read_scored(ws, day))
    drifts = ws.lake.scan("drifts", drifts_schema(), day, day).collect().sort("entity", "feature")
    background = read_backgrounds(ws, day, incidents)
    return ReportFacts(
        dataset=ws.dataset,
        day=day,
        counts=_counts(ws, day, validated),
        incidents=incidents,
        around=_around(ws, day, incidents),
        background=background,
        quarantine=summarise(ws.lake.scan("quarantine", quarantine_schema(ws.dataset), day, day), ws.dataset),
        promise=read_promise(ws, day),
        drifts=drifts,
        moved=read_moved(ws, day, drifts, background.scored),
        newest=newest_event(ws, day),
        warnings=(*validated["warnings"], *([unseen] if unseen else []), *apart),
        detector_version=state.detector_version or "",
    )


def done_state(ws: Workspace, day: date, step: str) -> State:
    """What `step` recorded for `day`; raises `NightsiftError` where it was not done."""
    state = read_state(ws, day, step)
    if state is None:
        name = ws.dataset.name
        raise NightsiftError(f"{name} {day}: the step {step} was not done, so there is nothing to report; "
                             f"run: nightsift score {name} --from {day} --to {day + timedelta(days=1)}")  # fmt: skip
    return state


def _counts(ws: Workspace, day: date, validated: Mapping[str, Any]) -> Counts:
    return Counts(
        rows=validated["rows_in"],
        clean=validated["rows_clean"],
        quarantined=validated["rows_quarantined"],
        duplicates=validated["rows_duplicate"],
        **count_scores(ws, day),
        entity_days=entity_days(ws.lake.scan("scores", scores_schema(ws.dataset), day, day), ws.dataset),
    )


def _around(ws: Workspace, day: date, incidents: pl.DataFrame) -> pl.DataFrame:
    """`ReportFacts.around`: the steps of the charted incidents' entities, as far around them as pictures reach."""
    dataset = ws.dataset
    charted = words.ranked(incidents.filter(pl.col("kind") != "silent")).head(MOST_CARDS)
    mine = pl.col("entity").is_in(charted["entity"].unique().sort().implode())
    begin = dataset.day_bounds(day)[0]
    since = max(min([begin, *charted["start"]]), begin - timedelta(days=1)) - reach(dataset)
    first = dataset.day_of(since)
    mine &= pl.col("event_time") >= since
    steps = ws.lake.scan("clean", clean_schema(dataset), first, day).filter(mine)
    wanted = [*key_schema(dataset), "score", "is_anomaly", *(f"expected_{c}" for c in dataset.channels)]
    rows = ws.lake.scan("scores", scores_schema(dataset), first, day).filter(mine).select(wanted)
    if dataset.cadence is not None:  # else the features of what is drawn come from all that was before it
        steps, rows = _near(steps, incidents, dataset), _near(rows, incidents, dataset)
    clean, scores = steps.collect(engine="streaming"), rows.collect(engine="streaming")
    clean = with_label_rates(clean, label_rates(ws, first, day), dataset)
    return join_scores(clean, scores, dataset)


def _near(rows: pl.LazyFrame, incidents: pl.DataFrame, dataset: Dataset) -> pl.LazyFrame:
    """Those of a sensor's rows that are among the `surroundings` of an incident of their entity, each once."""
    each = incidents.select("entity", "start", "end").iter_rows()
    drawn = pl.LazyFrame(
        [(entity, start - _margin(end - start, dataset), end + _margin(end - start, dataset))
         for entity, start, end in each],
        schema={"entity": pl.String, "_from": MOMENT, "_to": MOMENT}, orient="row",
    )  # fmt: skip
    near = rows.join(drawn, on="entity").filter(pl.col("event_time").is_between("_from", "_to")).drop("_from", "_to")
    return near.unique(["entity", "event_time"])


def _margin(lasted: timedelta, dataset: Dataset) -> timedelta:
    """How long before and after a sensor's incident, which `lasted` so long, is drawn."""
    assert dataset.cadence is not None
    return max(dataset.cadence * CONTEXT_READINGS, min(lasted, CONTEXT_TIME))


def join_scores(clean: pl.DataFrame, scores: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """`ReportFacts.around` of `clean` steps and those `scores` that there are; pure.

    Steps that share entity and time (and id) are matched in the order in which scoring takes them: by their features.
    """
    key = list(key_schema(dataset))
    steps = add_sequence_features(in_order(clean, dataset), dataset)
    for feature in dataset.sequence_features:
        values = units_of(dataset, feature.name)(steps[feature.name].to_numpy())
        steps = steps.with_columns(pl.Series(feature.name, values).fill_nan(None))
    observed = [pl.col(name).alias(f"observed_{name}") for name in dataset.channels]
    nth = pl.int_range(pl.len()).over(key).alias("nth")
    scores = scores.sort(key, maintain_order=True).with_columns(nth)
    joined = steps.select(*key, *observed, nth).join(
        scores, on=[*key, "nth"], how="left", nulls_equal=True, maintain_order="left"
    )
    return joined.drop("nth", *key[2:])


def summarise(quarantine: pl.LazyFrame, dataset: Dataset) -> pl.DataFrame:
    """`ReportFacts.quarantine`: kinds of reasons, how many rows each concerns, and the first rows of each.

    A reason such as `flow: 812 is above 400 m3/h` counts as `flow: … is above 400 m3/h`.
    """
    value = r"^([^:]+): (?:'.*'|.+?) (is|does|occurs|happens) "
    kind = pl.col("reasons").str.replace(value, "${1}: … ${2} ").alias("reason")
    example = pl.format("{}, row {}: {} ({})", "source", pl.col("source_row") + 1, _row_text(dataset), "reasons")
    order = ("source", "source_row")
    groups = (
        quarantine.explode("reasons")
        .select(kind, *order, example.alias("example"))
        .group_by("reason")
        .agg(
            pl.struct(order).n_unique().cast(pl.Int64).alias("rows"),
            pl.col("example").sort_by(order).head(EXAMPLES).alias("examples"),
        )
    )
    return groups.sort(["rows", "reason"], descending=[True, False]).collect(engine="streaming")


def _row_text(dataset: Dataset) -> pl.Expr:
    """What stood in a row, shortened: the source row where it could not be read, else its values."""
    names = [name for name in clean_schema(dataset) if name != "day"]
    cells = [pl.format("{}={}", pl.lit(name), pl.col(name).cast(pl.String)) for name in names]
    text = pl.coalesce("raw", pl.concat_str(cells, separator=", ", ignore_nulls=True))
    return pl.when(text.str.len_chars() > MOST_SHOWN).then(text.str.head(MOST_SHOWN) + pl.lit("…")).otherwise(text)
