"""Bounds on the memory and the cores of a process and its children, and what they take meanwhile."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
EVERY = 1.0  # seconds between two looks at the memory: one at a large process takes a tenth of that
TRIES = 300  # looks at a control group that is to be empty


@dataclass(frozen=True, slots=True)
class Limit:
    """So much memory and so many cores; the memory by a control group, or where none can be made by a `Watch`."""

    memory: int
    cores: int
    group: Path | None

    def __str__(self) -> str:
        """What it was, in words."""
        if self.group is None:
            return f"a watch on the memory of all processes (PSS), which kills beyond {self.memory:,} bytes"
        kind = "v1" if self.group.is_relative_to(CGROUPS / "memory") else "v2"
        return f"a control group ({kind}) of {self.memory:,} bytes, page cache and all"

    def enter(self) -> None:
        """Bind this process and those that it starts."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.cores])
        if self.group is not None:
            (self.group / "cgroup.procs").write_text("0")


@contextmanager
def limited(memory: int, cores: int) -> Iterator[Limit]:
    """A limit of so many bytes and cores, by a control group of its own where this user may make one."""
    group = _group(memory)
    try:
        yield Limit(memory, cores, group)
    finally:
        if group is not None:
            _remove(group)


def _group(memory: int) -> Path | None:
    kinds = (
        (CGROUPS / "memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", memory),  # the latter is of both
        (CGROUPS, "memory.max", "memory.swap.max", 0),
    )
    for root, file, swap_file, swap in kinds:
        group = root / f"nightsift-load-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(str(memory))
            if (group / swap_file).exists():  # it is not where the kernel does not count swap
                (group / swap_file).write_text(str(swap))
        except OSError:
            group.rmdir()
        else:
            return group
    return None


def _remove(group: Path) -> None:
    """Remove a control group; children that are left in it, as their parent was killed for its memory, are killed."""
    for _ in range(TRIES):  # those that are killed take a moment to end
        left = {int(number) for number in (group / "cgroup.procs").read_text().split()} - {0, os.getpid()}
        if not left:
            break
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(EVERY)
    group.rmdir()


def size(text: str) -> int:
    """Bytes of a size such as 4G or 512M."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    unit = units.get(text[-1:].upper())
    return int(float(text[:-1]) * unit) if unit else int(float(text))


class Watch:
    """Watches the memory of this process and its children: the sum of their proportional set sizes (PSS)."""

    def __init__(self, limit: Limit) -> None:
        self.limit, self.peak = limit, 0
        threading.Thread(target=self._watch, daemon=True).start()

    def look(self) -> None:
        """Take the peak along, and end this process and its children where nothing else bounds what it takes."""
        taken = _taken(psutil.Process())
        self.peak = max(self.peak, taken)
        if self.limit.group is None and taken > self.limit.memory:
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            os.kill(os.getpid(), signal.SIGKILL)

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(EVERY)


def _taken(process: psutil.Process) -> int:
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
    return total
