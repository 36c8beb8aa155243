"""The first hour of a dataset: `init` looks at the data and writes a YAML that works, `check` tells what is amiss.

What is proposed is generous: bounds lie far outside of what was seen, so that normal data of later days stays in, and
every column that is left out is named with the reason, so that whoever reads the YAML can put it back.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from pipeline.calendar import read_calendar
from pipeline.config import FORMATS, NAME, RESERVED, Dataset, Home, dataset_names, format_duration, load_dataset
from pipeline.errors import ConfigError, NightsiftError, one_line
from pipeline.labels import check_labels
from pipeline.lake import Lake
from pipeline.profile import (
    IDENTIFIER,
    Column,
    Sample,
    columns_of,
    find_cadence,
    fitting_window,
    generous_bounds,
    is_heavy_tailed,
    plain,
    understand,
)
from pipeline.sources import (
    is_delta,
    list_files,
    list_matching,
    read_delta,
    read_file,
    read_rows,
    read_sql,
    resolve_path,
    scan_delta,
)
from pipeline.suites import default_suite_text, load_suite
from pipeline.workspace import Workspace

SAMPLE_FILES = 5
SAMPLE_ROWS = 2_000_000  # of a Delta table, whose files cannot be chosen
# name, kind, whether it works on the main amount, how far back
SEQUENCE_FEATURES = (
    ("since_last", "time_since_last", False, None),
    ("ratio_to_history", "ratio_to_history", True, "30d"),
    ("count_1h", "rolling_count", False, "1h"),
    ("count_1d", "rolling_count", False, "1d"),
    ("sum_1d", "rolling_sum", True, "1d"),
)
AMOUNT = re.compile(r"amount|value|price|total|cost|sum|volume", re.I)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check` looked at: `what` is yaml, suite, source or notify; `message` is a sentence."""

    dataset: str
    what: str
    ok: bool
    message: str


def propose(name: str, source_glob: str, entity: str, event_time: str, *, datasets_folder: Path) -> list[Path]:
    """Write `NAME.yaml` and its suite for the data at `source_glob`; the files written, the YAML first.

    `source_glob` is a file, a glob or a Delta table as seen from the working directory; `entity` and `event_time` are
    columns there. Raises `ConfigError` where a file exists already, an argument is wrong or the data gives no feature,
    `GateRefusedError` where the data cannot be read.
    """
    file = datasets_folder.absolute() / f"{name}.yaml"
    suite = _suite_file(file)
    _refuse_names(name, file, suite)
    path = _relative_to(source_glob, file.parent)
    where = resolve_path(path, file.parent, Home.at())
    form = _format(name, source_glob, where)
    sample = _sample(name, where, form, entity, event_time)
    text = _yaml(name, path, form, entity, event_time, sample, os.path.relpath(suite, file.parent))
    dataset = Dataset(**yaml.safe_load(text), file=file)
    return [_write(file, text), _write(suite, default_suite_text(dataset))]


def _suite_file(file: Path) -> Path:
    """Beside `datasets/` where the folder is called that, else within it."""
    root = file.parent.parent if file.parent.name == "datasets" else file.parent
    return root / "expectations" / file.name


def _refuse_names(name: str, *files: Path) -> None:
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"{name!r} cannot be a dataset's name; use small letters, digits and _, beginning with a letter"
        )
    for file in files:
        if file.exists():
            raise ConfigError(f"{file} exists already; choose another name, or remove it first")


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as stream:
        stream.write(text)
    return file


def _relative_to(glob: str, folder: Path) -> str:
    """A path relative to the working directory, as the YAML must write it: relative to its own folder."""
    if "://" in glob or glob.startswith(("{home}", "/")):
        return glob
    return os.path.relpath(Path.cwd() / glob, folder)


def _format(name: str, glob: str, where: str) -> str:
    found = next((form for ending, form in FORMATS.items() if glob.endswith(ending)), None)
    if found is None and is_delta(where):
        return "delta"
    if found is None:
        raise ConfigError(
            f"{name}: cannot tell the format of {glob}; --source must end with {', '.join(FORMATS)} or be a Delta table"
        )
    return found


