"""Servers of the tests' own on 127.0.0.1: MLflow, and PostgreSQL and Redis from Debian's packages."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi
import psutil

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that nothing on 127.0.0.1 uses."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, ready: Callable[[], bool], server: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Wait until `ready()`; fails when the server ends or `seconds` pass first."""
    end = time.monotonic() + seconds
    while not ready():
        assert server.poll() is None, f"{what} stopped while it started"
        assert time.monotonic() < end, f"{what} did not answer within {seconds:.0f} seconds"
        time.sleep(0.1)


@contextlib.contextmanager
def started(what: str, port: int, command: list[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process that accepts connections on `port`, until the end of the block."""

    def answers() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port), 1).close()
            return True
        return False

    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **env})
        try:
            wait_until(what, answers, server, seconds=180)
            yield server
        finally:
            server.terminate()
            server.wait(timeout=60)


@contextlib.contextmanager
def mlflow_server(store: str, artifacts: Path, log: Path, port: int | None = None) -> Iterator[int]:
    """The port of an MLflow server over the database `store`, until the end of the block."""
    port = free_port() if port is None else port
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store,
        "--artifacts-destination", str(artifacts), "--host", HOST, "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with started("MLflow", port, command, log, **quiet):
        yield port


@contextlib.contextmanager
def suspended(first: psutil.Process) -> Iterator[None]:
    """Within the block the process and all that it has started stand still."""
    processes = [first, *first.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # what it has started may end meanwhile
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


class Postgres:
    """A PostgreSQL server with one superuser that needs no password; ended with the block that made it."""

    def __init__(self, folder: Path, user: str, *settings: str) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
        on_path = shutil.which("initdb")
        assert found or on_path, "PostgreSQL's server is missing: apt-get install postgresql"
        self.programs = (found[-1] if found else Path(str(on_path)).resolve()).parent
        self.folder, self.port, self.user = folder, free_port(), user
        quiet = ["listen_addresses=127.0.0.1", "fsync=off", f"unix_socket_directories={folder}", *settings]
        self._options = [part for setting in quiet for part in ("-c", setting)]
        # PostgreSQL refuses to run as root: then its own user runs it.
        self._owner: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        self._run("initdb", "-U", user, "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        self.start()

    def address(self) -> str:
        return f"postgresql://{self.user}:s3cret@{HOST}:{self.port}/postgres"

    def start(self) -> None:
        command = self._command("postgres", "-p", str(self.port), *self._options)
        self._server = subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL, **self._owner)
        wait_until("PostgreSQL", self._answers, self._server)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Within the block the server takes connections, as the system does for it, and answers none."""
        with suspended(psutil.Process(self._server.pid)):
            yield

    def stop(self) -> None:
        """End the server at once, as a crash would."""
        self._run("pg_ctl", "stop", "-m", "immediate")
        self._server.wait(timeout=30)

    def run(self, *statements: str) -> None:
        dbapi = adbc_driver_postgresql.dbapi
        with dbapi.connect(self.address(), autocommit=True) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def _answers(self) -> bool:
        try:
            adbc_driver_postgresql.dbapi.connect(self.address()).close()
        except adbc_driver_postgresql.dbapi.Error:
            return False
        return True

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.programs / program), "-D", str(self.folder), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(self._command(program, *arguments), check=True, capture_output=True, cwd="/", **self._owner)


@contextlib.contextmanager
def postgres_server(user: str = "nightsift", *settings: str) -> Iterator[Postgres]:
    """A running server with `settings` (`name=value`) until the end of the block."""
    server = Postgres(Path(f"/tmp/nightsift-postgres-{os.getpid()}-{time.monotonic_ns()}"), user, *settings)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder)


class Redis:
    """A Redis server that keeps what it holds in a folder, as docker-compose.yml has it; ended with its block."""

    def __init__(self, folder: Path) -> None:
        assert shutil.which("redis-server"), "Redis is missing: apt-get install redis-server"
        self.folder, self.port = folder, free_port()
        self.start()

    @property
    def address(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--bind", HOST, "--port", str(self.port), "--save", "", "--appendonly", "yes"]
        self._server = subprocess.Popen([*command, "--dir", str(self.folder)], stdout=subprocess.DEVNULL)
        wait_until("Redis", self._answers, self._server)

    def stop(self) -> None:
        """End the server at once, as a crash would."""
        self._server.kill()
        self._server.wait(timeout=30)

    def lose(self) -> None:
        """Crash, and come back without what was queued."""
        self.stop()
        shutil.rmtree(self.folder / "appendonlydir")
        self.start()

    def queued(self, queue: str) -> int:
        """How many messages nobody has taken from Celery's queue."""
        return int(self._ask(f"LLEN {queue}").removeprefix(":"))

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self._ask("PING") == "+PONG"
        return False

    def _ask(self, command: str) -> str:
        with socket.create_connection((HOST, self.port), 1) as connection, connection.makefile("rw") as stream:
            stream.write(f"{command}\r\n")
            stream.flush()
            return stream.readline().strip()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    """A running server that keeps its files in `folder`, until the end of the block."""
    folder.mkdir()
    server = Redis(folder)
    try:
        yield server
    finally:
        server.stop()
