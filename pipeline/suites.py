"""Great Expectations suites that an analyst reads and edits: one YAML file a dataset.

A suite is checked against the JSON schemas that Great Expectations ships for its own expectations, so that a wrong
suite is found without importing the library (which takes seconds) and nothing in a suite is ever executed.
"""

import difflib
import functools
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jsonschema
import yaml
from pydantic import Field, ValidationError

from pipeline.allowed import require_path
from pipeline.config import Dataset, Feature, Strict, read_yaml
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
READABLE = 0.9
# Arguments that Great Expectations takes from programs: run-time settings, and row_condition, which pandas evaluates.
NOT_FOR_SUITES = {"id", "meta", "result_format", "catch_exceptions", "rendered_content", "windows", "batch_id",
                  "row_condition", "condition_parser", "library_metadata", "metadata", "severity"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expectation:
    """One entry of a suite: a Great Expectations type, its arguments, and what happens when it is not met.

    `row_level` tells whether it judges single rows (and so has `mostly`) or the whole partition; `place` is where an
    analyst finds it, such as `expectations/pumps.yaml, entry 3`.
    """

    type: str
    severity: Severity
    arguments: dict[str, Any]
    row_level: bool
    place: str

    @property
    def mostly(self) -> float:
        """The share of rows that must pass, 0 to 1."""
        return float(self.arguments.get("mostly", 1.0))

    @property
    def columns(self) -> list[str]:
        """The columns that it looks at; empty for one about the table."""
        return list(dict.fromkeys(name for _, name in _columns(self.arguments)))


@dataclass(frozen=True, slots=True)
class Suite:
    """A dataset's expectations, in the order of the file; `readable` is the share of rows that must be readable."""

    name: str
    expectations: tuple[Expectation, ...]
    readable: float = READABLE


class _File(Strict):
    """What a suite file holds."""

    expectations: list[dict[str, Any]] = Field(min_length=1)
    readable: float = Field(READABLE, ge=0, le=1)


def default_suite_text(dataset: Dataset) -> str:
    """The YAML text of a first suite for `dataset`, with comments for whoever edits it."""
    return "\n".join([_HEADER.format(name=dataset.name), *_entry_lines(dataset), ""])


def load_suite(dataset: Dataset) -> Suite:
    """The suite that `dataset.suite` names, or the default one where it names none.

    Raises `ConfigError` that names the file, the entry, what is wrong there and what is allowed.
    """
    return parse_suite(*_text_and_place(dataset), dataset)


def suite_digest(dataset: Dataset) -> str:
    """16 hex digits that change when the suite does (comments aside); the suite is not checked. Fast when repeated."""
    return _digest(*_text_and_place(dataset))


def parse_suite(text: str, place: str, dataset: Dataset) -> Suite:
    """The suite in a YAML `text`; `place` names it in messages. Raises `ConfigError` as `load_suite` does."""
    try:
        file = _File(**_read_yaml(text, place))
    except (ValidationError, TypeError) as error:
        raise ConfigError(f"{place}: {_first_problem(error)}") from error
    entries = [_parse_entry(entry, f"{place}, entry {n}", dataset) for n, entry in enumerate(file.expectations, 1)]
    return Suite(dataset.name, tuple(entries), file.readable)


def to_gx(suite: Suite) -> "ExpectationSuite":
    """The suite as Great Expectations' own object; `meta["position"]` of each expectation is its place in `suite`."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read while it is imported
    from great_expectations import ExpectationSuite

    entries = [_to_gx(entry, position) for position, entry in enumerate(suite.expectations)]
    return ExpectationSuite(name=suite.name, expectations=entries)


def _to_gx(entry: Expectation, position: int) -> Any:
    from great_expectations import expectations

    cls = getattr(expectations, _schema_classes()[entry.type])
    try:
        return cls(**entry.arguments, severity=entry.severity, meta={"position": position})
    except (ValueError, TypeError) as error:  # pydantic's error is a ValueError
        raise ConfigError(f"{entry.place}: {entry.type}: {' '.join(str(error).split())}") from error


# --- the file


def _text_and_place(dataset: Dataset) -> tuple[str, str]:
    """The YAML text of the dataset's suite, and what messages call it."""
    if dataset.suite is None:
        return default_suite_text(dataset), f"the default suite of {dataset.name}"
    file = (dataset.file.parent / dataset.suite).resolve()
    require_path(str(file))
    place = str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
    try:
        return file.read_text(encoding="utf-8"), place
    except OSError as error:
        raise ConfigError(
            f"{place} cannot be read ({error.strerror}); {dataset.file.name} names it as its suite: write it, or leave "
            "suite: out to get the default one"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} is not UTF-8 text: {error}") from error


def _read_yaml(text: str, place: str) -> dict[str, Any]:
    data = read_yaml(text, place)
    if not isinstance(data, dict):
        raise ConfigError(f"{place} must hold the key expectations: with a list of entries")
    return data


@functools.lru_cache(maxsize=64)
def _digest(text: str, place: str) -> str:
    return hashlib.sha256(repr(_read_yaml(text, place)).encode()).hexdigest()[:16]


# --- Great Expectations' schemas


@functools.cache
def expectation_types() -> dict[str, dict[str, Any]]:
    """The JSON schema of every built-in expectation that works on rows in memory, by its type's name."""
    schemas = {_constant(schema, "expectation_type"): schema for schema in _schemas()}
    return {
        name: schema
        for name, schema in sorted(schemas.items())
        if "Pandas" in _constant(schema, "supported_data_sources")
    }


@functools.cache
def _schema_classes() -> dict[str, str]:
    return {name: _constant(schema, "expectation_class") for name, schema in expectation_types().items()}


def _schemas() -> Iterator[dict[str, Any]]:
    spec = importlib.util.find_spec("great_expectations")
    assert spec is not None
    assert spec.origin is not None
    for file in sorted((Path(spec.origin).parent / "expectations" / "core" / "schemas").glob("*.json")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        if "metadata" in schema.get("properties", {}):
            yield schema


def _constant(schema: dict[str, Any], name: str) -> Any:
    return schema["properties"]["metadata"]["properties"].get(name, {}).get("const", "")


def _argument_schemas(type_name: str) -> dict[str, Any]:
    whole = expectation_types()[type_name]
    shared = {"definitions": whole.get("definitions", {})}
    return {name: _plain(schema) | shared for name, schema in whole["properties"].items() if name not in NOT_FOR_SUITES}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` without what a suite file has no use for: run-time parameters, and the grid of 0.01 for mostly."""
    plain = {key: value for key, value in schema.items() if key != "multipleOf"}
    options = [option for option in plain.pop("anyOf", []) if option != {"type": "object"}]
    grid_free = [{key: value for key, value in option.items() if key != "multipleOf"} for option in options]
    return plain | (grid_free[0] if len(grid_free) == 1 else {"anyOf": grid_free} if grid_free else {})


# --- one entry


def _parse_entry(entry: dict[str, Any], place: str, dataset: Dataset) -> Expectation:
    type_name = entry.get("type")
    if not isinstance(type_name, str) or type_name not in expectation_types():
        raise ConfigError(f"{place}: {_unknown_type(type_name)}")
    severity = entry.get("severity", "critical")
    if severity not in SEVERITIES:
        raise ConfigError(f"{place}: {_unknown('severity', severity, list(SEVERITIES))}")
    arguments = {key: value for key, value in entry.items() if key not in ("type", "severity")}
    schemas = _argument_schemas(type_name)
    for problem in _problems(type_name, arguments, schemas, dataset):
        raise ConfigError(f"{place}: {type_name}: {problem}")
    arguments = {key: _moment(value, dataset) for key, value in arguments.items()}
    return Expectation(type_name, severity, arguments, "mostly" in schemas, place)


def _problems(type_name: str, arguments: dict[str, Any], schemas: dict[str, Any], dataset: Dataset) -> Iterator[str]:
    """What is wrong with an entry's arguments, a sentence each."""
    for name in arguments.keys() - schemas.keys():
        yield _unknown("argument", name, list(schemas))
    for name in expectation_types()[type_name].get("required", []):
        if name not in arguments:
            yield f"the argument {name}: is missing"
    for name, value in arguments.items():
        yield from _wrong_value(name, value, schemas[name], arguments)
    for name, column in _columns(arguments):
        if column not in table_columns(dataset):
            yield _unknown(name, column, table_columns(dataset)) + _source_column_hint(column, dataset)
    if "between" in type_name and "min_value" in schemas and not {"min_value", "max_value"} & arguments.keys():
        yield "give min_value:, max_value: or both"


def _wrong_value(name: str, value: Any, schema: dict[str, Any], arguments: dict[str, Any]) -> Iterator[str]:
    if name in ("min_value", "max_value"):
        yield from _wrong_bound(name, value, arguments)
        return
    for error in jsonschema.Draft7Validator(schema).iter_errors(value):
        wanted = _wanted(schema) if error.validator in ("anyOf", "oneOf", "type") else ""
        yield f"{name}: {value!r} is not {wanted}" if wanted else f"{name}: {error.message}"
    for pattern in [value] if name == "regex" else value if name == "regex_list" else []:
        if flaw := _regex_flaw(str(pattern)):
            yield f"{name}: {pattern!r} {flaw}"


def _regex_flaw(pattern: str) -> str:
    """What is wrong with a regular expression; empty where it can be matched in a time that grows with the text.

    Pandas matches by RE2, which does so, and what RE2 does not know by Python's `re`, which may take for ever.
    """
    import pyarrow as pa
    import pyarrow.compute

    try:
        re.compile(pattern)
        pa.compute.match_substring_regex(pa.array([""]), pattern)
    except (re.error, OverflowError, RecursionError, pa.ArrowInvalid) as flaw:
        return (f"is not a regular expression that can be used ({flaw}); look-around, back references and repetitions "
                "of more than 1000 are not possible")  # fmt: skip
    return ""


def _wrong_bound(name: str, value: Any, arguments: dict[str, Any]) -> Iterator[str]:
    """Bounds are numbers, but for those of the event time."""
    if arguments.get("column") == "event_time" and isinstance(value, date):
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or arguments.get("column") == "event_time":
        wanted = "a date or a time such as 2024-01-31" if arguments.get("column") == "event_time" else "a number"
        yield f"{name}: {value!r} is not {wanted}"


def _moment(value: Any, dataset: Dataset) -> Any:
    """A YAML date or time as an aware UTC time, naive ones in the dataset's zone; anything else as it is."""
    if not isinstance(value, date):
        return value
    moment = value if isinstance(value, datetime) else datetime.combine(value, time())
    return (moment if moment.tzinfo else moment.replace(tzinfo=dataset.tz)).astimezone(UTC)


# --- columns


def table_columns(dataset: Dataset) -> list[str]:
    """The columns that a suite may speak of: entity, event_time, event_id where there is one, and the features."""
    event_id = ["event_id"] if dataset.event_id else []
    return ["entity", "event_time", *event_id, *(feature.name for feature in dataset.features)]


def _columns(arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """Each column that the arguments name, with the argument's name."""
    single = [(key, arguments[key]) for key in ("column", "column_A", "column_B") if key in arguments]
    many = [(key, name) for key in ("column_list", "column_set") for name in arguments.get(key) or []]
    return single + many


def _source_column_hint(column: object, dataset: Dataset) -> str:
    """A suite speaks of the table's columns; many will write the source's."""
    renamed = {dataset.entity: "entity", dataset.event_time: "event_time", dataset.event_id: "event_id"}
    renamed |= {feature.column: feature.name for feature in dataset.features}
    return f" ({column!r} is what the source calls {renamed[column]})" if column in renamed else ""


# --- the default suite

_HEADER = """\
# What a night's rows of {name} must look like. Edit freely; `nightsift check {name}` tells whether it can be read.
#
# type       any built-in expectation of Great Expectations, and its arguments (column, min_value, value_set, ...)
# severity   critical   rows that fail go to quarantine; fewer than `mostly` pass: the night stops, and the results of
#                       earlier nights stay as they are (this is the default)
#            warning    rows that fail go to quarantine; fewer than `mostly` pass: counted and reported
#            info       rows stay; counted and reported
#            Of an expectation about the whole day (no `mostly`) critical stops the night, the others are reported.
# mostly     the share of rows that must pass, 0 to 1 (all of them when left out); missing values do not count
# readable   the share of rows whose cells can be read as the types that the dataset declares
#
# A day without any row is not judged here: it is reported as a source that fell silent.
readable: 0.9
expectations:\
"""


def _entry_lines(dataset: Dataset) -> Iterator[str]:
    for column in ("entity", "event_time"):
        yield _line(type="expect_column_values_to_not_be_null", column=column, severity="critical")
    for feature in dataset.features:
        yield from _range_lines(feature)
    for feature in dataset.features:
        if feature.type == "numeric":
            yield from _some_value_lines(feature)


def _range_lines(feature: Feature) -> Iterator[str]:
    bounds = {"min_value": feature.min, "max_value": feature.max}
    given = {name: int(value) if value.is_integer() else value for name, value in bounds.items() if value is not None}
    if given:
        yield f"  # {feature.name}{f', {feature.unit}' if feature.unit else ''}: what is plausible at all"
        yield _line(
            type="expect_column_values_to_be_between", column=feature.name, **given, severity="critical", mostly=0.9
        )


def _some_value_lines(feature: Feature) -> Iterator[str]:
    yield f"  # {feature.name}: at least one value in the day"
    yield _line(type="expect_column_proportion_of_non_null_values_to_be_between", column=feature.name,
                min_value=0, strict_min=True, severity="warning")  # fmt: skip


def _line(**entry: Any) -> str:
    """An entry as YAML, a key a line."""
    text: str = yaml.safe_dump([entry], sort_keys=False, default_flow_style=False)
    return "\n".join("  " + line for line in text.splitlines())


# --- messages


def _unknown(what: str, given: object, allowed: list[str], cutoff: float = 0.6) -> str:
    """A sentence for a name that is not among those `allowed`, with the closest ones."""
    near = difflib.get_close_matches(str(given), allowed, n=3, cutoff=cutoff)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(allowed)}"
    return f"{what}: is missing; {hint}" if given is None else f"{what}: {given!r} is not known; {hint}"


def _unknown_type(given: object) -> str:
    known = list(expectation_types())
    near = difflib.get_close_matches(str(given), known, n=3, cutoff=0.5)
    what = "type: is missing" if given is None else f"type: {given!r} is no expectation that can be used here"
    return what + "; " + ("did you mean " + " or ".join(near) + "?" if near else "there are " + ", ".join(known))


def _wanted(schema: dict[str, Any]) -> str:
    """What a JSON schema asks for, in words."""
    words = {"string": "text", "number": "a number", "integer": "a whole number", "boolean": "true or false",
             "array": "a list", "object": "keys with values"}  # fmt: skip
    options = [option for key in ("anyOf", "oneOf") for option in schema.get(key, [])]
    if options:
        return " or ".join(dict.fromkeys(_wanted(option) for option in options))
    kind = words.get(schema.get("type", ""), "")
    if kind == "a list" and schema.get("items", {}).get("type") in words:
        return f"a list of {words[schema['items']['type']].removeprefix('a ')}s".replace("texts", "text")
    return kind


def _first_problem(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return "its keys must be words"
    problem = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a misspelt key explains the rest
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown("key", place, list(_File.model_fields))
    if problem["loc"][:1] == ("expectations",) and len(problem["loc"]) > 1:
        entry = f"entry {int(problem['loc'][1]) + 1}"
        return f"{entry} must be keys and values such as type: and column:, not {problem['input']!r}"
    return f"{place}: {problem['msg']}"
