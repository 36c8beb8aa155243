"""How a day that does not fit into memory meets its suite: part by part, with the result that `pipeline.judge` gives.

A part holds neighbouring entities. There are two kinds of expectation: one that judges each row by itself is judged in
every part, and its counts are added up; one that compares rows, or is about the values of the whole day, is judged
once, over all rows, with its own columns alone. What asks for no values at all needs no rows: one part stands for all,
and what it asks to be counted is counted.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from pipeline.config import Dataset
from pipeline.judge import (
    ORIGIN,
    Judged,
    Outcome,
    Sorted,
    Unreadable,
    divide,
    evaluate,
    in_order,
    missed,
    outcome_of,
    sort_out,
)
from pipeline.lake import Frames
from pipeline.parts import Parts, by_hash, by_range
from pipeline.sequences import ahead, range_starts, ranges
from pipeline.suites import Expectation, Suite, table_columns
from pipeline.tables import Schema, clean_schema, quarantine_schema

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

SAMPLE = 100_000  # rows that fail one expectation, the first of the day: the page shows values of these
# Of the expectations that judge rows, those that compare a row with others.
COMPARING = {
    "expect_column_values_to_be_unique",
    "expect_compound_columns_to_be_unique",
    "expect_column_value_z_scores_to_be_less_than",
    "expect_column_values_to_not_be_outliers",
}
# Of those about the whole day, those that only ask which columns there are, how many rows, and how many empty cells.
VALUELESS = {
    "expect_column_proportion_of_non_null_values_to_be_between",
    "expect_column_to_exist",
    "expect_column_type_to_be",
    "expect_table_column_count_to_be_between",
    "expect_table_column_count_to_equal",
    "expect_table_columns_to_match_ordered_list",
    "expect_table_columns_to_match_set",
    "expect_table_row_count_to_be_between",
    "expect_table_row_count_to_equal",
}
COUNTED = {name for name in VALUELESS if "row_count" in name or "non_null" in name}


@dataclass(frozen=True, slots=True)
class Met:
    """How the whole day met an expectation; `outcome` has the failing ones of `rows`, which are some of the day's."""

    result: "ExpectationValidationResult"
    outcome: Outcome
    rows: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Tally:
    """What parts of a day have shown of an expectation that compares no values.

    `example` is how one of the parts met it, `failing` are the first `SAMPLE` failing rows.
    """

    example: "ExpectationValidationResult"
    elements: int
    missing: int
    unexpected: int
    failing: pl.DataFrame

    @classmethod
    def of(cls, one: "ExpectationValidationResult", outcome: Outcome, rows: pl.DataFrame) -> "Tally":
        """What one part shows."""
        elements, missing, unexpected = (
            int(one.result.get(name) or 0) for name in ("element_count", "missing_count", "unexpected_count")
        )
        return cls(one, elements, missing, unexpected, rows[outcome.failing[:SAMPLE]])

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.example,
            self.elements + other.elements,
            self.missing + other.missing,
            self.unexpected + other.unexpected,
            pl.concat([self.failing, other.failing]).sort(ORIGIN).head(SAMPLE),
        )


class Shown:
    """What the parts of a day have shown so far."""

    def __init__(self, duplicates: int) -> None:
        self.counts = {"rows_clean": 0, "rows_quarantined": 0, "rows_duplicate": duplicates}
        self.rows = 0  # that the suite judges
        self.nulls: Counter[str] = Counter()
        self.unreadable = Unreadable(duplicates)
        self.tallies: dict[int, Tally] = {}

    def add(self, part: Sorted, tallies: dict[int, Tally], clean: int, quarantined: int) -> None:
        """Take in a part that was judged, of which so many rows are clean or go to quarantine."""
        judged = {"rows_clean": clean, "rows_quarantined": quarantined, "rows_duplicate": part.duplicates}
        self.counts = {name: rows + judged[name] for name, rows in self.counts.items()}
        self.rows += part.rows.height
        self.nulls.update(part.rows.null_count().row(0, named=True))
        self.unreadable.add(part)
        for place, tally in tallies.items():
            self.tallies[place] = self.tallies[place] + tally if place in self.tallies else tally


