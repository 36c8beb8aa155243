"""What MLflow's pages tell: of experiments, nights, trainings and registered detectors, in words and numbers.

Nothing here asks MLflow or the clock: pages are made from the tables, and `pipeline.tracking` logs them.
"""

import hashlib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline import figures, links, words
from pipeline.config import Dataset
from pipeline.review import OPEN, read_states
from pipeline.score import units_of
from pipeline.state import State, state_of, states
from pipeline.tables import canonical_schema, drifts_schema, incidents_schema, scores_schema
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from models.detector import Detector
    from pipeline.promise import Promise
    from pipeline.score import Scored
    from pipeline.train import Trained

TOP = 50  # incidents in a night's table
NIGHTS = 28  # of which the drift is drawn, up to and with the night itself
EXAMPLES = 5  # rows of the registered model's input example
# Under which heads MLflow shows a night's numbers: it sorts heads by name, and puts what has none at the end.
GROUPS = {
    "alarms": ("incidents", "silent", "anomalous", "false_alarms"),
    "data": ("rows", "quarantine", "freshness", "entities", "steps", "unseen"),
    "drift": ("drifting",),
}


@dataclass(frozen=True, slots=True)
class Used:
    """Rows of a table that a run read: in MLflow a dataset.

    digest: of what the rows were made from, so that the same rows have the same one in every version of the table
    version: the table's Delta version
    context: what the rows were used for
    """

    table: str
    digest: str
    version: int
    context: str
    rows: int


@dataclass(frozen=True, slots=True)
class Page:
    """What a night's run in MLflow holds; `note` is its description in Markdown, by paragraph."""

    name: str
    note: Sequence[str]
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    figures: Mapping[str, "Figure"]
    incidents: pl.DataFrame
    used: Sequence[Used]


def night_name(dataset: Dataset, day: date) -> str:
    """What a night's run is called, such as `2026-03-24 Tue, pumps night`; MLflow's tables cut the end of names off."""
    return f"{day} {day:%a}, {dataset.name} night"


def training_name(dataset: Dataset, start: datetime, end: datetime) -> str:
    """What the run of a training on `start` to `end` (half-open) is called; both days that it names are included."""
    return f"{dataset.day_of(start)} to {_last_day(dataset, end)}, {dataset.name} trained"


def _last_day(dataset: Dataset, end: datetime) -> date:
    return dataset.day_of(end - timedelta(microseconds=1))


def experiment_note(dataset: Dataset, kind: str, experiment: str) -> str:
    """What a run of the experiment `NAME/kind`, whose id is given, is and which metrics to compare, in Markdown.

    First of all the ways to its runs: a browser that is new to MLflow is shown other pages.
    """
    about = f" ({markdown(dataset.description)})" if dataset.description else ""
    runs = f"#/experiments/{experiment}/runs?{links.MLFLOW_VIEW}"
    ways = f"Runs: [as a table]({runs}) · [as charts]({runs}&compareRunsMode=CHART)"
    note = _NOTES[kind].format(name=f"**{dataset.name}**{about}", moved=_MOVED if dataset.kind == "sensor" else "")
    return f"{ways}\n\n{note}"


_MOVED = (
    "at `drift/FEATURE`, the share of entities in which it has moved away from where training knew it, and at the "
    "figure `drift`; "
)
_NOTES = {
    "nights": (
        "A run is one night of {name}: what was abnormal on the day in its name. A night that is run again updates its "
        "run. Its page has the report (`report/`), the worst incidents (`incidents.json`) and figures.\n\n"
        "To compare nights, sort by the parameter `day`, and look at `alarms/incidents`, at "
        "`alarms/false_alarms_realised` against `alarms/false_alarms_promised`, at `data/quarantine_share` and "
        "`data/freshness`; at `drift/scores`, the population stability index of the night's scores against those of "
        "calibration (from 0.25 on a distribution is by custom called another one; one such night alone says little, "
        "and a night of few steps has none); {moved}at `seconds/…` for how long each step took."
    ),
    "train": (
        "A run is one training of a detector of {name}, or its adaptation to the latest nights. Its page has the "
        "learning curve, the calibration, the scores of the holdout and the comparison with the champion of that time "
        "(`comparison.md`).\n\n"
        "To compare trainings, look at `injected_recall.…`, the share of planted anomalies that were found, and at "
        "`false_alarms_on_holdout` against `false_alarms_promised`."
    ),
}


