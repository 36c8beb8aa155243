"""The doctor says what is wrong with an installation, and what to do about it; each fault is made for real."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipeline import doctor
from pipeline.cli import main
from pipeline.config import Home
from pipeline.doctor import Check, Place, due_day, pending_days, stale_nights, unmet
from pipeline.ingest import ingest
from pipeline.lake import ENDED
from pipeline.local import _alone
from pipeline.score import night_digest
from pipeline.state import State, write_state
from pipeline.workspace import Workspace
from tests.conftest import SENSOR, START, deliver, sensor_day

NOW = datetime(2026, 1, 9, 12, tzinfo=UTC)
FIRST = START.date()


@pytest.fixture(autouse=True)
def outside_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
        monkeypatch.delenv(name)


@pytest.fixture
def ws(make_workspace: Callable[..., Workspace]) -> Workspace:
    """Four days of readings, landed; the first two nights are done."""
    ws = make_workspace()
    for day in range(4):
        deliver(ws, sensor_day(day), f"day-{day}")
    ingest(ws)
    for n in range(2):
        day = FIRST + timedelta(days=n)
        for step in ("score", "incidents"):
            write_state(ws, State(day, step, night_digest(ws, day), ws.dataset.digest(), "1-a"))
    return ws


def place(ws: Workspace) -> Place:
    return Place(ws.home, ws.dataset.file.parent, NOW)


def level(checks: list[Check], what: str) -> tuple[str, str]:
    """The level and message of the one check of that name."""
    (found,) = [check for check in checks if check.what == what]
    assert (found.remedy == "") == (found.level == "OK"), found
    return found.level, found.message


def test_a_sound_installation_passes(ws: Workspace) -> None:
    """Nothing fails; the days that are not done are a warning that names them and the command that does them."""
    checks = doctor.examine(ws.home, ws.dataset.file.parent, NOW)
    assert [check for check in checks if check.level == "FAIL"] == []
    (pending,) = [check for check in checks if check.level == "WARN"]
    assert pending.message == "not done: 2026-01-07, 2026-01-08"
    assert pending.remedy == "nightsift backfill demo --from 2026-01-07 --to 2026-01-09"
    assert not (Path(ws.home.lake) / "_doctor").exists()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("polars>=2.1,<3", []),
        ("polars<2", ["polars"]),
        ("no-such-package>=1", ["no-such-package"]),
        ('no-such-package>=1; extra == "gpu"', []),
        ('polars<2; extra == "gpu"', ["polars"]),
        ('no-such-package>=1; python_version < "3"', []),
    ],
)
def test_requirements_that_are_not_met_are_named(wanted: str, told: list[str]) -> None:
    """A package outside its range, or missing; one of an extra only where it is installed."""
    assert [name for name, *_ in unmet([wanted])] == told


def test_a_celery_that_breaks_the_executor_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The range of the extra `celery` keeps 5.7 out, and the doctor says why."""
    monkeypatch.setattr(doctor, "version", lambda name: "5.7.0")
    ((name, have, asked, why),) = unmet(['celery<5.7; extra == "celery"'])
    assert (name, have, asked) == ("celery", "5.7.0", "<5.7")
    assert "CeleryExecutor imports" in why


def test_files_that_others_may_read_or_write_are_told(ws: Workspace) -> None:
    """A home that everybody may write is a warning, a password that everybody may read a failure."""
    password = ws.home.root / "airflow" / "passwords.json"
    password.parent.mkdir()
    password.write_text("{}")
    password.chmod(0o644)
    ws.home.root.chmod(0o777)
    found = {check.level: check for check in doctor.check_home(place(ws))}
    assert found["WARN"].remedy == f"chmod o-w {ws.home.root}"
    assert found["FAIL"].remedy == f"chmod 600 {password}"


def test_a_lake_that_cannot_be_written_fails(ws: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A lake under something that is no folder is a failure that names it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NIGHTSIFT_LAKE", str(tmp_path / "file" / "lake"))
    assert level(list(doctor.check_lake(place(ws))), "lake")[0] == "FAIL"


@pytest.mark.parametrize(("free", "wanted"), [(5e8, "FAIL"), (1.2e9, "WARN"), (9e9, "OK")])
def test_free_space_is_judged_by_the_size_of_the_lake(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, free: float, wanted: str
) -> None:
    """Less than a gigabyte fails, less than half the lake is a warning."""
    usage = shutil.disk_usage(ws.home.root)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=int(free)))
    monkeypatch.setattr(doctor, "_size", lambda _: 4_000_000_000)
    assert level(list(doctor.check_disk(place(ws))), "disk")[0] == wanted