def _sample(name: str, where: str, form: str, entity: str, event_time: str) -> Sample:
    """Rows of up to five files from the first to the last, or of a Delta table."""
    if form == "delta":
        frame = scan_delta(where).head(SAMPLE_ROWS).collect()
    else:
        files = list_matching(where, name)
        chosen = [
            files[i] for i in sorted({round(i * (len(files) - 1) / (SAMPLE_FILES - 1)) for i in range(SAMPLE_FILES)})
        ]
        frame = _stacked(where, [read_rows(file, form).frame for file in chosen])
    for option, column in (("--entity", entity), ("--event-time", event_time)):
        if column not in frame.columns:
            raise ConfigError(f"{option} {column}: {where} has no such column; there are {', '.join(frame.columns)}")
    return understand(name, frame, entity, event_time)


def _stacked(where: str, frames: list[pl.DataFrame]) -> pl.DataFrame:
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"{where}: the files' columns differ in type ({one_line(error)}); write them alike"
        ) from error


def _feature_names(columns: list[Column], taken: set[str]) -> dict[str, str]:
    """A feature's name for each source column: small letters, digits and _, unique, none of the pipeline's own."""
    names: dict[str, str] = {}
    for column in columns:
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", column.name)
        base = re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")[:50] or "feature"
        base = base if base[0].isalpha() else f"f_{base}"
        used = {*names.values(), *taken, *RESERVED}
        tries = (base, *(f"{base}_{i}" for i in range(2, len(used) + 3)))
        names[column.name] = next(text for text in tries if text not in used)
    return names


def _yaml(name: str, path: str, form: str, entity: str, event_time: str, sample: Sample, suite: str) -> str:
    cadence = find_cadence(sample)
    columns = columns_of(sample, entity, event_time)
    identifiers = sorted((c for c in columns if c.type == "identifier"), key=lambda c: not IDENTIFIER.fullmatch(c.name))
    event_id = identifiers[0].name if identifiers and cadence is None else None
    features = [column for column in columns if not column.left_out]
    left_out = [column for column in columns if column.left_out and column.name != event_id]
    if not features:
        reasons = "; ".join(f"{column.name}: {column.left_out}" for column in left_out) or "there are no other columns"
        raise ConfigError(f"{name}: no column can be a feature beside {entity} and {event_time} ({reasons})")
    parts = [
        _head(name, path, form, sample, {"entity": entity, "event_time": event_time, "event_id": event_id}, cadence),
        _feature_lines(features),
        _left_out_lines(left_out),
        [] if cadence else _sequence_lines(features),
        _tail(suite, cadence, sample),
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(
    name: str, path: str, form: str, sample: Sample, keys: dict[str, str | None], cadence: timedelta | None
) -> list[str]:
    first, last = sample.times.sort()[0], sample.times.sort()[-1]
    seen = f"{sample.frame.height:,} rows of {sample.entity.n_unique():,} entities, {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    zone = (
        "  # the times carry no zone: if they are not UTC, write theirs here, such as Europe/Berlin"
        if sample.naive
        else ""
    )
    return [
        f"# Proposed from {seen}.",
        "# Edit freely; `nightsift check` tells what is wrong.",
        _entry(name=name),
        _entry(kind="sensor" if cadence else "transaction"),
        "source:",
        f"  {_entry(path=path)}",
        *(["  format: delta"] if form == "delta" else []),
        *(_entry(**{key: column}) for key, column in keys.items() if column is not None),
        f"zone: UTC{zone}",
        *([_entry(cadence=format_duration(cadence))] if cadence else []),
    ]


def _feature_lines(features: list[Column]) -> list[str]:
    names = _feature_names(features, {name for name, *_ in SEQUENCE_FEATURES})
    return [
        "# Bounds lie ten ranges outside of what was seen: rows beyond them are not scored, they go to quarantine.",
        "# Add unit: where you know it, for the reports.",
        "features:",
        *(f"  - {_flow(_feature(column, names[column.name]))}" for column in features),
    ]


def _feature(column: Column, name: str) -> dict[str, Any]:
    renamed = {} if column.name == name else {"column": column.name}
    if column.type == "categorical" or column.values is None:
        return {"name": name, **renamed, "type": "categorical"}
    low, high = generous_bounds(column.values)
    log = {"log": True} if is_heavy_tailed(column.values) else {}
    return {"name": name, **renamed, "min": plain(low), "max": plain(high), **log}


def _left_out_lines(columns: list[Column]) -> list[str]:
    reasons = (" ".join(f"{column.name}: {column.left_out}".split()) for column in columns)
    return ["# Left out:"] * bool(columns) + [f"#   {reason[:110]}" for reason in reasons]


