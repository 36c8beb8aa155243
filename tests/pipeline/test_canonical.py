"""Cells become canonical values or problems, never crashes and never guesses."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.canonical import Rows, canonical, parse_number, parse_text, parse_time
from pipeline.config import Dataset
from pipeline.errors import GateRefusedError

NOON = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


def dataset(**changes: Any) -> Dataset:
    given = {
        "name": "demo",
        "kind": "transaction",
        "source": {"path": "x.csv"},
        "entity": "card",
        "event_time": "when",
        "features": [{"name": "amount", "column": "Amount EUR"}, {"name": "shop", "type": "categorical"}],
        "file": Path("/d/demo.yaml"),
    }
    return Dataset(**{**given, **changes})


def frame(**changes: list[Any]) -> pl.DataFrame:
    columns = {"card": ["a", "b"], "when": [NOON, NOON], "Amount EUR": [1.5, 2.0], "shop": ["x", None], "more": [1, 2]}
    return pl.DataFrame({**columns, **changes}, strict=False)


def read(table: pl.DataFrame, **changes: Any) -> pl.DataFrame:
    return canonical(Rows.whole("f.parquet", table), dataset(**changes))


def test_good_rows_get_canonical_names_types_and_order() -> None:
    """Names, types and order are those of the contract; a good row has no problems and no raw text."""
    assert read(frame()).schema == {
        "entity": pl.String, "event_time": pl.Datetime("us", "UTC"), "amount": pl.Float64, "shop": pl.String,
        "source_row": pl.Int64, "problems": pl.List(pl.String), "raw": pl.String,
    }  # fmt: skip
    assert read(frame()).rows() == [("a", NOON, 1.5, "x", 0, [], None), ("b", NOON, 2.0, None, 1, [], None)]


def test_event_id_stands_third() -> None:
    """The event's id is a column only where the dataset has one; a missing id is a problem."""
    result = read(frame(no=[7, None]), event_id="no")
    assert result.columns[2] == "event_id"
    assert result["event_id"].to_list() == ["7", None]
    assert result["problems"].to_list() == [[], ["event_id: missing"]]


def test_no_rows_give_an_empty_canonical_frame() -> None:
    """A source without rows is a table without rows, with all columns."""
    assert read(frame().clear()).schema == read(frame()).schema
    assert read(frame().clear()).height == 0


def test_a_broken_row_says_why_and_keeps_its_whole_source_row() -> None:
    """All problems of a row are listed, and `raw` holds every source column, also those that no feature reads."""
    broken = read(frame(card=["a", ""], when=["2024-05-01T12:00Z", "noon"], **{"Amount EUR": ["1.5", "abc"]}))
    assert broken["problems"].to_list() == [
        [],
        ["entity: missing", "event_time: 'noon' is not a time", "amount: 'abc' is not a number"],
    ]
    assert json.loads(broken["raw"][1]) == {"card": "", "when": "noon", "Amount EUR": "abc", "shop": None, "more": 2}
    assert broken.select("entity", "event_time", "amount").row(1) == (None, None, None)


def test_a_missing_column_is_refused_with_the_columns_that_are_there() -> None:
    """The message names the file, the column, what it is for, what is there, and the YAML."""
    with pytest.raises(GateRefusedError, match=r"f\.parquet.*'Amount EUR'.*amount.*card, when, shop, more.*demo\.yaml"):
        read(frame().drop("Amount EUR"))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("Amount EUR", ["abc", "def"]),
        ("Amount EUR", [date(2024, 1, 1)] * 2),
        ("Amount EUR", [[1], [2]]),
        ("when", ["noon", "night"]),
        ("when", [True, False]),
        ("when", [20240131, 20240201]),
        ("card", [{"a": 1}, {"a": 2}]),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(column: str, values: list[Any]) -> None:
    """Where no value of a column can be read, the column is wrong and not its rows."""
    with pytest.raises(GateRefusedError, match=rf"f\.parquet: no value of column '{column}' can be read.*demo\.yaml"):
        read(frame(**{column: values}))


def test_one_bad_cell_among_good_ones_is_not_refused() -> None:
    """A bad cell is its row's problem alone, and so is the only given cell of a sparse column."""
    assert read(frame(**{"Amount EUR": ["abc", "1"]}))["problems"].list.len().to_list() == [1, 0]
    assert read(frame(**{"Amount EUR": ["abc", None]}))["problems"].list.len().to_list() == [1, 0]


def test_a_feature_that_is_missing_in_every_row_is_read_as_nulls() -> None:
    """An all-missing feature is no problem of the rows; validation judges it."""
    result = read(frame(**{"Amount EUR": [None, None]}))
    assert result["amount"].to_list() == [None, None]
    assert result["problems"].list.len().sum() == 0


