"""Airflow as it runs on several machines, all of it on this one: PostgreSQL, Redis, Celery workers, MLflow's server."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.airflow_rest import AirflowRest, Run, RunStatus, Task
from pipeline.config import Home
from pipeline.errors import NightsiftError
from pipeline.local import ROOT, USER, prepare
from tests.servers import HOST, Postgres, Redis, free_port, mlflow_server, postgres_server, redis_server

HERE = Path(__file__).parent
PATIENCE = 500.0  # seconds after which something hangs, however busy the machine is
ASKED = 0.5  # seconds between two questions to the API, which are not free
SETTINGS = {
    "core": {"executor": "CeleryExecutor", "parallelism": 8, "hostname_callable": "airflow_local_settings.worker"},
    "database": {"sql_alchemy_conn": "{postgres}"},
    "celery": {"broker_url": "{redis}", "result_backend": "db+{postgres}", "worker_prefetch_multiplier": 1},
    "celery_broker_transport_options": {"visibility_timeout": 600},
    # A dead worker is noticed within seconds; these are minutes where nobody waits for a test.
    "scheduler": {
        "task_instance_heartbeat_timeout": 20,
        "task_instance_heartbeat_timeout_detection_interval": 2,
        "scheduler_health_check_threshold": 60,
        "task_queued_timeout": 30,
        "task_queued_timeout_check_interval": 2,
    },
    # The first call that an api-server answers takes it seconds: on a busy machine more than the default of 5.
    "workers": {"min_heartbeat_interval": 1, "max_failed_heartbeats": 5, "execution_api_timeout": 60},
    "dag_processor": {"refresh_interval": 600, "min_file_process_interval": 600, "parsing_processes": 1},
    "api_auth": {"jwt_secret": "for these tests alone" * 4},
    "logging": {"celery_logging_level": "INFO"},
}
# What docker-compose.yml says of an outage of Redis is what is tested.
AS_DEPLOYED = ("AIRFLOW__CELERY__EXTRA_CELERY_CONFIG", "AIRFLOW__CELERY__TASK_PUBLISH_MAX_RETRIES",
               "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES")  # fmt: skip
PARTS = {"scheduler": ["scheduler", "-s"], "dag-processor": ["dag-processor"], "api-server": ["api-server"]}


@dataclass
class Cluster:
    """A running Airflow; its parts and workers can be killed and started while it runs."""

    home: Home
    datasets: Path
    folder: Path
    env: Mapping[str, str]
    postgres: Postgres
    redis: Redis
    mlflow_port: int
    rest: AirflowRest
    parts: dict[str, psutil.Process] = field(default_factory=dict)
    workers: dict[str, psutil.Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / "warm.log").open("w") as log:
            self._warm = subprocess.Popen(
                [sys.executable, "-m", "tests.production.warm_airflow"], env=dict(self.env), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._mlflow = contextlib.ExitStack()
        self._started: list[psutil.Process] = []

    # --- parts of Airflow

    def start(self, name: str, arguments: list[str], module: str = "airflow.__main__", **env: str) -> psutil.Process:
        """Start `airflow ARGUMENTS`, or the `main` of another module, in a session of its own."""
        assert self._warm.stdin is not None
        assert self._warm.stdout is not None
        if not self._started:
            assert self._warm.stdout.readline() == "ready\n", (self.logs / "warm.log").read_text()[-2000:]
        asked = {"module": module, "arguments": arguments, "log": str(self.logs / f"{name}.log"), "env": env}
        self._warm.stdin.write(json.dumps(asked) + "\n")
        self._warm.stdin.flush()
        self._started.append(psutil.Process(int(self._warm.stdout.readline())))
        return self._started[-1]

    def start_worker(self, name: str, queue: str, tasks: int = 1) -> None:
        """Start a Celery worker of `queue` that works on so many tasks at once, under a name of its own."""
        options = ["-q", queue, "-c", str(tasks), "-H", f"{name}@%h", "-s", "--without-mingle", "--without-gossip"]
        self.workers[name] = self.start(name, ["celery", "worker", *options], NIGHTSIFT_WORKER=name)

    def kill_worker(self, name: str) -> None:
        """End the worker, its pool and the tasks that run there at once, as a machine that loses its power."""
        kill(self.workers.pop(name))

    def tasks_of(self, name: str) -> list[psutil.Process]:
        """The processes of the tasks that a worker runs: children of its pool."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [task for process in self.workers[name].children() for task in process.children()]
        return []

    # --- MLflow

    def start_mlflow(self) -> None:
        """Start the server, and wait until it answers."""
        server = mlflow_server(
            f"sqlite:///{self.home.root}/mlflow.db", self.home.artifacts, self.logs / "mlflow.log", self.mlflow_port
        )
        self._mlflow.enter_context(server)

    def stop_mlflow(self) -> None:
        """End the server: nothing accepts connections on its port any more."""
        self._mlflow.close()

    # --- waiting

    def wait_for(self, what: str, ready: Callable[[], Any], seconds: float = PATIENCE, poll: float = 0.1) -> Any:
        """What `ready()` gives as soon as it is true; fails after `seconds`."""
        end = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < end, f"{what} took more than {seconds:.0f} s; the logs are in {self.logs}"
            time.sleep(poll)
        return found

    def finish(self, *runs: Run, seconds: float = PATIENCE) -> list[RunStatus]:
        """How the runs ended; parts of Airflow that end meanwhile are started again, as a deployment does."""
        found: dict[Run, RunStatus] = {}

        def ended() -> bool:
            self.mend()
            with contextlib.suppress(NightsiftError):  # while Airflow has no database
                found.update(
                    {run: self.rest.status(run) for run in runs if run not in found or not found[run].finished}
                )
            return len(found) == len(set(runs)) and all(status.finished for status in found.values())

        self.wait_for(", ".join(run.dag_id for run in runs), ended, seconds, poll=1.0)
        return [found[run] for run in runs]

    def mend(self) -> None:
        """Start the parts of Airflow again that have ended."""
        for name, arguments in PARTS.items():
            if not self.parts[name].is_running():
                self.parts[name] = self.start(name, arguments)

    def task(self, run: Run, task_id: str, map_index: int = -1) -> Task | None:
        """A task of a run; None where it is not planned yet."""
        tasks = self.rest.status(run).tasks
        return next((task for task in tasks if (task.task_id, task.map_index) == (task_id, map_index)), None)

    def log(self, run: Run, task_id: str, map_index: int = -1, attempt: int = 1) -> str:
        """What a try of a task has written so far, as it stands on disk."""
        mapped = "" if map_index < 0 else f"map_index={map_index}/"
        place = f"dag_id={run.dag_id}/run_id={run.run_id}/task_id={task_id}/{mapped}attempt={attempt}.log"
        with contextlib.suppress(FileNotFoundError):
            return (self.home.root / "airflow" / "logs" / place).read_text(errors="replace")
        return ""

    def ran_on(self, run: Run) -> dict[str, set[str]]:
        """The workers that the tasks of each queue ran on."""
        path = f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances?limit=1000"
        found: dict[str, set[str]] = {}
        for task in self.rest.call("GET", path)["task_instances"]:
            if task["hostname"]:  # a task that was skipped ran nowhere
                found.setdefault(task["queue"], set()).add(task["hostname"])
        return found

    def stop(self) -> None:
        for process in self._started:
            kill(process)
        self.stop_mlflow()
        self._warm.terminate()
        self._warm.communicate(timeout=30)


