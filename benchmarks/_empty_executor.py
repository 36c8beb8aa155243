"""An executor of Airflow whose workers do nothing: each task starts, returns as much as the real one, and succeeds.

All that Airflow does for a task is done, by the scheduler, the API server and the database: what is left out is the
worker's process and the work. So the figures are those of workers on machines of their own, however fast.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.executors.base_executor import BaseExecutor
from airflow.executors.local_executor import LocalExecutor
from airflow.sdk.api.client import Client, ServerResponseError

SHARDS = "NIGHTSIFT_BENCH_SHARDS"  # into how many shards the night is divided
REFUSED = "NIGHTSIFT_BENCH_REFUSED"  # the file that takes what Airflow says when it refuses a task's result
DAY, CROWDED_DAY = "2026-03-05", "2026-03-06"
MOST = 1024  # Airflow's core.max_map_length; the crowded day has one shard more
ENTITIES = 700  # of each shard
DETECTOR, INPUTS = "12-0123456789abcdef", "0" * 32


class EmptyExecutor(LocalExecutor):
    """The LocalExecutor, with workers that run no task."""

    def start(self) -> None:
        """Start the workers, which are forks of this process and so have the other function too."""
        BaseExecutor.run_workload = staticmethod(run_nothing)
        super().start()


def run_nothing(workload: Any, *, server: str, **_: Any) -> None:
    """Tell Airflow what a worker would tell it about the task: that it runs, what it returned, that it is done."""
    task = workload.ti
    with Client(base_url=server, token=workload.token) as api:
        context = api.task_instances.start(task.id, os.getpid(), datetime.now(UTC))
        day = (context.dag_run.conf or {}).get("day", DAY)
        result = result_of(task.task_id, day, task.map_index)
        try:
            if result is not None:
                length = len(result) if task.task_id == "validate" else None
                place = {"map_index": task.map_index, "mapped_length": length}
                api.xcoms.set(task.dag_id, task.run_id, task.task_id, "return_value", result, **place)
        except ServerResponseError as error:
            Path(os.environ[REFUSED]).write_text(str(error.detail))
            api.task_instances.finish(task.id, "failed", datetime.now(UTC), None)
        else:
            label = f"{day} shard {task.map_index + 1}" if task.map_index >= 0 else None
            api.task_instances.succeed(task.id, datetime.now(UTC), [], [], label)


def result_of(task_id: str, day: str, map_index: int) -> Any:
    """What the task of that name returns, with the fields of the real one; None where it returns nothing."""
    make = _RESULTS.get(task_id)
    return None if make is None else make(day, map_index)


def _shards(day: str, _: int) -> list[dict[str, Any]]:
    count = MOST + 1 if day == CROWDED_DAY else int(os.environ[SHARDS])
    bounds = [None, *(f"pump-{ENTITIES * n:07}" for n in range(1, count)), None]
    return [
        {"day": day, "index": n, "count": count, "detector": DETECTOR, "inputs": INPUTS, "entities": [],
         "begin": bounds[n], "end": bounds[n + 1]} for n in range(count)
    ]  # fmt: skip


def _scored(day: str, _: int) -> dict[str, Any]:
    return {
        "day": day, "steps": 10**6, "anomalous": 100, "entities": ENTITIES, "detector": DETECTOR, "promised": 0.05,
        "unseen": 0, "unseen_names": [], "drifting": 0,
    }  # fmt: skip


def _found(day: str, _: int) -> list[dict[str, Any]]:
    return [{"day": day, "incidents": 40, "silent": 0}]


def _ingested(day: str, _: int) -> dict[str, Any]:
    return {"day": day, "nights": [day], "files": 1, "known": 30, "rows": 10**9, "days": [day], "labels": 0}


_RESULTS: dict[str, Callable[[str, int], Any]] = {
    "ingest": _ingested, "validate": _shards, "score": _scored, "incidents": _found,
}  # fmt: skip