def test_mlflow_is_written_to(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is not there yet is fine, one that answers takes a note, one that does not is a failure."""
    assert level(list(doctor.check_mlflow(place(ws))), "mlflow")[0] == "OK"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    failed, message = level(list(doctor.check_mlflow(place(ws))), "mlflow")
    assert failed == "FAIL"
    assert "http://***@127.0.0.1:9 takes no note: " in message
    assert "s3cret" not in message


def test_a_gpu_that_tensorflow_cannot_use_is_a_warning(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that was given GPUs, on which TensorFlow finds none, is told; a machine without one is in order."""
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    assert level(list(doctor.check_gpus(place(ws))), "gpus")[0] == "OK"
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    assert level(list(doctor.check_gpus(place(ws))), "gpus")[0] == "WARN"


def test_a_wrong_yaml_fails_and_hides_no_other(ws: Workspace) -> None:
    """The YAML that cannot be read is named, and so is the variable that another one wants."""
    folder = ws.dataset.file.parent
    (folder / "broken.yaml").write_text(SENSOR.replace("entity:", "entty:"))
    ws.dataset.file.write_text(SENSOR + "notify: {urls_env: [NIGHTSIFT_TEST_NOBODY]}\n")
    checks = list(doctor.check_datasets(place(ws)))
    assert "did you mean entity" in level(checks, "broken yaml")[1]
    assert level(checks, "demo notify")[0] == "FAIL"
    assert level(checks, "demo suite")[0] == "OK"
    assert level(list(doctor.check_partitions(place(ws))), "demo partitions")[0] == "WARN"


def test_days_are_pending_once_they_are_over(ws: Workspace) -> None:
    """What is landed or due and not done waits; the day that is still running does not."""
    third, fourth = FIRST + timedelta(days=2), FIRST + timedelta(days=3)
    assert pending_days(ws, NOW) == [third, fourth]
    assert pending_days(ws, START + timedelta(days=3, hours=1)) == [third]


def test_a_night_whose_source_never_came_is_pending(make_workspace: Callable[..., Workspace]) -> None:
    """With a schedule, yesterday is due although nothing of it has landed; before the hour only the day before is."""
    ws = make_workspace(SENSOR + 'schedule: "30 2 * * *"\nzone: Europe/Berlin\n')
    write_state(ws, State(FIRST, "incidents", "", ""))
    assert due_day(ws.dataset, NOW) == date(2026, 1, 8)
    assert due_day(ws.dataset, datetime(2026, 1, 9, 1, 0, tzinfo=UTC)) == date(2026, 1, 7)
    assert pending_days(ws, NOW) == [date(2026, 1, 8)]


def test_a_day_whose_data_came_late_is_stale(ws: Workspace) -> None:
    """A file that changed since its night was scored is told by its days."""
    assert stale_nights(ws) == []
    deliver(ws, sensor_day(1, fault=("m0", 3, 9)), "day-1")
    ingest(ws)
    assert FIRST + timedelta(days=1) in stale_nights(ws)


def test_what_killed_processes_left_is_told_once_it_is_old(ws: Workspace) -> None:
    """Staged shards, torn files and half-fetched detectors; not what a running process may still need."""
    lake = Path(ws.home.lake) / "demo"
    left = [lake / "_staging" / "2026-01-05" / "1-a" / "0-of-2.parquet.x.part",
            ws.home.data_docs / "demo" / ".a.html.0",
            ws.home.root / "detectors" / "demo" / ".fetch-abc" / "model"]  # fmt: skip
    for file in left:
        file.parent.mkdir(parents=True)
        file.write_text("x")
    checks = list(doctor.check_leftovers(Place(ws.home, ws.dataset.file.parent, datetime.now(UTC))))
    assert level(checks, "leftovers")[0] == "OK"
    later = Place(ws.home, ws.dataset.file.parent, datetime.now(UTC) + ENDED)
    message = level(list(doctor.check_leftovers(later)), "leftovers")[1]
    assert message.startswith("3 leftovers")
    assert all(name in message for name in ("_staging/2026-01-05", ".a.html.0", ".fetch-abc"))


def test_a_night_that_still_stages_shards_is_no_leftover(ws: Workspace) -> None:
    """The day's folder is as old as its first shard; what counts is when the last one was written."""
    ws.lake.stage("2026-01-05/1-a/0-of-2", pl.DataFrame({"score": [1.0]}))
    day = Path(ws.home.lake) / "demo" / "_staging" / "2026-01-05"
    long_ago = datetime.now(UTC).timestamp() - 2 * ENDED.total_seconds()
    for path in (day, day / "1-a"):
        os.utime(path, (long_ago, long_ago))
    checks = list(doctor.check_leftovers(Place(ws.home, ws.dataset.file.parent, datetime.now(UTC))))
    assert level(checks, "leftovers")[0] == "OK"
    os.utime(day / "1-a" / "0-of-2.parquet", (long_ago, long_ago))
    checks = list(doctor.check_leftovers(Place(ws.home, ws.dataset.file.parent, datetime.now(UTC))))
    assert level(checks, "leftovers")[0] == "WARN"


def test_the_lock_of_a_running_airflow_is_told_from_a_file_that_was_left(ws: Workspace) -> None:
    """The lock dies with its process, so a file alone keeps nobody out."""
    folder = ws.home.root / "airflow"
    with _alone(folder):
        assert "one runs" in level(list(doctor.check_lock(place(ws))), "local airflow")[1]
    assert "none runs" in level(list(doctor.check_lock(place(ws))), "local airflow")[1]


@pytest.fixture
def airflow_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    """A database with the two tables of Airflow's that the doctor reads."""
    file = tmp_path / "airflow.db"
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{file}")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")
    database = sqlite3.connect(file)
    database.execute("create table job (job_type text, state text, latest_heartbeat text)")
    database.execute("create table slot_pool (pool text, slots integer)")
    database.commit()
    return database


