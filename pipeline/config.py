"""A dataset: everything a user writes, in one YAML file, and the errors that help to write it right.

`load_dataset("pumps")` reads `datasets/pumps.yaml` into a `Dataset`. Nothing here imports Polars, TensorFlow, MLflow or
Great Expectations, so that Airflow parses the DAG files fast.
"""

import difflib
import hashlib
import os
import re
import zoneinfo
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from croniter import croniter
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from pipeline.errors import ConfigError
from pipeline.redaction import without_secrets

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
YEARS = range(1900, 2201)  # of which a day may be that data has, or that somebody asks for
LONGEST = 100 * 366 * 86400  # seconds; a longer duration is a typing error
MOST_VALUES = 100_000  # in a YAML; one with more is made of anchors that repeat each other
SHOWN = 200  # characters of a wrong value that a message shows
# Windows before a day that a sensor is scored over too, for smoothing and slow baseline to settle.
WARM_UP = 16
DEEPEST = 50  # of lists and maps in one another in a YAML
NAME = r"^[a-z][a-z0-9_]{0,62}$"
# How a YAML writes what JSON has no type for, as far as a pattern can tell; what reads it below tells the rest.
DURATION = r"^\s*\d+(\.\d+)?\s*(ms|s|m|h|d)\s*$"
CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"
WHEN = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"
CRON = r"^\s*\d+\s+\d+(\s+\S+){3}\s*$"
FORMATS = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
# What the pipeline itself calls the columns of its tables; a feature of that name would hide them.
RESERVED = {"day", "entity", "event_time", "event_id", "source", "source_digest", "source_row", "problems", "raw",
            "reasons", "score", "p_value", "threshold", "is_anomaly", "detector_version"}  # fmt: skip

# The ways to state a threshold in the YAML; one at a time.
Rule = Literal["false_alarms", "p_value", "quantile", "score"]
RULES: tuple[Rule, ...] = get_args(Rule)


def _text(pattern: str) -> dict[str, Any]:
    """The JSON schema of a text of that pattern."""
    return {"type": "string", "pattern": pattern}


def parse_duration(value: object) -> timedelta:
    """A `timedelta` from `"30s"`, `"5m"`, `"1h"`, `"30d"`, `"500ms"`; raises `ValueError` on anything else."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", str(value).strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 1e-6 <= seconds <= LONGEST:
        raise ValueError(f"{value!r} is not a duration; write a number and a unit, such as 30s, 5m, 1h or 30d")
    return timedelta(seconds=seconds)


def format_duration(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads back as `value`, such as `"5m"`."""
    seconds = value.total_seconds()
    for unit in ("d", "h", "m", "s"):
        if seconds % UNITS[unit] == 0:
            return f"{seconds / UNITS[unit]:.0f}{unit}"
    return f"{value / timedelta(milliseconds=1)}ms".replace(".0ms", "ms")


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration), WithJsonSchema(_text(DURATION))
]


def check_schedule(schedule: str) -> str:
    """The cron expression as it is; raises `ValueError` where it does not name one minute and one hour."""
    fields = schedule.split()
    if len(fields) == 5 and all(field.isdigit() for field in fields[:2]) and croniter.is_valid(schedule):
        return schedule
    raise ValueError(
        f"schedule {schedule!r} is not a cron expression of at most once a day; write a minute, an hour and which "
        'days, such as "30 2 * * *"'
    )


def parse_when(value: object) -> date | datetime:
    """A day from `"2026-12-24"`, a moment from `"2026-12-24T08:00"`; raises `ValueError` on anything else."""
    text = str(value).strip()
    try:
        # A datetime is a date, too.
        when = value if isinstance(value, date) else (date if len(text) == 10 else datetime).fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"{value!r} is neither a day such as 2026-12-24 nor a moment such as 2026-12-24T08:00"
        ) from error
    if when.year not in YEARS:
        raise ValueError(f"{value!r} lies outside the years {YEARS[0]} to {YEARS[-1]}")
    return when


def parse_clock(value: object) -> time:
    """A time of day from `"06:00"`; a number is minutes, which is what YAML makes of 10:30 without quotes."""
    if isinstance(value, time):
        return value
    number = isinstance(value, int) and 0 <= value < 24 * 60
    text = f"{value // 60:02}:{value % 60:02}" if isinstance(value, int) and number else str(value).strip()
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError(f'{value!r} is not a time of day; write hours and minutes in quotes, such as "06:00"')
    return time.fromisoformat(text)


