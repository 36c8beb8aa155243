"""Step 2 of the night: judge a day's landing rows; the valid ones go to `clean`, the others to `quarantine`.

In this order: rows that could not be read go to quarantine, repeated rows are left out (the last one stays), and the
rest is judged by the dataset's Great Expectations suite. Every row of `landing` is counted exactly once, as clean,
quarantined or duplicate, and the order in which rows arrived changes nothing.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.canonical import one_line
from pipeline.config import Dataset
from pipeline.data_docs import Summary, page_file, page_outcome, write_page
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError
from pipeline.sources import require_day
from pipeline.state import State, read_state, write_state
from pipeline.suites import Expectation, Suite, load_suite, suite_digest, table_columns, to_gx
from pipeline.tables import clean_schema, landing_schema, quarantine_schema
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

STEP = "validate"
REFUSED = "refused"
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Validated:
    """What became of a day's rows: rows_in = rows_clean + rows_quarantined + rows_duplicate.

    `day` is an ISO date, `docs` the path of the page that shows how the day was judged ("" where nothing was judged),
    `skipped` tells that nothing had changed since the last time, so that nothing was done.
    """

    day: str
    rows_in: int
    rows_clean: int
    rows_quarantined: int
    rows_duplicate: int
    warnings: list[str]
    docs: str
    skipped: bool


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
    """The day after the suite: clean rows, rows for quarantine with reasons, what stops the night or is reported."""

    clean: pl.DataFrame
    quarantine: pl.DataFrame
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    result: "ExpectationSuiteValidationResult | None"


def validate(ws: Workspace, day: date, *, force: bool = False) -> Validated:
    """Judge `day` and replace its rows in `clean` and `quarantine`; where nothing changed, only by `force`.

    Raises `GateRefusedError` where a critical expectation is not met: the day's tables then stay as they were. Raises
    `ConfigError` where the suite cannot be read or applied.
    """
    suite = load_suite(ws.dataset)
    # The digest is taken before the rows are read: rows that land in between make the next run judge the day again.
    landed = ws.lake.landed()
    state = State(day, STEP, input_digest(ws, day, landed), ws.dataset.digest())
    done = read_state(ws, day, STEP)
    if done is not None and state.same_work(done) and not force and _page_outcome(ws, day) != REFUSED:
        return _validated(ws, day, done.counts, skipped=True)
    landing = ws.lake.scan("landing", landing_schema(ws.dataset), day, day).collect()
    require_day(ws.lake, day, landing.height, landed)
    parts = sort_out(landing, ws.dataset)
    judged = judge(parts, suite, ws.dataset)
    counts = _counts(landing.height, parts, judged)
    _write_docs(ws, day, counts, judged)
    if judged.refusals:
        write_state(ws, replace(state, step=REFUSED, counts={"reasons": list(judged.refusals)}))
        raise GateRefusedError(_refusal(ws, day, judged.refusals))
    ws.lake.replace("quarantine", day, judged.quarantine, step=STEP, suite=suite_digest(ws.dataset))
    ws.lake.replace("clean", day, judged.clean, step=STEP, suite=suite_digest(ws.dataset))
    write_state(ws, replace(state, counts=counts))
    return _validated(ws, day, counts, skipped=False)


def input_digest(ws: Workspace, day: date, landed: pl.DataFrame | None = None) -> str:
    """32 hex digits of what `day` is made from: its source files' digests and the suite; no row is read.

    `landed` is `ws.lake.landed()`, for callers that ask for many days.
    """
    landed = ws.lake.landed() if landed is None else landed
    files = landed.filter(pl.col("day") == day).select("source", "source_digest").unique()
    text = json.dumps([sorted(files.rows()), suite_digest(ws.dataset)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sort_out(landing: pl.DataFrame, dataset: Dataset) -> Sorted:
    """Take out of a day's `landing` rows what cannot be read and what is there twice; pure.

    The same row twice, two readings of one entity at one time, and two rows of one event id are duplicates: the last
    by source file and row stays.
    """
    rows = landing.sort("source", "source_row").with_columns(_reading_problems(dataset))
    unreadable = rows.filter(pl.col("reasons").list.len() > 0)
    readable = rows.filter(pl.col("reasons").list.len() == 0).drop("reasons")
    kept = _without_duplicates(readable, dataset)
    return Sorted(kept, unreadable, readable.height - kept.height)


def judge(parts: Sorted, suite: Suite, dataset: Dataset) -> Judged:
    """Apply `suite` to the readable rows; pure, but for the seconds that importing Great Expectations takes."""
    result = evaluate(suite, parts.rows.select(table_columns(dataset))) if parts.rows.height else None
    outcomes = _outcomes(suite, result) if result is not None else []
    reasons = _reasons(outcomes, parts.rows, dataset)
    bad = parts.rows[sorted(reasons)].with_columns(
        pl.Series("reasons", [reasons[position] for position in sorted(reasons)], dtype=pl.List(pl.String))
    )
    clean = parts.rows.with_row_index("position").filter(~pl.col("position").is_in(sorted(reasons)))
    missed = [(outcome, _sentence(outcome, parts.rows, dataset)) for outcome in outcomes if not outcome.met]
    refusals = [sentence for outcome, sentence in missed if outcome.entry.severity == "critical"]
    columns = list(clean_schema(dataset))
    return Judged(
        clean=clean.select(columns).sort(columns[1:]),
        quarantine=pl.concat([parts.unreadable, bad])
        .select(list(quarantine_schema(dataset)))
        .sort("source", "source_row"),
        refusals=(*_unreadable_refusal(parts, suite), *refusals),
        warnings=tuple(f"{o.entry.severity}: {text}" for o, text in missed if o.entry.severity != "critical"),
        result=result,
    )


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
    return pl.concat(parts).sort("source", "source_row")


def _unreadable_refusal(parts: Sorted, suite: Suite) -> Iterator[str]:
    total = parts.rows.height + parts.duplicates + parts.unreadable.height
    share = 1 - parts.unreadable.height / total if total else 1.0
    if share < suite.readable:
        examples = parts.unreadable["reasons"].explode().unique(maintain_order=True).head(EXAMPLES)
        yield f"{share:.1%} of the rows can be read, {suite.readable:.1%} must be{_for_example(examples.to_list())}"


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


def _outcomes(suite: Suite, result: "ExpectationSuiteValidationResult") -> list[Outcome]:
    """One outcome an entry, in the suite's order (the library answers column by column)."""
    by_position = {one.expectation_config.meta["position"]: one for one in result.results if one.expectation_config}
    return [_outcome(entry, by_position[position]) for position, entry in enumerate(suite.expectations)]


