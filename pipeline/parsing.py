"""The bytes of a source file into rows: Parquet, CSV (also gzip) and NDJSON.

CSV and NDJSON cells are read as text and judged later, cell by cell (`pipeline.canonical`). A line that is no row keeps
its place among the rows, with its text and what is wrong with it; a file that is no file of its kind is refused. Every
row is counted a second time, past the library that reads it. An empty line is no row.
"""

import csv
import gzip
import io
import json
import re
import zlib
from typing import Any
from zoneinfo import available_timezones

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.canonical import Rows, nulls
from pipeline.errors import GateRefusedError, one_line

LONGEST_ROW = 1 << 26  # bytes; a CSV row (with its quoted line breaks) must fit into one block of the parser
SEPARATORS = ",;\t|"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, of which Polars makes a text that is none
LINE_END = re.compile(r"\r\n|\n|\r")


def parse(data: bytes, form: str, label: str, needed: list[str] | None = None) -> Rows:
    """The rows in a file's bytes; `form` is parquet, csv or ndjson, `label` names the file in messages.

    `needed` are the columns that the file must have (None: whatever there is). Raises `GateRefusedError` where the file
    as a whole cannot be read.
    """
    if not data:
        raise GateRefusedError(f"{label} is empty (0 bytes); deliver it again, or take it away")
    if form == "parquet":
        return Rows.whole(label, _parse_parquet(data, label))
    text = _text(data, label)
    return _parse_csv(text, label, needed) if form == "csv" else _parse_ndjson(text, label, needed)


def _parse_parquet(data: bytes, label: str) -> pl.DataFrame:
    try:
        frame = _read_parquet(data)
        rows = pyarrow.parquet.read_metadata(io.BytesIO(data)).num_rows
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, pa.ArrowException) as error:
        raise GateRefusedError(f"{label} is not a whole Parquet file ({one_line(error)}); deliver it again") from error
    if frame.height != rows:
        raise GateRefusedError(f"{label} says that it has {rows:,} rows, but {frame.height:,} can be read; deliver it "
                               "again")  # fmt: skip
    return frame


def _read_parquet(data: bytes) -> pl.DataFrame:
    """The rows; Polars panics at a zone that it does not know, such as +05:30, and an instant is the same in any."""
    schema = pyarrow.parquet.read_schema(io.BytesIO(data))
    aware = {field.name: field.type for field in schema if pa.types.is_timestamp(field.type) and field.type.tz}
    known = available_timezones() if aware else set()
    unknown = {name: pa.timestamp(kind.unit, "UTC") for name, kind in aware.items() if kind.tz not in known}
    if not unknown:
        return pl.read_parquet(io.BytesIO(data))
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    in_utc = pa.schema([field.with_type(unknown.get(field.name, field.type)) for field in schema])
    return pl.DataFrame(table.cast(in_utc))


def _text(data: bytes, label: str) -> str:
    """The file's text, unpacked where it is gzip, without a byte order mark and leading empty lines."""
    try:
        unpacked = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        raise GateRefusedError(f"{label} is not a whole gzip file ({one_line(error)}); deliver it again") from error
    try:
        text = unpacked.decode("utf-8-sig").lstrip("\r\n")
    except UnicodeDecodeError as error:
        raise GateRefusedError(f"{label} is not UTF-8 text ({one_line(error)}); convert it to UTF-8") from error
    if not text or text.isspace():
        raise GateRefusedError(f"{label} holds no line of text; deliver it again, or take it away")
    return text


def _parse_csv(text: str, label: str, needed: list[str] | None) -> Rows:
    """Every cell as text. A line with too few or too many fields keeps those that it has, and its whole text."""
    separator, header = _header(text, needed)
    if not header or "\0" in "".join(header):
        raise GateRefusedError(f"{label}: the first line cannot be read as names of columns; deliver UTF-8 text, of "
                               "which the first line names the columns")  # fmt: skip
    names = _unique(header)
    if doubled := sorted({name for name in header if header.count(name) > 1} & set(needed or [])):
        raise GateRefusedError(f"{label}: the header names the column {doubled[0]!r} twice; rename one of them")
    try:
        frame, broken = _fast_csv(text, separator, names)
        sure = not any("\n" in line for line in broken.values()) and _counts(
            text, separator, frame.height + len(broken)
        )
    except pa.ArrowInvalid:  # a quote that is never closed, so that a "row" outgrows the parser's block
        sure = False
    if not sure:
        frame, broken = _line_by_line(text, separator, names)
    return _with_broken(label, frame, broken, separator, len(names))


def _header(text: str, needed: list[str] | None) -> tuple[str, list[str]]:
    """The separator that makes the first line hold the needed columns (else: most columns), and that line's fields."""
    first = LINE_END.split(text, maxsplit=1)[0]
    headers = [(separator, _split(first, separator)) for separator in SEPARATORS]
    return max(headers, key=lambda pair: (len(set(pair[1]) & set(needed or [])), len(pair[1])))


def _split(line: str, separator: str) -> list[str]:
    """The line's fields; none where a field is too long to be one."""
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


def _unique(header: list[str]) -> list[str]:
    """Column names without doubles and without empty ones: these get the number of their column."""
    names: list[str] = []
    for number, name in enumerate(header, start=1):
        while not name or name in names:
            name = f"{name} ({number})"  # noqa: PLW2901 - until no column is called so
        names.append(name)
    return names