When = Annotated[
    date | datetime,
    BeforeValidator(parse_when),
    PlainSerializer(lambda value: value.isoformat()),
    WithJsonSchema(_text(WHEN)),
]
Clock = Annotated[
    time, BeforeValidator(parse_clock), PlainSerializer(lambda value: f"{value:%H:%M}"), WithJsonSchema(_text(CLOCK))
]
# An entity's name, or a glob of several; YAML takes some of them for numbers.
Entities = list[Annotated[str, BeforeValidator(str), WithJsonSchema({"type": ["string", "number"]})]]
Cron = Annotated[str, AfterValidator(check_schedule), WithJsonSchema(_text(CRON))]


class Strict(BaseModel):
    """A part of the YAML: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Source(Strict):
    """Where the rows come from: files (`path`), or a query (`sql`)."""

    path: str | None = Field(None, description="a file, a glob or a Delta table; local or s3://, gs://, az://. "
                             "Relative to the YAML; {home} stands for the state folder")  # fmt: skip
    format: Literal["parquet", "csv", "ndjson", "delta"] | None = Field(
        None, description="guessed from the path's ending when left out"
    )
    sql: str | None = Field(None, description="a query that returns the entity, event time and feature columns")
    connection_env: str | None = Field(
        None, description="the environment variable with the query's connection string (postgresql:// or sqlite://)"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.sql is None):
            raise ValueError("give either path (files or a Delta table) or sql (a query), not both")
        if self.sql is not None and not self.connection_env:
            raise ValueError(
                "sql needs connection_env, the name of the environment variable with the connection string"
            )
        if self.path is not None and self.format is None and self.guess_format() is None:
            raise ValueError(f"cannot tell the format of {self.path!r}; add format: parquet, csv, ndjson or delta")
        return self

    def guess_format(self) -> str | None:
        """The format by declaration or by the path's ending; None where neither tells."""
        if self.format is not None or self.path is None:
            return self.format
        return next((kind for ending, kind in FORMATS.items() if self.path.endswith(ending)), None)


class Feature(Strict):
    """A column that the model sees."""

    name: str = Field(pattern=NAME, description="what the feature is called in tables and reports")
    column: str = Field("", description="the source's column; the name when left out")
    type: Literal["numeric", "categorical"] = Field(
        "numeric", description="numeric: a number; categorical: a text, which counts by how rare it is"
    )
    unit: str = Field("", description="stands behind its values in reports and messages")
    min: float | None = Field(
        None, description="the least plausible value: below it, rows go to quarantine where no suite says otherwise"
    )
    max: float | None = Field(
        None, description="the greatest plausible value: above it, rows go to quarantine where no suite says otherwise"
    )
    log: bool = Field(False, description="model log(1 + value); for amounts that span orders of magnitude")

    @model_validator(mode="before")
    @classmethod
    def _column_defaults_to_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("column"):
            return {**data, "column": data.get("name", "")}
        return data

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.name in RESERVED:
            raise ValueError(
                f"name {self.name!r} is taken by the pipeline; choose another and keep column: {self.column}"
            )
        if self.type == "categorical" and (self.min is not None or self.max is not None or self.log):
            raise ValueError("a categorical feature has no min, max or log")
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError(f"min {self.min:g} must be less than max {self.max:g}")
        if self.log and (self.min is None or self.min < 0):
            raise ValueError("log needs min: 0 or more, as the logarithm of a negative value does not exist")
        return self


class SequenceFeature(Strict):
    """A feature of an event that comes from earlier events, never from later ones: from those of the same entity.

    A label_rate comes from the labels of all entities' events of the same category, as old as `labels.delay`.
    """

    name: str = Field(pattern=NAME, description="what the feature is called in tables and reports")
    kind: Literal["time_since_last", "ratio_to_history", "rolling_count", "rolling_sum", "label_rate"] = Field(
        description="time_since_last: since the entity's event before; ratio_to_history: the value over the mean of "
        "its earlier ones; rolling_count, rolling_sum: of its events up to and with this one; label_rate: the share of "
        "anomalies among the labelled events"
    )
    of: str | None = Field(
        None, description="the numeric feature that ratio_to_history and rolling_sum work on; for label_rate the "
        "categorical feature, or the entity's column, whose rate it is",
    )  # fmt: skip
    over: Duration | None = Field(None, description="how far back it looks, such as 1h, 1d or 30d")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind in ("ratio_to_history", "rolling_sum") and not self.of:
            raise ValueError(f"{self.kind} needs of: the name of a numeric feature")
        if self.kind != "time_since_last" and self.over is None:
            raise ValueError(f"{self.kind} needs over: how far back it looks, such as 1d")
        if self.kind == "label_rate" and not self.of:
            raise ValueError("label_rate needs of: the name of a categorical feature, or the entity's column")
        if self.kind == "label_rate" and self.over is not None and self.over % timedelta(days=1):
            raise ValueError("label_rate counts whole days; give over: such as 7d")
        return self


