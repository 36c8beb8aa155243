"""The bounds that a benchmark runs within: who keeps to them ends in peace, who takes more is killed."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from benchmarks._limits import Limit, Watch, limited, size

SPAWN = multiprocessing.get_context("spawn")


def take(limit: Limit, bytes_: int) -> tuple[int, int]:
    """Hold so many bytes while the limit is watched; so many they were, and so many cores there are."""
    watch, held = Watch(limit), bytearray(b"x" * bytes_)
    watch.look()
    return len(held), len(os.sched_getaffinity(0))


@pytest.mark.parametrize("grouped", [True, False], ids=["a control group, where one can be made", "a watch"])
def test_who_takes_more_memory_than_given_is_killed(grouped: bool) -> None:
    """And nobody else, nor anything of the process that made the limit."""
    before = os.sched_getaffinity(0)
    with limited(size("256M"), 1) as made:
        limit = made if grouped else Limit(made.memory, made.cores, None)
        with ProcessPoolExecutor(1, SPAWN, limit.enter) as pool:
            assert pool.submit(take, limit, 1000).result() == (1000, 1)
            with pytest.raises(BrokenProcessPool):
                pool.submit(take, limit, size("400M")).result()
    assert os.sched_getaffinity(0) == before
    assert made.group is None or not made.group.exists()


@pytest.mark.parametrize(("text", "number"), [("4G", 4 * 2**30), ("512m", 2**29), ("1e6", 1_000_000), ("2K", 2048)])
def test_sizes_have_units(text: str, number: int) -> None:
    """Powers of 1,024, in either case."""
    assert size(text) == number
