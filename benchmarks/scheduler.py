"""What Airflow does for a night of many shards: `python -m benchmarks.scheduler [--shards N] [--quick] [--json FILE]`.

The night's own DAG runs through a real scheduler and API server on a PostgreSQL server of its own, from Debian's
package `postgresql`; the workers tell Airflow what workers tell it, and do nothing else (see `_empty_executor`). One
night has the shards given, 1,000 by default, the next one shard more than Airflow maps. Reported: seconds of processor
time that each process spent on a shard, shards a second, how long tasks waited, how many bytes the night left in the
database and in XCom, and what Airflow says of too many shards.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from benchmarks._common import ROOT, Result
from benchmarks._common import main as run_benchmark
from benchmarks._empty_executor import CROWDED_DAY, DAY, MOST, REFUSED, SHARDS, EmptyExecutor
from pipeline import local
from pipeline.airflow_rest import Run
from pipeline.config import Home
from pipeline.errors import NightsiftError

NAME = "bench"
AT_ONCE = 4  # tasks that run side by side: [core] parallelism, and the slots of the pool gpu
YAML = """\
kind: sensor
source: {path: none/*.parquet}
entity: machine
event_time: time
cadence: 1m
features: [{name: flow}]
"""
SIZES = """
select pg_database_size(current_database()), (select count(*) from task_instance),
       (select coalesce(sum(pg_column_size(value)), 0) from xcom), (select count(*) from xcom)
"""
WAITS = """
select percentile_cont(0.5) within group (order by extract(epoch from start_date - queued_dttm)),
       extract(epoch from max(end_date) - min(start_date))
from task_instance where task_id = 'score' and run_id = '{run}'
"""


def measure(quick: bool, scratch: Path, shards: int) -> Result:
    """The figures of a night of so many shards, and what becomes of one with more than Airflow maps."""
    (scratch / "datasets").mkdir()
    (scratch / "datasets" / f"{NAME}.yaml").write_text(YAML)
    count = 50 if quick else shards
    with postgres(scratch / "postgres") as address:
        os.environ.update({
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address.replace("postgresql:", "postgresql+psycopg2:"),
            "PYTHONPATH": str(ROOT), SHARDS: str(count), REFUSED: str(scratch / "refused"),
        })  # fmt: skip
        with (
            patch.object(local, "environment", _with_empty_executor(local.environment)),
            patch.object(local, "GPU_SLOTS", AT_ONCE),
            local.local_airflow(Home.at(scratch / "night"), scratch / "datasets", say=_say) as airflow,
        ):
            airflow.wait_for_dags({f"{NAME}_nightly"})
            night = _night(airflow, address, count)
            crowded = _wait(airflow, airflow.trigger(f"{NAME}_nightly", {"day": CROWDED_DAY}))
    said = (scratch / "refused").read_text()
    return {
        "cores": os.cpu_count(), "at_once": AT_ONCE, "night": night,
        "night_with_too_many": {"shards": MOST + 1, "state": crowded, "airflow_says": said},
    }  # fmt: skip


def _with_empty_executor(environment: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
    executor = {"AIRFLOW__CORE__EXECUTOR": f"{EmptyExecutor.__module__}.{EmptyExecutor.__name__}"}
    return lambda *args: environment(*args) | executor


def _night(airflow: local.LocalAirflow, address: str, shards: int) -> Result:
    before, spent = _query(address, SIZES), _processor_seconds(airflow)
    run = airflow.trigger(f"{NAME}_nightly", {"day": DAY})
    state = _wait(airflow, run)
    after, used = _query(address, SIZES), _processor_seconds(airflow)
    waited, span = _query(address, WAITS.format(run=run.run_id))
    return {
        "shards": shards, "state": state, "task_instances": after[1] - before[1],
        "score_seconds": float(span), "shards_per_second": shards / float(span), "median_wait_seconds": float(waited),
        "processor_seconds_per_shard": {name: (used[name] - spent[name]) / shards for name in sorted(used)},
        "database_bytes": after[0] - before[0], "database_bytes_per_shard": (after[0] - before[0]) / shards,
        "xcom_bytes": int(after[2] - before[2]), "xcom_rows": after[3] - before[3],
    }  # fmt: skip


def _wait(airflow: local.LocalAirflow, run: Run) -> str:
    """How the run ended; only the run is asked for, since asking for a thousand tasks each second is work too."""
    path = f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}"
    airflow.wait_until("the night", lambda: airflow.call("GET", path)["state"] in ("success", "failed"), 3600)
    return str(airflow.call("GET", path)["state"])


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _processor_seconds(airflow: local.LocalAirflow) -> dict[str, float]:
    """Seconds of processor time so far, by process; `workers` are those that do nothing but talk to the API server."""
    found = {"workers": 0.0, "postgres": 0.0}
    for name, started in airflow._processes._running.items():
        process = psutil.Process(started.pid)
        below = sum(map(_with_ended, process.children(recursive=True)))
        found[name] = _own(process) + (0.0 if name == "scheduler" else below)
        found["workers"] += below if name == "scheduler" else 0.0
    for process in psutil.Process().children():
        if "-D" in process.cmdline():
            found["postgres"] = sum(map(_with_ended, [process, *process.children(recursive=True)]))
    return found


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _with_ended(process: psutil.Process) -> float:
    """What the process used, and its children that have ended."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _query(address: str, statement: str) -> tuple[Any, ...]:
    """The first row of the answer; none for a statement without one."""
    import psycopg2

    with contextlib.closing(psycopg2.connect(address)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchone() or ()) if cursor.description else ()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The address of a PostgreSQL server on 127.0.0.1 that lives as long as the block; its data is in `folder`."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not programs:
        sys.exit("PostgreSQL's server is missing: apt-get install postgresql")
    place, port = programs[-1].parent, local.free_port(15432)
    folder.mkdir()
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        for parent in list(folder.parents)[:-2]:
            parent.chmod(parent.stat().st_mode | 0o011)
    made = [str(place / "initdb"), "-D", str(folder), "-U", "airflow", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(_as_postgres(made), check=True, stdout=subprocess.DEVNULL, cwd="/")
    serve = [str(place / "postgres"), "-D", str(folder), "-p", str(port), "-c", "listen_addresses=127.0.0.1",
             "-c", f"unix_socket_directories={folder}", "-c", "max_connections=200"]  # fmt: skip
    server = subprocess.Popen(_as_postgres(serve), cwd="/", stderr=subprocess.DEVNULL)
    try:
        yield _answering(f"postgresql://airflow@127.0.0.1:{port}/postgres")
    finally:
        stop = [str(place / "pg_ctl"), "-D", str(folder), "stop", "-m", "fast"]
        subprocess.run(_as_postgres(stop), check=False, stdout=subprocess.DEVNULL, cwd="/")
        server.wait(timeout=60)


def _as_postgres(command: list[str]) -> list[str]:
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        if os.geteuid() == 0
        else command
    )


def _answering(address: str) -> str:
    import psycopg2

    for _ in range(300):
        try:
            _query(address, "select 1")
        except psycopg2.OperationalError:
            time.sleep(0.1)
        else:
            return address
    raise NightsiftError("the PostgreSQL server did not answer within 30 seconds")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=1000, help="how many shards the night has (1000)")


if __name__ == "__main__":
    run_benchmark("What Airflow does for a night of many shards.", measure, _options)
