"""How a day's rows meet the dataset's suite: which are clean, which go to quarantine and why, and what is to be said.

Nothing here knows the lake: `pipeline.validate` reads the rows and keeps what comes of them.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.config import Dataset
from pipeline.errors import ConfigError, one_line
from pipeline.lake import Frames
from pipeline.suites import Expectation, Suite, table_columns, to_gx
from pipeline.tables import clean_schema, quarantine_schema

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

EXAMPLES = 3
ORIGIN = ["source", "source_row"]


@dataclass(frozen=True, slots=True)
class Sorted:
    """A day's landing rows: `rows` to judge, sorted by where they came from, `unreadable` with reasons, and a count."""

    rows: pl.DataFrame
    unreadable: pl.DataFrame
    duplicates: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a day met one expectation: `failing` are row positions, `share` (0 to 1) of the judged rows passed.

    `share` is None where the expectation is about the whole day; `observed` is what Great Expectations then found.
    """

    entry: Expectation
    met: bool
    share: float | None
    failing: list[int]
    observed: Any


@dataclass(frozen=True, slots=True)
class Judged:
    """The day after the suite: clean rows, rows for quarantine with reasons, what stops the night or is reported.

    `counts` says how many rows are clean, for quarantine, and duplicates, by the names of `Validated`.
    """

    clean: pl.DataFrame | Frames
    quarantine: pl.DataFrame | Frames
    counts: dict[str, int]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    result: "ExpectationSuiteValidationResult | None"


def sort_out(landing: pl.DataFrame, dataset: Dataset) -> Sorted:
    """Take out of a day's `landing` rows what cannot be read and what is there twice; pure.

    The same row twice, two readings of one entity at one time, and two rows of one event id are duplicates: the last
    by source file and row stays.
    """
    rows = landing.sort(ORIGIN).with_columns(_reading_problems(dataset))
    unreadable = rows.filter(pl.col("reasons").list.len() > 0)
    readable = rows.filter(pl.col("reasons").list.len() == 0).drop("reasons")
    kept = _without_duplicates(readable, dataset)
    return Sorted(kept, unreadable, readable.height - kept.height)


def judge(parts: Sorted, suite: Suite, dataset: Dataset) -> Judged:
    """Apply `suite` to the readable rows; pure, but for the seconds that importing Great Expectations takes."""
    result = evaluate(suite, parts.rows.select(table_columns(dataset))) if parts.rows.height else None
    results = in_order(result) if result is not None else []
    outcomes = [outcome_of(entry, one) for entry, one in zip(suite.expectations, results, strict=False)]
    clean, quarantine = divide(parts, outcomes, dataset)
    refusals, warnings = missed([(outcome, parts.rows) for outcome in outcomes], dataset)
    seen = Unreadable()
    seen.add(parts)
    counts = {
        "rows_clean": clean.height,
        "rows_quarantined": quarantine.height,
        "rows_duplicate": parts.duplicates,
    }
    return Judged(clean, quarantine, counts, (*seen.refusal(suite), *refusals), warnings, result)


def divide(parts: Sorted, outcomes: Sequence[Outcome], dataset: Dataset) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The clean rows, and those for quarantine."""
    reasons = _reasons(outcomes, parts.rows, dataset)
    failing = sorted(reasons)
    told = pl.Series("reasons", [reasons[position] for position in failing], dtype=pl.List(pl.String))
    bad = parts.rows[failing].with_columns(told)
    clean = parts.rows.filter(~pl.int_range(pl.len()).is_in(failing))
    columns = list(clean_schema(dataset))
    quarantine = pl.concat([parts.unreadable, bad]).select(list(quarantine_schema(dataset))).sort(ORIGIN)
    return clean.select(columns).sort(columns[1:]), quarantine


