"""The DAGs on a distributed Airflow: CeleryExecutor, PostgreSQL, Redis, a default and a GPU worker, MLflow's server.

Days are worked through in order, each by a test of its own with a fault of its own, and end up as one process has them.
"""

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.airflow_rest import Run, RunStatus, Task
from pipeline.config import days_between
from pipeline.errors import NightsiftError
from pipeline.workspace import Workspace
from tests.conftest import tables
from tests.figures import record
from tests.production.cluster import ASKED, PATIENCE, Cluster
from tests.production.conftest import Messages
from tests.servers import suspended

pytestmark = pytest.mark.usefixtures("training")
FIRST, SEVENTH = "2026-03-05", "2026-03-11"
TWICE, AT_COMMIT, IN_THE_MIDDLE, AT_START = "2026-03-12", "2026-03-13", "2026-03-14", "2026-03-15"
UNHEARD, FULL = "2026-03-16", "2026-03-17"


def run_night(airflow: Cluster, day: str) -> tuple[Run, Run]:
    """The ingest of `day` and the nightly run that follows by itself, both ended well."""
    ingest = airflow.rest.trigger("pumps_ingest", {"day": day})
    succeed(airflow, ingest)
    (night,) = airflow.rest.nights_after(ingest, PATIENCE)
    succeed(airflow, night)
    return ingest, night


def start_night(airflow: Cluster, day: str) -> Run:
    """A nightly run of `day`, which has landed, just begun."""
    return airflow.rest.trigger("pumps_nightly", {"day": day})


def start_backfill(airflow: Cluster, first: str, last: str) -> Run:
    """A backfill of the days from `first` to `last`, just begun."""
    return airflow.rest.trigger("backfill", {"dataset": "pumps", "first": first, "last": last})


def succeed(airflow: Cluster, *runs: Run) -> list[RunStatus]:
    """The ends of the runs, which were good."""
    ends = airflow.finish(*runs)
    for status in ends:
        assert status.state == "success", airflow.rest.explain(status)
    return ends


def compared(ws: Workspace, alone: Workspace, *days: str) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """What every table holds of these days, and what one process wrote, which told nobody anything."""
    mine, wanted = tables(ws), tables(alone)
    mine["partitions"] = mine["partitions"].filter(~pl.col("step").is_in(["notify", "drift"]))
    assert set(mine) == set(wanted)
    these = pl.col("day").cast(pl.String).is_in(days)
    for name in wanted:
        yield mine[name].filter(these), wanted[name].filter(these)


def same_tables(ws: Workspace, alone: Workspace, *days: str) -> None:
    """Every table holds of these days what one process wrote: no row less, none twice."""
    for mine, wanted in compared(ws, alone, *days):
        assert_frame_equal(mine, wanted, check_exact=True)


def told_once(messages: Messages, alone: Workspace, *days: str) -> None:
    """A night in which incidents begin was told once, and no night twice."""
    began = tables(alone, "incidents")["incidents"].filter(pl.col("start").dt.date() == pl.col("day"))
    for day in days:
        assert int(date.fromisoformat(day) in began["day"]) <= messages.of(day) <= 1, day


def ask_mlflow(ws: Workspace, query: str) -> list[Any]:
    """What MLflow's database says."""
    with contextlib.closing(sqlite3.connect(ws.home.root / "mlflow.db")) as store:
        return store.execute(query).fetchall()


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
    label = "SELECT version, value FROM model_version_tags WHERE key = 'label'"
    assert ask_mlflow(ws, label) == ask_mlflow(alone, label) != []


