"""Bytes become rows; a line that is no row keeps its place, a file that is no file is refused."""

import gzip
import io
import json
import math
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.canonical import Rows
from pipeline.errors import GateRefusedError
from pipeline.parsing import count_lines, parse

HEADER = "pump,time,flow\n"
NEEDED = ["pump", "time", "flow"]


def csv(text: str | bytes, needed: list[str] | None = None) -> Rows:
    return parse(text if isinstance(text, bytes) else text.encode(), "csv", "f.csv", needed or NEEDED)


def ndjson(*lines: str) -> Rows:
    return parse("\n".join(lines).encode(), "ndjson", "f.ndjson", NEEDED)


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def test_csv_cells_are_text_and_empty_cells_null() -> None:
    """Nothing is inferred from a CSV: every cell is its text."""
    rows = csv(HEADER + 'a,1,\n"b, c",,"2.50"\n')
    assert rows.frame.rows() == [("a", "1", None), ("b, c", None, "2.50")]
    assert rows.trouble.null_count() == 2


@pytest.mark.parametrize(
    "data",
    [
        "\ufeff" + HEADER + "a,1,2\n",
        HEADER.replace("\n", "\r\n") + "a,1,2\r\n",
        "\n\n" + HEADER + "\n\na,1,2\n\n",
        HEADER + "a,1,2",
        (HEADER + "a,1,2\n").replace(",", ";"),
        (HEADER + "a,1,2\n").replace(",", "\t"),
        gzip.compress((HEADER + "a,1,2\n").encode(), mtime=0),
    ],
)
def test_csv_of_every_make_is_read(data: str | bytes) -> None:
    """Byte order mark, Windows line ends, empty lines, no last line end, other separators, gzip."""
    rows = csv(data)
    assert rows.frame.columns == NEEDED
    assert rows.frame.rows() == [("a", "1", "2")]


@pytest.mark.parametrize("data", [HEADER, HEADER.strip(), HEADER + "\n\r\n"])
def test_csv_with_a_header_only_has_no_rows(data: str) -> None:
    """A header without rows is a file without rows, not an error."""
    assert csv(data).frame.columns == NEEDED
    assert csv(data).frame.height == 0


def test_ragged_csv_lines_keep_their_place_their_cells_and_their_text() -> None:
    """Too few and too many fields are told, and nothing shifts or is lost."""
    rows = csv(HEADER + "a,1,2\nb,1\n\nc,1,2,9,9\nd,1,2\n")
    assert rows.frame.rows() == [("a", "1", "2"), ("b", "1", None), ("c", "1", "2"), ("d", "1", "2")]
    assert rows.trouble.to_list() == [
        None, "the line has 2 fields, the header has 3", "the line has 5 fields, the header has 3", None,
    ]  # fmt: skip
    assert rows.lines.to_list() == [None, "b,1", "c,1,2,9,9", None]


def test_a_csv_in_which_every_line_is_ragged_has_all_its_lines() -> None:
    """Not one line can be read as a row, and each is still there."""
    rows = csv(HEADER + "a\nb,1,2,3\n")
    assert rows.trouble.null_count() == 0
    assert rows.lines.to_list() == ["a", "b,1,2,3"]


def test_an_unclosed_quote_costs_its_own_line_only() -> None:
    """A quote that swallows the rest of the file is told, and the lines behind it are rows."""
    rows = csv(HEADER + 'a,1,2\n"b,1,2\n' + "c,1,2\n" * 1000)
    assert rows.frame.height == 1002
    assert rows.trouble.is_not_null().arg_true().to_list() == [1]
    assert rows.trouble[1] == "the line has a quote that is never closed"
    assert rows.lines[1] == '"b,1,2'
    assert rows.frame.row(1001) == ("c", "1", "2")


def test_a_quoted_line_break_is_part_of_its_cell() -> None:
    """A well-formed row may span lines, and the numbering of ragged rows counts it once."""
    rows = csv(HEADER + '"a\nb",1,2\nc,1\nd,1,2\n')
    assert rows.frame["pump"].to_list() == ["a\nb", "c", "d"]
    assert rows.trouble.is_not_null().to_list() == [False, True, False]


def test_a_very_long_field_is_no_crash() -> None:
    """Also where lines are read one by one, which has a limit to a field."""
    rows = csv(HEADER + f'a,1,2\n"b,1,2\n{"x" * 200_000},1,2\n')
    assert rows.frame.height == 3
    assert rows.lines.is_not_null().to_list() == [False, True, True]


def test_a_doubled_column_is_refused_only_where_it_is_needed() -> None:
    """Which of two `flow` columns is meant cannot be told; two nameless columns do not matter."""
    with pytest.raises(GateRefusedError, match=r"f\.csv.*'flow' twice"):
        csv("pump,time,flow,flow\na,1,2,3\n")
    assert csv("pump,time,flow,,\na,1,2,3,4\n").frame.select(NEEDED).rows() == [("a", "1", "2")]