def missed(judged: Iterable[tuple[Outcome, pl.DataFrame]], dataset: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What stops the night and what is reported, of outcomes with the rows that they are about."""
    told = [(outcome.entry.severity, _sentence(outcome, rows, dataset)) for outcome, rows in judged if not outcome.met]
    refusals = tuple(text for severity, text in told if severity == "critical")
    return refusals, tuple(f"{severity}: {text}" for severity, text in told if severity != "critical")


# --- before the suite


def _reading_problems(dataset: Dataset) -> list[pl.Expr]:
    """Expressions that make `reasons` of what could not be read, and nulls of what is not a number."""
    numeric = [feature.name for feature in dataset.features if feature.type == "numeric"]
    infinite = [
        pl.when(pl.col(name).is_infinite()).then(pl.lit([f"{name}: the value is infinite"])).otherwise(pl.lit([]))
        for name in numeric
    ]
    problems = pl.col("problems").fill_null(pl.lit([], dtype=pl.List(pl.String)))
    return [pl.concat_list(problems, *infinite).alias("reasons"), *(pl.col(name).fill_nan(None) for name in numeric)]


def _without_duplicates(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """The last of the rows that share a key; rows whose key is incomplete must be equal in everything."""
    content = table_columns(dataset)
    key = ["entity", "event_time"] if dataset.kind == "sensor" else ["event_id"] if dataset.event_id else content
    keyed = pl.all_horizontal(pl.col(key).is_not_null())
    parts = [
        rows.filter(keyed).unique(subset=key, keep="last", maintain_order=True),
        rows.filter(~keyed).unique(subset=content, keep="last", maintain_order=True),
    ]
    return pl.concat(parts).sort(ORIGIN)


class Unreadable:
    """How many of a day's rows cannot be read, and examples of why; `repeated` rows were left out beforehand."""

    def __init__(self, repeated: int = 0) -> None:
        self._rows, self._unreadable = repeated, 0
        self._reasons = pl.DataFrame()

    def add(self, parts: Sorted) -> None:
        """Count a part of the day."""
        self._rows += parts.rows.height + parts.duplicates + parts.unreadable.height
        self._unreadable += parts.unreadable.height
        reasons = parts.unreadable.select(*ORIGIN, pl.col("reasons")).explode("reasons")
        first = pl.concat([self._reasons, reasons], how="diagonal").sort(ORIGIN, maintain_order=True)
        self._reasons = first.unique("reasons", maintain_order=True, keep="first").head(EXAMPLES)

    def refusal(self, suite: Suite) -> Iterator[str]:
        """Why the day is refused for it; nothing where enough can be read."""
        share = 1 - self._unreadable / self._rows if self._rows else 1.0
        if share < suite.readable:
            examples = self._reasons["reasons"].to_list()
            yield f"{share:.1%} of the rows can be read, {suite.readable:.1%} must be{_for_example(examples)}"


# --- the suite


def evaluate(suite: Suite, rows: pl.DataFrame) -> "ExpectationSuiteValidationResult":
    """Great Expectations' judgement of `rows`, with the positions of all failing rows."""
    expectations = to_gx(suite)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas(suite.name).add_dataframe_asset("landing")
    batch = asset.add_batch_definition_whole_dataframe("day").get_batch({"dataframe": rows.to_pandas()})
    # Without unexpected_index_column_names: the frame's own index is the position, and naming columns costs a minute
    # on a million failing rows.
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)  # what cannot be applied is told by the result
    try:
        return batch.validate(expectations, result_format={"result_format": "COMPLETE"})
    except Exception as error:
        if len(suite.expectations) == 1:
            entry = suite.expectations[0]
            raise ConfigError(f"{entry.place}: {entry.type} cannot be applied: {one_line(error)}") from error
        for entry in suite.expectations:  # find the one: what the library raises does not name it
            evaluate(replace(suite, expectations=(entry,)), rows)
        raise


def in_order(result: "ExpectationSuiteValidationResult") -> list["ExpectationValidationResult"]:
    """One result an entry, in the suite's order (the library answers column by column)."""
    by_position = {one.expectation_config.meta["position"]: one for one in result.results if one.expectation_config}
    return [by_position[position] for position in sorted(by_position)]


def outcome_of(entry: Expectation, one: "ExpectationValidationResult") -> Outcome:
    """What a result says; raises `ConfigError` where the expectation cannot be applied."""
    flaw = _exception(one.exception_info)
    if flaw:
        raise ConfigError(f"{entry.place}: {entry.type} cannot be applied: {flaw}")
    found = one.result
    percent = found.get("unexpected_percent") if entry.row_level else None
    share = None if percent is None else 1 - percent / 100
    observed = found.get("observed_value", found.get("partial_unexpected_list"))
    return Outcome(entry, bool(one.success), share, found.get("unexpected_index_list") or [], observed)


