"""Validation: rows are judged by the suite, none is lost, and the gate leaves alone what it refuses to replace."""

import html
import json
import random
import re
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipeline.config import Dataset, Home
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError
from pipeline.judge import Judged, Sorted, evaluate, judge, sort_out
from pipeline.lake import Lake
from pipeline.state import State, read_state, states, write_state
from pipeline.suites import expectation_types, load_suite, parse_suite
from pipeline.tables import clean_schema, landing_schema, quarantine_schema
from pipeline.validate import input_digest, validate
from pipeline.workspace import Workspace

DAY = date(2024, 1, 2)
NOON = datetime(2024, 1, 2, 12, tzinfo=UTC)
FLOW = {"name": "flow", "unit": "m3/h", "min": 0, "max": 400}
COMMON = {"source": {"path": "x.csv"}, "entity": "who", "event_time": "time"}
SENSOR = Dataset(name="pumps", kind="sensor", cadence="1m", features=[FLOW, {"name": "load"}], **COMMON)
PAYMENTS = Dataset(
    name="payments",
    kind="transaction",
    event_id="id",
    features=[{"name": "amount", "min": 0}, {"name": "fee"}, {"name": "category", "type": "categorical"}],
    **COMMON,
)
FLOW_BETWEEN = "{type: expect_column_values_to_be_between, column: flow, min_value: 0, max_value: 400, "


def landed(
    rows: list[dict[str, Any]], dataset: Dataset = SENSOR, file: str = "a.csv", digest: str = "d1"
) -> pl.DataFrame:
    """Landing rows of DAY; what a row leaves out is an ordinary value, numbered in the file's order."""
    made = [
        {"day": DAY, "entity": "p", "event_time": NOON + timedelta(minutes=n), "flow": 10.0, "load": 1.0,
         "event_id": f"e{n}", "amount": 5.0, "fee": 0.5, "category": "food", "source": file, "source_digest": digest,
         "source_row": n, "problems": [], "raw": None, **row}
        for n, row in enumerate(rows)
    ]  # fmt: skip
    return pl.DataFrame(made, schema=landing_schema(dataset))


def with_flows(*flows: float | None) -> pl.DataFrame:
    return landed([{"flow": flow} for flow in flows])


def workspace(folder: Path, *entries: str, dataset: Dataset = SENSOR, head: str = "") -> Workspace:
    """A workspace in `folder` whose suite holds `entries` (the default suite where there are none)."""
    if entries:
        (folder / "suite.yaml").write_text(
            head + "expectations:\n" + "".join(f"- {e}\n" for e in entries), encoding="utf-8"
        )
        dataset = dataset.model_copy(update={"suite": "suite.yaml", "file": folder / f"{dataset.name}.yaml"})
    return Workspace(dataset, Home(folder / "home"), Lake(str(folder / "lake"), dataset.name))


def land(ws: Workspace, rows: pl.DataFrame) -> None:
    for (source,), part in rows.group_by("source"):
        ws.lake.replace_source(part, str(source))


def table(ws: Workspace, name: str) -> pl.DataFrame:
    schema = {"clean": clean_schema, "quarantine": quarantine_schema}[name](ws.dataset)
    return ws.lake.scan(name, schema).collect()


def reasons(ws: Workspace) -> list[list[str]]:
    return table(ws, "quarantine")["reasons"].to_list()


def versions(ws: Workspace) -> list[int]:
    return [ws.lake.version(name) for name in ("clean", "quarantine", "partitions")]


# --- the gate


