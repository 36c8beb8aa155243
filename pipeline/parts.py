"""Rows that do not fit into memory, in parts on a local disk: those that must be seen together stand in one part."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

import polars as pl

from pipeline.errors import NightsiftError
from pipeline.workspace import Workspace

Number = Callable[[pl.DataFrame], pl.Series]
"""Gives each row the number of its part."""


class Parts:
    """Rows under `folder`, each in the part that `number` gives it; iterating yields the parts whole, in their order.

    Within a part the rows stand in the order in which they were added.
    """

    def __init__(self, folder: Path, number: Number) -> None:
        self.folder, self._number, self._added = folder, number, count()
        folder.mkdir()

    def add(self, rows: pl.DataFrame) -> None:
        """Put each row into its part; raises `NightsiftError` where the disk does not take them."""
        name = f"{next(self._added):06}.parquet"
        numbered = rows.with_columns(self._number(rows).alias("_part"))
        try:
            for (part,), mine in numbered.partition_by("_part", include_key=False, as_dict=True).items():
                place = self.folder / f"{part:06}"
                place.mkdir(exist_ok=True)
                mine.write_parquet(place / name, compression="lz4")
        except (OSError, pl.exceptions.PolarsError) as error:
            why = " ".join(str(error).split())
            raise NightsiftError(
                f"could not write {self.folder}, where a large day is held for a while: {why}. Free space there and "
                "run the step again"
            ) from error

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for place in sorted(self.folder.iterdir()):
            yield pl.read_parquet(sorted(place.iterdir()), glob=False)

    def remove(self) -> None:
        """Free the disk: there are no parts any more."""
        shutil.rmtree(self.folder)


def by_range(column: str, starts: pl.Series) -> Number:
    """Rows into the ranges of `column` that begin at `starts`."""
    return lambda rows: starts.search_sorted(rows[column].fill_null(""), side="right") - 1


def by_hash(key: pl.Expr, parts: int) -> Number:
    """Rows of one `key` into one of so many parts, which are about equally large."""
    return lambda rows: rows.select(key.hash() % parts).to_series()


@contextmanager
def scratch(ws: Workspace, name: str) -> Iterator[Path]:
    """An empty local folder that is gone when the block ends; what killed runs of `name` have left is removed first.

    It stands in the lake where that is local, else in the state folder: the system's temporary files may be held in
    memory. Several processes may use `name` at once: whoever uses a folder holds a lock on it, which ends with the
    process, however that ends.
    """
    remote, prefix = "://" in ws.lake.root, f"{name}-"
    place = ws.home.root / "scratch" / ws.dataset.name if remote else Path(ws.lake.staging())
    place.mkdir(parents=True, exist_ok=True)
    for left in place.glob(f"{prefix}*"):
        _remove_left(left)
    made = tempfile.mkdtemp(prefix=".", dir=place)
    lock = os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(made).rename(place / f"{prefix}{uuid4().hex}")  # seen by others once it is locked
        made = str(folder)
        yield folder
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _remove_left(folder: Path) -> None:
    """Remove `folder` unless a process holds it."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # gone by now, or another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass  # in use
    finally:
        os.close(lock)
