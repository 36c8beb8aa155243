"""Processes that are started together and end together, whatever happens to the one that started them."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from pipeline.errors import NightsiftError

GRACE = 10.0  # seconds that processes get to end by themselves before they are killed


class Processes:
    """Processes of one local service, each in a session of its own; `stop` leaves none of them or of their children."""

    def __init__(self, logs: Path, env: Mapping[str, str]) -> None:
        self.logs, self._env = logs, env
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._files: list[IO[bytes]] = []

    def start(self, name: str, command: list[str]) -> None:
        """Start `command`; its output goes to `NAME.log`, its input stays open until `release`."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = (self.logs / f"{name}.log").open("wb")
        self._files.append(log)
        self._running[name] = subprocess.Popen(
            command, env=dict(self._env), stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - one C call; nothing in it takes a lock
        )  # fmt: skip

    def release(self) -> None:
        """Close every process's standard input, which a process may wait for."""
        for process in self._running.values():
            if process.stdin is not None:
                process.stdin.close()

    def check(self) -> None:
        """Raise `NightsiftError` when a process has ended, with the end of its log."""
        for name, process in self._running.items():
            if process.poll() is not None:
                log = self.logs / f"{name}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise NightsiftError(f"{name} ended with code {process.returncode}; {log} ends with:\n{tail}")

    def stop(self) -> None:
        """End every process: ask the first of each session, then all of them, then kill what is left."""
        sessions = {process.pid for process in self._running.values()}
        for process in self._running.values():
            _signal(process.pid, signal.SIGTERM)
        if not self._gone(sessions, GRACE):
            for member in _members(sessions):
                _signal(member, signal.SIGTERM)
        while not self._gone(sessions, GRACE / 2):
            for member in _members(sessions):
                _signal(member, signal.SIGKILL)
        for process in self._running.values():
            process.wait()
        self.release()
        for file in self._files:
            file.close()

    def _gone(self, sessions: set[int], patience: float) -> bool:
        """Whether all members of the sessions end within `patience` seconds."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            for process in self._running.values():
                process.poll()  # lets one that has ended disappear from the process table
            if not _members(sessions):
                return True
            time.sleep(0.1)
        return False


def _members(sessions: set[int]) -> list[int]:
    """The living processes of the sessions (a task leaves its parent's process group, but not its session)."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in sessions and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _end_with_parent() -> None:
    """In a new process, on Linux: end when the parent is killed and cannot stop it (prctl, PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def terminable() -> contextlib.AbstractContextManager[None]:
    """Within the block SIGTERM ends this process as Ctrl-C does: through every `finally`."""
    return _handling({signal.SIGTERM: signal.default_int_handler})


def undisturbed() -> contextlib.AbstractContextManager[None]:
    """Within the block no impatient Ctrl-C keeps processes from being ended."""
    return _handling({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN})


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Within the block the signals are handled so; only the main thread can do that, elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