class Labels(Strict):
    """Which events turned out to be anomalous, as is known some time later: files with an event's id and its label."""

    path: str = Field(min_length=1, description="a file or a glob, as source.path")
    format: Literal["parquet", "csv", "ndjson"] | None = Field(
        None, description="guessed from the path's ending when left out"
    )
    event_id: str = Field(min_length=1, description="the files' column with the event's id")
    label: str = Field(min_length=1, description="the files' column that says 1 or true of an anomalous event, else 0")
    delay: Duration = Field(description="a label is known this long after its event; whole days")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.delay % timedelta(days=1):
            raise ValueError("labels are used by the day; give delay: in whole days, such as 7d")
        if self.guess_format() is None:
            raise ValueError(f"cannot tell the format of {self.path!r}; add format: parquet, csv or ndjson")
        return self

    def guess_format(self) -> str | None:
        """The format by declaration or by the path's ending; None where neither tells."""
        return self.format or next((kind for ending, kind in FORMATS.items() if self.path.endswith(ending)), None)


class Window(Strict):
    """What the model sees at once: `steps` segments of `rows` readings or events."""

    steps: int = Field(8, ge=1, le=256, description="segments, over which the network recurs")
    rows: int = Field(8, ge=1, le=1024, description="readings or events of a segment, over which it convolves")


class Grid(Strict):
    """How a sensor's readings are laid on the cells of its cadence."""

    duplicates: Literal["last", "mean", "error"] = Field(
        "last", description="what a feature has in a cell in which several readings of it fall"
    )
    tolerance: Duration | None = Field(
        None, description="how far a reading may be from the middle of its cell; half a cadence by default"
    )
    max_gap: Duration | None = Field(
        None, description="a longer gap between two readings ends a sequence; a window's length by default"
    )
    span: Literal["own", "common"] = Field(
        "own", description="count cells from each entity's first reading, or for all entities from the same moment"
    )


class Model(Strict):
    """How the autoencoder is built and trained."""

    kind: Literal["convlstm1d", "conv1d", "lstm"] = Field("convlstm1d", description="the network's layers")
    filters: list[Annotated[int, Field(ge=1, le=512)]] = Field(
        [24], min_length=1, max_length=4,
        description="of convlstm1d, one number a layer; the other kinds get as many parameters as it has",
    )  # fmt: skip
    kernel: int = Field(3, ge=1, le=31, description="how many neighbouring rows a filter sees")
    latent: int = Field(16, ge=1, le=1024, description="numbers of each segment that pass the bottleneck")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32", description="Keras' dtype policy; the mixed ones are for GPUs with tensor cores: "
        "mixed_bfloat16 from Ampere on, mixed_float16 before",
    )  # fmt: skip
    epochs: int = Field(10, ge=1, le=1000, description="how often training goes through its windows")
    batch: int = Field(64, ge=1, le=65536, description="windows between two updates of the weights")
    windows: int = Field(5000, ge=64, description="at most this many training windows, drawn with the seed")
    seed: int = Field(0, ge=0, description="the same seed and data give the same detector on the same kind of machine")
    scope: Literal["all", "entity"] | dict[str, Entities] = Field(
        "all",
        description="who shares a detector: all; entity, each has its own; or groups, each a name and its entities "
        "(names or globs), as in {deep: [well-1, well-2*]}. Who has too little data, or no group, is scored by the one "
        "that learns from all",
    )

    @field_validator("scope", mode="before")
    @classmethod
    def _groups(cls, scope: Any) -> Any:
        if scope in ("all", "entity"):
            return scope
        groups = scope if isinstance(scope, dict) else {}
        if not groups or not all(group and isinstance(names, list) and names for group, names in groups.items()):
            raise ValueError("write all, entity, or groups of entities such as {deep: [well-1, well-2*]}")
        return {str(group): names for group, names in groups.items()}


