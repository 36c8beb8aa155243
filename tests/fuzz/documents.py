"""What people write by hand, at its worst: datasets, suites, labels, calendars and sheets of verdicts."""

import copy
import csv
import io
import math
from datetime import date, datetime
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from pipeline.suites import expectation_types
from tests.conftest import SENSOR, TRANSACTION
from tests.fuzz.files import NASTY, Delivered, damaged, encoded

ROOT = Path(__file__).parents[2]
FULL = (
    TRANSACTION.replace(
        "sequence_features:", "sequence_features:\n  - {name: known, kind: label_rate, of: shop, over: 5d}"
    )
    + """
labels: {path: "{home}/labels/*.csv", event_id: payment, label: is_fraud, delay: 1d}
calendar: {path: "{home}/calendar.csv", entries: [{start: 2026-01-06, entities: ["c*"], reason: holiday,
action: mark}]}
notify: {urls_env: [], most: 5, cooldown: 2}
incidents: {merge_within: 1h}
training: {days: 7, calibration: 0.3, holdout: 0.1, promotion: auto}
schedule: "30 2 * * *"
deadline: "06:00"
"""
)
SHIPPED = {name: (ROOT / "datasets" / f"{name}.yaml").read_text() for name in ("pumps", "cards")}
DATASETS = [SENSOR, TRANSACTION, FULL, *(text.replace(f"name: {name}", "name: demo") for name, text in SHIPPED.items())]
SHIPPED_SUITES = {name: (ROOT / "expectations" / f"{name}.yaml").read_text() for name in SHIPPED}
SUITE = """
readable: 0.9
expectations:
  - {type: expect_column_values_to_not_be_null, column: entity, severity: critical, mostly: 0.99}
  - {type: expect_column_values_to_be_between, column: flow, min_value: -50, max_value: 1, mostly: 0.1}
  - {type: expect_column_values_to_match_regex, column: entity, regex: "^m[0-9]$", severity: info}
  - {type: expect_column_values_to_be_in_set, column: entity, value_set: [m0, m1], severity: warning}
  - {type: expect_column_mean_to_be_between, column: heat, min_value: -9, max_value: 9, severity: warning}
  - {type: expect_table_row_count_to_be_between, min_value: 1, severity: critical}
"""
SUITES = [SUITE, SHIPPED_SUITES["pumps"]]

# --- values of any kind, and documents that were changed by hand

SCALARS = st.sampled_from([
    None, True, False, 0, -1, 1, 10**30, -(10**30), 10**400, 0.5, -0.1, 1.5, 1e308, 5e-324, math.nan, math.inf,
    -math.inf,
    "", " ", "x", "é", "🦀", "null", "\x00", "a\nb", "x" * 5000, "{home}", "../../../etc/passwd", "/", "~", "1d",
    "0s", "5 m",
    "-5m", "1e9d", "99999999999d", "NaN", "inf", "UTC", "America", "Nowhere/Town", "leapseconds", "localtime",
    "a/../UTC",
    "30 2 * * *", "* * * * *", "99 99 * * *", "0 0 31 2 *", "0 0 * * 8-", "25:00", "06:00", 390, date(2026, 1, 5),
    datetime(2026, 1, 5, 1), "[", "*", "{home}/source/[", "ftp://x/y.csv", "a.csv", "amount", "flow", "entity",
    "event_time",
    "all", "sensor", "transaction", "numeric", "categorical", "$(reboot)", "'; DROP TABLE x", b"\xff\x00", "DEMO_URL",
])  # fmt: skip
VALUES = SCALARS | SCALARS | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY | SCALARS, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a document, with each of its keys or positions."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