@pytest.mark.parametrize(
    ("data", "form", "words"),
    [
        (b"", "csv", "is empty"),
        (b"", "parquet", "is empty"),
        (b"", "ndjson", "is empty"),
        (b" \n\n", "csv", "no line of text"),
        (b"\n", "ndjson", "no line of text"),
        (gzip.compress(b"", mtime=0), "csv", "no line of text"),
        (b"pump,time,flow\n\xff\xfe,1,2\n", "csv", "not UTF-8"),
        ("pump\n".encode("utf-16"), "csv", "not UTF-8"),
        (gzip.compress(HEADER.encode() * 999, mtime=0)[:-9], "csv", "not a whole gzip"),
        (b"\x1f\x8b\x08garbage garbage", "csv", "not a whole gzip"),
        (b"pump,time,flow\n", "parquet", "not a whole Parquet"),
    ],
)
def test_what_is_no_file_of_its_kind_is_refused(data: bytes, form: str, words: str) -> None:
    """One sentence names the file and what to do."""
    with pytest.raises(GateRefusedError, match=rf"f\.x .*{words}.*(deliver|convert)"):
        parse(data, form, "f.x")


def test_a_parquet_file_cut_off_anywhere_is_refused() -> None:
    """An upload that broke off is told at every length."""
    data = parquet(pl.DataFrame({"pump": ["a", "b"] * 50, "flow": [1.0, 2.0] * 50}))
    assert parse(data, "parquet", "f.x").frame.height == 100
    for length in range(1, len(data), 7):
        with pytest.raises(GateRefusedError, match="not a whole Parquet"):
            parse(data[:length], "parquet", "f.x")


def test_ndjson_values_are_text_and_absent_keys_null() -> None:
    """Numbers, texts and truth values alike; what the dataset does not name stays in the line."""
    rows = ndjson('{"pump": 7, "time": "t", "flow": 1.50, "more": [1]}', "", '{"pump": "b", "flow": true}\r')
    assert rows.frame.rows() == [("7", "t", "1.5"), ("b", None, "true")]
    assert json.loads(rows.lines[0])["more"] == [1]


@pytest.mark.parametrize("line", ["nope", '{"pump": "b"', "[1]", "3", "null", '{"pump": 1} {"pump": 2}', "{'pump': 1}"])
def test_a_line_that_is_no_json_object_keeps_its_place_and_text(line: str) -> None:
    """The lines around it are read."""
    rows = ndjson('{"pump": "a", "flow": 0.1}', line, '{"pump": "c", "time": "t", "flow": NaN}')
    assert rows.frame["pump"].to_list() == ["a", None, "c"]
    assert rows.frame["flow"].to_list() == ["0.1", None, "NaN"]
    assert rows.trouble.is_not_null().to_list() == [False, True, False]
    assert rows.lines[1] == line


def test_an_ndjson_key_that_no_line_has_is_a_missing_column() -> None:
    """A key that is null in every line is there; a key that no line has is not."""
    assert ndjson('{"pump": "a", "time": "t", "flow": null}').frame.columns == NEEDED
    assert ndjson('{"pump": "a", "time": "t"}').frame.columns == ["pump", "time"]


def test_without_needed_columns_every_column_is_read() -> None:
    """What a look at unknown data needs."""
    assert parse(b'{"a": 1}\n{"b": 2}\n', "ndjson", "f").frame.columns == ["a", "b"]
    assert parse(b"a;b\n1;2\n", "csv", "f").frame.columns == ["a", "b"]


cell = st.text(st.characters(exclude_characters="\x00\r", codec="utf-8"), max_size=6)


@given(st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=8))
def test_csv_gives_back_what_was_written(table: list[tuple[str, str, str]]) -> None:
    """Law: any text in any cell, quoted as CSV asks, is read as itself, in order; empty text is null."""
    frame = pl.DataFrame(table, schema=NEEDED, orient="row")
    rows = csv(frame.write_csv(quote_style="always"))
    assert rows.frame.rows() == [tuple(text or None for text in row) for row in table]
    assert rows.trouble.null_count() == len(table)


value = st.none() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | cell


@given(st.lists(st.tuples(cell, value), min_size=1, max_size=8), st.booleans())
def test_ndjson_gives_back_what_was_written(table: list[tuple[str, Any]], broken: bool) -> None:
    """Law: any value is read as its text, on the way with and on the way without a broken line in the file."""
    lines = [json.dumps({"pump": name, "time": "t", "flow": flow}) for name, flow in table]
    frame = ndjson(*lines, *(["{"] if broken else [])).frame.head(len(table))
    assert frame["pump"].to_list() == [name for name, _ in table]
    for (_, flow), text in zip(table, frame.get_column("flow", default=pl.Series([None] * 99)), strict=False):
        if isinstance(flow, float):
            assert math.isclose(float(text), flow, rel_tol=0, abs_tol=0)
        else:
            assert text == (None if flow is None else str(flow))


@given(st.binary(max_size=200), st.sampled_from(["csv", "ndjson", "parquet"]))
def test_no_bytes_crash_a_parser(data: bytes, form: str) -> None:
    """Law: any bytes are rows or are refused with a sentence."""
    try:
        rows = parse(data, form, "f.x", ["a"])
    except GateRefusedError:
        return
    assert rows.frame.height == rows.trouble.len() == rows.lines.len()


