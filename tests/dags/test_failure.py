"""What is told when a run fails, in a real Airflow: by which message, and how often."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.airflow_rest import Run, RunStatus
from pipeline.config import Home
from pipeline.errors import NightsiftError
from pipeline.local import LocalAirflow, local_airflow
from tests.conftest import SENSOR
from tests.dags.conftest import HERE
from tests.pipeline.test_notify import SECRET, Server
from tests.security.test_night import holding
from tests.servers import free_port

# Airflow's LocalExecutor repeats a task's log on its own output as it came, before Airflow masks it.
REPEATED = "airflow/logs/scheduler.log"
ENDS = {"refused": "failed", "endless": "failed", "killed": "failed", "missed": "failed", "mended": "success",
        "shards": "failed"}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failure")


@pytest.fixture(scope="module")
def told(root: Path) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The messages of each failing DAG, all run in one Airflow, some time after the last has ended."""
    server = Server()
    (root / "datasets").mkdir()
    (root / "dags").mkdir()
    (root / "datasets" / "demo.yaml").write_text(SENSOR + "notify: {urls_env: [OPS]}\n")
    shutil.copy(HERE / "failing_dags.py", root / "dags")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPS", server.url)
            patch.setenv("PAYMENTS", f"postgresql://ann:{SECRET}@db/x")
            patch.setattr("pipeline.local.ROOT", root)
            # Another Airflow of this machine may start at the same moment, and ask for the same port by its number.
            patch.setattr("pipeline.local.free_port", lambda _preferred: free_port())
            with local_airflow(Home.at(root / "var"), root / "datasets", say=lambda _: None) as airflow:
                yield run_all(airflow, server)
    finally:
        server.stop()


def run_all(airflow: LocalAirflow, server: Server) -> dict[str, list[dict[str, Any]]]:
    """Run every failing DAG to its end and wait until nothing more is said."""
    airflow.wait_for_dags({f"demo_{kind}" for kind in ENDS})
    ended = [wait(airflow, airflow.trigger(f"demo_{kind}")) for kind in ENDS]
    assert {status.run.dag_id.removeprefix("demo_"): status.state for status in ended} == ENDS
    expected, end = {"shards", "refused", "killed", "endless"}, time.monotonic() + 120
    while not expected <= {kind_of(message) for message in server.received} and time.monotonic() < end:
        time.sleep(1)
    time.sleep(10)  # for a second message, if there were one
    return {kind: [m for m in server.received if kind_of(m) == kind] for kind in ENDS}


def wait(airflow: LocalAirflow, run: Run) -> RunStatus:
    """How `run` ends; the API's first minutes are slow on a busy machine, which is not what is tested."""
    for _ in range(4):
        with contextlib.suppress(NightsiftError):
            return airflow.wait_all([run], timeout=400)[0]
    return airflow.wait_all([run], timeout=400)[0]


def kind_of(message: dict[str, Any]) -> str:
    return str(message["title"]).removeprefix("demo: demo_").removesuffix(" failed")


def test_a_run_that_failed_is_told_once(told: dict[str, list[dict[str, Any]]]) -> None:
    """One message a run, whatever number of shards and tries failed; none where a try mended it, or all is told."""
    assert {kind: len(messages) for kind, messages in told.items()} == {
        "shards": 1, "refused": 1, "killed": 1, "endless": 1, "missed": 0, "mended": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("refused", "The task refused failed: demo 2026-03-05: the data gate refused this day\n"),
        ("shards", "of postgresql://***@db/x is lost"),
        ("shards", "The task shard["),
        ("killed", "The task killed failed.\nIt left no error: its process was killed"),
        ("endless", "The run took too long and was ended; the task endless was not done.\n"),
    ],
)
def test_the_message_says_what_failed_and_why(told: dict[str, list[dict[str, Any]]], kind: str, said: str) -> None:
    """The task, its error's sentence where it could leave one, and where its log is; no password."""
    ((message),) = [m["message"] for m in told[kind]]
    assert said in message
    assert f"/dags/demo_{kind}/runs/" in message
    assert SECRET not in message


def test_no_password_is_kept_by_airflow(told: dict[str, list[dict[str, Any]]], root: Path) -> None:
    """Neither in the log of a task, whatever a driver says there, nor in Airflow's database with XCom and all else."""
    assert told["shards"]
    found = holding(root / "var", "connects to postgresql://", SECRET)
    assert any("dag_id=demo_shards" in file for file in found["connects to postgresql://"]), found
    assert {*found[SECRET]} <= {REPEATED}
