"""What state an installation is in: a list of checks, each with what to do where something is wrong."""

import fcntl
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pipeline.config import Dataset, Home, dataset_names, load_dataset
from pipeline.errors import ConfigError
from pipeline.lake import TABLES, Lake
from pipeline.redaction import without_secrets
from pipeline.upkeep import leftovers
from pipeline.workspace import Workspace

Level = Literal["OK", "WARN", "FAIL"]
GB = 1e9
LEAST_FREE = 1 * GB  # below it nothing can be written safely
SILENT_AFTER = 60  # seconds after which a scheduler whose heart has stopped is taken for dead
NAMED = 5  # days, files or packages that a message names
TOO_NEW = {"celery": "it has no celery.backends.database.retry, which Airflow's CeleryExecutor imports"}  # from 5.7 on


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what, how it is, without secrets, and what to do about it (nothing where OK)."""

    what: str
    level: Level
    message: str
    remedy: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", without_secrets(self.message))


@dataclass(frozen=True, slots=True)
class Place:
    """What is examined: the state folder, the folder of YAMLs, and when."""

    home: Home
    datasets: Path
    now: datetime


def examine(home: Home, datasets: Path, now: datetime | None = None) -> list[Check]:
    """Every check, in order; one that breaks is itself a failure and hides no other."""
    place = Place(home, datasets, now or datetime.now(UTC))
    return [check for look in CHECKS for check in _looked(look, place)]


def _looked(look: Callable[[Place], Iterator[Check]], place: Place) -> list[Check]:
    try:
        return list(look(place))
    except Exception as error:  # noqa: BLE001 - whatever is broken here is what the doctor has to tell
        what = look.__name__.removeprefix("check_").replace("_", " ")
        return [Check(what, "FAIL", f"{type(error).__name__}: {' '.join(str(error).split())}", "mend what it names")]


def _short(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split()))[:300]


def check_versions(_: Place) -> Iterator[Check]:
    """Python, and every package that the project needs, against the ranges that it was tested with."""
    yield Check("python", "OK", platform.python_version())
    try:
        wanted = requires("nightsift") or []
    except PackageNotFoundError:
        yield Check("packages", "WARN", "nightsift is not installed as a package", "run: make setup")
        return
    wrong = list(unmet(wanted))
    if not wrong:
        yield Check("packages", "OK", f"{len(wanted)} requirements are met")
    for name, have, asked, why in wrong:
        remedy = f"pip install '{name}{asked}', or install from requirements.lock"
        yield Check("packages", "FAIL", f"{name} is {have}, wanted is {asked}{why and ': ' + why}", remedy)


def unmet(wanted: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Name, version, wanted range and reason of each requirement that is not met; of extras only what is installed."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, wanted):
        marker, name = requirement.marker, requirement.name
        optional = marker is not None and "extra" in str(marker)
        if marker is not None and not optional and not marker.evaluate():
            continue
        try:
            have = version(name)
        except PackageNotFoundError:
            if not optional:
                yield name, "not installed", str(requirement.specifier), ""
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            yield name, have, str(requirement.specifier), TOO_NEW.get(name, "")


def check_home(place: Place) -> Iterator[Check]:
    """The state folder: whether it can be written, and read by others where it holds a password."""
    root = place.home.root
    if not root.exists():
        there = _existing(root)
        fine = os.access(there, os.W_OK)
        remedy = "" if fine else f"make {root} yourself, or choose another --home"
        yield Check("home", "OK" if fine else "FAIL", f"{root} is not there yet", remedy)
        return
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield Check("home", "FAIL", f"{root} cannot be written by this user", f"chown or chmod {root}")
    elif root.stat().st_mode & 0o002:
        yield Check("home", "WARN", f"{root} can be written by every user", f"chmod o-w {root}")
    else:
        yield Check("home", "OK", str(root))
    for file in root.glob("airflow/passwords.json"):
        if file.stat().st_mode & 0o077:
            yield Check("home", "FAIL", f"{file} can be read by other users", f"chmod 600 {file}")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_lake(place: Place) -> Iterator[Check]:
    """Whether a file can be written to the lake and read again."""
    lake = Lake(place.home.lake, "_doctor")
    try:
        lake.stage("check/1", pl.DataFrame({"written": [1]}))
        back = lake.staged("check/1")
    except Exception as error:  # noqa: BLE001 - each store has errors of its own
        remedy = "check NIGHTSIFT_LAKE, the store's address and its credentials"
        yield Check("lake", "FAIL", f"{place.home.lake} cannot be written: {' '.join(str(error).split())}", remedy)
        return
    finally:
        if "://" not in lake.root:
            shutil.rmtree(f"{lake.root}/_doctor", ignore_errors=True)
    assert back is not None
    yield Check("lake", "OK", f"{place.home.lake} can be written and read")


def check_disk(place: Place) -> Iterator[Check]:
    """Free space where the state is, against what the lake takes: compaction and backups want as much again."""
    free, lake = shutil.disk_usage(_existing(place.home.root)).free, _size(place.home.lake)
    message = f"{free / GB:.1f} GB free, the lake takes {lake / GB:.1f} GB"
    remedy = "free space, or move the lake to an object store with NIGHTSIFT_LAKE"
    if free < LEAST_FREE:
        yield Check("disk", "FAIL", message, remedy)
    elif free < lake / 2:
        yield Check("disk", "WARN", message, remedy)
    else:
        yield Check("disk", "OK", message)


def _size(folder: str) -> int:
    """Bytes below a local folder; 0 for an address."""
    if "://" in folder:
        return 0
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def check_mlflow(place: Place) -> Iterator[Check]:
    """Whether MLflow answers, and takes a note: a tag of the experiment `nightsift/doctor`."""
    uri = place.home.tracking_uri
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite") and not file.exists():
        yield Check("mlflow", "OK", f"{uri} is not there yet; the first training makes it")
        return
    for name, value in {"MAX_RETRIES": "1", "TIMEOUT": "10"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    api = MlflowClient(uri, uri)
    try:
        found = api.get_experiment_by_name("nightsift/doctor")
        number = found.experiment_id if found else api.create_experiment("nightsift/doctor")
        api.set_experiment_tag(number, "checked", place.now.isoformat(timespec="seconds"))
    except MlflowException as error:
        remedy = "check MLFLOW_TRACKING_URI, and that the server runs and lets this user write"
        yield Check("mlflow", "FAIL", f"{uri} takes no note: {_short(error)}", remedy)
        return
    yield Check("mlflow", "OK", f"{uri} can be read and written")


def check_gpus(_: Place) -> Iterator[Check]:
    """What networks run on here; a GPU that TensorFlow cannot use is worth a warning, a machine without one is not."""
    from models.devices import find_devices

    found = find_devices()
    if found.gpus:
        yield Check("gpus", "OK", f"{found}; their memory is taken as it is needed")
    elif _has_nvidia():
        remedy = "install the driver's libraries and: pip install '.[gpu]'; then try: nvidia-smi"
        message = "this machine has a GPU, but TensorFlow cannot use it: networks run on the CPU"
        yield Check("gpus", "WARN", message, remedy)
    else:
        yield Check("gpus", "OK", "none: networks run on the CPU")


def _has_nvidia() -> bool:
    """Whether the driver, or the runtime that started this container, shows a GPU."""
    shown = os.environ.get("NVIDIA_VISIBLE_DEVICES", "void")
    return shown not in ("", "void", "none") or any(Path("/proc/driver/nvidia/gpus").glob("*"))


def check_datasets(place: Place) -> Iterator[Check]:
    """Every YAML with its suite, source, labels and the variables that it names: what `nightsift check` finds."""
    from pipeline.onboard import check

    for finding in check(place.datasets, place.home):
        what = f"{finding.dataset} {finding.what}".strip()
        if finding.ok:
            yield Check(what, "OK", finding.message)
        else:
            yield Check(what, "FAIL", finding.message, f"mend what it names; see: nightsift check {finding.dataset}")


def check_tables(place: Place) -> Iterator[Check]:
    """For each dataset, which tables there are and at which Delta version."""
    for name in dataset_names(place.datasets):
        lake = Lake(place.home.lake, name)
        versions = {table: lake.version(table) for table in TABLES}
        there = [f"{table} {number}" for table, number in versions.items() if number >= 0]
        yield Check(f"{name} tables", "OK", ", ".join(there) or "none yet")


def check_partitions(place: Place) -> Iterator[Check]:
    """For each dataset, the days that are landed or due but not done, and those whose data came late."""
    for dataset in _readable(place):
        ws = Workspace(dataset, place.home, Lake(place.home.lake, dataset.name))
        pending, stale = pending_days(ws, place.now), stale_nights(ws)
        if pending:
            remedy = f"nightsift backfill {dataset.name} --from {pending[0]} --to {pending[-1] + timedelta(days=1)}"
            yield Check(f"{dataset.name} partitions", "WARN", f"not done: {_list(pending)}", remedy)
        if stale:
            remedy = f"the next night does them; at once: nightsift backfill {dataset.name} --from … --to …"
            yield Check(f"{dataset.name} partitions", "WARN", f"changed since they were scored: {_list(stale)}", remedy)
        if not pending and not stale:
            yield Check(f"{dataset.name} partitions", "OK", "all that is landed and due is done")


def _readable(place: Place) -> Iterator[Dataset]:
    for name in dataset_names(place.datasets):
        try:
            yield load_dataset(name, place.datasets)
        except ConfigError:  # `check_datasets` tells
            continue


def pending_days(ws: Workspace, now: datetime) -> list[date]:
    """The days since the first night that have data or were due by `now`, and have no incidents yet, in order."""
    from pipeline.state import states

    done = set(states(ws, "incidents")["day"])
    if not done:
        return []
    landed = {day for day in ws.lake.landed()["day"].unique() if day > min(done)}
    due = due_day(ws.dataset, now)
    today = ws.dataset.day_of(now)
    waiting = landed | ({due} if due is not None and due > min(done) else set())
    return sorted(day for day in waiting - done if day < today and (due is None or day <= due))


def due_day(dataset: Dataset, now: datetime) -> date | None:
    """The day whose night was last scheduled before `now`; None without a schedule."""
    if dataset.schedule is None:
        return None
    from croniter import croniter

    started = croniter(dataset.schedule, now.astimezone(dataset.tz)).get_prev(datetime)
    return dataset.day_of(started) - timedelta(days=1)


def stale_nights(ws: Workspace) -> list[date]:
    """The days that were scored from other data than there are now."""
    from pipeline.score import stale_days
    from pipeline.state import newest_day

    if newest_day(ws, "score") is None:
        return []
    # `stale_days` has the day that it is asked for in any case: ask for one that is none.
    return [day for day in stale_days(ws, date.min) if day != date.min]


def _list(items: list[Any]) -> str:
    more = len(items) - NAMED
    return ", ".join(map(str, items[:NAMED])) + (f" and {more} more" if more > 0 else "")


def check_leftovers(place: Place) -> Iterator[Check]:
    """What killed processes have left: staged or held days, torn files, half-written pages, half-fetched detectors."""
    found = leftovers(place.home, place.now)
    if found:
        size = sum(path.stat().st_size if path.is_file() else _size(str(path)) for path in found)
        remedy = "no process needs them any more; remove them: nightsift upkeep"
        message = f"{len(found)} leftovers of killed processes, {size / GB:.2f} GB: {_list(found)}"
        yield Check("leftovers", "WARN", message, remedy)
    else:
        yield Check("leftovers", "OK", "none")


def check_lock(place: Place) -> Iterator[Check]:
    """Whether an Airflow runs from this home; the lock is the system's, and dies with whoever holds it."""
    lock = place.home.root / "airflow" / "lock"
    if not lock.exists():
        return
    with lock.open("r") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield Check("local airflow", "OK", f"one runs from {lock.parent}")
        else:
            yield Check("local airflow", "OK", "none runs from this home; the next one can start")