class Training(Strict):
    """When a detector is trained, who promotes it, and how its time is divided: train, calibration, holdout."""

    days: int = Field(28, ge=1, description="how many days before the training day the scheduled training learns from")
    calibration: float = Field(0.3, gt=0, lt=0.9, description="share of the time for residual scale and threshold")
    holdout: float = Field(0.1, ge=0, lt=0.9, description="share of the time for the final evaluation")
    schedule: Cron | None = Field(
        None, description="when a training starts; on drift and on demand alone when left out"
    )
    promotion: Literal["auto", "human", "never"] = Field(
        "auto", description="auto: a new detector that is no worse becomes the champion; human: a person is asked in "
        "Airflow; never: it stays the challenger until nightsift promote",
    )  # fmt: skip

    @model_validator(mode="after")
    def _some_left(self) -> Self:
        if self.calibration + self.holdout >= 0.9:
            raise ValueError("calibration and holdout together must leave at least a tenth of the time to train on")
        return self


class Threshold(Strict):
    """When a step is called anomalous: one of the first four keys; 0.05 false alarms where none is given."""

    false_alarms: float | None = Field(
        None, gt=0, le=1000, description="false incidents allowed per entity and day; 0.05 by default"
    )
    p_value: float | None = Field(None, gt=0, lt=1, description="how often a normal step may score as high")
    quantile: float | None = Field(
        None, gt=0, lt=1, examples=[0.9999], description="the quantile of normal steps' scores to call from"
    )
    score: float | None = Field(None, gt=0, examples=[3.5], description="a fixed score, the same for every entity")
    adapt: bool = Field(False, description="let the nightly run adapt the entities' thresholds to the nights before")

    @model_validator(mode="before")
    @classmethod
    def _budget_by_default(cls, data: Any) -> Any:
        given = isinstance(data, dict) and any(data.get(name) is not None for name in RULES)
        return data if given or not isinstance(data, dict) else {**data, "false_alarms": 0.05}

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = [name for name in RULES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(RULES)}, not {' and '.join(given)}")
        if self.adapt and self.score is not None:
            raise ValueError("adapt is for false_alarms, p_value or quantile; a fixed score stays as it is")
        return self

    @property
    def rule(self) -> tuple[Rule, float]:
        """Which of the keys is given, and its value."""
        return next((name, getattr(self, name)) for name in RULES if getattr(self, name) is not None)


class Incidents(Strict):
    """How anomalous steps become incidents."""

    merge_within: Duration | None = Field(
        None, description="anomalous steps of one entity at most this far apart are one incident; "
        "by default 1d for transactions and 16 cadences for sensors",
    )  # fmt: skip


class Route(Strict):
    """Who is told of some incidents only; the dataset is chosen by its YAML."""

    urls_env: list[str] = Field(
        min_length=1, description="environment variables that hold Apprise URLs (they are secrets)"
    )
    severity: float = Field(
        1.0, ge=1, le=1e6, description="the least severity that is told, in multiples of the threshold; 1: any"
    )
    kinds: list[Literal["anomaly", "silent"]] = Field(
        ["anomaly", "silent"],
        min_length=1,
        description="the kinds of incidents that are told; a silence has no severity and is told whatever that is",
    )


class Notify(Strict):
    """Who is told, of what, and how much."""

    urls_env: list[str] = Field(
        default_factory=list,
        description="environment variables that hold Apprise URLs (they are secrets); they are told of everything",
    )
    routes: list[Route] = Field(
        default_factory=list, description="who else is told, of a part of the incidents: the severe ones, or one kind"
    )
    most: int = Field(
        20, ge=1, le=1000, description="at most so many incidents of a night are told one by one; above, one summary"
    )
    cooldown: int = Field(
        1, ge=0, le=30, description="nights: who was told of an entity so few nights before gets its next incidents "
        "as a count, unless one is twice as severe; 0: each is told",
    )  # fmt: skip

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for name in self.variables:
            if self.variables.count(name) > 1:
                raise ValueError(f"the variable {name} is named twice; a target is told once, so name it in one place")
        return self

    @property
    def variables(self) -> list[str]:
        """Every environment variable that is named, in order."""
        return [*self.urls_env, *(name for route in self.routes for name in route.urls_env)]

    @property
    def all_routes(self) -> list[Route]:
        """The routes, that of those who are told everything first."""
        return [*([Route(urls_env=self.urls_env)] if self.urls_env else []), *self.routes]

    @property
    def operators(self) -> list[Route]:
        """The routes of what concerns the dataset as a whole, such as a failure: who is told everything, else all."""
        return self.all_routes[:1] if self.urls_env else self.routes


