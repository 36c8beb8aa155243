"""Airflow and MLflow on one machine: all state under the home folder, all ports on 127.0.0.1, no process left behind.

`with local_airflow(home, datasets) as airflow:` gives a running Airflow; `serve` is the same with MLflow's pages, until
Ctrl-C. Airflow's own `standalone` is not used: it opens a log server on every interface, and leaves its processes
behind when it is terminated.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.airflow_rest import AirflowRest, Run, RunStatus
from pipeline.config import Home
from pipeline.errors import NightsiftError
from pipeline.links import MLFLOW_VIEW
from pipeline.processes import Processes, terminable, undisturbed

HOST = "127.0.0.1"
USER = "admin"
ROOT = Path(__file__).parents[1]
PATIENCE = 180.0  # seconds that the processes get to start; a cold, busy machine takes a minute
GPU_SLOTS = 1


@dataclass(frozen=True, slots=True)
class Setup:
    """What the processes of one local Airflow need: folders, ports and the environment they run in."""

    home: Home
    folder: Path
    airflow_port: int
    mlflow_port: int
    env: Mapping[str, str]

    @property
    def airflow_url(self) -> str:
        """Address of Airflow's pages and API."""
        return f"http://{HOST}:{self.airflow_port}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow's pages."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def password_file(self) -> Path:
        """JSON of user and password, readable by its owner only."""
        return self.folder / "passwords.json"

    @property
    def password(self) -> str:
        """The password of `USER`."""
        return str(json.loads(self.password_file.read_text())[USER])


def prepare(home: Home, datasets: Path) -> Setup:
    """The setup of a local Airflow under `home`: its folder, a password (kept, if there is one) and free ports."""
    folder = home.root / "airflow"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # Airflow keeps its signing keys here
    ports = free_port(8080), free_port(5000)
    setup = Setup(home, folder, *ports, environment(home, datasets, folder, ports[0]))
    _make_password(setup.password_file)
    return setup