def test_failing_rows_of_a_met_critical_expectation_go_to_quarantine(tmp_path: Path) -> None:
    """Enough rows pass: the day is clean but for the failing rows, which are kept whole with the reason in words."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.5}")
    land(ws, with_flows(10, 812, -1.5, 20))
    done = validate(ws, DAY)
    assert (done.rows_in, done.rows_clean, done.rows_quarantined, done.rows_duplicate) == (4, 2, 2, 0)
    assert (done.warnings, done.skipped, done.day) == ([], False, "2024-01-02")
    assert reasons(ws) == [["flow: 812 is above 400 m3/h"], ["flow: -1.5 is below 0 m3/h"]]
    assert table(ws, "clean")["flow"].to_list() == [10, 20]
    assert_frame_equal(table(ws, "quarantine").drop("reasons"), with_flows(10, 812, -1.5, 20)[1:3])


def test_a_missed_critical_expectation_refuses_the_day_and_changes_nothing(tmp_path: Path) -> None:
    """Too few rows pass: the message says dataset, day, expectation, shares and examples; the tables stay."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.5}")
    land(ws, with_flows(10, 812))
    validate(ws, DAY)
    before = versions(ws), table(ws, "clean"), table(ws, "quarantine")
    land(ws, landed([{"flow": flow} for flow in (812, 813, 814, 10)], digest="d2"))
    with pytest.raises(GateRefusedError) as caught:
        validate(ws, DAY)
    for words in ("pumps 2024-01-02", "expect_column_values_to_be_between of flow", "25.00% of the rows pass",
                  "50.00% must", "flow: 812 is above 400 m3/h", "suite.yaml, entry 1"):  # fmt: skip
        assert words in str(caught.value)
    assert versions(ws)[:2] == before[0][:2]
    assert states(ws)["step"].to_list() == ["refused", "validate"]
    assert_frame_equal(table(ws, "clean"), before[1])
    assert_frame_equal(table(ws, "quarantine"), before[2])


def test_every_missed_critical_expectation_is_told(tmp_path: Path) -> None:
    """One refusal lists all that must be mended, not the first alone."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.9}", "{type: expect_column_values_to_not_be_null, column: load}")
    land(ws, landed([{"flow": 900}, {"load": None}]))
    with pytest.raises(GateRefusedError, match=r"(?s)of flow.*of load.*load: is missing"):
        validate(ws, DAY)


def test_input_that_is_put_back_after_a_refusal_is_judged_again(tmp_path: Path) -> None:
    """A page never goes on saying `refused` of a day that is fine."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.5}")
    land(ws, with_flows(10, 20))
    validate(ws, DAY)
    land(ws, landed([{"flow": 900}], digest="d2"))
    with pytest.raises(GateRefusedError):
        validate(ws, DAY)
    land(ws, with_flows(10, 20))
    done = validate(ws, DAY)
    assert "passed" in Path(done.docs).read_text(encoding="utf-8")
    assert validate(ws, DAY).skipped


def test_a_missed_warning_quarantines_and_is_reported(tmp_path: Path) -> None:
    """`warning`: the night goes on without the failing rows, and says so."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.9, severity: warning}")
    land(ws, with_flows(10, 812, 813))
    done = validate(ws, DAY)
    assert (done.rows_clean, done.rows_quarantined) == (1, 2)
    (warning,) = done.warnings
    assert warning.startswith(
        "warning: expect_column_values_to_be_between of flow: 33.33% of the rows pass, 90.00% must"
    )


def test_a_met_warning_quarantines_in_silence(tmp_path: Path) -> None:
    """`warning` with enough passing rows: the failing ones go to quarantine, and nothing is reported."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.5, severity: warning}")
    land(ws, with_flows(10, 20, 813))
    done = validate(ws, DAY)
    assert (done.rows_quarantined, done.warnings) == (1, [])


def test_info_keeps_the_rows(tmp_path: Path) -> None:
    """`info`: failing rows stay in clean and are only reported."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "severity: info}")
    land(ws, with_flows(10, 812))
    done = validate(ws, DAY)
    assert (done.rows_clean, done.rows_quarantined) == (2, 0)
    assert done.warnings[0].startswith("info: ")


ROW_COUNT = "{type: expect_table_row_count_to_be_between, min_value: 3, severity: "


def test_expectations_about_the_day_stop_or_report(tmp_path: Path) -> None:
    """Without rows to put aside, `critical` stops the night and `warning` reports what was found."""
    ws = workspace(tmp_path, ROW_COUNT + "critical}")
    land(ws, with_flows(10, 20))
    with pytest.raises(GateRefusedError, match=r"not met \(found 2\), expected min_value 3"):
        validate(ws, DAY)
    ws = workspace(tmp_path, ROW_COUNT + "warning}")
    done = validate(ws, DAY)
    assert (done.rows_clean, len(done.warnings)) == (2, 1)


def test_a_row_that_fails_twice_has_both_reasons(tmp_path: Path) -> None:
    """A quarantined row is counted once and tells everything that is wrong with it, in the suite's order."""
    ws = workspace(
        tmp_path,
        "{type: expect_column_values_to_be_between, column: load, max_value: 5, mostly: 0.5}",
        FLOW_BETWEEN + "mostly: 0.5}",
    )
    land(ws, landed([{"flow": 900, "load": 7.25}, {}, {}]))
    assert validate(ws, DAY).rows_quarantined == 1
    assert reasons(ws) == [["load: 7.25 is above 5", "flow: 900 is above 400 m3/h"]]