class CalendarEntry(Strict):
    """A stretch in which what happens is expected: maintenance, or a holiday."""

    start: When = Field(description="a day, or a moment; in the dataset's zone where it names none")
    end: When | None = Field(
        None, description="a day, which is included, or a moment, which is not; a day's start alone is that whole day"
    )
    entities: Entities = Field(default_factory=list, description="names or globs; all entities when left out")
    reason: str = Field(min_length=1, description="what stands in the report")
    action: Literal["mark", "suppress"] = Field(
        "mark",
        description="mark: incidents stand in table and report with the reason, and alert nobody; suppress: none",
    )

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.end is None and isinstance(self.start, datetime):
            raise ValueError("a moment as start needs end:; a day without end: is that whole day")
        return self

    def bounds(self, zone: zoneinfo.ZoneInfo) -> tuple[datetime, datetime]:
        """The half-open stretch of UTC time; raises `ValueError` where it is empty."""
        end = self.start if self.end is None else self.end
        after = end if isinstance(end, datetime) else end + timedelta(days=1)
        start, stop = (_instant(when, zone) for when in (self.start, after))
        if start >= stop:
            raise ValueError(f"start {self.start} must be before end {end}")
        return start, stop


def _instant(when: date | datetime, zone: zoneinfo.ZoneInfo) -> datetime:
    """`when` as UTC: a day as its first moment, what names no zone in `zone`."""
    moment = when if isinstance(when, datetime) else datetime.combine(when, time())
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


class Calendar(Strict):
    """When nothing is to be learned and nobody to be alerted: entries here, and those of a table."""

    entries: list[CalendarEntry] = Field(default_factory=list, description="stretches that stand in the YAML itself")
    path: str | None = Field(
        None,
        description="a table with the columns start, end, entities (separated by ;), reason, action; as source.path",
    )
    format: Literal["parquet", "csv", "ndjson"] | None = Field(
        None, description="guessed from the path's ending when left out"
    )

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.path is not None and self.guess_format() is None:
            raise ValueError(f"cannot tell the format of {self.path!r}; add format: parquet, csv or ndjson")
        return self

    def guess_format(self) -> str | None:
        """The table's format by declaration or by the path's ending; None where neither tells."""
        if self.format is not None or self.path is None:
            return self.format
        return next((kind for ending, kind in FORMATS.items() if self.path.endswith(ending)), None)