def _outcome(entry: Expectation, one: "ExpectationValidationResult") -> Outcome:
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


def _reasons(outcomes: list[Outcome], rows: pl.DataFrame, dataset: Dataset) -> dict[int, list[str]]:
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


def _refusal(ws: Workspace, day: date, refusals: tuple[str, ...]) -> str:
    page = page_file(ws.home.data_docs, ws.dataset.name, day)
    listed = "\n".join(f"  - {refusal}" for refusal in refusals)
    return (f"{ws.dataset.name} {day}: the data gate refused this day, and its tables stay as they were:\n{listed}\n"
            f"Mend the source and ingest it again, or change the suite. Details: {page}")  # fmt: skip


# --- what is kept


def _counts(rows_in: int, parts: Sorted, judged: Judged) -> dict[str, Any]:
    """The counts of `Validated`; raises `NightsiftError` where a row was lost or made."""
    counts = {
        "rows_in": rows_in,
        "rows_clean": judged.clean.height,
        "rows_quarantined": judged.quarantine.height,
        "rows_duplicate": parts.duplicates,
    }
    if rows_in != sum(list(counts.values())[1:]):
        raise NightsiftError(f"validation lost or made rows, so that nothing was written: {counts}")
    return counts | {"warnings": list(judged.warnings)}


def _write_docs(ws: Workspace, day: date, counts: dict[str, Any], judged: Judged) -> None:
    rows = {"rows": "rows_in", "clean": "rows_clean", "quarantined": "rows_quarantined", "duplicate": "rows_duplicate"}
    shown = {name: counts[key] for name, key in rows.items()}
    outcome = REFUSED if judged.refusals else "passed" if counts["rows_in"] else "no rows"
    summary = Summary(ws.dataset.name, day, outcome, shown, judged.refusals, judged.warnings)
    write_page(ws.home.data_docs, summary, judged.result)


def _page_outcome(ws: Workspace, day: date) -> str:
    """What the day's page says: a page that says refused, of input that has since been put back, is out of date."""
    return page_outcome(page_file(ws.home.data_docs, ws.dataset.name, day))


def _validated(ws: Workspace, day: date, counts: dict[str, Any], *, skipped: bool) -> Validated:
    page = page_file(ws.home.data_docs, ws.dataset.name, day)
    return Validated(day=str(day), docs=str(page) if page.is_file() else "", skipped=skipped, **counts)