def environment(home: Home, datasets: Path, folder: Path, port: int) -> dict[str, str]:
    """The environment of every process of a local Airflow, on top of this process's own."""
    options: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": ROOT / "dags",
            "plugins_folder": ROOT / "plugins",
            "load_examples": False,
            "executor": "LocalExecutor",
            "parallelism": max(4, os.cpu_count() or 1),
            "dags_are_paused_at_creation": False,
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": folder / "passwords.json",
            "dagbag_import_error_tracebacks": False,  # a broken YAML shows as the sentence that explains it
        },
        "api": {"host": HOST, "port": port, "base_url": f"http://{HOST}:{port}"},
        "scheduler": {"scheduler_idle_sleep_time": 0.3},
        "workers": {"min_heartbeat_interval": 1},  # also how long a worker may take to see that its task has ended
        "dag_processor": {"refresh_interval": 10, "min_file_process_interval": 20},
    }
    return {
        **os.environ,
        "AIRFLOW_HOME": str(folder),
        **{f"AIRFLOW__{s.upper()}__{k.upper()}": str(v) for s, pairs in options.items() for k, v in pairs.items()},
        "NIGHTSIFT_HOME": str(home.root),
        "NIGHTSIFT_DATASETS": str(datasets),
        "MLFLOW_TRACKING_URI": home.tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job workers cost half a gigabyte and serve nothing here
        "GX_ANALYTICS_ENABLED": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def free_port(preferred: int) -> int:
    """`preferred`, or the next port after it that nothing on 127.0.0.1 uses; raises `NightsiftError` if none is."""
    for port in range(preferred, preferred + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: ignore closing ones
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise NightsiftError(f"no port from {preferred} to {preferred + 99} is free on {HOST}; stop what uses them")


def _make_password(file: Path) -> None:
    if not file.exists():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump({USER: secrets.token_urlsafe(12)}, stream)


def migrate(setup: Setup) -> None:
    """Make or upgrade Airflow's database, unless this version of Airflow already did.

    Raises `NightsiftError` with the place of the log when that fails.
    """
    from importlib.metadata import version

    stamp, log = setup.folder / "migrated", setup.folder / "migrate.log"
    if stamp.exists() and stamp.read_text() == version("apache-airflow"):
        return
    with log.open("w") as stream:
        done = subprocess.run([*_AIRFLOW, "db", "migrate"], env=setup.env, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise NightsiftError(f"Airflow could not make its database in {setup.folder}; {log} says why")
    stamp.write_text(version("apache-airflow"))


_AIRFLOW = [sys.executable, "-m", "airflow"]


class LocalAirflow(AirflowRest):
    """The REST API of an Airflow that `local_airflow` started; waiting ends with an error if a process of it ends."""

    def __init__(self, setup: Setup, processes: Processes) -> None:
        super().__init__(setup.airflow_url, USER, setup.password)
        self.setup, self._processes = setup, processes

    def check(self) -> None:
        """Raise `NightsiftError` when a process of this Airflow has ended."""
        self._processes.check()

    def status(self, run: Run) -> RunStatus:
        """Where `run` stands now; raises `NightsiftError` when a process of this Airflow has ended."""
        self._processes.check()
        return super().status(run)

    def wait_until(self, what: str, ready: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait until `ready()`; raises `NightsiftError` when a process ends or `patience` seconds pass first."""
        end = time.monotonic() + patience
        while not ready():
            self._processes.check()
            if time.monotonic() > end:
                raise NightsiftError(f"{what} took more than {patience:.0f} s; the logs are in {self._processes.logs}")
            time.sleep(0.3)

    def wait_for_dags(self, dag_ids: set[str]) -> None:
        """Wait until Airflow has read the DAGs."""
        self.wait_until(f"reading {', '.join(sorted(dag_ids))}", lambda: dag_ids <= self.dag_ids())


@contextlib.contextmanager
def local_airflow(
    home: Home, datasets: Path, *, mlflow: bool = False, say: Callable[[str], None] = print
) -> Iterator[LocalAirflow]:
    """A running Airflow (and MLflow's pages, if asked for) until the end of the block, however that ends.

    Raises `NightsiftError` when another one runs from the same home, or when it does not start. SIGTERM ends the block
    as Ctrl-C does.
    """
    with terminable(), _alone(home.root / "airflow"):
        say("Preparing Airflow")
        setup = prepare(home, datasets)
        processes = Processes(setup.folder / "logs", setup.env)
        try:
            yield _start(setup, processes, mlflow, say)
        finally:
            with undisturbed():
                say("Stopping Airflow")
                processes.stop()


def _start(setup: Setup, processes: Processes, mlflow: bool, say: Callable[[str], None]) -> LocalAirflow:
    """Start all processes at once and wait until they are up."""
    began = time.monotonic()
    # The scheduler imports its libraries while the database is made, and waits for `release` before it uses it.
    processes.start("scheduler", [sys.executable, "-m", "pipeline.warm_scheduler", "-s"])
    migrate(setup)
    for name, command in _commands(setup, mlflow).items():
        processes.start(name, command)
    processes.release()
    airflow = LocalAirflow(setup, processes)
    for part in ("metadatabase", "dag_processor", "scheduler"):
        airflow.wait_until(f"Airflow's {part}", lambda part=part: airflow.healthy([part]))  # type: ignore[misc]
        say(f"Airflow: {part.replace('_', ' ')} is up after {time.monotonic() - began:.0f} s")
    airflow.set_pool("gpu", GPU_SLOTS, "Tasks that train or score: as many at once as there are GPUs")
    if mlflow:
        airflow.wait_until("MLflow", lambda: _answers(setup.mlflow_url))
        say(f"MLflow is up after {time.monotonic() - began:.0f} s")
    return airflow


def _commands(setup: Setup, mlflow: bool) -> dict[str, list[str]]:
    """The command of each process but the scheduler."""
    commands = {"api-server": [*_AIRFLOW, "api-server"], "dag-processor": [*_AIRFLOW, "dag-processor"]}
    if mlflow:
        commands["mlflow"] = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", setup.home.tracking_uri,
            "--artifacts-destination", str(setup.home.artifacts), "--host", HOST, "--port", str(setup.mlflow_port),
            "--workers", "1",
        ]  # fmt: skip
    return commands


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises `NightsiftError` when another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NightsiftError(
                f"an Airflow already runs from {folder}; stop it first, or use another --home"
            ) from error
        yield


def serve(
    home: Home,
    datasets: Path,
    say: Callable[[str], None] = print,
    ready: Callable[[LocalAirflow], None] = lambda _: None,
) -> None:
    """Run Airflow and MLflow's pages until Ctrl-C or SIGTERM; then stop both. `ready` is called once both answer."""
    with contextlib.suppress(KeyboardInterrupt), local_airflow(home, datasets, mlflow=True, say=say) as airflow:
        ready(airflow)
        say(f"Airflow: {airflow.url}  user {USER}, password in {airflow.setup.password_file}")
        say(f"MLflow:  {airflow.setup.mlflow_url}/#/experiments?{MLFLOW_VIEW}")
        say("Ctrl-C stops both")
        while True:
            airflow.check()
            time.sleep(1)
