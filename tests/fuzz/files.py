"""Files as they are delivered at their worst: what a source writes, in every format, and what happens on its way."""

import csv
import gzip
import io
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

COLUMNS = ("machine", "time", "flow", "heat")
START = datetime(2026, 1, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A file of a source; `rows` is how many rows whoever wrote it has put into it,
    None where that cannot be said."""

    name: str
    content: bytes
    rows: int | None


@st.composite
def encoded(draw: st.DrawFn, text: str) -> bytes:
    """The text in UTF-8, mostly; in another encoding, as some programs write it, otherwise."""
    return text.encode(draw(ENCODINGS), errors="replace")


# --- cells

MOMENTS = st.sampled_from([START + timedelta(hours=h) for h in (-1, 0, 1, 12, 23, 24, 30)]) | st.integers(
    0, 2 * 86400 - 1
).map(lambda s: START + timedelta(seconds=s))
TIMES = MOMENTS.map(lambda t: t.strftime("%Y-%m-%d %H:%M:%S")) | st.sampled_from([
    "2026-01-05T00:00:00Z", "2026-01-05 23:59:59.999999999", "2026-01-05T24:00:00", "2026-01-05T12:00:60Z",
    "2026-01-05T12:00:00+14:00", "2026-01-05T12:00:00-99:99", "2026-03-29 02:30:00", "2026-10-25 02:30:00",
    "2024-02-29", "2023-02-29", "1767571200", "1767571200000", "1767571200000000000", "1e400", "-1", "0", "20260105",
    "05.01.2026", "01/05/2026 11:00 PM", "5 Jan 2026", "now", "2999-12-31T00:00:00Z", "9999-12-31T23:59:59.999999",
    "0001-01-01", "1899-12-31", "2200-12-31", "2026-13-45", "2026-W02-1", "26-01-05", "٢٠٢٦-٠١-٠٥", "NaT", "",
])  # fmt: skip
NUMBERS = st.floats(-60, 60).map(lambda x: f"{x:.3f}") | st.sampled_from([
    "", "nan", "NaN", "inf", "-Infinity", "1e309", "-1e-320", "0x10", "1,5", "1.5.5", "1_000", "٣", "½", "--1", "+1",
    "null", "None", "N/A", "true", "FALSE", "99999999999999999999999", " 7 ", "7\t", "1e5", "'7", "=1+1", "\x00", "",
])  # fmt: skip
NASTY = st.sampled_from([
    "", " ", "a,b", 'say "hi"', '"', '""', "two\nlines", "cr\rhere", "tab\there", "nul\x00", "\ufeffbom", "m\u202e0",
    "<script>alert(1)</script>", "'; DROP TABLE clean; --", "../../etc/passwd", "%s%n", "${HOME}", "{0}", "=cmd()",
    "🦀", "e\u0301", "\u0000\u0001", "null", "NaN", "true", "m0" * 500, "__HIVE_DEFAULT_PARTITION__", "\\N", "\\",
]) | st.text(st.characters(codec="utf-8"), max_size=8)  # fmt: skip
MACHINES = st.sampled_from(["m0", "m1", "m2"])
GOOD = st.tuples(MACHINES, MOMENTS.map(lambda t: t.isoformat()), st.floats(-50, 50).map(str), st.floats(0, 9).map(str))
BAD = st.tuples(MACHINES | NASTY, TIMES, NUMBERS, NUMBERS | NASTY)
TABLES = st.lists(GOOD | BAD, max_size=8) | st.lists(GOOD, min_size=1, max_size=12)


# --- CSV

HEADERS = st.just(list(COLUMNS)) | st.sampled_from([
    ["time", "machine", "heat", "flow"], [*COLUMNS, "flow"], [*COLUMNS, "extra", "extra"], [*COLUMNS, ""],
    [" machine", "time ", "flow", "heat"], ["Machine", "TIME", "Flow", "Heat"], ["machine", "time", "flow"], [],
    ["machine"], ["\ufeffmachine", "time", "flow", "heat"], ["machine", "time", "flow", 'he"at'], ["a", "b", "c",
    "d"],
    ["machine", "time", "flow", "he\nat"], [*COLUMNS, *(f"c{i}" for i in range(300))],
])  # fmt: skip
LINE_ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\r\r\n"])
ENCODINGS = st.sampled_from([*["utf-8"] * 24, "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])


@st.composite
def _plain_csv(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """A CSV as programs write it: whatever its cells hold, its rows can be counted."""
    header, rows = draw(HEADERS), draw(TABLES)
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=draw(st.sampled_from(",,,;\t|")),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        lineterminator="\n",
    )
    writer.writerow(header)
    writer.writerows(rows)
    encoding = draw(ENCODINGS)
    known = len(rows) if encoding.startswith("utf-8") and set(COLUMNS) <= set(header) else None
    return text.getvalue().encode(encoding, errors="replace"), known


@st.composite
def _careless_csv(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """A CSV as scripts write it: cells without quotes, lines of any length, blank lines, any line ends."""
    separator = draw(st.sampled_from([",", ",", ";", "\t", "|"]))
    lines = [separator.join(row) for row in draw(TABLES)]
    for _ in range(draw(st.integers(0, 3))):
        lines.insert(
            draw(st.integers(0, len(lines))), draw(st.sampled_from(["", " ", ",", ",,,,,,,", '"', "m0", "# x", "\x00"]))
        )
    ends = draw(st.lists(LINE_ENDS, min_size=1, max_size=3))
    text = "".join(
        line + ends[number % len(ends)] for number, line in enumerate([separator.join(draw(HEADERS)), *lines])
    )
    return (text.rstrip("\r\n") if draw(st.booleans()) else text).encode(draw(ENCODINGS), errors="replace"), None


@st.composite
def _enormous_csv(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """A cell, a line or a header that is far too long."""
    filler = draw(st.sampled_from(["x", "é", '""', ","])) * draw(st.sampled_from([1000, 200_000, 3_000_000]))
    row = draw(
        st.sampled_from([f"m0,2026-01-05,1,{filler}", f'"{filler}",2026-01-05,1,2', f'm0,2026-01-05,1,"{filler}'])
    )
    return f"machine,time,flow,heat\nm1,2026-01-05,1,1\n{row}\nm2,2026-01-05,1,1\n".encode(), None


CSVS = _plain_csv() | _careless_csv() | _plain_csv() | _careless_csv() | _enormous_csv()


# --- NDJSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**25), 10**25) | st.floats() | NASTY | TIMES | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=4,
)
OBJECTS = st.builds(lambda row: dict(zip(COLUMNS, row, strict=True)), GOOD | BAD) | st.fixed_dictionaries(
    {}, optional=dict.fromkeys((*COLUMNS, "extra"), VALUES)
)
JSON_LINES = OBJECTS.map(json.dumps) | OBJECTS.map(lambda o: json.dumps(o, ensure_ascii=False)) | st.sampled_from([
    "{}", "[]", "[1,2]", "null", "7", '"text"', "{", '{"machine": ', "not json", '{"machine": "m0",}', "[" * 5000,
    '{"machine":' * 3000, "{'machine': 'm0'}",
    '{"machine":"m0","machine":"m1","time":"2026-01-05","flow":1,"heat":1}',
    '{"machine":"\\ud800","time":"2026-01-05","flow":1,"heat":1}',
    '{"machine":"m0","time":"2026-01-05","flow":1e999}',
    '{"flow":' + "9" * 5000 + "}", "\x00", "\u2028", '{"machine":"a\nb"}', '{"a":1}{"b":2}', "// comment",
])  # fmt: skip


@st.composite
def _ndjson(draw: st.DrawFn) -> tuple[bytes, int | None]:
    lines = draw(st.lists(JSON_LINES, max_size=8))
    ends = draw(st.sampled_from(["\n", "\n", "\r\n", "\n\n"]))
    encoding = draw(ENCODINGS)
    known = sum(1 for line in "\n".join(lines).split("\n") if line.strip()) if encoding == "utf-8" else None
    return ends.join(lines).encode(encoding, errors="replace"), known


# --- Parquet


def _column(draw: st.DrawFn, values: list[st.SearchStrategy[tuple[pa.DataType, Any]]], rows: int) -> pa.Array:
    kind, cells = draw(st.one_of(values))
    return pa.array(draw(st.lists(cells | st.none(), min_size=rows, max_size=rows)), kind)


def _kind(kind: pa.DataType, cells: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[pa.DataType, Any]]:
    return st.just((kind, cells))


INT64 = st.integers(-(2**63), 2**63 - 1)
NAIVE = MOMENTS.map(lambda t: t.replace(tzinfo=None)) | st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1))
AWARE = NAIVE.map(lambda t: t.replace(tzinfo=UTC))
ODD = [
    _kind(pa.null(), st.none()),
    _kind(pa.list_(pa.float64()), st.lists(st.floats(), max_size=2)),
    _kind(pa.struct([("a", pa.int64())]), st.fixed_dictionaries({"a": st.integers(0, 9)})),
    _kind(pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(MACHINES, st.integers(0, 9)), max_size=2)),
    _kind(pa.binary(), st.binary(max_size=4)),
    _kind(pa.binary(4), st.binary(min_size=4, max_size=4)),
    _kind(pa.bool_(), st.booleans()),
    _kind(pa.decimal128(38, 10), st.decimals(-(10**20), 10**20, places=10)),
    _kind(pa.time64("us"), st.times()),
    _kind(pa.duration("us"), st.timedeltas(timedelta(-9), timedelta(9))),
    _kind(pa.date32(), st.dates(date(1000, 1, 1), date(3000, 1, 1))),
    _kind(pa.uint64(), st.integers(0, 2**64 - 1)),
    _kind(pa.float16(), st.floats(width=16)),
]
ENTITIES = [
    *[_kind(pa.string(), MACHINES), _kind(pa.string(), MACHINES | NASTY), _kind(pa.large_string(), MACHINES)],
    *[_kind(pa.dictionary(pa.int8(), pa.string()), MACHINES), _kind(pa.int64(), INT64)],
    _kind(pa.float64(), st.floats() | st.integers(0, 9).map(float)),
    *ODD,
]
INSTANTS = [
    *[_kind(pa.timestamp(unit, "UTC"), AWARE) for unit in ("ms", "us", "us")],
    *[_kind(pa.timestamp("us"), NAIVE), _kind(pa.timestamp("ns", "+05:30"), AWARE)],
    _kind(pa.timestamp("us", "Europe/Berlin"), AWARE),
    _kind(pa.timestamp("s", "UTC"), AWARE),
    _kind(pa.timestamp("us", "UTC"), MOMENTS),
    *[_kind(pa.timestamp("us", "UTC"), MOMENTS), _kind(pa.string(), TIMES)],
    *[_kind(pa.int64(), INT64), _kind(pa.int64(), st.just(1767571200)), _kind(pa.float64(), st.floats())],
    *ODD,
]
READINGS = [
    *[
        _kind(pa.float64(), st.floats()),
        _kind(pa.float64(), st.floats(-50, 50)),
        _kind(pa.float32(), st.floats(width=32)),
    ],
    *[_kind(pa.int64(), INT64), _kind(pa.int8(), st.integers(-128, 127)), _kind(pa.string(), NUMBERS)],
    *ODD,
]

ODDLY = dict(zip(COLUMNS, (ENTITIES, INSTANTS, READINGS, READINGS), strict=True))
USUAL = {
    "machine": _kind(pa.string(), MACHINES),
    "time": _kind(pa.timestamp("us", "UTC"), MOMENTS),
    "flow": _kind(pa.float64(), st.floats(-50, 50)),
    "heat": _kind(pa.float64(), st.floats(-50, 50)),
}


@st.composite
def _parquet(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """A valid file of odd types, or of odd columns."""
    rows = draw(st.sampled_from([0, 1, 2, 3, 5, 8]))
    # A column of a type that cannot be read at all refuses the file: most files have one odd column at most.
    odd = draw(st.sampled_from([*COLUMNS, "none", "every"]))
    arrays = {name: _column(draw, ODDLY[name] if odd in (name, "every") else [USUAL[name]], rows) for name in COLUMNS}
    names = draw(
        st.just(list(COLUMNS)) | st.lists(st.sampled_from([*COLUMNS, "day", "source", "problems"]), max_size=7)
    )
    spare = pa.nulls(rows)
    table = pa.Table.from_arrays([arrays.get(name, spare) for name in names], names=names)
    file = io.BytesIO()
    pyarrow.parquet.write_table(
        table, file, row_group_size=draw(st.sampled_from([1, 3, 1000])), version=draw(st.sampled_from(["1.0",
        "2.6"])),
        compression=draw(st.sampled_from(["none", "snappy", "zstd", "gzip"])), use_dictionary=draw(st.booleans()),
    )  # fmt: skip
    return file.getvalue(), rows if set(COLUMNS) <= set(names) else None


# --- what happens on the way


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[tuple[bytes, int | None]]) -> tuple[bytes, int | None]:
    """A file of which bytes were changed, cut off, doubled or replaced."""
    content = bytearray(draw(whole)[0])
    for _ in range(draw(st.integers(1, 3))):
        place = min(len(content) * draw(st.sampled_from(range(100))) // 100 + draw(st.integers(0, 9)), len(content) - 1)
        match draw(
            st.sampled_from(
                ["cut", "flip", "flip", "flip", "insert", "insert", "drop", "drop", "double", "nothing left"]
            )
        ):
            case "cut" if content:
                del content[place:]
            case "flip" if content:
                content[place] ^= draw(st.integers(1, 255))
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "drop":
                del content[place : place + draw(st.integers(1, 40))]
            case "double":
                content += bytes(content)
            case "nothing left":
                content = bytearray(
                    draw(st.sampled_from([b"", b"\n", b"\x00", b" ", b"PAR1", b"PAR1PAR1", b"\x1f\x8b"]))
                )
    return bytes(content), None


def _zipped(strategy: st.SearchStrategy[tuple[bytes, int | None]]) -> st.SearchStrategy[tuple[bytes, int | None]]:
    return strategy.map(lambda told: (gzip.compress(told[0], 1, mtime=0), told[1]))


CONTENTS = {
    "csv": CSVS | CSVS | damaged(CSVS),
    "csv.gz": _zipped(CSVS) | damaged(_zipped(_plain_csv())),
    "ndjson": _ndjson() | _ndjson() | damaged(_ndjson()),
    "parquet": _parquet() | _parquet() | damaged(_parquet()),
}
STEMS = st.sampled_from(["a", "b", "c"]) | st.sampled_from([
    "it's", 'q"uote', "two words", "100%", "%2F", "a%20b", "día", "日本", "🦀", "new\nline", "tab\t", "back\\slash",
    "[a]",
    "a=b", "day=2026-01-05", "-rf", "~", "$HOME", "a;b", "a'--", "{home}", "*", "?", "x" * 240, "é" * 110, "con", " ",
    "\udcff", "a..b", "e\u0301", "#", "&amp;", "<b>", "__HIVE_DEFAULT_PARTITION__", "null", "\x7f", "a:b", "\u202e",
])  # fmt: skip


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[str, list[Delivered]]:
    """The ending of a source's files, and one to three of them."""
    form = draw(st.sampled_from(list(CONTENTS)))
    files = []
    for stem in draw(st.lists(STEMS, min_size=1, max_size=3, unique=True)):
        content, rows = draw(CONTENTS[form])
        files.append(Delivered(f"{stem}.{form}", content, rows))
    if len(files) > 1 and draw(st.booleans()):  # the same file again under another name
        files[1] = Delivered(files[1].name, files[0].content, files[0].rows)
    return form, files
