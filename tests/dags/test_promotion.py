"""Trainings where a person is asked, and the way back, with the real steps on a small dataset."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.simulate import simulate
from pipeline.workspace import Workspace, open_workspace
from tests.dags.conftest import HERE, SHIPPED, airflow_env

SMALL = """
window: {steps: 4, rows: 4}
model: {filters: [8], latent: 4, epochs: 1, windows: 128}
training: {promotion: human}
"""
STRETCH = {"from": "2026-03-02", "to": "2026-03-04"}
RUNS = [
    ("pumps_train", {**STRETCH, "answer": "Approve"}),
    ("pumps_train", {**STRETCH, "answer": "Reject", "reason": "the flow meter was replaced"}),
    ("pumps_rollback", {}),
    ("pumps_train", {"from": "2026-03-02", "to": "2026-03-05", "answer": "Approve"}),
    ("pumps_rollback", {}),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("promotion")
    (root / "datasets").mkdir()
    shutil.copytree(SHIPPED.parent / "expectations", root / "expectations")
    pumps = (SHIPPED / "pumps.yaml").read_text().replace("window: {steps: 8, rows: 8}", SMALL, 1)
    (root / "datasets" / "pumps.yaml").write_text(pumps)
    simulate("pumps", days=3, entities=2, seed=1, folder=root / "var" / "source" / "pumps", anomalies=0)
    return root


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
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return open_workspace("pumps", root / "var", root / "datasets")


def state(run: dict[str, Any], task_id: str) -> str:
    (found,) = (task["state"] for task in run["tasks"] if task["id"] == task_id)
    return str(found)


def test_the_question_shows_challenger_and_champion_side_by_side(runs: list[dict[str, Any]]) -> None:
    """The body holds the training's sentence and the table, each with the labels of both."""
    first, second = (run["xcom"]["train"] for run in runs[:2])
    assert first["table"] in runs[0]["asked"]["approve"]
    body = runs[1]["asked"]["approve"]
    assert second["reason"] in body
    assert f"|  | challenger {second['version']} | champion {first['version']} |" in body
    assert "{{" not in body


def test_approved_it_becomes_the_champion(runs: list[dict[str, Any]]) -> None:
    """Training promotes nobody; the answer does."""
    assert [runs[0]["state"], runs[3]["state"]] == ["success", "success"]
    assert runs[0]["xcom"]["train"]["promoted"] is False
    first, third = (runs[n]["xcom"]["train"]["version"] for n in (0, 3))
    assert runs[0]["xcom"]["promote"] == {"before": None, "after": first}
    assert runs[3]["xcom"]["promote"] == {"before": first, "after": third}


def test_rejected_it_stays_challenger(runs: list[dict[str, Any]], ws: Workspace) -> None:
    """The run ends well, nothing is promoted, and MLflow knows who said so and why it was trained."""
    assert runs[1]["state"] == "success"
    assert state(runs[1], "promote") == "skipped"
    trained = runs[1]["xcom"]["train"]
    assert runs[1]["xcom"]["answer"] == f"detector {trained['version']}: rejected by Ann"
    tags = tracking.client(ws).get_run(trained["run"]).data.tags
    assert (tags["promoted"], tags["promotion"], tags["decided_by"]) == ("false", "rejected by Ann", "Ann")
    assert tags["cause"] == "the flow meter was replaced"


def test_a_rollback_says_from_which_to_which(runs: list[dict[str, Any]], ws: Workspace) -> None:
    """One step back to the champion before; without one the run fails, and the champion stays."""
    first, third = (runs[n]["xcom"]["train"]["version"] for n in (0, 3))
    assert (runs[2]["state"], state(runs[2], "rollback")) == ("failed", "upstream_failed")
    assert runs[4]["state"] == "success"
    assert runs[4]["xcom"]["rollback"] == {"before": third, "after": first}
    champion = tracking.current(ws)
    assert champion is not None
    assert champion.label == first
