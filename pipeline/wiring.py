"""What the DAG files share: which datasets there are, who owns a task, how it is retried, how long it may take.

Imported whenever Airflow reads a DAG file, so nothing heavy stands at the top.
"""

import os
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import CronDataIntervalTimetable, ExceptionRetryPolicy, Param, RetryAction, RetryRule

from pipeline.config import Dataset, dataset_names, load_dataset
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.workspace import Workspace

ROOT = Path(__file__).parents[1]
GPU = {"queue": "gpu", "pool": "gpu"}  # which workers take the task, and how many such tasks run at once


def datasets_folder() -> Path:
    """The folder of dataset YAMLs: NIGHTSIFT_DATASETS, else `datasets` beside `dags`."""
    return Path(os.environ.get("NIGHTSIFT_DATASETS") or ROOT / "datasets")


def read_datasets() -> tuple[list[Dataset], list[ConfigError]]:
    """Every dataset whose YAML can be read, and why the others cannot."""
    good, bad = [], []
    for name in dataset_names(datasets_folder()):
        try:
            good.append(load_dataset(name, datasets_folder()))
        except ConfigError as error:
            bad.append(error)
    return good, bad


def workspace(name: str) -> "Workspace":
    """The workspace of a task: state in NIGHTSIFT_HOME, else `var` beside `dags`, wherever the worker was started."""
    from pipeline.workspace import open_workspace

    return open_workspace(name, os.environ.get("NIGHTSIFT_HOME") or ROOT / "var", datasets_folder())


def settings(dataset: Dataset, kind: str, hours: int) -> dict[str, Any]:
    """The arguments that each DAG of a dataset has in common; a run may take `hours`, each task half of that.

    What a person must mend (data, YAML, suite) is not tried again; anything else twice, after 30 s and then longer.
    """
    return {
        "dag_id": f"{dataset.name}_{kind}",
        "description": f"{dataset.name}: {dataset.description}" if dataset.description else dataset.name,
        "tags": ["nightsift", dataset.name, dataset.kind, kind],
        **bounds(dataset.owner, hours),
    }


def bounds(owner: str, hours: int) -> dict[str, Any]:
    """The arguments that all DAGs have in common: when they may run, for how long, and how their tasks are retried."""
    return {
        "start_date": datetime(2000, 1, 1, tzinfo=UTC),
        "catchup": False,
        "dagrun_timeout": timedelta(hours=hours),
        "default_args": {
            "owner": owner,
            "retries": 2,
            "retry_delay": timedelta(seconds=30),
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": timedelta(minutes=10),
            "retry_policy": _MEND_FIRST,
            "execution_timeout": timedelta(hours=hours) / 2,
        },
    }


_MEND_FIRST = ExceptionRetryPolicy(
    [
        RetryRule(
            exception=["pipeline.errors.ConfigError", "pipeline.errors.GateRefusedError"],
            action=RetryAction.FAIL,
            reason="Trying again cannot help: the message says what to mend",
        )
    ]
)


def timetable(dataset: Dataset) -> CronDataIntervalTimetable | None:
    """When the nightly run starts, by the clock of the dataset's zone; None: on demand only."""
    return CronDataIntervalTimetable(dataset.schedule, timezone=dataset.zone) if dataset.schedule else None


def day_param(title: str, description: str, default: str | None = None) -> Param:
    """A day in the trigger form: YYYY-MM-DD, or empty."""
    return Param(default, type=["null", "string"], format="date", title=title, description=description)


def night_of(dataset: Dataset, params: Mapping[str, Any], run: Any) -> date:
    """The day that a nightly run is about: the one it was given, else the day before the run in the dataset's zone."""
    if params.get("day"):
        return date.fromisoformat(params["day"])
    return dataset.day_of(run.data_interval_end or run.run_after) - timedelta(days=1)


def stretch_of(dataset: Dataset, params: Mapping[str, Any], run: Any) -> tuple[datetime, datetime]:
    """The half-open stretch of time that a training run learns from; by default `training.days` before its own day.

    Raises `ConfigError` where it is empty.
    """
    last = params.get("to") and date.fromisoformat(params["to"])
    end = last or dataset.day_of(run.logical_date or run.run_after)
    first = params.get("from") and date.fromisoformat(params["from"])
    start = first or end - timedelta(days=dataset.training.days)
    if start >= end:
        raise ConfigError(f"training from {start} to {end} has nothing to learn from: from must be before to")
    return dataset.day_bounds(start)[0], dataset.day_bounds(end)[0]