def check_airflow(place: Place) -> Iterator[Check]:
    """The Airflow that the environment names: its database, its schedulers and the pool `gpu`."""
    if not any(name == "AIRFLOW_HOME" or name.startswith("AIRFLOW__") for name in os.environ):
        return
    from airflow.configuration import conf
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    engine = create_engine(conf.get("database", "sql_alchemy_conn"))
    shown = engine.url.render_as_string(hide_password=True)
    try:
        with engine.connect() as connection:
            beats = connection.execute(
                text("select max(latest_heartbeat) from job where job_type = 'SchedulerJob' and state = 'running'")
            ).scalar()
            slots = connection.execute(text("select slots from slot_pool where pool = 'gpu'")).scalar()
    except SQLAlchemyError as error:
        remedy = "check AIRFLOW__DATABASE__SQL_ALCHEMY_CONN, then run: airflow db migrate"
        yield Check("airflow database", "FAIL", f"{shown}: {_short(error)}", remedy)
        return
    finally:
        engine.dispose()
    yield Check("airflow database", "OK", shown)
    yield _scheduler(beats, place.now)
    if slots is None:
        remedy = 'airflow pools set gpu 1 "GPUs"'
        yield Check("airflow pool gpu", "FAIL", "it does not exist: no training or scoring can start", remedy)
    else:
        yield Check("airflow pool gpu", "OK", f"{slots} slots")
    if "CeleryExecutor" in conf.get("core", "executor"):
        yield _celery(_queues())


