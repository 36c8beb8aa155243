"""A day judged in parts gives what the same day gives as a whole, whatever the parts: tables, counts, words, page."""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipeline import judge_parts
from pipeline.config import Dataset
from pipeline.data_docs import Summary, write_docs
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError
from pipeline.judge import Judged, judge, sort_out
from pipeline.judge_parts import judge_in_parts
from pipeline.lake import Lake
from pipeline.parts import Parts, by_range, scratch
from pipeline.sequences import range_starts
from pipeline.suites import Suite, expectation_types, load_suite, parse_suite
from pipeline.validate import validate
from pipeline.workspace import Workspace
from tests import figures
from tests.pipeline.test_validate import (
    ARGUMENTS,
    CELL,
    DAY,
    FLOW_BETWEEN,
    NOON,
    PAYMENTS,
    ROW,
    SENSOR,
    land,
    landed,
    table,
    workspace,
)

EXAMPLES = 300 if figures.long() else 6


def in_parts(folder: Path, rows: pl.DataFrame, suite: Suite, dataset: Dataset, most: int) -> Judged:
    """`rows` judged in parts, with the frames of the result in memory."""
    files = rows.group_by("source").len("rows")
    judged = judge_in_parts(rows.lazy(), files, suite, dataset, folder, most)
    assert callable(judged.clean)
    assert callable(judged.quarantine)
    clean, quarantine = pl.concat(judged.clean()), pl.concat(judged.quarantine())
    return Judged(clean, quarantine, judged.counts, judged.refusals, judged.warnings, judged.result)


def page(folder: Path, judged: Judged, dataset: Dataset) -> str:
    summary = Summary(dataset.name, DAY, "judged", judged.counts, judged.refusals, judged.warnings)
    return write_docs(folder, summary, judged.result).read_text(encoding="utf-8")


def assert_same(rows: pl.DataFrame, suite: Suite, dataset: Dataset, most: int) -> Judged:
    """The day as a whole, after all that comes of it was found equal to what comes of its parts."""
    whole = judge(sort_out(rows, dataset), suite, dataset)
    with TemporaryDirectory() as made:
        folder = Path(made)
        found = in_parts(folder, rows, suite, dataset, most)
        assert_frame_equal(found.clean, whole.clean)
        assert_frame_equal(found.quarantine, whole.quarantine)
        assert found.counts == whole.counts
        assert (found.refusals, found.warnings) == (whole.refusals, whole.warnings)
        assert page(folder / "parts", found, dataset) == page(folder / "whole", whole, dataset)
    return whole


PAYMENT = st.fixed_dictionaries(
    {
        "entity": st.sampled_from(["p", "q", "r", None]),
        "event_id": st.sampled_from(["e1", "e2", "e3", "e4", None]),
        "event_time": st.integers(0, 2).map(lambda n: NOON + timedelta(minutes=n)),
        "amount": CELL,
        "category": st.sampled_from(["food", "rent", None]),
        "source": st.sampled_from(["a.csv", "b.csv", "c.csv"]),
        "problems": st.sampled_from([[], [], [], ["amount: 'x' is not a number"], ["fee: 'y' is not a number"], None]),
    }
)
PAYMENTS_SUITE = """
readable: 0.8
expectations:
- {type: expect_column_values_to_be_between, column: amount, min_value: 0, max_value: 100, mostly: 0.7}
- {type: expect_column_values_to_be_unique, column: amount, mostly: 0.5, severity: warning}
- {type: expect_column_values_to_not_be_null, column: category, severity: info}
- {type: expect_column_mean_to_be_between, column: amount, max_value: 50, severity: warning}
- {type: expect_column_values_to_be_in_set, column: category, value_set: [food], severity: warning}
- {type: expect_table_row_count_to_be_between, min_value: 6, severity: warning}
"""


@given(st.lists(ROW, min_size=1, max_size=14), st.integers(1, 8))
@settings(max_examples=EXAMPLES, deadline=None)
def test_readings_in_parts_are_judged_as_a_whole(rows: list[dict[str, Any]], most: int) -> None:
    """Whatever the parts: the same clean rows in the same order, quarantine, counts, sentences and page."""
    assert_same(landed(rows), load_suite(SENSOR), SENSOR, most)


