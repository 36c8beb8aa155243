"""The DAGs on a distributed Airflow: CeleryExecutor, PostgreSQL, Redis, a default and a GPU worker, MLflow's server.

Days are worked through in order, each by a test of its own with a fault of its own, and end up as one process has them.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.airflow_rest import Run, RunStatus
from pipeline.night import days_between
from pipeline.workspace import Workspace
from tests.conftest import tables
from tests.production.cluster import Cluster
from tests.production.conftest import Messages

pytestmark = pytest.mark.usefixtures("training")
FIRST, SEVENTH = "2026-03-05", "2026-03-11"
KILLED, TWICE, RESTARTED = "2026-03-12", "2026-03-13", "2026-03-14"
AT_COMMIT, IN_THE_MIDDLE, AT_START, FULL = "2026-03-15", "2026-03-16", "2026-03-17", "2026-03-18"


def start_night(airflow: Cluster, day: str) -> Run:
    """The nightly run of `day`, just begun."""
    return airflow.rest.trigger("pumps_nightly", {"day": day})


def start_backfill(airflow: Cluster, first: str, last: str) -> Run:
    """A backfill of the days from `first` to `last`, just begun."""
    return airflow.rest.trigger("pumps_backfill", {"first": first, "last": last})


def succeed(airflow: Cluster, *runs: Run) -> list[RunStatus]:
    """The ends of the runs, which were good."""
    ends = airflow.finish(*runs)
    for status in ends:
        assert status.state == "success", airflow.rest.explain(status)
    return ends


def same_tables(ws: Workspace, alone: Workspace, *days: str) -> None:
    """Every table holds of these days what one process wrote, which told nobody: no row less, none twice."""
    mine, wanted = tables(ws), tables(alone)
    mine["partitions"] = mine["partitions"].filter(pl.col("step") != "notify")
    assert set(mine) == set(wanted)
    for name, frame in wanted.items():
        these = pl.col("day").cast(pl.String).is_in(days)
        assert_frame_equal(mine[name].filter(these), frame.filter(these), check_exact=True)


def told_once(messages: Messages, alone: Workspace, *days: str) -> None:
    """A night in which incidents begin was told once, and no night twice."""
    began = tables(alone, "incidents")["incidents"].filter(pl.col("start").dt.date() == pl.col("day"))
    for day in days:
        assert int(date.fromisoformat(day) in began["day"]) <= messages.of(day) <= 1, day


@pytest.fixture
def inbox(messages: tuple[Messages, str]) -> Messages:
    return messages[0]


def test_training_is_taken_up_again_when_its_worker_is_killed(
    airflow: Cluster, training: tuple[Run, RunStatus], ws: Workspace, alone: Workspace
) -> None:
    """SIGKILL of the GPU worker's whole tree: the second try, on another worker, ends with the very same detector."""
    run, status = training
    assert status.state == "success", airflow.rest.explain(status)
    assert [task.tries for task in status.tasks] == [2]
    assert airflow.ran_on(run) == {"gpu": {"gpu-2"}}
    detectors = [{path.name for path in (each.home.root / "detectors" / "pumps").iterdir()} for each in (ws, alone)]
    assert detectors[0] == detectors[1]


