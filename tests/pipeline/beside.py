"""What runs beside a night in processes of their own: upkeep again and again, and readers of all that there is."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Any

import polars as pl
from deltalake import DeltaTable

from pipeline.errors import NightsiftError
from pipeline.lake import ENDED, RETENTION, TABLES, Lake
from pipeline.upkeep import keep_up

PAUSE = 0.5  # seconds between two rounds, so that the nights get on
SHORT = "interval 30 seconds"  # as much longer than a read here as a month is longer than a run
Told = Counter[str]


def upkeep(lake: Lake, stop: Event, told: Any) -> None:
    """Merge and remove again and again, whatever was written a moment ago; tells how many files, and what failed."""
    count: Told = Counter()
    while not stop.is_set():
        try:
            for table in filter(lake.exists, TABLES):
                if DeltaTable(lake.uri(table)).metadata().configuration.get(RETENTION) != SHORT:
                    DeltaTable(lake.uri(table)).alter.set_table_properties({RETENTION: SHORT})
            done = keep_up(lake, datetime.now(UTC) + ENDED + timedelta(seconds=1))
            count += Counter(merged=done.merged, unused=done.unused, rounds=1)
        except NightsiftError as error:
            if "Metadata changed" not in str(error) and "ommit" not in str(error):  # it gave way
                raise
        time.sleep(PAUSE)
    told.put(count)


def readers(lake: Lake, stop: Event, told: Any, rows: int) -> None:
    """Read whole tables again and again; a day that is seen has all its `rows`, or none."""
    count: Told = Counter()
    while not stop.is_set():
        for table in filter(lake.exists, TABLES):
            frame = lake.scan(table, {}).collect()
            count["reads"] += 1
            if table in ("clean", "scores"):
                count["halves"] += len(frame.group_by("day").len().filter(pl.col("len") != rows))
        time.sleep(PAUSE)
    told.put(count)


@contextlib.contextmanager
def beside(*loops: tuple[Callable[..., None], Any]) -> Iterator[Callable[[], Told]]:
    """Within the block the loops run, each in a process; what is yielded stops them and gives what they told.

    Raises `AssertionError` where one of them has failed.
    """
    spawn = get_context("spawn")
    stop, told = spawn.Event(), spawn.Queue()
    processes = [spawn.Process(target=loop, args=(lake, stop, told, *rest)) for loop, lake, *rest in loops]
    for process in processes:
        process.start()

    def end() -> Told:
        stop.set()
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0] * len(processes)
        return sum((told.get(timeout=10) for _ in processes), Counter())

    try:
        yield end
    finally:
        stop.set()
        for process in processes:
            process.kill()
