"""The benchmark of an old lake makes what nights make, and asks the same of the lake before and after upkeep."""

from pathlib import Path

from benchmarks import lake
from pipeline.lake import TABLES
from pipeline.score import stale_days
from pipeline.state import newest_day, states
from pipeline.workspace import open_workspace


def test_the_lake_that_is_measured_is_one_of_nights_that_are_done(tmp_path: Path) -> None:
    """No night of it is out of date; upkeep leaves a file a night of the records, and every question is answered."""
    found = lake.measure(quick=True, scratch=tmp_path, nights=1000)
    ws = open_workspace(lake.NAME, tmp_path / "var", tmp_path / "datasets")
    last = newest_day(ws, "incidents")
    assert last is not None
    assert stale_days(ws, last) == [last]
    assert len(states(ws, "incidents")) == found["nights"] == 12
    old, kept = found["tables"]["old"], found["tables"]["kept"]
    assert set(old) == set(kept) <= set(TABLES)
    assert old["partitions"]["data_files_in_use"] > 6 * 12
    assert kept["partitions"]["data_files_in_use"] == 12
    asked = set(lake.questions(ws, 12))
    assert set(found["ratio"]) == asked
    assert all(set(each) == asked and min(each.values()) > 0 for each in found["seconds"].values())
