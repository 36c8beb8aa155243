"""The bounds that a benchmark runs within: who keeps to them ends in peace, who takes more is killed."""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from benchmarks._limits import Limit, Watch, limited, size

SPAWN = multiprocessing.get_context("spawn")


def take(limit: Limit, bytes_: int) -> tuple[int, int]:
    """Hold so many bytes while the limit is watched; so many they were, and so many cores there are."""
    watch, held = Watch(limit), bytearray(b"x" * bytes_)
    watch.look()
    return len(held), len(os.sched_getaffinity(0))


def take_beside_a_child(limit: Limit, bytes_: int, told: Path) -> None:
    """As `take`, with a child that would live on; its number is written to `told`."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    told.write_text(str(child.pid))
    take(limit, bytes_)


def ended(number: int) -> bool:
    """Whether the process has ended, though perhaps nobody has asked how."""
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("grouped", [True, False], ids=["a control group, where one can be made", "a watch"])
def test_who_takes_more_memory_than_given_is_killed(grouped: bool, tmp_path: Path) -> None:
    """With its children, and nobody else, nor anything of the process that made the limit."""
    before = os.sched_getaffinity(0)
    with limited(size("256M"), 1) as made:
        limit = made if grouped else Limit(made.memory, made.cores, None)
        with ProcessPoolExecutor(1, SPAWN, limit.enter) as pool:
            assert pool.submit(take, limit, 1000).result() == (1000, 1)
            with pytest.raises(BrokenProcessPool):
                pool.submit(take_beside_a_child, limit, size("400M"), tmp_path / "child").result()
    child = int((tmp_path / "child").read_text())
    while not ended(child):
        time.sleep(0.05)
    assert os.sched_getaffinity(0) == before
    assert made.group is None or not made.group.exists()


@pytest.mark.parametrize(("text", "number"), [("4G", 4 * 2**30), ("512m", 2**29), ("1e6", 1_000_000), ("2K", 2048)])
def test_sizes_have_units(text: str, number: int) -> None:
    """Powers of 1,024, in either case."""
    assert size(text) == number
