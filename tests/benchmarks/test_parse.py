"""Airflow reads the DAG files of many datasets within its limits, and a task reads its own dataset alone."""

from pathlib import Path

from benchmarks import parse
from benchmarks._common import ROOT
from tests.figures import long, record

DATASETS = 1000 if long() else 12


def test_every_dag_of_every_dataset_is_read(tmp_path: Path) -> None:
    """Without an error; what a worker reads for a task is one DAG, however many datasets there are."""
    found = parse.measure(quick=False, scratch=tmp_path, datasets=DATASETS)
    files = found["files"]
    assert set(files) == {file.name for file in (ROOT / "dags").glob("*.py")}
    assert {name: each["errors"] for name, each in files.items()} == dict.fromkeys(files, 0)
    one, none = {"backfill.py", "upkeep.py"}, {"datasets.py"}
    assert {name: each["dags"] for name, each in files.items()} == {
        name: 0 if name in none else 1 if name in one else DATASETS for name in files
    }
    assert (found["a_task"]["dags"], found["a_task"]["errors"]) == (1, 0)
    slowest = max(files, key=lambda name: files[name]["processor_seconds"])
    spent = [files[slowest][each] for each in ("processor_seconds", "serialize_processor_seconds")]
    assert sum(spent) < parse.MOST
    figures = {
        "datasets": DATASETS, "dags": sum(each["dags"] for each in files.values()), "slowest_file": slowest,
        "its_processor_seconds": round(sum(spent), 1), "airflow_gives_it_seconds": parse.MOST,
        "processor_seconds_of_all_files": round(sum(each["processor_seconds"] for each in files.values()), 1),
        "processor_seconds_before_a_task": round(found["a_task"]["processor_seconds"], 2),
    }  # fmt: skip
    record("datasets", "DAG files read with many datasets", figures, sum(each["seconds"] for each in files.values()))