class Dataset(Strict):
    """One YAML: a source, its entity, event time and features, and how to learn from them."""

    name: str = Field(pattern=NAME, description="the file's name without .yaml; may be left out")
    kind: Literal["sensor", "transaction"] = Field(
        description="sensor: readings on a clock with a cadence; transaction: events at any time"
    )
    description: str = Field("", description="one line for the report and for Airflow")
    owner: str = Field("nightsift", min_length=1, description="who stands as the owner of its DAGs in Airflow")
    source: Source
    entity: str = Field(min_length=1, description="the source column that names the machine, card or account")
    event_time: str = Field(min_length=1, description="the source column that says when it happened")
    event_id: str | None = Field(None, description="a source column that identifies an event, where there is one")
    zone: str = Field("UTC", description="the zone of naive event times, and of the day that a partition is")
    cadence: Duration | None = Field(None, description="sensor only: the time between two readings")
    history: Duration | None = Field(
        None,
        description="how far back over midnight a night looks for context; enough for a window, or 30d, by default",
    )
    features: list[Feature] = Field(min_length=1, description="the columns that the model sees")
    sequence_features: list[SequenceFeature] = Field(
        default_factory=list, description="transaction only: features of an event that come from earlier events"
    )
    labels: Labels | None = Field(None, description="transaction only: what is known of earlier events by now")
    suite: str | None = Field(
        None,
        description="the Great Expectations suite, relative to the YAML; made from the features' bounds when left out",
    )
    grid: Grid = Grid()
    window: Window = Window()
    model: Model = Model()
    training: Training = Training()
    threshold: Threshold = Threshold()
    incidents: Incidents = Incidents()
    notify: Notify = Notify()
    calendar: Calendar = Calendar()
    schedule: Cron | None = Field(None, description="when the night begins; on demand only when left out")
    deadline: Clock | None = Field(
        None, description="the hour of the zone's clock by which a scheduled night is done, or an alert is sent"
    )
    shards: int = Field(1, ge=1, le=1000, description="how many tasks share the scoring of a night")
    file: SkipJsonSchema[Path] = Field(Path(), exclude=True, repr=False)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        try:
            zoneinfo.ZoneInfo(self.zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(
                f"zone {self.zone!r} is not known; use an IANA name such as UTC or Europe/Berlin"
            ) from error
        if self.kind == "sensor" and self.cadence is None:
            raise ValueError("a sensor dataset needs cadence: the time between two readings, such as 1m")
        if self.kind == "sensor" and self.sequence_features:
            raise ValueError("sequence_features are for kind: transaction; a sensor's window already holds its past")
        if self.kind == "transaction" and self.cadence is not None:
            raise ValueError("cadence is for kind: sensor; transactions come at any time")
        if self.kind == "transaction" and self.grid != Grid():
            raise ValueError("grid is for kind: sensor; transactions stand one after another")
        if self.threshold.adapt and self.model.scope != "all":
            raise ValueError("threshold.adapt is for model.scope: all; the detectors of groups are not adapted")
        if self.labels is not None and self.kind == "sensor":
            raise ValueError("labels are for kind: transaction; an incident of a sensor is confirmed by a review")
        if self.labels is not None and self.event_id is None:
            raise ValueError("labels need event_id: the source column that identifies an event")
        if self.label_rates and self.labels is None:
            raise ValueError(f"sequence feature {self.label_rates[0].name!r}: label_rate needs labels: with path, "
                             "event_id, label and delay")  # fmt: skip
        self._check_names()
        self._check_calendar()
        return self

    def _check_calendar(self) -> None:
        if self.deadline is not None and self.schedule is None:
            raise ValueError("deadline is the hour by which a scheduled night is done; give schedule: too, or neither")
        for number, entry in enumerate(self.calendar.entries):
            try:
                entry.bounds(self.tz)
            except ValueError as error:
                raise ValueError(f"calendar.entries.{number}: {error}") from error

    def _check_names(self) -> None:
        for name in self.channels:
            if name in RESERVED:
                raise ValueError(f"the feature name {name!r} is taken by the pipeline; choose another")
            if self.channels.count(name) > 1:
                raise ValueError(f"the feature name {name!r} is used twice")
        numeric = [feature.name for feature in self.features if feature.type == "numeric"]
        grouped = [*(feature.name for feature in self.features if feature.type == "categorical"), self.entity]
        for feature in self.sequence_features:
            if feature.kind == "label_rate":
                if feature.of not in grouped:
                    raise ValueError(f"sequence feature {feature.name!r}: of: {feature.of!r} is neither a categorical "
                                     f"feature nor the entity's column; there are {', '.join(grouped)}")  # fmt: skip
            elif feature.of is not None and feature.of not in numeric:
                raise ValueError(f"sequence feature {feature.name!r}: of: {feature.of!r} is no numeric feature; "
                                 f"there are {', '.join(numeric) or 'none'}")  # fmt: skip

    @property
    def tz(self) -> zoneinfo.ZoneInfo:
        """The zone of naive event times and of the partitions' days."""
        return zoneinfo.ZoneInfo(self.zone)

    @property
    def window_length(self) -> int:
        """How many readings or events a window holds: steps × rows."""
        return self.window.steps * self.window.rows

    @property
    def lookback(self) -> timedelta:
        """How far before a day's first moment its scoring reads `clean` for context."""
        if self.history is not None:
            return self.history
        if self.kind == "sensor":
            assert self.cadence is not None
            return self.cadence * self.window_length * (WARM_UP + 2)  # a window, and one more for what gaps take away
        return timedelta(days=30)

    @property
    def label_rates(self) -> list[SequenceFeature]:
        """The sequence features that come from labels."""
        return [feature for feature in self.sequence_features if feature.kind == "label_rate"]

    @property
    def label_reach(self) -> timedelta:
        """How far before an event the labels lie that its label rates count; nothing without such features."""
        if self.labels is None or not self.label_rates:
            return timedelta()
        return self.labels.delay + max(feature.over for feature in self.label_rates if feature.over)

    @property
    def longest_gap(self) -> timedelta:
        """The longest gap between two readings of one sequence of a sensor."""
        assert self.cadence is not None
        return self.grid.max_gap or self.cadence * self.window_length

    @property
    def merge_within(self) -> timedelta:
        """The longest gap between two anomalous steps of one incident."""
        if self.incidents.merge_within is not None:
            return self.incidents.merge_within
        return timedelta(days=1) if self.cadence is None else self.cadence * 16

    @property
    def channels(self) -> list[str]:
        """The names of the model's channels, in order: features, then sequence features."""
        return [feature.name for feature in self.features] + [feature.name for feature in self.sequence_features]

    def day_of(self, moment: datetime) -> date:
        """The partition that an event at `moment` (aware) belongs to."""
        return moment.astimezone(self.tz).date()

    def day_bounds(self, day: date) -> tuple[datetime, datetime]:
        """The half-open stretch of UTC time that partition `day` covers (23 or 25 hours when clocks change)."""
        start, end = (datetime.combine(d, time(), self.tz).astimezone(UTC) for d in (day, day + timedelta(days=1)))
        return start, end

    def digest(self) -> str:
        """16 hex digits that change when something changes that decides what `clean`, `scores` and `incidents` hold.

        What the detector has learned (its window, model and threshold) counts by the detector's version, not here.
        """
        decisive = {"kind", "entity", "event_time", "event_id", "zone", "cadence", "history", "features",
                    "sequence_features", "grid", "incidents"}  # fmt: skip
        delay = f" {self.labels.delay}" if self.labels else ""
        return hashlib.sha256((self.model_dump_json(include=decisive) + delay).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Home:
    """Where state lives: one folder (`var/` by default), of which the lake may be an object store's address."""

    root: Path

    @classmethod
    def at(cls, root: str | Path | None = None) -> "Home":
        """The state folder at `root`, else at NIGHTSIFT_HOME, else `var`; made absolute, not created."""
        return cls(Path(root or os.environ.get("NIGHTSIFT_HOME") or "var").absolute())

    @property
    def lake(self) -> str:
        """Root of the Delta tables: NIGHTSIFT_LAKE (a folder or s3://, gs://, az://), else `lake` in the home."""
        return os.environ.get("NIGHTSIFT_LAKE") or str(self.root / "lake")

    @property
    def tracking_uri(self) -> str:
        """MLflow's backend: MLFLOW_TRACKING_URI, else a SQLite file in the state folder."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.store

    @property
    def store(self) -> str:
        """The address of the SQLite file."""
        return f"sqlite:///{self.store_file}"

    @property
    def store_file(self) -> Path:
        """MLflow's SQLite file, where no other backend is named."""
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """Folder of MLflow's artifacts when the backend is the SQLite file."""
        return self.root / "mlartifacts"

    @property
    def reports(self) -> Path:
        """Folder of the nightly reports."""
        return self.root / "reports"

    @property
    def data_docs(self) -> Path:
        """Folder of the validation pages."""
        return self.root / "data_docs"


def days_between(first: date, last: date) -> list[date]:
    """The days from `first` to `last`, both included."""
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def datasets_dir(folder: str | Path | None = None) -> Path:
    """The folder of dataset YAMLs: `folder`, else NIGHTSIFT_DATASETS, else `datasets`; absolute."""
    return Path(folder or os.environ.get("NIGHTSIFT_DATASETS") or "datasets").absolute()


def dataset_names(folder: str | Path | None = None) -> list[str]:
    """The names of all datasets in the folder, sorted; empty where the folder does not exist."""
    return sorted(path.stem for path in datasets_dir(folder).glob("*.yaml"))


def load_dataset(name: str, folder: str | Path | None = None) -> Dataset:
    """The dataset `name`; raises `ConfigError` that names the file, the key, what was wrong and what is allowed."""
    file = datasets_dir(folder) / f"{name}.yaml"
    if Path(name).name != name or not file.is_file():  # a name is no path, or it would lead out of the folder
        raise ConfigError(f"there is no dataset {name!r}: {_show(file)} does not exist{_known(name, folder)}")
    return read_dataset(file)


def _known(name: str, folder: str | Path | None) -> str:
    """What there is instead of the dataset `name`, and what to do."""
    known, place = dataset_names(folder), datasets_dir(folder)
    if not known:
        where = "holds no YAML" if place.is_dir() else "is no folder"
        return f"; {_show(place)} {where}: choose another --datasets, or write one with: nightsift init"
    near = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean {near[0]}?" if near else "") + f" (datasets there: {', '.join(known)})"


def read_dataset(file: Path) -> Dataset:
    """The dataset in `file`; raises `ConfigError` as `load_dataset` does."""
    try:
        data = read_yaml(file.read_text(encoding="utf-8"), _show(file))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_show(file)} is not UTF-8 text ({error}); save it as UTF-8") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{_show(file)} must hold keys such as name, kind and source, not {type(data).__name__}")
    if data.get("name", file.stem) != file.stem:
        raise ConfigError(
            f"{_show(file)}: name: is {data['name']!r} but the file is called {file.name}; make them equal"
        )
    if "file" in data:  # a field of ours, and no key of the YAML
        raise ConfigError(_explain(file, {"type": "extra_forbidden", "loc": ("file",), "msg": ""}))
    try:
        return Dataset.model_validate({"name": file.stem, **data, "file": file.absolute()})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(file, problem) for problem in error.errors())) from error