def test_a_night_runs_on_the_workers_of_its_queues(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """Scoring runs on the GPU worker alone, all else on the default worker; the tables are those of one process."""
    run = start_night(airflow, FIRST)
    succeed(airflow, run)
    assert airflow.ran_on(run) == {"gpu": {"gpu-2"}, "default": {"default"}}
    same_tables(ws, alone, FIRST)
    told_once(inbox, alone, FIRST)


def test_a_backfill_of_seven_days_runs_beside_the_nights_of_the_same_days(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """Both end well, and every day is there once."""
    days = [str(day) for day in days_between(date.fromisoformat(FIRST), date.fromisoformat(SEVENTH))]
    backfill, *nights = start_backfill(airflow, days[0], days[-1]), *(start_night(airflow, day) for day in days[2:4])
    succeed(airflow, backfill, *nights)
    assert airflow.ran_on(backfill)["gpu"] == {"gpu-2"}
    same_tables(ws, alone, *days)
    told_once(inbox, alone, *days[2:4])


def test_scoring_is_taken_up_again_when_its_worker_is_killed(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """SIGKILL of the GPU worker's whole tree while it scores the second shard: that shard alone is scored again."""
    run = start_night(airflow, KILLED)
    airflow.wait_for("the second shard", lambda: "::endgroup::" in airflow.log(run, "score", 1))
    (task,) = airflow.tasks_of("gpu-2")
    task.suspend()  # so that it is in the midst of its work for certain
    assert airflow.task(run, "score", 1).state == "running"
    airflow.kill_worker("gpu-2")
    airflow.start_worker("gpu-3", "gpu")
    (status,) = succeed(airflow, run)
    assert {task.map_index: task.tries for task in status.tasks if task.task_id == "score"} == {0: 1, 1: 2}
    same_tables(ws, alone, KILLED)
    told_once(inbox, alone, KILLED)


def test_one_night_triggered_twice_at_once_is_there_once(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """Both runs end well; the tables hold every row once, and one message goes out."""
    succeed(airflow, start_night(airflow, TWICE), start_night(airflow, TWICE))
    same_tables(ws, alone, TWICE)
    told_once(inbox, alone, TWICE)


def test_a_restart_of_postgresql_interrupts_no_night(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """Airflow's database crashes and comes back while a shard is scored: the night ends as any other."""
    run = start_night(airflow, RESTARTED)
    airflow.wait_for("the first shard", lambda: "::endgroup::" in airflow.log(run, "score", 0))
    airflow.postgres.stop()
    time.sleep(2)
    airflow.postgres.start()
    succeed(airflow, run)
    same_tables(ws, alone, RESTARTED)
    told_once(inbox, alone, RESTARTED)


def test_nights_outlive_an_outage_of_mlflow(airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages) -> None:
    """MLflow is down at the start of one run, while another scores, and when a third logs: all go on when it is back.

    Each says meanwhile, in a sentence, that MLflow does not answer.
    """
    commit, middle = start_night(airflow, AT_COMMIT), start_night(airflow, IN_THE_MIDDLE)
    airflow.wait_for("scoring", lambda: _is(airflow, commit, "incidents", "running"))
    airflow.stop_mlflow()
    start = start_backfill(airflow, AT_START, AT_START)
    for run, task_id, index in ((commit, "report", -1), (middle, "score", 1), (start, "night", 0)):
        failed = partial(_is, airflow, run, task_id, "up_for_retry", index)
        airflow.wait_for(f"{task_id} without MLflow", failed)
        why = airflow.rest.log_error(run, airflow.task(run, task_id, index))
        assert re.fullmatch(r"MLflow at http://\S+ did not answer: .*", why), why
    airflow.start_mlflow()
    succeed(airflow, commit, middle, start)
    same_tables(ws, alone, AT_COMMIT, IN_THE_MIDDLE, AT_START)
    told_once(inbox, alone, AT_COMMIT, IN_THE_MIDDLE)


def test_a_full_disk_is_a_sentence_and_a_rerun_mends_it(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """A night that cannot write says so, leaves no half of anything, and is run again when there is room."""
    with full(Path(ws.lake.root)):
        (status,) = airflow.finish(start_night(airflow, FULL))
        assert status.state == "failed"
        why = airflow.rest.explain(status)
        assert "No space left on device" in why
        assert "\n" not in why
    assert inbox.of(FULL) == 0
    succeed(airflow, start_night(airflow, FULL))
    same_tables(ws, alone, FULL)
    told_once(inbox, alone, FULL)


def test_all_days_are_as_one_process_has_them(airflow: Cluster, ws: Workspace, alone: Workspace) -> None:
    """After all faults: every day that was run stands in every table as it should, and nothing is left behind."""
    same_tables(ws, alone, *(str(day) for day in days_between(date.fromisoformat(FIRST), date.fromisoformat(FULL))))
    assert [file for file in Path(ws.lake.root).rglob("_staging/**/*") if file.is_file()] == []


def _is(airflow: Cluster, run: Run, task_id: str, state: str, map_index: int = -1) -> bool:
    task = airflow.task(run, task_id, map_index)
    return task is not None and task.state == state


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Within the block there is no room left on the file system at `folder`."""
    assert folder.is_mount(), "run these tests as root: they mount a small file system for the lake, to fill it"
    file = folder / "full"
    try:
        with file.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        yield
    finally:
        file.unlink()