def night_page(
    ws: Workspace,
    day: date,
    metrics: Mapping[str, float],
    scored: "Scored",
    promise: "Promise",
    made: Mapping[str, State],
) -> Page:
    """The page of a night that is scored, of its tables; `made` is what its steps recorded."""
    dataset, incidents = ws.dataset, ws.lake.scan("incidents", incidents_schema(), day, day).collect()
    summary = words.summary_line(dataset, day, incidents, scored.steps)
    start, end = dataset.day_bounds(day)
    parts = {str(day): score_histogram(ws.lake.scan("scores", scores_schema(dataset), day, day))}
    drawn = {"scores": figures.scores(f"Scores of {dataset.name} on {day}", parts)}
    if dataset.kind == "sensor":
        drawn["drift"] = figures.drift(dataset.name, drifts_by_night(ws, day), nights_until(ws, day))
    return Page(
        name=night_name(dataset, day),
        note=[markdown(line) for line in (summary, words.promise_line(promise)) if line],
        metrics=dict(sorted((grouped(name), value) for name, value in metrics.items())),
        params={"day": str(day), "weekday": f"{day:%A}"},
        tags={
            "day": str(day), "detector": scored.detector, "summary": summary,
            "data_window": f"{start.isoformat()} to {end.isoformat()}",
        },
        figures=drawn,
        incidents=incidents_table(ws, day, incidents),
        used=list(_night_inputs(ws, scored, made)),
    )  # fmt: skip


def grouped(metric: str) -> str:
    """The name of a night's number with its head in MLflow, such as `data/rows_in`."""
    found = (head for head, begins in GROUPS.items() if metric.startswith(begins) and "/" not in metric)
    return next((f"{head}/{metric}" for head in found), metric)


def _night_inputs(ws: Workspace, scored: "Scored", made: Mapping[str, State]) -> Iterator[Used]:
    if "validate" in made:
        yield _used(ws, "clean", [made["validate"]], "scoring", made["validate"].counts["rows_clean"])
    yield _used(ws, "scores", [made["score"]], "scored", scored.steps)


def training_input(ws: Workspace, start: datetime, end: datetime, rows: int) -> Used:
    """The clean rows that a training from `start` to `end` (half-open) reads."""
    days = states(ws, "validate", ws.dataset.day_of(start), _last_day(ws.dataset, end))
    return _used(ws, "clean", [state_of(row) for row in days.iter_rows(named=True)], "training", rows)


def _used(ws: Workspace, table: str, made: Sequence[State], context: str, rows: int) -> Used:
    lines = (f"{each.day} {each.input_digest} {each.config_digest} {each.detector_version}" for each in made)
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
    return Used(table, digest, ws.lake.version(table), context, rows)


def incident_counts(ws: Workspace, day: date) -> dict[str, float]:
    """How many of the night's incidents the calendar explains, and of how many of the others nobody has judged yet."""
    rows = ws.lake.scan("incidents", incidents_schema(), day, day).collect()
    reviewed = read_states(ws, rows)
    planned = pl.col("reason").is_not_null()
    open_ones = reviewed.filter(~planned & (pl.col("state") == OPEN))
    return {"incidents_planned": float(len(rows.filter(planned))), "incidents_open": float(len(open_ones))}


def incidents_table(ws: Workspace, day: date, incidents: pl.DataFrame) -> pl.DataFrame:
    """The first `TOP` incidents of the night as the report ranks them, in words, with their verdicts."""
    top = read_states(ws, words.ranked(incidents).head(TOP))
    columns = ("entity", "from", "to", "severity", "drivers", "how rare", "state", "planned", "link")
    rows = [_incident_row(ws.dataset, day, row) for row in top.iter_rows(named=True)]
    kinds = {name: pl.Float64 if name == "severity" else pl.String for name in columns}
    return pl.DataFrame(rows, schema=kinds, orient="row")


def _incident_row(dataset: Dataset, day: date, incident: Mapping[str, Any]) -> tuple[str | float | None, ...]:
    start, end = (f"{incident[edge].astimezone(dataset.tz):%Y-%m-%d %H:%M:%S %Z}" for edge in ("start", "end"))
    silent, severity = incident["kind"] == "silent", incident["severity"]
    return (
        words.who(incident), start, end,
        None if severity is None else round(severity, 2),
        words.what_drove(incident, most=3),
        "" if silent else words.rarity(incident["p_value"]),
        incident["state"], words.clean_text(incident["reason"] or ""),
        links.incident_link(dataset.name, day, incident["incident_id"]) or "",
    )  # fmt: skip


def score_histogram(scores: pl.LazyFrame) -> pl.DataFrame:
    """Steps by how many times their own threshold they score: `place`, the bin as `figures.EDGES` has it, and `steps`.

    And `called`, how many of them lie above the threshold. What lies beyond the first or last bin counts there; steps
    without a score are left out.
    """
    ratio = scores.select((pl.col("score") / pl.col("threshold")).fill_nan(None).alias("ratio")).drop_nulls()
    place = (pl.col("ratio").log10() - figures.LOWEST) * figures.PER_DECADE
    placed = ratio.with_columns(place.clip(0, figures.BINS - 1).floor().cast(pl.Int32).alias("place"))
    counted = placed.group_by("place").agg(pl.len().alias("steps"), (pl.col("ratio") > 1).sum().alias("called"))
    return counted.sort("place").collect(engine="streaming")