@given(st.lists(PAYMENT, min_size=1, max_size=14), st.integers(1, 8), st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_payments_in_parts_are_judged_as_a_whole(rows: list[dict[str, Any]], most: int, numbered: bool) -> None:
    """Also where the same event is told of two entities, with a suite that compares rows and asks about the day."""
    dataset = PAYMENTS if numbered else PAYMENTS.model_copy(update={"event_id": None})
    frame = landed(rows, PAYMENTS).select(landed([], dataset).columns)
    assert_same(frame, parse_suite(PAYMENTS_SUITE, "suite.yaml", dataset), dataset, most)


def test_every_expectation_is_judged_in_parts_as_a_whole() -> None:
    """All types that a suite may hold, at once: which ones can be judged part by part is told right."""
    entries = []
    for name in expectation_types():
        known = expectation_types()[name]["properties"]
        entry = {"type": name, "severity": "warning", **{key: ARGUMENTS[key] for key in ARGUMENTS if key in known}}
        if any(word in name for word in ("regex", "length", "strftime")):
            entry["column"] = "category"
        if "sum_to_equal" in name:
            entry["column_list"] = ["amount", "fee"]
        entries.append(entry)
    suite = parse_suite(json.dumps({"expectations": entries}), "suite.yaml", PAYMENTS)
    values = [200.0, None, 5.0, 5.0, -1.0, 0.5, 900.0, 7.0, 5.0, 3.0]
    rows = [
        {"entity": f"p{n % 4}", "amount": value, "category": ["x", None, "food"][n % 3], "source": "ab"[n % 2]}
        for n, value in enumerate(values)
    ]
    whole = assert_same(landed(rows, PAYMENTS), suite, PAYMENTS, 3)
    assert whole.counts["rows_quarantined"] > 0
    assert len(whole.warnings) > 10


def test_a_row_that_repeats_one_of_another_part_can_be_read() -> None:
    """The share of readable rows is of all that landed, also where an event is told of two entities."""
    rows = [{"entity": "p", "event_id": "e"}, {"entity": "q", "event_id": "e"}, {"problems": ["fee: 'y'"]}]
    suite = parse_suite(PAYMENTS_SUITE, "suite.yaml", PAYMENTS)
    whole = assert_same(landed(rows, PAYMENTS), suite, PAYMENTS, 1)
    assert whole.refusals[0].startswith("66.7% of the rows can be read, 80.0% must be")


def test_examples_are_the_first_of_the_day() -> None:
    """Of more failing rows than are kept of each part, the sentence shows the first by source file and row."""
    rows = [{"entity": f"p{9 - n // 10}", "flow": 500.0 + n, "source": f"{n % 3}.csv"} for n in range(100)]
    suite = parse_suite(f"expectations:\n- {FLOW_BETWEEN}mostly: 0.5}}", "suite.yaml", SENSOR)
    whole = assert_same(landed(rows), suite, SENSOR, 7)
    assert "for example: flow: 500 is above 400 m3/h; flow: 503 is above" in whole.refusals[0]


def test_only_the_first_failing_rows_are_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Past `SAMPLE` failing rows the counts, shares and examples are exact all the same."""
    monkeypatch.setattr(judge_parts, "SAMPLE", 2)
    suite = parse_suite(f"expectations:\n- {FLOW_BETWEEN}severity: warning}}", "suite.yaml", SENSOR)
    rows = landed([{"entity": f"p{n % 5}", "flow": 500.0 + n % 2 - 600 * (n % 3 == 0)} for n in range(30)])
    found, whole = in_parts(tmp_path, rows, suite, SENSOR, 4), judge(sort_out(rows, SENSOR), suite, SENSOR)
    (one,), (other,) = found.result.results, whole.result.results  # type: ignore[union-attr]
    assert one.result["unexpected_count"] == other.result["unexpected_count"] == 30
    assert one.result["partial_unexpected_list"] == other.result["partial_unexpected_list"][:2]
    assert found.counts == whole.counts
    assert_frame_equal(found.quarantine, whole.quarantine)


def test_an_expectation_that_cannot_be_applied_is_named(tmp_path: Path) -> None:
    """In parts, too, a wrong suite is told by its place."""
    text = "expectations:\n- {type: expect_column_values_to_be_between, column: entity, min_value: 1}"
    with pytest.raises(ConfigError, match=r"suite\.yaml, entry 1: .* cannot be applied"):
        in_parts(tmp_path, landed([{"entity": f"p{n}"} for n in range(4)]), parse_suite(text, "suite.yaml", SENSOR),
                 SENSOR, 2)  # fmt: skip


# --- the step


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.validate.PART", 3)


@pytest.mark.usefixtures("small_parts")
def test_a_large_day_is_validated_and_leaves_no_scratch(tmp_path: Path) -> None:
    """The step commits the parts as one day, counts every row, and its disk space is free again."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.5}")
    rows = [{"entity": f"p{n % 4}", "flow": 10.0 * n, "source": f"{n % 2}.csv"} for n in range(60)]
    land(ws, landed([*rows, rows[0] | {"event_time": NOON}]))
    done = validate(ws, DAY)
    assert (done.rows_in, done.rows_clean, done.rows_quarantined, done.rows_duplicate) == (61, 41, 19, 1)
    clean = table(ws, "clean")
    assert clean.n_unique("entity") == 4
    assert list((tmp_path / "lake" / "pumps" / "_staging").iterdir()) == []
    assert validate(ws, DAY).skipped