def _scheduler(beat: Any, now: datetime) -> Check:
    """What the schedulers' last heartbeat says; SQLite gives it as text, in UTC."""
    remedy = "start one: airflow scheduler"
    if beat is None:
        return Check("airflow scheduler", "FAIL", "none is running", remedy)
    moment = datetime.fromisoformat(beat) if isinstance(beat, str) else beat
    age = (now - (moment if moment.tzinfo else moment.replace(tzinfo=UTC))).total_seconds()
    message = f"last heartbeat {max(age, 0):.0f} s ago"
    return Check("airflow scheduler", "FAIL", message, remedy) if age > SILENT_AFTER else Check(
        "airflow scheduler", "OK", message
    )  # fmt: skip


def _queues() -> dict[str, list[str]]:
    """By worker the queues that it listens to; asks the workers themselves, for three seconds."""
    from airflow.providers.celery.executors.celery_executor_utils import app

    answered = app.control.inspect(timeout=3).active_queues() or {}
    return {worker: [queue["name"] for queue in queues] for worker, queues in answered.items()}


def _celery(queues: dict[str, list[str]]) -> Check:
    listening = sorted(worker for worker, names in queues.items() if "gpu" in names)
    if listening:
        return Check("celery", "OK", f"{len(queues)} workers; on the queue gpu: {_list(listening)}")
    message = f"{len(queues)} workers answer, none of them listens to the queue gpu: no training or scoring can start"
    return Check("celery", "FAIL", message, "start one on a GPU machine: airflow celery worker -q gpu -c 1")


CHECKS: tuple[Callable[[Place], Iterator[Check]], ...] = (
    check_versions, check_home, check_lake, check_disk, check_mlflow, check_gpus, check_datasets, check_tables,
    check_partitions, check_leftovers, check_lock, check_airflow,
)  # fmt: skip