def _sequence_lines(features: list[Column]) -> list[str]:
    names = _feature_names(features, {name for name, *_ in SEQUENCE_FEATURES})
    numeric = [names[column.name] for column in features if column.type == "numeric"]
    main = next((name for name in numeric if AMOUNT.search(name)), numeric[0] if numeric else None)
    entries = [
        {"name": name, "kind": kind, **({"of": main} if needs_number else {}), **({"over": over} if over else {})}
        for name, kind, needs_number, over in SEQUENCE_FEATURES
        if main or not needs_number
    ]
    return ["sequence_features:", *(f"  - {_flow(entry)}" for entry in entries)]


def _tail(suite: str, cadence: timedelta | None, sample: Sample) -> list[str]:
    steps, rows = fitting_window("sensor" if cadence else "transaction", sample)
    return [
        _entry(suite=suite),
        f"window: {_flow({'steps': steps, 'rows': rows})}",
        f"threshold: {_flow({'false_alarms': 0.05 if cadence else 0.01})}  # false incidents per entity and day",
        '# schedule: "30 2 * * *"   # every night at 02:30 in the zone above; without it, nights run on demand',
    ]


def _entry(**entry: object) -> str:
    """One key and its value as a line of YAML."""
    return yaml.safe_dump(entry, allow_unicode=True, width=10_000).strip()


def _flow(entry: dict[str, Any]) -> str:
    """A mapping as YAML on one line."""
    return yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000).strip()


def check(datasets_folder: Path, home: Home) -> list[Finding]:
    """What is in order and what is not: every YAML, its suite, its source, its variables; a bad one raises nothing."""
    names = dataset_names(datasets_folder)
    if not names:
        return [Finding("", "yaml", False, f"there is no dataset in {datasets_folder}; `nightsift init` writes one")]
    return [finding for name in names for finding in _check_dataset(name, datasets_folder, home)]


def _check_dataset(name: str, folder: Path, home: Home) -> list[Finding]:
    read = _try(name, "yaml", lambda: _yaml_message(load_dataset(name, folder)))
    if not read.ok:
        return [read]
    dataset = load_dataset(name, folder)
    ws = Workspace(dataset, home, Lake(home.lake, name))
    labels = [_try(name, "labels", lambda: check_labels(ws))] if dataset.labels else []
    calendar = [_try(name, "calendar", lambda: f"{len(read_calendar(ws))} entries")] if dataset.calendar.path else []
    notify = [_try(name, "notify", lambda: _notify_message(dataset))] if dataset.notify.variables else []
    return [
        read,
        _try(name, "suite", lambda: f"{len(load_suite(dataset).expectations)} expectations"),
        _try(name, "source", lambda: _source_message(dataset, home)),
        *labels,
        *calendar,
        *notify,
    ]


def _try(name: str, what: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding(name, what, True, action())
    except NightsiftError as error:
        return Finding(name, what, False, str(error))
    except Exception as error:  # noqa: BLE001 - one broken dataset must not hide what is known of the others
        return Finding(name, what, False, f"{type(error).__name__}: {one_line(error)}")


def _yaml_message(dataset: Dataset) -> str:
    return f"{dataset.kind}, {len(dataset.features)} features, {len(dataset.sequence_features)} sequence features"


def _source_message(dataset: Dataset, home: Home) -> str:
    """What the source gives; a table or query is asked for a day long past, which is quick but needs all columns."""
    long_past = date(2000, 1, 1)
    if dataset.source.sql is not None:
        read_sql(dataset, long_past, long_past)
        return f"the database in {dataset.source.connection_env} answers, with all columns"
    if dataset.source.guess_format() == "delta":
        read_delta(dataset, home, long_past, long_past)
        return "the table is there, with all columns"
    files = list_files(dataset, home)
    frame = read_file(dataset, files[-1])
    problems = frame["problems"].list.first().drop_nulls()
    seen = f"{len(files)} file{'s'[: len(files) - 1]}; {files[-1].name} has {frame.height:,} rows"
    if problems.len() > frame.height / 2:
        raise ConfigError(f"{seen}, {problems.len():,} of them with problems, such as: {problems[0]}")
    return f"{seen}, {problems.len():,} with problems"


def _notify_message(dataset: Dataset) -> str:
    missing = [name for name in dataset.notify.variables if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"notify: the environment variable {missing[0]} is not set; give it an Apprise URL")
    return f"{len(dataset.notify.variables)} addresses"