def judge_in_parts(
    landing: pl.LazyFrame, files: pl.DataFrame, suite: Suite, dataset: Dataset, folder: Path, most: int
) -> Judged:
    """As `sort_out` and `judge`: a day's `landing`, which holds so many `rows` of each `source` in `files`.

    A part has about `most` rows. The parts, and the frames of what is judged, stand in `folder` on a local disk. An
    entity is never divided, so one with more rows is a part of its own.
    """
    starts = range_starts(files["source"], files["rows"], most)
    by_source = by_range("source", starts)
    count = landing.group_by("entity").len().collect(engine="streaming")
    by_entity = by_range("entity", range_starts(count["entity"], count["len"], most))
    rows = Parts(folder / "rows", by_entity)
    shown = Shown(_fill(rows, _pieces(landing, starts, most), int(count["len"].sum()) // most + 1, dataset))
    compared = _compare(suite, dataset, rows, Parts(folder / "compared", by_source))
    clean, quarantine = Parts(folder / "clean", by_entity), Parts(folder / "quarantine", by_source)
    for part in ahead(sort_out(part, dataset) for part in rows):
        # What needs no values is judged in the first part alone, for its form: the day's numbers are added up below.
        places = _chosen(suite, judges_rows if shown.rows else needs_no_others)
        judged = _judge_part(suite, places, dataset, part.rows)
        outcomes = {place: outcome for place, (_, outcome) in judged.items()}
        outcomes |= {place: _within(met, part.rows) for place, met in compared.items()}
        good, bad = divide(part, [outcomes[place] for place in sorted(outcomes)], dataset)
        clean.add(good)
        quarantine.add(bad)
        shown.add(part, {place: tally for place, (tally, _) in judged.items()}, good.height, bad.height)
        gc.collect()  # Great Expectations' objects hold each other, and the part's rows with them
    rows.remove()
    met = compared | _add_up(suite, dataset, shown)
    whole = [met[place] for place in sorted(met)]
    refusals, warnings = missed([(one.outcome, one.rows) for one in whole], dataset)
    return Judged(
        clean=_frames(clean, clean_schema(dataset), lambda rows: rows),
        quarantine=_frames(quarantine, quarantine_schema(dataset), lambda rows: rows.sort(ORIGIN)),
        counts=shown.counts,
        refusals=(*shown.unreadable.refusal(suite), *refusals),
        warnings=warnings,
        result=_suite_result(suite, [one.result for one in whole]) if whole else None,
    )


# --- the parts


def _pieces(landing: pl.LazyFrame, starts: pl.Series, most: int) -> Iterator[pl.DataFrame]:
    """The rows, frame by frame: those of neighbouring source files, which begin at `starts`, together."""
    for own in ranges("source", starts):
        yield from landing.filter(own).collect_batches(chunk_size=most, maintain_order=False)


def _fill(rows: Parts, pieces: Iterable[pl.DataFrame], parts: int, dataset: Dataset) -> int:
    """Put all pieces into `rows`, so that no row repeats one of another part; how many were left out for that.

    An event may be told twice with two entities: what repeats is found among rows of equal event ids first.
    """
    if dataset.event_id is None:
        for piece in pieces:
            rows.add(piece)
        return 0
    events = Parts(rows.folder.with_name("events"), by_hash(pl.coalesce("event_id", "entity"), parts))
    for piece in pieces:
        events.add(piece)
    duplicates = 0
    for part in events:
        once = sort_out(part, dataset)
        rows.add(pl.concat([once.rows, once.unreadable.drop("reasons")]))
        duplicates += once.duplicates
    events.remove()
    return duplicates


def _frames(parts: Parts, schema: Schema, order: Callable[[pl.DataFrame], pl.DataFrame]) -> Frames:
    """The parts, each put in order, for the lake; a frame without rows where there are none."""
    return lambda: chain([pl.DataFrame(schema=schema)], (order(part) for part in parts))


# --- expectations that are judged part by part


def _chosen(suite: Suite, choose: Callable[[Expectation], bool]) -> list[int]:
    """The places in the suite of the entries that are chosen."""
    return [place for place, entry in enumerate(suite.expectations) if choose(entry)]


def _only(suite: Suite, places: Sequence[int]) -> Suite:
    return replace(suite, expectations=tuple(suite.expectations[place] for place in places))


def judges_rows(entry: Expectation) -> bool:
    """Whether the expectation judges each row by itself, so that it can be judged part by part."""
    return entry.row_level and entry.type not in COMPARING


def needs_no_others(entry: Expectation) -> bool:
    """Whether the expectation need not see the values of all rows together."""
    return judges_rows(entry) or entry.type in VALUELESS


def _judge_part(
    suite: Suite, places: list[int], dataset: Dataset, rows: pl.DataFrame
) -> dict[int, tuple[Tally, Outcome]]:
    """By place in the suite, what the rows of a part show."""
    if not places or rows.is_empty():
        return {}
    results = in_order(evaluate(_only(suite, places), rows.select(table_columns(dataset))))
    outcomes = [outcome_of(suite.expectations[place], one) for place, one in zip(places, results, strict=True)]
    return {
        place: (Tally.of(one, outcome, rows), outcome)
        for place, one, outcome in zip(places, results, outcomes, strict=True)
    }


def _add_up(suite: Suite, dataset: Dataset, shown: Shown) -> dict[int, Met]:
    """By place in the suite, how the day met what was judged part by part."""
    met = {}
    for place, tally in shown.tallies.items():
        entry, one = suite.expectations[place], tally.example
        if tally.failing.height:  # Great Expectations' account of them; what fails, fails without the other rows
            (one,) = evaluate(_only(suite, [place]), tally.failing.select(table_columns(dataset))).results
        if entry.type in COUNTED:
            _validate_counts(one, entry, shown)
        if "element_count" in one.result:
            _set_counts(one, tally, entry.mostly)
        met[place] = Met(one, outcome_of(entry, one), tally.failing)
    return met


def _validate_counts(one: "ExpectationValidationResult", entry: Expectation, shown: Shown) -> None:
    """Make `one` Great Expectations' word on the day's number of rows, or the proportion of them that have a value."""
    empty = sum(shown.nulls[name] for name in entry.columns)
    metrics = {"table.row_count": shown.rows, "column.non_null_proportion": (shown.rows - empty) / shown.rows}
    assert one.expectation_config is not None
    found = one.expectation_config.to_domain_obj()._validate(metrics)
    one.success, one.result = found["success"], found["result"]


def _set_counts(one: "ExpectationValidationResult", tally: Tally, mostly: float) -> None:
    """Make `one` a result about all the rows that were tallied, by Great Expectations' rules."""
    considered = tally.elements - tally.missing
    percent = tally.unexpected / considered * 100 if considered else None
    one.success = not considered or (considered - tally.unexpected) / considered >= mostly
    counts = {
        "element_count": tally.elements,
        "unexpected_count": tally.unexpected,
        "unexpected_percent": percent,
        "unexpected_percent_nonmissing": percent,
        "unexpected_percent_total": tally.unexpected / tally.elements * 100,
        "missing_count": tally.missing,
        "missing_percent": tally.missing / tally.elements * 100,
    }
    one.result.update({name: value for name, value in counts.items() if name in one.result})


# --- expectations about the whole day


def _compare(suite: Suite, dataset: Dataset, parts: Parts, held: Parts) -> dict[int, Met]:
    """By place in the suite, how the day met what must be judged over all rows; `held` holds the columns for it.

    What asks for the same columns is judged together, one set of columns after the other.
    """
    places = _chosen(suite, lambda entry: not needs_no_others(entry))
    if not places:
        return {}
    named = {name for place in places for name in suite.expectations[place].columns}
    columns = [name for name in table_columns(dataset) if name in named]
    for part in parts:
        held.add(sort_out(part, dataset).rows.select(*ORIGIN, *columns))
    alike: dict[tuple[str, ...], list[int]] = {}
    for place in places:
        alike.setdefault(tuple(suite.expectations[place].columns), []).append(place)
    met: dict[int, Met] = {}
    for names, together in alike.items():
        rows = pl.concat([part.sort(ORIGIN).select(names) for part in held] or [pl.DataFrame()])
        results = in_order(evaluate(_only(suite, together), rows)) if rows.height else []
        for place, one in zip(together, results, strict=False):
            outcome = outcome_of(suite.expectations[place], one)
            failing = _rows_at(held, outcome.failing)
            met[place] = Met(one, replace(outcome, failing=list(range(failing.height))), failing)
    held.remove()
    return met


def _rows_at(held: Parts, positions: list[int]) -> pl.DataFrame:
    """The rows at `positions` of all that `held` holds, in the order of where they came from."""
    wanted, before, found = pl.Series(positions, dtype=pl.Int64), 0, []
    for part in held:
        here = wanted.filter(wanted.is_between(before, before + part.height, closed="left")) - before
        found.append(part.sort(ORIGIN)[here])
        before += part.height
    return pl.concat(found)


def _within(met: Met, rows: pl.DataFrame) -> Outcome:
    """The outcome with the positions in `rows` of a part of those that fail."""
    failing = rows.select(ORIGIN).with_row_index("position").join(met.rows, on=ORIGIN, how="semi")
    return replace(met.outcome, failing=failing["position"].to_list())


def _suite_result(suite: Suite, results: list["ExpectationValidationResult"]) -> "ExpectationSuiteValidationResult":
    """Great Expectations' result of the whole suite, of its results of all entries."""
    from great_expectations.core import ExpectationSuiteValidationResult

    success = all(one.success for one in results)
    return ExpectationSuiteValidationResult(success=success, results=results, suite_name=suite.name)