def test_an_expectation_that_does_not_fit_its_column_is_a_configuration_error(tmp_path: Path) -> None:
    """Numbers asked of a text column: the message names the entry and what the library said; no traceback."""
    ws = workspace(tmp_path, "{type: expect_column_values_to_be_between, column: entity, min_value: 1}")
    land(ws, with_flows(10))
    with pytest.raises(
        ConfigError, match=r"suite\.yaml, entry 1: expect_column_values_to_be_between cannot be applied"
    ):
        validate(ws, DAY)


AMOUNT = "{type: expect_column_values_to_be_between, column: amount, "
REASONS = [
    (AMOUNT + "min_value: 5, strict_min: true}", "amount: 5 is not above 5"),
    (AMOUNT + "max_value: 5, strict_max: true}", "amount: 5 is not below 5"),
    ("{type: expect_column_values_to_be_in_set, column: category, value_set: [rent, fun]}",
     "category: food is not one of rent, fun"),
    ("{type: expect_column_values_to_not_be_in_set, column: category, value_set: [food]}",
     "category: food is not allowed"),
    ("{type: expect_column_values_to_match_regex, column: category, regex: ^x}", "category: food does not match ^x"),
    ("{type: expect_column_value_lengths_to_equal, column: category, value: 3}",
     "category: food does not meet expect_column_value_lengths_to_equal (value 3)"),
    ("{type: expect_column_pair_values_to_be_equal, column_A: category, column_B: entity}",
     "category: food, entity: p does not meet expect_column_pair_values_to_be_equal"),
    ("{type: expect_column_values_to_be_between, column: event_time, min_value: 2024-01-03}",
     "event_time: 2024-01-02 12:00:00+00:00 is below 2024-01-03 00:00:00+00:00"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "reason"), REASONS, ids=[reason for _, reason in REASONS])
def test_reasons_are_words(entry: str, reason: str) -> None:
    """Why a row is in quarantine can be read without knowing the library."""
    suite = parse_suite(f"expectations:\n- {entry[:-1]}, severity: warning}}", "suite.yaml", PAYMENTS)
    parts = sort_out(landed([{}], PAYMENTS), PAYMENTS)
    assert judge(parts, suite, PAYMENTS).quarantine["reasons"].to_list() == [[reason]]


ARGUMENTS = {
    "column": "amount", "column_A": "amount", "column_B": "fee", "column_list": ["entity", "category"],
    "column_set": ["entity"], "value_set": [1, 2], "value_pairs_set": [[1, 1]], "regex": "^x", "regex_list": ["^x"],
    "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[0, 1]]}, "type_": "float64", "value": 1, "threshold": 1,
    "double_sided": True, "strftime_format": "%Y", "sum_total": 3, "min_value": 0, "max_value": 100,
}  # fmt: skip


@pytest.mark.parametrize("name", expectation_types())
def test_every_type_that_is_offered_can_be_applied(name: str) -> None:
    """Whatever a suite may hold runs on a day's rows, and tells its failing rows where it judges rows."""
    known = expectation_types()[name]["properties"]
    entry = {"type": name, "severity": "warning", **{key: value for key, value in ARGUMENTS.items() if key in known}}
    if any(word in name for word in ("regex", "length", "strftime")):
        entry["column"] = "category"
    if "sum_to_equal" in name:
        entry["column_list"] = ["amount", "fee"]
    suite = parse_suite(json.dumps({"expectations": [entry]}), "suite.yaml", PAYMENTS)
    rows = landed([{"amount": 200.0, "category": "x"}, {"category": None}, {"amount": None}], PAYMENTS)
    judged = judge(sort_out(rows, PAYMENTS), suite, PAYMENTS)
    (result,) = judged.result.results
    assert judged.quarantine.height == (
        result.result.get("unexpected_count", 0) if suite.expectations[0].row_level else 0
    )
    assert bool(judged.warnings) is not result.success


# --- rows that cannot be read


def test_unreadable_rows_keep_their_problems(tmp_path: Path) -> None:
    """A row that ingest could not read is quarantined with ingest's words and its raw text."""
    ws = workspace(tmp_path)
    rows: list[dict[str, Any]] = [{} for _ in range(20)]
    rows[3] = {"flow": None, "problems": ["flow: 'n/a' is not a number"], "raw": '{"flow": "n/a"}'}
    land(ws, landed(rows))
    assert validate(ws, DAY).rows_quarantined == 1
    (row,) = table(ws, "quarantine").rows(named=True)
    assert (row["reasons"], row["raw"]) == (["flow: 'n/a' is not a number"], '{"flow": "n/a"}')


