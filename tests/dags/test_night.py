"""Whole runs of the DAGs with the real steps, on a small dataset: training, nights, backfills, upkeep."""

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.lake import ENDED
from pipeline.simulate import simulate
from pipeline.tables import scores_schema
from pipeline.tracking import client
from pipeline.workspace import Workspace, open_workspace
from tests.dags.conftest import HERE, SHIPPED, airflow_env

SMALL = """
window: {steps: 4, rows: 4}
model: {filters: [8], latent: 4, epochs: 2, windows: 256}
shards: 2
"""
NIGHT, NEXT, REFUSED = "2026-03-05", "2026-03-06", "2026-03-07"
RUNS = [
    ("pumps_train", {"from": "2026-03-02", "to": "2026-03-05"}),
    ("pumps_ingest", {"day": NIGHT}),
    ("pumps_nightly", {"day": NIGHT}),
    ("backfill", {"dataset": "pumps", "first": NIGHT, "last": NEXT}),
    ("backfill", {"dataset": "pumps", "first": NIGHT, "last": NEXT, "overwrite": True, "at_once": 4}),
    ("pumps_ingest", {"day": REFUSED}),
    ("pumps_nightly", {"day": REFUSED}),
    ("upkeep", {}),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six days of two pumps, of which the last shows a flow that no pump can have."""
    root = tmp_path_factory.mktemp("night")
    (root / "datasets").mkdir()
    shutil.copytree(SHIPPED.parent / "expectations", root / "expectations")
    pumps = (SHIPPED / "pumps.yaml").read_text().replace("window: {steps: 8, rows: 8}", SMALL, 1)
    (root / "datasets" / "pumps.yaml").write_text(pumps)
    source = root / "var" / "source" / "pumps"
    simulate("pumps", days=6, entities=2, seed=1, folder=source, anomalies=0.5, anomalies_from=3)
    last = source / f"pumps-{REFUSED}.parquet"
    pl.read_parquet(last).with_columns(flow=pl.lit(-999.0)).write_parquet(last)
    left = left_over(root)
    left.parent.mkdir(parents=True)
    left.touch()
    long_ago = time.time() - 2 * ENDED.total_seconds()
    os.utime(left, (long_ago, long_ago))
    return root


def left_over(root: Path) -> Path:
    """Half a report, of a process that was killed long ago."""
    return root / "var" / "reports" / "pumps" / f".{NIGHT}.html.0a1b"


@pytest.fixture(scope="module")
def runs(root: Path) -> list[dict[str, Any]]:
    """How each of `RUNS` ended, one after the other in one Airflow."""
    asked, out = root / "asked.json", root / "out.json"
    asked.write_text(json.dumps(RUNS))
    done = subprocess.run(
        [sys.executable, HERE / "run_dags.py", asked, out],
        env=airflow_env(root / "var", root / "datasets"), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    ended: list[dict[str, Any]] = json.loads(out.read_text())
    return ended


@pytest.fixture(scope="module")
def ws(root: Path, runs: list[dict[str, Any]]) -> Workspace:
    return open_workspace("pumps", root / "var", root / "datasets")


def states(run: dict[str, Any], task_id: str) -> list[str]:
    return [task["state"] for task in run["tasks"] if task["id"] == task_id]


def nights(run: dict[str, Any]) -> dict[str, list[str]]:
    """The labels of the nights that were run, by task."""
    ran = [task for task in run["tasks"] if task["id"].startswith("nights.") and task["state"] == "success"]
    return {task["id"]: [each["label"] for each in ran if each["id"] == task["id"]] for task in ran}


def days_scored(ws: Workspace) -> list[date]:
    scores = ws.lake.scan("scores", scores_schema(ws.dataset)).select(pl.col("day").unique()).collect()
    return sorted(scores["day"].to_list())


def test_training_registers_a_champion(runs: list[dict[str, Any]]) -> None:
    """The training DAG ends with a promoted detector."""
    assert runs[0]["state"] == "success", runs[0]
    assert runs[0]["xcom"]["train"]["promoted"] is True


def test_a_night_goes_from_files_to_a_report(runs: list[dict[str, Any]], ws: Workspace) -> None:
    """Every task of the night succeeds, each shard by its name, and scores, incidents and report are there."""
    landed, night = runs[1:3]
    assert landed["xcom"]["ingest"]["nights"] == [NIGHT]
    assert night["state"] == "success", night
    labels = [task["label"] for task in night["tasks"] if task["id"] == "score"]
    assert labels == [f"{NIGHT} shard 1 of 2", f"{NIGHT} shard 2 of 2"]
    assert night["xcom"]["incidents"]["day"] == NIGHT
    assert Path(night["xcom"]["report"]).is_file()
    assert night["xcom"]["notify"]["incidents"] == night["xcom"]["incidents"]["incidents"]
    assert date.fromisoformat(NIGHT) in days_scored(ws)


def test_the_page_of_a_night_tells_how_long_its_tasks_took(runs: list[dict[str, Any]], ws: Workspace) -> None:
    """Each of those before it in its run; a night that a backfill ran tells the same steps."""
    api = client(ws)
    pages = {
        page.data.params["day"]: page
        for page in api.search_runs([api.get_experiment_by_name("pumps/nights").experiment_id])
    }
    for day in (NIGHT, NEXT):
        took = {name: value for name, value in pages[day].data.metrics.items() if name.startswith("seconds/")}
        assert {"seconds/validate", "seconds/score", "seconds/incidents", "seconds/report"} <= {*took}
        assert all(value > 0 for value in took.values())


def test_what_goes_through_xcom_are_references_and_counts(runs: list[dict[str, Any]]) -> None:
    """No task hands over rows: what a run passes on stays under a few kilobytes."""
    for run in runs:
        assert len(json.dumps(run["xcom"])) < 4096


def test_a_backfill_runs_only_what_is_missing(runs: list[dict[str, Any]]) -> None:
    """Of two days of which one is done, the other is run; the end says that both are done."""
    assert runs[3]["state"] == "success", runs[3]
    assert [planned["day"] for planned in runs[3]["xcom"]["plan"]] == [NEXT]
    assert {planned["detector"] for planned in runs[3]["xcom"]["plan"]} == {runs[0]["xcom"]["train"]["version"]}
    assert nights(runs[3]) == {"nights.at_once_2": [NEXT]}
    assert runs[3]["xcom"]["check"] == "all 2 days are done"


def test_a_backfill_overwrites_when_told_to(runs: list[dict[str, Any]]) -> None:
    """With overwrite every day is run again, by the task of as many at once as were asked for."""
    assert runs[4]["state"] == "success", runs[4]
    assert nights(runs[4]) == {"nights.at_once_4": [NIGHT, NEXT]}


def test_a_refused_night_fails_at_once_and_leaves_earlier_results(runs: list[dict[str, Any]], ws: Workspace) -> None:
    """The gate fails `validate` at its first try, nothing after it runs, and the scores of other days stay."""
    landed, refused = runs[5:7]
    assert landed["xcom"]["ingest"]["nights"] == [REFUSED]
    assert refused["state"] == "failed"
    assert [task["tries"] for task in refused["tasks"] if task["id"] == "validate"] == [1]
    assert states(refused, "validate") == ["failed"]
    assert states(refused, "notify") == ["upstream_failed"]
    assert days_scored(ws) == [date.fromisoformat(NIGHT), date.fromisoformat(NEXT)]


def test_upkeep_looks_after_all_tables_and_removes_what_was_left(runs: list[dict[str, Any]], root: Path) -> None:
    """Nothing that a night has just written is old enough to go; half a report of a killed process is."""
    assert runs[7]["state"] == "success", runs[7]
    assert runs[7]["xcom"] == {"tables": {"merged": 0, "unused": 0}, "leftovers": [str(left_over(root))]}
    assert not left_over(root).exists()
