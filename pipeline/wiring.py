"""What the DAG files share: which datasets there are, who owns a task, how it is retried, how long it may take.

Imported whenever Airflow reads a DAG file, so nothing heavy stands at the top.
"""

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import (
    Asset,
    CronPartitionTimetable,
    CronTriggerTimetable,
    ExceptionRetryPolicy,
    Param,
    PartitionedAtRuntime,
    RetryAction,
    RetryRule,
    get_parsing_context,
)
from croniter import croniter

from pipeline.alerts import keep_error, tell_failure
from pipeline.config import Dataset, Home, dataset_names, load_dataset
from pipeline.errors import ConfigError
from pipeline.redaction import secrets

if TYPE_CHECKING:
    from pipeline.lake import Lake
    from pipeline.workspace import Workspace

ROOT = Path(__file__).parents[1]
GPU = {"queue": "gpu", "pool": "gpu"}  # which workers take the task, and how many such tasks run at once


def datasets_folder() -> Path:
    """The folder of dataset YAMLs: NIGHTSIFT_DATASETS, else `datasets` beside `dags`."""
    return Path(os.environ.get("NIGHTSIFT_DATASETS") or ROOT / "datasets")


def home_folder() -> Path:
    """Where the state is: NIGHTSIFT_HOME, else `var` beside `dags`."""
    return Path(os.environ.get("NIGHTSIFT_HOME") or ROOT / "var")


def read_datasets() -> tuple[list[Dataset], list[ConfigError]]:
    """Every dataset whose YAML can be read, and why the others cannot.

    Where a worker reads the file for a task of one dataset's DAG, that dataset alone: with a thousand of them, a task
    would else begin with seconds of reading.
    """
    good, bad = [], []
    names = dataset_names(datasets_folder())
    wanted = (get_parsing_context().dag_id or "").rpartition("_")[0]
    for name in [wanted] if wanted in names else names:
        try:
            good.append(load_dataset(name, datasets_folder()))
        except ConfigError as error:
            bad.append(error)
    return good, bad


def owners(datasets: Iterable[Dataset]) -> str:
    """Who owns what is for all of these datasets: all their owners."""
    return ", ".join(sorted({dataset.owner for dataset in datasets})) or "nightsift"


def workspace(name: str) -> "Workspace":
    """The workspace of a task, wherever the worker was started; Airflow's logs of it show no secret from then on."""
    from pipeline.workspace import open_workspace

    _mask_secrets()
    return open_workspace(name, home_folder(), datasets_folder())


def lakes() -> list["Lake"]:
    """The tables of every dataset, whether its YAML can be read or not; Airflow's logs show no secret from then on."""
    from pipeline import upkeep

    _mask_secrets()
    return upkeep.lakes(Home.at(home_folder()), datasets_folder())


def _mask_secrets() -> None:
    """Also in what libraries say: the traceback of a driver's error may hold a connection string."""
    from airflow.sdk.log import mask_secret

    for secret in secrets():
        mask_secret(secret)


def settings(dataset: Dataset, kind: str, hours: int) -> dict[str, Any]:
    """The arguments that each DAG of a dataset has in common; a run may take `hours`, each task half of that.

    A run that fails for good is told to the dataset's targets, if there are any.
    """
    return {
        "dag_id": f"{dataset.name}_{kind}",
        "description": f"{dataset.name}: {dataset.description}" if dataset.description else dataset.name,
        "tags": ["nightsift", dataset.name, dataset.kind, kind],
        **bounds(dataset.owner, hours, dataset.name if dataset.notify.variables else None),
    }


def bounds(owner: str, hours: int, told: str | None) -> dict[str, Any]:
    """The arguments that all DAGs have in common: when they may run, for how long, and how their tasks are retried.

    What a person must mend (data, YAML, suite) is not tried again; anything else twice, after 30 s and then longer. A
    run that fails for good is told to the targets of the dataset `told` ("": the one that its form names), once, by a
    callback of the DAG: only that is called in the end, and also where a worker was killed or the run took too long.
    """
    return {
        "start_date": datetime(2000, 1, 1, tzinfo=UTC),
        "catchup": False,
        "dagrun_timeout": timedelta(hours=hours),
        "on_failure_callback": None if told is None else partial(tell_failure, told, datasets_folder()),
        "default_args": {
            "owner": owner,
            "retries": 2,
            "retry_delay": timedelta(seconds=30),
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": timedelta(minutes=10),
            "retry_policy": _MEND_FIRST,
            "on_failure_callback": keep_error,
            "execution_timeout": timedelta(hours=hours) / 2,
        },
    }