def _fast_csv(text: str, separator: str, names: list[str]) -> tuple[pl.DataFrame, dict[int, str]]:
    """The well-formed rows, and the text of the others by their row number (0-based, header and empty lines apart)."""
    broken: dict[int, str] = {}

    def keep(row: Any) -> str:
        broken[row.number - 2] = row.text  # 1-based, and the header is the first
        return "skip"

    if not re.search(r"[\r\n]\s*\S", text):
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String)), broken
    table = pyarrow.csv.read_csv(
        pa.BufferReader(text.encode()),
        # One thread, as only then the rows are numbered.
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=LONGEST_ROW, column_names=names, skip_rows_after_names=1
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=keep),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )
    return pl.DataFrame(pl.from_arrow(table)), broken


def _counts(text: str, separator: str, rows: int) -> bool:
    """Whether the text has that many rows: by its bytes, or where quotes stand within cells, by Python's CSV reader."""
    if count_lines(text.encode()) - 1 == rows:
        return True
    try:
        return sum(map(bool, csv.reader(io.StringIO(text, newline=""), delimiter=separator))) - 1 == rows
    except csv.Error:
        return False


def count_lines(data: bytes) -> int:
    """How many lines with anything in them a CSV has, its header included; a line end in quotes ends none."""
    signs = np.frombuffer(data, np.uint8)
    quoted = np.logical_xor.accumulate(signs == ord('"'))
    content = quoted | ((signs != ord("\n")) & (signs != ord("\r")))
    return int(np.count_nonzero(content[:1]) + np.count_nonzero(content[1:] & ~content[:-1]))


def _line_by_line(text: str, separator: str, names: list[str]) -> tuple[pl.DataFrame, dict[int, str]]:
    """As `_fast_csv`, each line by itself: one quote that is never closed then costs its own line only."""
    lines = [line for line in LINE_END.split(text)[1:] if line]
    rows = [_split(line, separator) for line in lines]
    broken = {i: lines[i] for i, row in enumerate(rows) if len(row) != len(names) or lines[i].count('"') % 2}
    whole = [[cell or None for cell in row] for i, row in enumerate(rows) if i not in broken]
    return pl.DataFrame(whole, schema=dict.fromkeys(names, pl.String), orient="row"), broken


def _with_broken(label: str, frame: pl.DataFrame, broken: dict[int, str], separator: str, width: int) -> Rows:
    """The well-formed rows of `frame` with the broken ones in their places."""
    if not broken:
        return Rows.whole(label, frame)
    places = set(broken)
    whole = [place for place in range(frame.height + len(broken)) if place not in places]
    extra = [_fields(line, separator, width) for line in broken.values()]
    rows = pl.concat(
        [
            frame.with_columns(pl.lit(None, dtype=pl.String).alias(mark) for mark in ("\0trouble", "\0line")),
            pl.DataFrame(extra, schema=[*frame.columns, "\0trouble", "\0line"], orient="row").cast(pl.String),
        ]
    ).with_columns(pl.Series("\0place", whole + list(broken)))
    rows = rows.sort("\0place")
    return Rows(label, rows.select(frame.columns), rows["\0trouble"], rows["\0line"])


def _fields(line: str, separator: str, width: int) -> list[str | None]:
    """The fields that a broken line has (as many as the header), then what is wrong with it, then its text."""
    cells = _split(line, separator)
    trouble = f"the line has {len(cells)} fields, the header has {width}"
    if line.count('"') % 2:
        cells, trouble = [], "the line has a quote that is never closed"
    padded: list[str | None] = [cell or None for cell in cells[:width]]
    return [*padded, *[None] * (width - len(padded)), trouble, line]


def _parse_ndjson(text: str, label: str, needed: list[str] | None) -> Rows:
    """Every value as text; a line that is not a JSON object is a row without values."""
    lines = pl.Series([line for line in text.split("\n") if line.strip()], dtype=pl.String)
    names = needed if needed is not None else _keys(lines)
    trouble = nulls(lines.len())
    try:
        frame = _json_frame(lines, names)
        sure = frame.height == lines.len() and not SURROGATE.search(text)
    except pl.exceptions.PolarsError:
        sure = False
    if not sure:
        objects, trouble = _json_objects(lines)
        frame = _json_frame(objects, names)
    absent = [name for name in frame.columns if frame[name].null_count() == frame.height]
    there = set(_keys(lines)) if absent else set()
    return Rows(label, frame.drop(name for name in absent if name not in there), trouble, lines)


def _json_frame(lines: pl.Series, names: list[str]) -> pl.DataFrame:
    text = "\n".join(lines).encode()
    return pl.read_ndjson(io.BytesIO(text), schema=dict.fromkeys(names, pl.String))


def _json_objects(lines: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Each line as strict JSON (`{}` where it is none), and what is wrong with it."""
    parsed = [_json_object(line) for line in lines]
    objects = [json.dumps(row) if isinstance(row, dict) else "{}" for row in parsed]
    return pl.Series(objects), pl.Series([row if isinstance(row, str) else None for row in parsed], dtype=pl.String)


def _json_object(line: str) -> dict[str, Any] | str:
    """The line's object, or what is wrong with the line; fractions, NaN and 1e999 become text, judged as cells."""
    try:
        row = json.loads(line, parse_constant=str, parse_float=str)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair can be escaped, but is no text
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {one_line(error)}"
    return row if isinstance(row, dict) else "the line is JSON but not an object"


def _keys(lines: pl.Series) -> list[str]:
    """The keys of all lines that are objects, in order of appearance."""
    objects = (_json_object(line) for line in lines)
    return list(dict.fromkeys(key for row in objects if isinstance(row, dict) for key in row))