def _exception(info: dict[str, Any]) -> str:
    """The message of the first exception in a result; empty where there is none."""
    single = [info] if "raised_exception" in info else list(info.values())
    return next((str(one["exception_message"]) for one in single if one["raised_exception"]), "")


# --- reasons in words


def _reasons(outcomes: Sequence[Outcome], rows: pl.DataFrame, dataset: Dataset) -> dict[int, list[str]]:
    """For each row that goes to quarantine, by its position, why."""
    reasons: dict[int, list[str]] = {}
    for outcome in outcomes:
        if outcome.entry.severity != "info":
            for position, text in zip(outcome.failing, _texts(outcome, outcome.failing, rows, dataset), strict=True):
                reasons.setdefault(position, []).append(text)
    return reasons


def _texts(outcome: Outcome, positions: list[int], rows: pl.DataFrame, dataset: Dataset) -> list[str]:
    columns = outcome.entry.columns
    units = {feature.name: feature.unit for feature in dataset.features}
    unit = units.get(columns[0], "") if len(columns) == 1 else ""
    return [
        _reason(outcome.entry, dict(zip(columns, row, strict=True)), unit) for row in rows[positions, columns].rows()
    ]


def _reason(entry: Expectation, values: dict[str, Any], unit: str) -> str:
    """Why one row fails `entry`, such as `flow: 812 is above 400 m3/h`."""
    words = WORDS.get(entry.type)
    if words is not None:
        ((column, value),) = values.items()
        return f"{column}: {words(value, entry.arguments, unit)}"
    given = ", ".join(f"{column}: {_show(value)}" for column, value in values.items())
    limits = {key: value for key, value in entry.arguments.items() if key not in NOT_LIMITS}
    return f"{given} does not meet {entry.type}" + (f" ({_list(limits)})" if limits else "")


NOT_LIMITS = {"column", "column_A", "column_B", "column_list", "column_set", "mostly", "notes", "description"}


def _between(value: Any, limits: dict[str, Any], unit: str) -> str:
    low, high, unit = limits.get("min_value"), limits.get("max_value"), f" {unit}" if unit else ""
    if low is not None and value <= low:
        return f"{_show(value)} is {'not above' if value == low else 'below'} {_show(low)}{unit}"
    return f"{_show(value)} is {'not below' if value == high else 'above'} {_show(high)}{unit}"


def _list(limits: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_show(value)}" for key, value in limits.items())


def _show(value: Any) -> str:
    """A value as a person writes it: 812 for 812.0, ISO times, lists with commas."""
    if value is None:
        return "missing"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))
    if isinstance(value, list):
        return ", ".join(_show(item) for item in value)
    return str(value)


Words = Callable[[Any, dict[str, Any], str], str]
WORDS: dict[str, Words] = {
    "expect_column_values_to_be_between": _between,
    "expect_column_values_to_not_be_null": lambda _value, _limits, _unit: "is missing",
    "expect_column_values_to_be_in_set": lambda v, a, _unit: f"{_show(v)} is not one of {_show(a['value_set'])}",
    "expect_column_values_to_not_be_in_set": lambda v, _limits, _unit: f"{_show(v)} is not allowed",
    "expect_column_values_to_match_regex": lambda v, a, _unit: f"{_show(v)} does not match {a['regex']}",
    "expect_column_values_to_be_unique": lambda v, _limits, _unit: f"{_show(v)} occurs more than once",
}


def _sentence(outcome: Outcome, rows: pl.DataFrame, dataset: Dataset) -> str:
    """What was expected, what was found, and where to change it, for an expectation that was not met."""
    entry = outcome.entry
    what = entry.type + (f" of {', '.join(entry.columns)}" if entry.columns else "")
    if outcome.share is None:
        limits = _list({key: value for key, value in entry.arguments.items() if key not in NOT_LIMITS})
        found = f" (found {_show(outcome.observed)})" if outcome.observed is not None else ""
        return f"{what}: not met{found}{f', expected {limits}' if limits else ''} [{entry.place}]"
    examples = dict.fromkeys(_texts(outcome, outcome.failing[:1000], rows, dataset))
    share = f"{outcome.share:.2%} of the rows pass, {entry.mostly:.2%} must"
    return f"{what}: {share}{_for_example(list(examples)[:EXAMPLES])} [{entry.place}]"


def _for_example(examples: list[str]) -> str:
    return f", for example: {'; '.join(examples)}" if examples else ""