def kill(leader: psutil.Process) -> None:
    """SIGKILL to every process of the session that `leader` began, until there is none."""
    if not leader.is_running() and psutil.pid_exists(leader.pid):
        return  # the number is another process's by now, so nobody is left of the session
    while members := [p for p in psutil.process_iter(["status"]) if _belongs(p, leader.pid)]:
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)


def _belongs(process: psutil.Process, session: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        return os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE
    return False


def environment(home: Home, datasets: Path, postgres: Postgres, redis: Redis, mlflow_port: int) -> dict[str, str]:
    """The environment of all parts: that of a local Airflow, with what makes it a distributed one."""
    base = prepare(home, datasets).env
    database = f"postgresql+psycopg2://{postgres.user}@{HOST}:{postgres.port}/airflow"
    places = {"postgres": database, "redis": redis.address}
    deployed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["x-airflow-env"]
    return {
        **base,
        **{f"AIRFLOW__{s.upper()}__{k.upper()}": str(v).format(**places)
           for s, pairs in SETTINGS.items() for k, v in pairs.items()},
        **{name: deployed[name] for name in AS_DEPLOYED},
        "PYTHONPATH": f"{ROOT}:{HERE}",
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{mlflow_port}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }  # fmt: skip


@contextlib.contextmanager
def cluster(home: Home, datasets: Path, folder: Path, **env: str) -> Iterator[Cluster]:
    """A running cluster with a default and a GPU worker, until the end of the block."""
    with postgres_server() as postgres, redis_server(folder / "redis") as redis:
        postgres.run("CREATE DATABASE airflow")
        setup = prepare(home, datasets)
        mlflow_port = free_port()
        settings = environment(home, datasets, postgres, redis, mlflow_port) | env
        rest = AirflowRest(setup.airflow_url, USER, setup.password)
        started = Cluster(home, datasets, folder, settings, postgres, redis, mlflow_port, rest)
        try:
            migrate(started)
            for name, arguments in PARTS.items():
                started.parts[name] = started.start(name, arguments)
            started.start_worker("default", "default", tasks=2)
            started.start_worker("gpu", "gpu")
            started.start_mlflow()
            started.wait_for("Airflow", rest.healthy)
            rest.set_pool("gpu", 1, "one GPU")
            yield started
        finally:
            started.stop()


def migrate(cluster: Cluster) -> None:
    process = cluster.start("migrate", ["db", "migrate"])
    cluster.wait_for("migrating the database", lambda: not process.is_running())