def read_yaml(text: str, place: str) -> Any:
    """What a YAML `text` holds; `place` names it in messages.

    Raises `ConfigError` where it is no YAML, where a key is there twice (of which the first would be lost), and where
    anchors repeat each other without end. Airflow reads a thousand of them again and again, and the loader in C is six
    times as fast as the one in Python; it ends the process where lists or maps nest too deep, so that is looked at
    before.
    """
    try:
        _require_shallow(text)
        loader = yaml.CSafeLoader(text)
        node = loader.get_single_node()
        if node is not None and _count_values(node, {}) > MOST_VALUES:
            raise ConfigError(f"{place} stands for more than {MOST_VALUES:,} values; use fewer anchors and aliases")
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # of a value that is not what its tag says
        raise ConfigError(
            f"{place} is not valid YAML: a value is not of its type ({error}); put it in quotes"
        ) from error


def _require_shallow(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"lists or maps nest deeper than {DEEPEST}, {event.start_mark}")


def _count_values(node: yaml.Node, counted: dict[yaml.Node, int]) -> int:
    """How many values a node stands for, those that an alias repeats included; 0 for what is being counted."""
    if node in counted:
        if counted[node] == 0:
            raise yaml.MarkedYAMLError(problem="an anchor holds itself", problem_mark=node.start_mark)
        return counted[node]
    counted[node] = 0
    parts = list(node.value) if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for (_, name), times in Counter(keys).items() if times > 1), None):
            raise yaml.MarkedYAMLError(problem=f"the key {twice!r} is there twice", problem_mark=node.start_mark)
        parts = [part for pair in node.value for part in pair]
    counted[node] = 1 + sum(_count_values(part, counted) for part in parts)
    return counted[node]


def _show(file: Path) -> str:
    """`file` relative to the working directory where that is shorter."""
    try:
        return str(file.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def _explain(file: Path, problem: Any) -> str:
    """One sentence for one pydantic error: file, key, what was wrong, what is allowed."""
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{_show(file)}: {place}: there is no such key; {hint}allowed here: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"{_show(file)}: {place}: this key is missing"
    given = problem["input"]
    told = without_secrets(repr(given))
    told = told if len(told) <= SHOWN else f"{told[:SHOWN]}…"
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {told})"
    return f"{_show(file)}: {place + ': ' if place else ''}{message}{shown}"


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The keys that are allowed at a place in the YAML."""
    parts: dict[str, type[Strict]] = {
        "source": Source, "features": Feature, "sequence_features": SequenceFeature, "grid": Grid,
        "window": Window, "model": Model, "training": Training, "threshold": Threshold,
        "incidents": Incidents, "notify": Notify, "labels": Labels, "calendar": Calendar,
    }  # fmt: skip
    model = parts[str(location[0])] if location else Dataset
    model = CalendarEntry if location[:2] == ("calendar", "entries") else model
    model = Route if location[:2] == ("notify", "routes") else model
    return [key for key in model.model_fields if key != "file"]