@pytest.mark.usefixtures("small_parts")
def test_a_refused_large_day_changes_nothing(tmp_path: Path) -> None:
    """The gate holds for parts as for a whole: no table is written, no scratch is left."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "}")
    land(ws, landed([{"entity": f"p{n}", "flow": 900.0} for n in range(9)]))
    with pytest.raises(GateRefusedError, match=r"0\.00% of the rows pass"):
        validate(ws, DAY)
    assert not ws.lake.exists("clean")
    assert list((tmp_path / "lake" / "pumps" / "_staging").iterdir()) == []


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parts cannot be held, the message says where and what to do; nothing is left there."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    ws = workspace(tmp_path)
    land(ws, landed([{"entity": f"p{n}"} for n in range(9)]))
    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(NightsiftError, match=r"could not use .*validate-2024-01-02.*No space left.*has room"):
        validate(ws, DAY)
    assert list((tmp_path / "lake" / "pumps" / "_staging").iterdir()) == []


@pytest.mark.parametrize("table_name", ["clean", "quarantine"])
def test_a_table_that_lost_rows_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_name: str) -> None:
    """What a table holds after its commit is compared with what was counted; the day is not recorded as done."""
    ws = workspace(tmp_path, FLOW_BETWEEN + "mostly: 0.1}")
    land(ws, landed([{"flow": 10.0}, {"flow": 20.0}, {"flow": 900.0}]))
    write: Callable[..., int] = Lake.replace

    def losing(self: Lake, name: str, day: Any, frame: Any, **note: Any) -> int:
        return write(self, name, day, frame[1:] if name == table_name else frame, **note)

    monkeypatch.setattr(Lake, "replace", losing)
    with pytest.raises(NightsiftError, match="pumps 2024-01-02: the tables do not hold what was validated"):
        validate(ws, DAY)
    monkeypatch.undo()
    assert not validate(ws, DAY).skipped


# --- parts on a disk


@given(st.lists(st.sampled_from([None, "", "a", "b", "ß", "zz"]), max_size=30), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_ranges_hold_every_row_once_and_in_order(names: list[str | None], most: int) -> None:
    """No name is divided, the ranges follow each other, and none is larger than it must be."""
    rows = pl.DataFrame({"name": names}, schema={"name": pl.String}).with_row_index()
    count = rows.group_by("name").len()
    with TemporaryDirectory() as made:
        held = Parts(Path(made) / "held", by_range("name", range_starts(count["name"], count["len"], most)))
        if rows.height:
            held.add(rows)
        found = list(held)
    whole = pl.concat([rows.clear(), *found])
    assert_frame_equal(whole.sort("index"), rows)
    firsts = [part["name"].fill_null("").unique().to_list() for part in found]
    assert all(max(one) < min(other) for one, other in pairwise(firsts))
    assert all(part.height <= most + part["name"].fill_null("").value_counts()["count"].max() for part in found)


def test_scratch_of_a_killed_run_is_removed_and_that_of_a_running_one_is_not(
    make_workspace: Callable[..., Workspace],
) -> None:
    """Whoever holds a folder keeps it; what nobody holds any more goes when the same work begins again."""
    ws = make_workspace()
    staging = Path(ws.lake.root, "demo", "_staging")
    left, other = staging / "validate-2024-01-02-left", staging / "validate-2024-01-03-left"
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "rows.parquet").touch()
    with scratch(ws, "validate-2024-01-02") as first, scratch(ws, "validate-2024-01-02") as second:
        assert first != second
        assert first.is_dir()
        assert not left.exists()
        assert other.exists()
    assert not first.exists()
    assert not second.exists()


def test_scratch_is_gone_after_an_error_and_local_for_an_object_store(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lake that is no folder has its parts in the state folder: in a container the temporary files are in memory."""
    monkeypatch.setenv("NIGHTSIFT_LAKE", "s3://bucket/lake")
    ws = make_workspace()
    with suppress(KeyError), scratch(ws, "validate-2024-01-02") as folder:
        assert folder.is_relative_to(ws.home.root)
        raise KeyError
    assert list(folder.parent.iterdir()) == []