@pytest.mark.parametrize(
    "cells",
    [
        pl.Series([1, 2], dtype=pl.UInt64),
        pl.Series([1, 2], dtype=pl.Float32),
        pl.Series([Decimal("1.00"), Decimal("2.00")]),
        pl.Series(["1", " 2.0 "]),
        pl.Series(["1e0", "+2"]),
        pl.Series(["1", "2"], dtype=pl.Categorical),
    ],
)
def test_numbers_of_any_type_become_float(cells: pl.Series) -> None:
    """Integers, floats, decimals and text are the same number."""
    assert read(frame().with_columns(cells.alias("Amount EUR")))["amount"].to_list() == [1.0, 2.0]


def test_truth_values_are_numbers() -> None:
    """True is 1, false is 0."""
    for cells in ([True, False, None], ["true", "False", None], ["TRUE", "0", ""]):
        result = parse_number(pl.Series(cells), "on")
        assert result.values.to_list() == [1.0, 0.0, None]
        assert result.problems.null_count() == 3


@pytest.mark.parametrize("cells", [[1.0, float("nan")], *(["1", word] for word in ("NaN", "NA", "", " ", "null"))])
def test_nan_and_the_words_for_missing_are_missing_readings(cells: list[Any]) -> None:
    """A missing reading is null and no problem."""
    result = parse_number(pl.Series(cells), "flow")
    assert result.values.to_list() == [1.0, None]
    assert result.problems.to_list() == [None, None]


@pytest.mark.parametrize("cells", [[1.0, float("inf")], [1.0, float("-inf")], ["1", "inf"], ["1", "1e400"]])
def test_infinity_is_a_problem(cells: list[Any]) -> None:
    """An infinite reading is no reading: null, with a problem."""
    result = parse_number(pl.Series(cells), "flow")
    assert result.values.to_list() == [1.0, None]
    assert result.problems.to_list() == [None, "flow: infinite"]


def test_infinity_is_kept_in_the_raw_row() -> None:
    """JSON has no infinity: `raw` keeps it as text and stays JSON."""
    raw = read(frame(**{"Amount EUR": [float("inf"), 1.0], "more": [float("nan"), 1.0]}))["raw"][0]
    assert json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["Amount EUR"] == "inf"


@pytest.mark.parametrize("text", ["1,5", "0x10", "1_000", "1 000", "12 EUR", "--1"])
def test_what_only_looks_like_a_number_is_a_problem(text: str) -> None:
    """Nothing is guessed: a number with more in its cell is not a number."""
    result = parse_number(pl.Series(["1", text]), "amount")
    assert result.problems.to_list() == [None, f"amount: '{text}' is not a number"]


def test_names_are_text_of_any_type_and_trimmed() -> None:
    """Whole numbers lose the `.0` that a missing neighbour gave them, so that an entity keeps its name."""
    assert parse_text(pl.Series([596, 4961]), "entity").values.to_list() == ["596", "4961"]
    assert parse_text(pl.Series([596.0, None, 2.5]), "entity").values.to_list() == ["596", None, "2.5"]
    assert parse_text(pl.Series([" pump-1 ", "pump-1"]), "entity").values.n_unique() == 1


def test_a_line_break_in_a_name_is_a_problem() -> None:
    """Two lines that a stray quote has made one do not pass as an entity."""
    assert parse_text(pl.Series(["a", "a,1\na"]), "entity", required=True).problems.to_list() == [
        None,
        "entity: has a line break",
    ]


@pytest.mark.parametrize(
    "cell",
    [
        "2024-05-01T12:00:00Z", "2024-05-01 12:00:00.000", "2024-05-01T14:00:00+02:00", "2024-05-01T14:00:00.0+0200",
        "2024-05-01 14:00:00+02", "2024-05-01 12:00:00 UTC", "2024-05-01T12:00", "2024-05-01 07:00 -05:00",
        " 2024-05-01 12:00:00,000 ", "1714564800", "1714564800.0", "1714564800000", "1714564800000000",
        1714564800, 1714564800.0, 1714564800_000, 1714564800_000_000, 1714564800_000_000_000,
        datetime(2024, 5, 1, 12), NOON,
    ],
)  # fmt: skip
def test_every_spelling_of_a_moment_is_that_moment(cell: Any) -> None:
    """ISO 8601 with and without a zone, naive and aware datetimes, and time since 1970 in any unit."""
    result = parse_time(pl.Series([cell]), "event_time", "UTC")
    assert (result.values.to_list(), result.problems.to_list()) == ([NOON], [None])