def test_a_day_that_is_mostly_unreadable_is_refused(tmp_path: Path) -> None:
    """When a source changes its format, the night stops and reports no silent machines; the suite sets the share."""
    rows = landed([{"problems": ["flow: 'x' is not a number"]}, {}])
    ws = workspace(tmp_path)
    land(ws, rows)
    with pytest.raises(GateRefusedError, match=r"50\.0% of the rows can be read, 90\.0% must be.*'x' is not a number"):
        validate(ws, DAY)
    ws = workspace(tmp_path, FLOW_BETWEEN + "}", head="readable: 0.5\n")
    assert validate(ws, DAY).rows_clean == 1


def test_a_day_without_a_single_readable_row_is_refused(tmp_path: Path) -> None:
    """Nothing is left for the suite to judge: the gate still refuses, with the reason."""
    ws = workspace(tmp_path)
    land(ws, landed([{"problems": ["flow: 'x' is not a number"]}]))
    with pytest.raises(GateRefusedError, match=r"0\.0% of the rows can be read"):
        validate(ws, DAY)


def test_infinite_is_quarantined_and_nan_is_missing(tmp_path: Path) -> None:
    """No infinite value reaches clean; not-a-number is a missing reading."""
    ws = workspace(tmp_path, "{type: expect_column_to_exist, column: load}", head="readable: 0.5\n")
    land(ws, landed([{"load": float("inf")}, {"load": float("nan")}]))
    validate(ws, DAY)
    assert reasons(ws) == [["load: the value is infinite"]]
    assert table(ws, "clean")["load"].to_list() == [None]


# --- duplicates


def test_the_last_of_two_readings_at_one_time_stays(tmp_path: Path) -> None:
    """A sensor has one reading at a time: the later file and row wins, the others are counted."""
    ws = workspace(tmp_path)
    same = {"event_time": NOON}
    land(
        ws, pl.concat([landed([{**same, "flow": 1}, {**same, "flow": 2}], file="b.csv"), landed([same], file="a.csv")])
    )
    done = validate(ws, DAY)
    assert (done.rows_clean, done.rows_duplicate) == (1, 2)
    assert table(ws, "clean")["flow"].to_list() == [2]


def test_the_last_content_of_an_event_stays() -> None:
    """An event number stands for one event, whatever its rows say."""
    rows = landed([{"event_id": "e", "amount": 1}, {"event_id": "e", "amount": 2}, {"event_id": "f"}], PAYMENTS)
    parts = sort_out(rows, PAYMENTS)
    assert (parts.rows["amount"].to_list(), parts.duplicates) == ([2, 5], 1)


def test_events_without_a_number_are_duplicates_only_when_equal() -> None:
    """A missing key joins nothing: such rows must be equal in everything to count as one."""
    one = {"event_id": None, "event_time": NOON}
    parts = sort_out(landed([one, one, {**one, "amount": 2}], PAYMENTS), PAYMENTS)
    assert (parts.rows["amount"].to_list(), parts.duplicates) == ([5, 2], 1)


def test_two_payments_at_one_time_are_two_without_event_ids() -> None:
    """A card may be used twice in one microsecond; only equal rows are one."""
    dataset = PAYMENTS.model_copy(update={"event_id": None})
    same = {"event_time": NOON}
    parts = sort_out(landed([{**same, "amount": 1}, {**same, "amount": 2}, {**same, "amount": 2}], dataset), dataset)
    assert (parts.rows["amount"].to_list(), parts.duplicates) == ([1, 2], 1)


# --- laws

CELL = st.one_of(st.none(), st.sampled_from([float("nan"), float("inf"), -0.0]), st.floats(-100, 600, allow_nan=False))
ROW = st.fixed_dictionaries(
    {
        "entity": st.sampled_from(["p", "q", None]),
        "event_time": st.one_of(st.none(), st.integers(0, 3).map(lambda n: NOON + timedelta(minutes=n))),
        "flow": CELL,
        "load": CELL,
        "source": st.sampled_from(["a.csv", "b.csv"]),
        "problems": st.sampled_from([[], [], [], ["flow: 'x' is not a number"], None]),
    }
)