def drifts_by_night(ws: Workspace, day: date) -> pl.DataFrame:
    """What has drifted in the 28 nights up to `day`: by night and feature the largest and the median deviation."""
    rows = ws.lake.scan("drifts", drifts_schema(), day - timedelta(days=NIGHTS - 1), day)
    far = pl.col("deviations").abs()
    each = rows.group_by("day", "feature").agg(far.max().alias("largest"), far.median().alias("median"))
    return each.sort("feature", "day").collect()


def nights_until(ws: Workspace, day: date) -> list[date]:
    """Those of the 28 nights up to `day` that are scored."""
    return states(ws, "score", day - timedelta(days=NIGHTS - 1), day)["day"].to_list()


def drift_shares(ws: Workspace, day: date, entities: int) -> dict[str, float]:
    """By feature of a sensor the share of the night's entities in which it has moved slowly, as `drift/FEATURE`."""
    if ws.dataset.kind == "transaction":
        return {}
    moved = ws.lake.scan("drifts", drifts_schema(), day, day).group_by("feature").agg(pl.col("entity").n_unique())
    counts = dict(moved.collect().iter_rows())
    return {f"drift/{name}": counts.get(name, 0) / entities if entities else 0.0 for name in ws.dataset.channels}


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings as parameters: dotted names, lists as text with commas."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{above}{name}.")
        else:
            out[above + name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return out


def training_note(trained: "Trained", rows: int) -> list[str]:
    """What a training ended with, in Markdown, with the comparison as a table."""
    found = words.found_share(trained.injected_recall)
    return [
        f"Detector **{trained.version}**: {markdown(trained.reason)}.",
        f"Learned from {words.count(rows, 'row')} of {words.count(trained.entities, 'entity', 'entities')}. It calls a "
        f"step anomalous above {words.number(trained.threshold)}, which promises {words.number(trained.budget)} false "
        f"alarms per entity and day; on the holdout there were {words.short(trained.realised)}, and of the injected "
        f"anomalies it found {found}.",
        trained.table,
    ]


def model_note(dataset: Dataset) -> str:
    """What the registered model is and how it is called, in Markdown."""
    about = f" ({markdown(dataset.description)})" if dataset.description else ""
    rows = "\n".join(f"| `{name}` | {what} |" for name, what in _columns(dataset))
    return (
        f"Finds what is abnormal in **{dataset.name}**{about}: network, scaler and threshold as one. `champion` scores "
        f"the nights, `challenger` is the one that was trained last.\n\n"
        "```python\nimport mlflow\n\n"
        f'model = mlflow.pyfunc.load_model("models:/{dataset.name}@champion")\n'
        "scored = model.predict(frame)  # score, p_value, threshold and is_anomaly of every row\n```\n\n"
        f"`frame` is a pandas frame with one row for each step, in any order:\n\n| column | |\n|---|---|\n{rows}\n"
    )


def _columns(dataset: Dataset) -> Iterator[tuple[str, str]]:
    yield "entity", f"the {dataset.entity}"
    yield "event_time", f"when; without a zone it is {dataset.zone}"
    if dataset.event_id:
        yield "event_id", "its id; may be left out"
    for feature in dataset.features:
        yield feature.name, "a category" if feature.type == "categorical" else feature.unit or "a number"


def version_note(detector: "Detector", recall: float | None) -> str:
    """What one registered detector was learned from, and what it promises."""
    first, last = (datetime.fromisoformat(detector.about[edge]).astimezone(UTC) for edge in ("from", "to"))
    threshold = detector.threshold
    found = f"; finds {words.found_share(recall)} of injected anomalies" if recall is not None else ""
    members = f", {words.count(len(detector.members), 'group')} with a detector of its own" if detector.members else ""
    return (
        f"Learned from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC{members}. Threshold "
        f"{words.number(threshold.value)}, for {words.number(threshold.budget)} false alarms per entity and day; "
        f"calibration showed {words.short(threshold.expected)}{found}."
    )


def example(dataset: Dataset, detector: "Detector") -> pl.DataFrame:
    """A few made-up rows to call the model with: one entity, at what is usual of each feature."""
    usual = dict(zip(detector.channels, detector.scaler.center[0], strict=True))
    every, first = dataset.cadence or timedelta(hours=1), datetime.fromisoformat(detector.about["from"])
    row: dict[str, Any] = {"entity": f"{dataset.entity}-1"}
    for feature in dataset.features:
        if feature.type == "categorical":
            shares = detector.encodings[feature.name]  # the rarer, the higher
            row[feature.name] = min(shares, key=lambda name: shares[name], default="")
        else:
            row[feature.name] = float(np.round(units_of(dataset, feature.name)(usual[feature.name]), 3))
    rows = [
        {**row, "event_time": first + n * every, **({"event_id": f"event-{n + 1}"} if dataset.event_id else {})}
        for n in range(EXAMPLES)
    ]
    return pl.DataFrame(rows, schema=canonical_schema(dataset))


def markdown(text: str) -> str:
    """`text` in the Markdown of MLflow's pages, whatever is in it as it stands: no markup and no HTML of its own.

    Theirs is not that of chats: a backslash does not keep a `<` from beginning a tag.
    """
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(words.clean_text(text), quote=False))