def test_a_night_runs_on_the_workers_of_its_queues(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """Scoring runs on the GPU worker alone, all else on the default worker; the tables are those of one process."""
    ingest, night = run_night(airflow, FIRST)
    assert airflow.ran_on(ingest) == {"default": {"default"}}
    assert airflow.ran_on(night) == {"gpu": {"gpu-2"}, "default": {"default"}}
    same_tables(ws, alone, FIRST)
    told_once(inbox, alone, FIRST)


def test_a_backfill_of_seven_days_beside_the_nights_of_the_same_days_outlives_its_worker(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """SIGKILL of the GPU worker's whole tree while it scores: what it worked on, and that alone, is taken up again.

    All runs end well, every day is there once, and no message goes out twice.
    """
    days = [str(day) for day in days_between(date.fromisoformat(FIRST), date.fromisoformat(SEVENTH))]
    nights = [start_night(airflow, day) for day in days[2:4]]
    airflow.wait_for("the second shard", lambda: "::endgroup::" in airflow.log(nights[0], "score", 1))
    (task,) = airflow.tasks_of("gpu-2")
    task.suspend()  # so that it is in the midst of its work for certain
    assert airflow.task(nights[0], "score", 1).state == "running"
    airflow.kill_worker("gpu-2")
    airflow.start_worker("gpu-3", "gpu")
    backfill = start_backfill(airflow, days[0], days[-1])
    first, *others = succeed(airflow, *nights, backfill)
    assert {task.map_index: task.tries for task in first.tasks if task.task_id == "score"} == {0: 1, 1: 2}
    assert {task.tries for status in others for task in status.tasks if task.state == "success"} == {1}
    assert airflow.ran_on(backfill)["gpu"] == {"gpu-3"}
    same_tables(ws, alone, *days)
    told_once(inbox, alone, *days[2:4])


def test_one_night_triggered_twice_at_once_while_postgresql_restarts_is_there_once(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """Airflow's database crashes and comes back while a shard is scored: both runs end well.

    The tables hold every row once, one message goes out, and MLflow has one page.
    """
    runs = start_night(airflow, TWICE), start_night(airflow, TWICE)
    airflow.wait_for("a shard", lambda: any("::endgroup::" in airflow.log(run, "score", 0) for run in runs))
    airflow.postgres.stop()
    time.sleep(2)
    airflow.postgres.start()
    succeed(airflow, *runs)
    same_tables(ws, alone, TWICE)
    told_once(inbox, alone, TWICE)
    assert ask_mlflow(ws, f"SELECT count(*) FROM tags WHERE key = 'key' AND value = 'night {TWICE}'") == [(1,)]


def test_nights_outlive_an_outage_of_mlflow(airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages) -> None:
    """MLflow goes away while one run scores, and when another logs: both go on when it is back.

    Each says meanwhile, in a sentence, that MLflow does not answer; a backfill is refused with it before it begins.
    """
    commit, middle = start_night(airflow, AT_COMMIT), start_night(airflow, IN_THE_MIDDLE)
    with pool_of(airflow, 0):  # nothing is scored until both are validated
        for run in (commit, middle):
            airflow.wait_for("validation", lambda run=run: _is(airflow, run, "validate", "success"), poll=ASKED)
        with suspended(airflow.workers["default"]):  # and nothing but scored then
            with pool_of(airflow, 1):  # first the first shards, then the second ones
                airflow.wait_for("the last", lambda: _is(airflow, commit, "score", "running", "success", map_index=1))
            airflow.wait_for("its end", lambda: _is(airflow, commit, "score", "success", map_index=1), poll=ASKED)
            airflow.stop_mlflow()
    with pytest.raises(NightsiftError, match=r"503 The backfill was not started: MLflow at http://\S+ did not answer"):
        start_backfill(airflow, AT_START, AT_START)
    for run, *task in ((commit, "log"), (middle, "score", 1)):
        why = first_error(airflow, run, *task)
        assert re.fullmatch(r"MLflow at http://\S+ did not answer: .*", why), why
    airflow.start_mlflow()
    backfill = start_backfill(airflow, AT_START, AT_START)
    for status in airflow.finish(commit, middle):
        if status.state == "failed":  # MLflow was away for longer than the retries last: that takes another run
            succeed(airflow, start_night(airflow, AT_COMMIT if status.run == commit else IN_THE_MIDDLE))
    succeed(airflow, backfill)
    same_tables(ws, alone, AT_COMMIT, IN_THE_MIDDLE, AT_START)
    told_once(inbox, alone, AT_COMMIT, IN_THE_MIDDLE)


def test_a_night_outlives_redis_and_a_silent_postgresql(
    airflow: Cluster, ws: Workspace, alone: Workspace, inbox: Messages
) -> None:
    """Redis is away when the night begins, crashes while a task runs, and loses what is queued while another one does.

    Then Airflow's database is silent. The night goes on by itself, each task at its first try: nothing is lost, and
    nothing is told twice.
    """
    began, faults = time.monotonic(), 0
    airflow.redis.stop()
    night = start_night(airflow, UNHEARD)
    airflow.wait_for("sending in vain, more often than Airflow's default", lambda: _sent_in_vain(airflow) > 3)
    airflow.redis.start()
    faults += 1
    airflow.wait_for("the first task", lambda: "::endgroup::" in airflow.log(night, "validate"))
    (first,) = airflow.tasks_of("default")
    first.suspend()
    airflow.redis.stop()
    airflow.redis.start()  # with the message of the task, which the worker could not acknowledge
    first.resume()
    faults += 1
    with pool_of(airflow, 2):  # so that the other shard's message waits in Redis for the only worker
        airflow.wait_for("a shard", lambda: any("::endgroup::" in airflow.log(night, "score", n) for n in (0, 1)))
        (shard,) = (task for name in airflow.workers if name != "default" for task in airflow.tasks_of(name))
        shard.suspend()
        airflow.wait_for("the other shard's message", lambda: airflow.redis.queued("gpu") == 1)
    airflow.redis.lose()
    assert airflow.redis.queued("gpu") == 0
    faults += 1
    with airflow.postgres.silent():
        shard.resume()  # it ends while nobody can write that down
        time.sleep(10)
    faults += 1
    (status,) = succeed(airflow, night)
    assert {task.tries for task in status.tasks if task.state == "success"} == {1}
    losses = sum(not mine.equals(wanted) for mine, wanted in compared(ws, alone, UNHEARD))
    record(
        "services-airflow",
        "A night of a distributed Airflow: Redis away at its start, Redis crashed and Redis's messages lost in its "
        "middle, Airflow's PostgreSQL silent. It ends by itself; a loss is a table that is not as one undisturbed "
        "process wrote it.",
        {"faults": faults, "nights": 1, "losses": losses},
        time.monotonic() - began,
    )
    same_tables(ws, alone, UNHEARD)
    told_once(inbox, alone, UNHEARD)


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


def _is(airflow: Cluster, run: Run, task_id: str, *states: str, map_index: int = -1) -> bool:
    task = airflow.task(run, task_id, map_index)
    return task is not None and task.state in states


def _sent_in_vain(airflow: Cluster) -> int:
    """How often the scheduler could not send a task to Redis in time, and kept it."""
    return (airflow.logs / "scheduler.log").read_text(errors="replace").count("Celery Task Timeout Error")


@contextlib.contextmanager
def pool_of(airflow: Cluster, slots: int) -> Iterator[None]:
    """Within the block so many tasks of the pool `gpu` are sent to its worker at once."""
    pool = airflow.rest.call("GET", "/api/v2/pools/gpu")
    body = {"pool": "gpu", "description": pool["description"], "include_deferred": False}
    airflow.rest.call("PATCH", "/api/v2/pools/gpu", body | {"slots": slots})
    try:
        yield
    finally:
        airflow.rest.call("PATCH", "/api/v2/pools/gpu", body | {"slots": pool["slots"]})


def first_error(airflow: Cluster, run: Run, task_id: str, map_index: int = -1) -> str:
    """What the first try of a task fails with, as soon as it has."""

    def failed() -> Task | None:
        task = airflow.task(run, task_id, map_index)
        return task if task and (task.state in ("up_for_retry", "failed") or task.tries > 1) else None

    return airflow.rest.log_error(run, replace(airflow.wait_for(f"{task_id} to fail", failed, poll=ASKED), tries=1))


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