def judged(rows: pl.DataFrame) -> tuple[Sorted, Judged]:
    parts = sort_out(rows, SENSOR)
    return parts, judge(parts, load_suite(SENSOR), SENSOR)


@given(st.lists(ROW, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_no_row_is_lost_and_their_order_is_nothing(rows: list[dict[str, Any]], chance: random.Random) -> None:
    """Each landing row is clean, quarantined or duplicate, and a shuffled landing gives equal tables and messages."""
    frame = landed(rows)
    parts, first = judged(frame)
    assert frame.height == first.clean.height + first.quarantine.height + parts.duplicates
    assert first.clean.select("entity", "event_time").is_duplicated().sum() == 0
    assert first.quarantine["reasons"].list.len().gt(0).all()
    shuffled = chance.sample(range(frame.height), frame.height)
    _, second = judged(frame[shuffled])
    assert_frame_equal(first.clean, second.clean)
    assert_frame_equal(first.quarantine, second.quarantine)
    assert (first.refusals, first.warnings) == (second.refusals, second.warnings)


def test_losing_a_row_is_an_error_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step counts what it writes; if a row were lost it would stop and leave the tables alone."""
    ws = workspace(tmp_path)
    land(ws, with_flows(10, 20))

    def losing(parts: Sorted, *rest: Any) -> Judged:
        return judge(Sorted(parts.rows[:1], parts.unreadable, parts.duplicates), *rest)

    monkeypatch.setattr("pipeline.validate.judge", losing)
    with pytest.raises(NightsiftError, match="lost or made rows"):
        validate(ws, DAY)
    assert versions(ws) == [-1, -1, -1]


# --- running again


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    """Nothing changed: the recorded counts come back and no table gets a new version; by force the content is equal."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.5, severity: warning}")
    land(ws, with_flows(10, 812, 813))
    first = validate(ws, DAY)
    before = versions(ws), table(ws, "clean"), table(ws, "quarantine")
    assert asdict(validate(ws, DAY)) == asdict(first) | {"skipped": True}
    assert versions(ws) == before[0]
    assert asdict(validate(ws, DAY, force=True)) == asdict(first)
    assert versions(ws) == [version + 1 for version in before[0]]
    assert_frame_equal(table(ws, "clean"), before[1])
    assert_frame_equal(table(ws, "quarantine"), before[2])
    assert json.dumps(asdict(first))


def test_new_rows_and_a_new_suite_are_judged(tmp_path: Path) -> None:
    """A late file, a changed suite or a changed dataset makes the day be judged again; a comment does not."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.1}")
    land(ws, with_flows(10, 300))
    validate(ws, DAY)
    land(ws, landed([{"entity": "q"}], file="late.csv", digest="d9"))
    assert validate(ws, DAY).rows_clean == 3
    workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.1} # as agreed")
    assert validate(ws, DAY).skipped
    workspace(tmp_path, (FLOW_BETWEEN + "mostly: 0.1}").replace("400", "200"))
    assert validate(ws, DAY).rows_quarantined == 1
    other = Workspace(ws.dataset.model_copy(update={"zone": "Europe/Berlin"}), ws.home, ws.lake)
    assert not validate(other, DAY).skipped


def test_only_the_day_itself_is_replaced(tmp_path: Path) -> None:
    """Other days of clean and their records stay as they are."""
    ws = workspace(tmp_path)
    tomorrow = DAY + timedelta(days=1)
    late = with_flows(30).with_columns(pl.lit(tomorrow).alias("day"), pl.lit("c.csv").alias("source"))
    land(ws, pl.concat([with_flows(10), late]))
    validate(ws, DAY)
    validate(ws, tomorrow)
    land(ws, landed([{"flow": 11}], digest="d2"))
    validate(ws, DAY)
    assert table(ws, "clean").sort("day").select("day", "flow").rows() == [(DAY, 11), (tomorrow, 30)]
    assert states(ws, "validate")["day"].to_list() == [DAY, tomorrow]


def test_a_day_without_rows_is_no_error_and_empties_what_was_there(tmp_path: Path) -> None:
    """A silent source is reported with zero counts; rows that left the day leave its tables too."""
    ws = workspace(tmp_path)
    done = validate(ws, DAY)
    assert (done.rows_in, done.rows_clean, done.warnings) == (0, 0, [])
    land(ws, with_flows(10))
    assert validate(ws, DAY).rows_clean == 1
    ws.lake.replace_source(with_flows().clear(), "a.csv")
    assert validate(ws, DAY).rows_in == 0
    assert table(ws, "clean").height == 0


def test_clean_is_sorted_and_typed(tmp_path: Path) -> None:
    """clean holds the declared columns, sorted by entity and event time."""
    ws = workspace(tmp_path, dataset=PAYMENTS)
    land(ws, landed([{"entity": "z"}, {"entity": "a"}, {"entity": "m"}], PAYMENTS))
    validate(ws, DAY)
    clean = table(ws, "clean")
    assert dict(clean.schema) == clean_schema(PAYMENTS)
    assert clean["entity"].to_list() == ["a", "m", "z"]


def test_the_input_digest_needs_no_rows_and_tells_changes(tmp_path: Path) -> None:
    """The digest is of the day's source files and the suite, whatever else landed."""
    ws = workspace(tmp_path)
    land(ws, with_flows(10))
    first = input_digest(ws, DAY)
    assert input_digest(ws, DAY, ws.lake.landed()) == first
    land(ws, with_flows(10).with_columns(pl.lit(date(2024, 2, 1)).alias("day"), pl.lit("z.csv").alias("source")))
    assert input_digest(ws, DAY) == first
    land(ws, landed([{"flow": 11}], digest="d2"))
    assert input_digest(ws, DAY) != first


def test_a_state_comes_back_as_written(tmp_path: Path) -> None:
    """A step's record replaces its own of that day, and no other step's."""
    ws = workspace(tmp_path)
    state = State(DAY, "validate", "in", "cfg", None, {"rows": 3, "warnings": ["it's"]})
    write_state(ws, State(DAY, "score", "in", "cfg", "7"))
    write_state(ws, State(DAY, "validate", "old", "cfg"))
    write_state(ws, state)
    assert read_state(ws, DAY, "validate") == state
    assert states(ws)["step"].to_list() == ["score", "validate"]
    assert read_state(ws, DAY, "ingest") is None


# --- the page


class Parts(HTMLParser):
    """The tags and attributes of a page, as a browser finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_the_page_needs_no_network_and_runs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is loaded from anywhere, no script is left, and a value that looks like a page is shown as text."""
    evil = '<script>alert(1)</script><img src="http://192.0.2.1/x">'
    ws = workspace(
        tmp_path,
        "{type: expect_column_values_to_be_in_set, column: category, value_set: [food], severity: warning}",
        "{type: expect_column_distinct_values_to_be_in_set, column: category, value_set: [food], severity: info}",
        "{type: expect_column_most_common_value_to_be_in_set, column: category, value_set: [food], severity: info}",
        dataset=PAYMENTS,
    )
    land(ws, landed([{"category": evil}, {"category": evil}, {}], PAYMENTS))
    done = validate(ws, DAY)
    page = Path(done.docs).read_text(encoding="utf-8")
    parts = Parts()
    parts.feed(page)
    assert not parts.tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert not [value for name, value in parts.attributes if name in ("src", "href") and "//" in value]
    assert not [name for name, _ in parts.attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import", page)
    assert "default-src 'none'" in page
    assert "&lt;script&gt;" in page
    assert "values must belong to this set" in page
    assert all(html.escape(warning) in page for warning in done.warnings)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_the_list_of_days_links_every_page(tmp_path: Path) -> None:
    """index.html names each day with its outcome, the newest first, and nothing half-written is left."""
    ws = workspace(tmp_path)
    land(ws, with_flows(10))
    validate(ws, DAY)
    validate(ws, DAY + timedelta(days=1))
    place = ws.home.data_docs / "pumps"
    index = (place / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'href="([^"]+)">([^<]+)<', index) == [
        ("2024-01-03.html", "pumps 2024-01-03: no rows"),
        ("2024-01-02.html", "pumps 2024-01-02: passed"),
    ]
    assert sorted(file.name for file in place.iterdir()) == ["2024-01-02.html", "2024-01-03.html", "index.html"]


def test_evaluating_reports_every_failing_row() -> None:
    """The library's answer holds the position of all failing rows, also of an expectation that is met."""
    suite = parse_suite("expectations:\n- " + FLOW_BETWEEN + "mostly: 0.1}", "suite.yaml", SENSOR)
    rows = sort_out(with_flows(*[812.0] * 300, *[1.0] * 100), SENSOR).rows
    (one,) = evaluate(suite, rows.select("entity", "event_time", "flow", "load")).results
    assert one.success
    assert one.result["unexpected_index_list"] == list(range(300))