@st.composite
def _changed(draw: st.DrawFn, document: Any, values: st.SearchStrategy[Any], most: int = 3) -> Any:
    """The document with a few changes: values replaced, keys missing, misspelt or unknown, entries doubled."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, most))):
        places = _places(document)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "misspell", "double", "wrap"])):
            case "replace":
                container[key] = draw(values)
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(NASTY)] = draw(values)
            case "misspell" if isinstance(container, dict):
                container[f"{key}s"] = container.pop(key)
            case "double" if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case "wrap":
                container[key] = [container[key]]
    return document


def _bomb(levels: int, width: int) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"description: *a{levels - 1}", ""])


def _merge_bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}]}}" for n in range(1, levels)]
    return "\n".join([*lines, ""])


FRAGMENTS = st.sampled_from([
    "!!python/object/apply:os.system ['touch /tmp/pwned']\n", "x: !!python/name:os.system\n",
    "x: !!python/module:os\n",
    "x: !custom {a: 1}\n", "x: !!int abc\n", "x: !!bool maybe\n", "x: !!float ''\n", "x: !!timestamp soon\n",
    "x: !!set [1]\n",
    "x: !!binary '*'\n", "x: 2026-13-45\n", "x: 9" + "9" * 5000 + "\n", "x: 190:20:30\n", "<<: 7\n", "<<: *nothing\n",
    "description: &a [*a]\n", "description: &a {b: *a}\n", "? [1, 2]\n: 3\n", "? {a: b}\n: 3\n", "--- \n", "...\n",
    "%YAML 9.9\n",
    "\t\n", "a: b: c\n", "kind: sensor\n", "entity: other\n", "entity: other\n", "readable: 0.5\n", "x: |\n  long\n",
    "- 1\n",
    "x: " + "[" * 3000 + "\n", "x: " + "[" * 400 + "]" * 400 + "\n", "x: " + "{a: " * 900 + "\n", "x: '\n",
    'x: "\\ud800"\n',
    "\x00", "\x07", "\ufeff", "\u2028", "🦀: 1\n", "description: \"\\0\"\n", "description: 'é'\n", "~: 1\n", "1: 2\n",
    "true: no\n",
    _bomb(9, 9), _bomb(30, 9), _merge_bomb(25, 9), "expectations: 7\n", "name: other\n", "file: x\n", "=: 1\n",
    "x: =\n",
])  # fmt: skip


@st.composite
def _written(draw: st.DrawFn, document: st.SearchStrategy[Any], texts: list[str]) -> bytes:
    """A document as YAML, mostly as such, sometimes with a piece of text put into it or its bytes changed."""
    text = yaml.safe_dump(draw(document), sort_keys=False, allow_unicode=draw(st.booleans()))
    match draw(st.sampled_from([*["dumped"] * 9, "fragment", "fragment", "lines", "bytes", "other"])):
        case "fragment":
            lines = draw(st.sampled_from(texts)).splitlines(keepends=True)
            lines.insert(
                draw(st.sampled_from([0, len(lines), len(lines)]) | st.integers(0, len(lines))), draw(FRAGMENTS)
            )
            text = "".join(lines)
        case "lines":  # one gone, one doubled, one moved
            lines = text.splitlines(keepends=True) or [""]
            line = lines.pop(draw(st.integers(0, len(lines) - 1)))
            for _ in range(draw(st.integers(0, 2))):
                lines.insert(draw(st.integers(0, len(lines))), line)
            text = "".join(lines)
        case "bytes":
            return draw(damaged(st.just((draw(st.sampled_from(texts)).encode(), None))))[0]
        case "other":
            text = draw(
                st.sampled_from(["", "\n", "# nothing\n", "null", "7", "text", "[]", "{}", "- a\n- b\n", "---\n---\n"])
            )
    return draw(encoded(text))


def datasets() -> st.SearchStrategy[bytes]:
    """A dataset's YAML."""
    documents = st.sampled_from(DATASETS).flatmap(lambda text: _changed(yaml.safe_load(text), VALUES))
    return _written(documents, DATASETS)


# --- suites

PATTERNS = st.sampled_from([
    "^m", "(a+)+$", "(a|a)*b", "^(([a-z])+.)+[A-Z]([a-z])+$", "(.*)*x", "(?=m)m", "(?<=m)0", "(m)\\1", "[", "(", "*",
    "a{99999}",
    "(?P<x>m)", "(?i)M", "(?#", "\\", "\\Z", "\\d+", "", "m0|", "\\p{L}", "(?:(?:(?:a{50}){50}){50})", "🦀", "\x00",
    ".{1000}.{1000}",
])  # fmt: skip
BOUNDS = st.sampled_from([0, -50, 50, 0.5, 1, date(2026, 1, 5), datetime(2026, 1, 5, 1)])
ARGUMENTS = {
    "column": st.sampled_from(["machine", "nothing", "", None, 7, "day", "source"]),
    "regex": PATTERNS | PATTERNS | PATTERNS | VALUES,
    "regex_list": st.lists(PATTERNS, max_size=2) | VALUES,
    "mostly": st.sampled_from(
        [0, 1, 0.5, 0.999, 0, 1, 0.5, 0.1, -0.1, 1.1, math.nan, math.inf, "0.5", None, True, 1e-300, 10**30]
    ),
    "min_value": VALUES | BOUNDS | BOUNDS,
    "max_value": VALUES | BOUNDS | BOUNDS,
    "value_set": VALUES | st.lists(SCALARS, max_size=3) | st.lists(st.sampled_from(["m0", "m1"]), max_size=2),
    "threshold": st.floats(0, 9) | BOUNDS,
    "type_": st.sampled_from(["float64", "str", "object", "datetime64[us, UTC]", "nothing"]),
    "type_list": st.lists(st.sampled_from(["float64", "str"]), max_size=2),
    "strftime_format": st.sampled_from(["%Y", "%", "nothing"]),
    "value": st.integers(-1, 60) | VALUES,
    "quantile_ranges": st.just({"quantiles": [0.1, 0.9], "value_ranges": [[-9, 0], [None, 9]]}) | VALUES,
    "strict_min": st.booleans(),
    "double_sided": st.booleans(),
    "severity": st.sampled_from(["critical", "warning", "info", "warning", "info", "fatal"]),
}