def test_spellings_may_be_mixed_in_a_column() -> None:
    """Each text is read by itself."""
    cells = pl.Series(["2024-05-01", "2024-05-01T14:00:00+02:00", "1714564800", "2024-05-01 12:00", "x", "", None])
    result = parse_time(cells, "event_time", "UTC")
    assert result.values.to_list() == [datetime(2024, 5, 1, tzinfo=UTC), NOON, NOON, NOON, None, None, None]
    told = ["event_time: 'x' is not a time", "event_time: missing", "event_time: missing"]
    assert result.problems.to_list() == [None] * 4 + told


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_datetimes_of_every_unit_become_microseconds(unit: Any) -> None:
    """The unit that a Parquet file was written with does not matter."""
    cells = pl.Series([datetime(2024, 5, 1, 12)], dtype=pl.Datetime(unit))
    for column in (cells, cells.dt.replace_time_zone("Asia/Tokyo").dt.convert_time_zone("UTC")):
        assert parse_time(column, "event_time", "UTC").values.dtype == pl.Datetime("us", "UTC")
    assert parse_time(cells, "event_time", "UTC").values.to_list() == [NOON]


@pytest.mark.parametrize("cell", [datetime(2024, 5, 1, 14), "2024-05-01 14:00:00"])
def test_naive_times_are_taken_in_the_zone_of_the_dataset(cell: Any) -> None:
    """14 o'clock in Berlin's summer is noon in UTC; a date is its first moment there."""
    assert parse_time(pl.Series([cell]), "event_time", "Europe/Berlin").values.to_list() == [NOON]
    midnight = parse_time(pl.Series([date(2024, 5, 1)]), "event_time", "Europe/Berlin").values
    assert midnight.to_list() == [datetime(2024, 4, 30, 22, tzinfo=UTC)]


@pytest.mark.parametrize("as_text", [True, False])
def test_times_that_the_change_of_clocks_skips_or_repeats_are_problems(as_text: bool) -> None:
    """Such a row keeps a near instant, so that it stands in the quarantine of its own day."""
    cells = pl.Series([datetime(2024, 3, 31, 2, 30), datetime(2024, 10, 27, 2, 30), datetime(2024, 10, 27, 4)])
    result = parse_time(cells.dt.to_string() if as_text else cells, "event_time", "Europe/Berlin")
    assert "does not exist in Europe/Berlin" in result.problems[0]
    assert "happens twice in Europe/Berlin" in result.problems[1]
    assert result.problems[2] is None
    near = [datetime(2024, 3, 31, 1, 30, tzinfo=UTC), datetime(2024, 10, 27, 0, 30, tzinfo=UTC)]
    assert result.values.to_list()[:2] == near


def test_a_file_of_unclear_times_only_is_not_refused() -> None:
    """The hour that happens twice is a problem of its rows, not of the column's type."""
    table = frame(when=[datetime(2024, 10, 27, 2, 10), datetime(2024, 10, 27, 2, 20)])
    assert read(table, zone="Europe/Berlin")["problems"].list.len().to_list() == [1, 1]


@pytest.mark.parametrize("cell", ["0001-01-01 00:00", "9999-12-31", "20240131", 20240131, 17, -5, 1e300, float("inf")])
def test_implausible_times_are_problems(cell: Any) -> None:
    """Counters, dates written as numbers and fill-in years are not taken for moments."""
    result = parse_time(pl.Series([cell, None]), "event_time", "UTC")
    assert result.values.to_list() == [None, None]
    assert "is not a time" in result.problems[0]
    assert result.problems[1] == "event_time: missing"


@given(
    st.lists(st.datetimes(min_value=datetime(1980, 1, 2), max_value=datetime(2199, 1, 1)), min_size=1, max_size=20),
    st.sampled_from(["iso", "naive", "aware"]),
)
def test_moments_survive_every_way_of_writing_them(moments: list[datetime], way: str) -> None:
    """Law: what was written as a moment is read as that moment, to the microsecond."""
    aware = pl.Series(moments, dtype=pl.Datetime("us")).dt.replace_time_zone("UTC")
    cells = {"iso": aware.dt.to_string("iso:strict"), "naive": aware.dt.replace_time_zone(None), "aware": aware}[way]
    assert parse_time(cells, "event_time", "UTC").values.to_list() == aware.to_list()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_survive_text(numbers: list[float]) -> None:
    """Law: a number written as text is read as that number, to the last bit."""
    cells = pl.Series([repr(number) for number in numbers])
    assert parse_number(cells, "flow").values.to_list() == numbers


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_no_text_crashes_a_parser(cells: list[str]) -> None:
    """Law: any text gives one value or null per cell, in order."""
    column = pl.Series(cells, dtype=pl.String)
    assert parse_number(column, "x").values.len() == len(cells)
    assert parse_time(column, "x", "Europe/Berlin").values.len() == len(cells)
    assert parse_text(column, "x", required=True).values.len() == len(cells)


def test_a_duration_is_no_text() -> None:
    """Polars cannot write one."""
    cells = parse_text(pl.Series([timedelta(seconds=1), None]), "entity")
    assert cells.values.to_list() == [None, None]
    assert cells.problems.to_list() == ["entity: a value of type Duration(time_unit='us') is not a text", None]