def test_columns_without_a_name_or_with_the_same_are_told_apart() -> None:
    """A header may end with a comma, and name columns twice that nobody needs; their cells stay text, ragged or not."""
    rows = parse(b"a,b,,x,x,\n1,2,,4,5,\n1,2\n", "csv", "f.csv", ["a", "b"])
    assert rows.frame.columns == ["a", "b", " (3)", "x", "x (5)", " (6)"]
    assert rows.frame.rows() == [("1", "2", None, "4", "5", None), ("1", "2", None, None, None, None)]
    assert rows.frame.dtypes == [pl.String] * 6


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_any_program_ends_them(end: str) -> None:
    """Windows, and old Macs of which spreadsheets still write the format."""
    rows = parse(f"a,b{end}1,2{end}{end}3,4".encode(), "csv", "f.csv")
    assert rows.frame.rows() == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize(
    ("text", "lines"),
    [("", 0), ("a", 1), ("a\n", 1), ("\n\na\r\n\r\nb\r", 2), ('a\n"x\n\ny",2\n', 2), ('"', 1), (" \n", 1)],
)
def test_lines_are_counted_by_their_bytes(text: str, lines: int) -> None:
    """An empty line is none; a line end within quotes ends none."""
    assert count_lines(text.encode()) == lines


@pytest.mark.parametrize("line", ['5" pipe,1', 'm0,"a\n"b', "  ", '"",', 'a"b"c,1'])
def test_whatever_quotes_stand_in_a_line_it_is_a_row(line: str) -> None:
    """Rows are counted twice; where the counts differ, each line is a row of its own."""
    rows = parse(f"a,b\nx,1\n{line}\ny,2\n".encode(), "csv", "f.csv")
    assert {"x", "y"} <= {cell for cell in rows.frame["a"].to_list() if cell} or rows.trouble.is_not_null().any()
    assert rows.frame.height >= 3


def test_a_line_of_blanks_alone_is_a_row_of_its_own() -> None:
    """Only an empty line is none, whatever else the file has."""
    assert parse(b"a,b\n  \n", "csv", "f.csv").trouble.to_list() == ["the line has 1 fields, the header has 2"]


def test_a_header_with_nul_bytes_is_refused() -> None:
    """As UTF-16 has them, where no mark at its beginning tells it."""
    with pytest.raises(GateRefusedError, match=r"f\.csv: the first line cannot be read as names of columns"):
        parse("a,b\n1,2\n".encode("utf-16-le"), "csv", "f.csv")


def test_two_objects_on_a_line_are_one_bad_row() -> None:
    """So that rows and lines stay as many."""
    rows = parse(b'{"a": 1}\n{"a": 2}{"a": 3}\n', "ndjson", "f.ndjson", ["a"])
    assert rows.frame.height == 2
    assert rows.trouble.is_not_null().to_list() == [False, True]


@pytest.mark.parametrize("zone", ["+05:30", "Nowhere/At_All", "Europe/Berlin", "UTC"])
def test_a_parquet_files_instants_are_the_same_in_any_zone(zone: str) -> None:
    """In an offset too, which Polars does not take for a zone, or where nobody knows the zone."""
    data, moment = io.BytesIO(), datetime(2026, 1, 5, 12, tzinfo=UTC)
    times = pa.array([moment, None], pa.timestamp("us", "UTC")).cast(pa.timestamp("us", zone))
    pyarrow.parquet.write_table(pa.table({"time": times, "flow": [1.0, 2.0]}), data)
    frame = parse(data.getvalue(), "parquet", "f.x").frame
    assert frame["flow"].to_list() == [1.0, 2.0]
    assert frame["time"].dt.convert_time_zone("UTC").to_list() == [moment, None]


def test_a_parquet_file_that_counts_its_rows_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its footer says, and what can be read, must be the same."""
    data = io.BytesIO()
    pl.DataFrame({"a": [1, 2, 3]}).write_parquet(data)
    read = pl.read_parquet
    monkeypatch.setattr(pl, "read_parquet", lambda source: read(source).head(2))
    with pytest.raises(GateRefusedError, match=r"f\.parquet says that it has 3 rows, but 2 can be read"):
        parse(data.getvalue(), "parquet", "f.parquet")


def test_half_a_character_in_json_is_a_bad_row() -> None:
    """JSON can escape what is no Unicode text; the rows around it are read."""
    rows = ndjson('{"pump": "a", "time": "t", "flow": 1}', '{"pump": "\\ud800", "time": "t", "flow": 1}')
    assert rows.frame["pump"].to_list() == ["a", None]
    assert "surrogates not allowed" in str(rows.trouble[1])


def test_a_number_too_large_beside_a_line_that_is_no_object_is_its_own_text() -> None:
    """It is judged as a cell, as it is where every line is an object."""
    rows = ndjson('{"pump": "a", "time": "t", "flow": 1e999}', "7")
    assert rows.frame["flow"].to_list() == ["1e999", None]