def test_an_airflow_without_scheduler_or_pool_fails(ws: Workspace, airflow_database: sqlite3.Connection) -> None:
    """The database answers; nobody schedules, and no task may take a slot of the pool gpu, until both are there."""
    checks = list(doctor.check_airflow(place(ws)))
    assert level(checks, "airflow database")[0] == "OK"
    assert level(checks, "airflow scheduler") == ("FAIL", "none is running")
    assert level(checks, "airflow pool gpu")[0] == "FAIL"
    airflow_database.execute("insert into job values ('SchedulerJob', 'running', '2026-01-09 11:59:50.000000')")
    airflow_database.execute("insert into slot_pool values ('gpu', 2)")
    airflow_database.commit()
    checks = list(doctor.check_airflow(place(ws)))
    assert level(checks, "airflow scheduler") == ("OK", "last heartbeat 10 s ago")
    assert level(checks, "airflow pool gpu") == ("OK", "2 slots")
    late = Place(ws.home, ws.dataset.file.parent, NOW + timedelta(minutes=5))
    assert level(list(doctor.check_airflow(late)), "airflow scheduler")[0] == "FAIL"


def test_a_database_that_does_not_answer_fails_without_its_password(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is told, the password is not."""
    monkeypatch.setenv(
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql+psycopg2://airflow:s3cret@127.0.0.1:9/airflow"
    )
    (check,) = doctor.check_airflow(place(ws))
    assert check.level == "FAIL"
    assert "127.0.0.1:9" in check.message
    assert "s3cret" not in check.message


@pytest.mark.parametrize(
    ("queues", "wanted"),
    [({}, "FAIL"), ({"w1": ["default"]}, "FAIL"), ({"w1": ["default"], "w2": ["gpu"]}, "OK")],
)
def test_somebody_has_to_listen_to_the_queue_gpu(queues: dict[str, list[str]], wanted: str) -> None:
    """Workers that answer are not enough: training and scoring wait for one of the queue gpu."""
    assert doctor._celery(queues).level == wanted


def test_a_check_that_breaks_hides_no_other(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no check foresaw is a failure by itself, and the others are told."""

    def check_weather(_: Place) -> None:
        raise OSError("rain")

    monkeypatch.setattr(doctor, "CHECKS", (check_weather, doctor.check_disk))
    weather, disk = doctor.examine(ws.home, ws.dataset.file.parent, NOW)
    assert (weather.what, weather.level, weather.message) == ("weather", "FAIL", "OSError: rain")
    assert disk.what == "disk"


def test_the_command_ends_with_1_where_a_check_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nightsift doctor --json` lists every check; the exit code is 1 with a failure, 0 without."""
    home = Home.at(tmp_path / "var")
    for checks, code in ([Check("a", "OK", "fine")], 0), ([Check("b", "FAIL", "bad", "mend it")], 1):
        monkeypatch.setattr(doctor, "CHECKS", (lambda _, checks=checks: iter(checks),))
        with pytest.raises(SystemExit) as ended:
            main(["doctor", "--json", "--home", str(home.root), "--datasets", str(tmp_path)])
        assert (ended.value.code or 0) == code
        assert [each["what"] for each in json.loads(capsys.readouterr().out)] == [check.what for check in checks]