_MEND_FIRST = ExceptionRetryPolicy(
    [
        RetryRule(
            exception=[
                "pipeline.errors.ConfigError",
                "pipeline.errors.GateRefusedError",
                "pipeline.errors.DeadlineMissedError",
            ],
            action=RetryAction.FAIL,
            reason="Trying again cannot help: the message says what to mend",
        )
    ]
)


def landing(dataset: Dataset) -> Asset:
    """The asset whose partitions are the days of a dataset that have landed and are to be scored, YYYY-MM-DD."""
    return _asset(dataset, "landing")


def found_incidents(dataset: Dataset) -> Asset:
    """The asset whose partitions are the days whose incidents were found: what a DAG of one's own can follow."""
    return _asset(dataset, "incidents")


def _asset(dataset: Dataset, table: str) -> Asset:
    return Asset(name=f"{dataset.name}_{table}", uri=f"nightsift://{dataset.name}/{table}", group="nightsift")


def ingest_timetable(dataset: Dataset) -> CronPartitionTimetable | PartitionedAtRuntime:
    """When the night starts, by the clock of the dataset's zone; without a schedule on demand only.

    The partition of a run is the day of the run before: the first of the days that have ended since.
    """
    if dataset.schedule is None:
        return PartitionedAtRuntime()
    return CronPartitionTimetable(dataset.schedule, timezone=dataset.zone, run_offset=-1, key_format="%Y-%m-%d")


def watch_timetable(dataset: Dataset) -> CronTriggerTimetable:
    """When it is looked whether the night is done: every day at the deadline, by the clock of the dataset's zone."""
    assert dataset.deadline is not None
    return CronTriggerTimetable(f"{dataset.deadline.minute} {dataset.deadline.hour} * * *", timezone=dataset.zone)


def night_due(dataset: Dataset, moment: datetime) -> date | None:
    """The night that the schedule's last run before `moment` is about; None where none was due for a day."""
    local = moment.astimezone(dataset.tz)
    last = croniter(dataset.schedule, local).get_prev(datetime)
    return dataset.day_of(last) - timedelta(days=1) if local - last < timedelta(days=1) else None


def training_timetable(dataset: Dataset) -> CronTriggerTimetable | None:
    """When the detector is trained, by the clock of the dataset's zone; None: on demand, and on drift."""
    cron = dataset.training.schedule
    return CronTriggerTimetable(cron, timezone=dataset.zone) if cron else None


def day_param(title: str, description: str, default: str | None = None) -> Param:
    """A day in the trigger form: YYYY-MM-DD, or empty."""
    return Param(default, type=["null", "string"], format="date", title=title, description=description)


def night_of(dataset: Dataset, params: Mapping[str, Any], run: Any, now: datetime | None = None) -> date:
    """The day that a run is about: of the form, else its partition, else the day before the run, in the zone.

    Raises `ConfigError` where the day has not ended: what is still to come would be taken for silence.
    """
    key = params.get("day") or run.partition_key
    day = date.fromisoformat(key) if key else dataset.day_of(run.run_after) - timedelta(days=1)
    today = dataset.day_of(now or datetime.now(UTC))
    if day >= today:
        raise ConfigError(f"{day} has not ended: today is {today} in {dataset.zone}")
    return day


def nights_of(dataset: Dataset, params: Mapping[str, Any], run: Any, now: datetime | None = None) -> tuple[date, date]:
    """The first and last of the days that an ingest is about, both included; all have ended.

    Those of a partition go on to the day before the next run: no day is left out where the schedule leaves out days.
    Raises `ConfigError` as `night_of` does.
    """
    now = now or datetime.now(UTC)
    first = night_of(dataset, params, run, now)
    if dataset.schedule is None or params.get("day") or not run.partition_key:
        return first, first
    ends = croniter(dataset.schedule, datetime.combine(first, time.max, dataset.tz)).get_next(datetime)
    return first, dataset.day_of(min(ends, now)) - timedelta(days=1)


def task_seconds(ti: Any) -> dict[str, float]:
    """How long the tasks of this task's run have taken that are done, by name; mapped ones together."""
    took: dict[str, float] = {}
    for task in ti.get_task_breadcrumbs(ti.dag_id, ti.run_id):
        if task["state"] == "success" and task["duration"] is not None:
            took[task["task_id"]] = took.get(task["task_id"], 0.0) + float(task["duration"])
    return took


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