@st.composite
def _entries(draw: st.DrawFn) -> Any:
    """An entry of a suite: of any type, with arguments that its schema asks for, or others."""
    types = expectation_types()
    known = draw(st.sampled_from([*types, "expect_nothing", 7, None]))
    schema = types.get(known, {}) if isinstance(known, str) else {}
    entry: dict[str, Any] = {"type": known}
    required = [name for name in schema.get("required", []) if name in schema["properties"]]
    optional = [name for name in schema.get("properties", {}) if name not in required]
    usual = [name for name in optional if name in ARGUMENTS]
    chosen = draw(st.lists(st.sampled_from(usual * 5 + optional), max_size=2)) if optional else []
    for name in [*required, *chosen, *(["column"] if draw(st.booleans()) else [])]:
        columns = st.sampled_from(["flow", "heat", "entity", "event_time"])
        sets = st.lists(columns, min_size=1, max_size=2)
        fitting = columns if name.startswith("column") and "list" not in name and "set" not in name else sets
        entry[name] = draw(
            fitting if name.startswith("column") and draw(st.integers(0, 9)) else ARGUMENTS.get(name, VALUES)
        )
    return entry


def suites() -> st.SearchStrategy[bytes]:
    """A suite's YAML."""
    own = st.fixed_dictionaries({"expectations": st.lists(_entries(), min_size=1, max_size=2)})
    return _written(own | own | _changed(yaml.safe_load(SUITE), VALUES), SUITES)


# --- tables that people keep

MARKS = st.sampled_from(
    [
        "0",
        "1",
        "true",
        "False",
        "0",
        "1",
        "",
        "0",
        "1",
        "2",
        "yes",
        "-1",
        "nan",
        "inf",
        "0.5",
        "1.0",
        " 1 ",
        "\x00",
        "٣",
    ]
)
PAYMENTS = st.integers(0, 30).map(lambda n: f"0-{n}") | NASTY | st.just("unknown")


@st.composite
def _sheet_of(
    draw: st.DrawFn, header: list[str], row: st.SearchStrategy[tuple[str, ...]], separators: str = ","
) -> bytes:
    """A CSV with that header, or nearly, and rows."""
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=draw(st.sampled_from(separators)),
        lineterminator=draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])),
    )
    names = draw(
        st.just(header)
        | st.just(header)
        | st.just(header)
        | st.permutations(header)
        | st.lists(st.sampled_from([*header, "x", ""]), max_size=6)
    )
    writer.writerow(names)
    writer.writerows(draw(st.lists(row, max_size=4)))
    content = draw(encoded(text.getvalue()))
    return draw(damaged(st.just((content, None))))[0] if draw(st.integers(0, 5)) == 0 else content


def labels() -> st.SearchStrategy[Delivered]:
    """A file of labels."""
    good = st.tuples(st.integers(0, 30).map(lambda n: f"0-{n}"), st.sampled_from(["0", "1"]))
    rows = good | good | st.tuples(PAYMENTS, MARKS)
    names = st.sampled_from(["l.csv", "it's 1%.csv", "día\n.csv"])
    whole = st.lists(good, unique_by=lambda row: row[0]).map(
        lambda known: ("\n".join(["payment,is_fraud", *(f"{one},{mark}" for one, mark in known)]).encode(), len(known))
    )
    content = st.tuples(_sheet_of(["payment", "is_fraud"], rows), st.none()) | whole
    return st.builds(lambda name, told: Delivered(name, *told), names, content)


def calendars() -> st.SearchStrategy[bytes]:
    """The table of a calendar."""
    moment = st.sampled_from(["2026-01-05", "2026-01-06", "2026-01-05T08:00", "2026-01-05T08:00+25:00", "", "soon",
    "2026-02-30",
                              "9999-12-31", "0001-01-01", "2026-03-29T02:30", "05.01.2026", "20260105",
                              "2026-W01-1"])  # fmt: skip
    entities = st.sampled_from(["", "c1", "c1;c2", "c*", "[", ";;", "c[", "🦀"]) | NASTY
    action = st.sampled_from(["mark", "suppress", "", "delete", "MARK"])
    good = st.tuples(
        st.just("2026-01-05"), st.sampled_from(["", "2026-01-06"]), entities, st.just("day off"), st.just("mark")
    )
    row = good | good | good | st.tuples(moment, moment, entities, NASTY | st.just("holiday"), action)
    return _sheet_of(["start", "end", "entities", "reason", "action"], row, ",;")


def verdicts(ids: list[str]) -> st.SearchStrategy[bytes]:
    """A sheet of verdicts on the incidents with those `ids`."""
    word = st.sampled_from(["confirmed", "dismissed", "withdrawn", "", "Confirmed ", "maybe", "1"])
    good = st.tuples(st.sampled_from(ids), st.sampled_from(["confirmed", "dismissed"]), NASTY)
    row = (
        good
        | good
        | good
        | st.tuples(st.sampled_from([*ids, "", "0" * 16, "'1e5"]) | NASTY, word, NASTY | st.just("x" * 3000))
    )
    return _sheet_of(["id", "verdict", "note"], row, ",;\t")
