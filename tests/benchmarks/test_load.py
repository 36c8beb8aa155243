"""The benchmark of a large night: it loses no row and finds what it hid."""

from pathlib import Path

import polars as pl
import pytest

from benchmarks import load
from benchmarks._limits import size

MACHINES = 10


def test_a_small_night_is_whole(tmp_path: Path) -> None:
    """All rows are told apart, every clean one is scored, every fault is found, and each step is told with its cost."""
    found = load.measure(quick=True, scratch=tmp_path, rows=MACHINES * load.READINGS, memory=size("4G"), keep=None)
    assert found["rows_in"] == found["rows_clean"] + load.BAD + load.TWICE > 90_000
    assert found["steps_scored"] == found["rows_clean"]
    assert found["faults_found"] == len(load.FAULTS) <= found["incidents"]
    assert list(found["steps"]) == ["ingest", "validate", "score", "publish", "incidents", "report", "log"]
    for step in found["steps"].values():
        assert min(step[name] for name in ("seconds", "core_seconds", "peak_gib", "rows_per_second")) > 0
        assert step["limited_by"]
    assert found["bound"] in ("kept", "missed")


def test_source_files_are_the_same_each_time_and_hold_what_is_said(tmp_path: Path) -> None:
    """Rows out of bounds, rows twice, and of a machine that falls silent nothing."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    told, again = (load.deliver(tmp_path / folder, MACHINES) for folder in ("a", "b"))
    one, other = (pl.read_parquet(tmp_path / folder / "*.parquet") for folder in ("a", "b"))
    assert one.equals(other)
    assert told == again
    assert len(one) == told["rows"]
    assert len(one) - len(one.unique()) == told["duplicate"]
    assert len(one.filter(pl.col("flow") > 100)) == told["quarantined"]
    silent = next(fault for fault in load.FAULTS if fault.feature is None)
    each = one.unique().group_by("machine").len()
    gone = each.filter(pl.col("machine") == f"m{silent.machine_of(MACHINES):05}")["len"].item()
    assert each["len"].max() - gone == silent.last - silent.first


@pytest.mark.parametrize(("cores", "said"), [(1.9, "all cores"), (1.0, "one core"), (0.2, "waiting")])
def test_what_limits_a_step_is_told_by_how_many_cores_it_keeps_busy(cores: float, said: str) -> None:
    """Of the two that it may have."""
    assert said in load.limit_of(cores)
