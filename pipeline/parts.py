"""Rows that do not fit into memory, in parts on a local disk: those that must be seen together stand in one part."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

import polars as pl

from pipeline.errors import NightsiftError, one_line
from pipeline.workspace import Workspace

Number = Callable[[pl.DataFrame], pl.Series]
"""Gives each row the number of its part."""


class Parts:
    """Rows under `folder`, each in the part that `number` gives it; iterating yields the parts whole, in their order.

    Within a part the rows stand in the order in which they were added. `NightsiftError` is raised where the disk does
    not take them, or give them back.
    """

    def __init__(self, folder: Path, number: Number) -> None:
        self.folder, self._number, self._added = folder, number, count()
        with _on_disk(folder):
            folder.mkdir()

    def add(self, rows: pl.DataFrame) -> None:
        """Put each row into its part."""
        name = f"{next(self._added):06}.parquet"
        numbered = rows.with_columns(self._number(rows).alias("_part"))
        with _on_disk(self.folder):
            for (part,), mine in numbered.partition_by("_part", include_key=False, as_dict=True).items():
                place = self.folder / f"{part:06}"
                place.mkdir(exist_ok=True)
                mine.write_parquet(place / name, compression="lz4")

    def __iter__(self) -> Iterator[pl.DataFrame]:
        with _on_disk(self.folder):
            places = sorted(self.folder.iterdir())
        for place in places:
            with _on_disk(place):
                rows = pl.read_parquet(sorted(place.iterdir()), glob=False)
            yield rows

    def remove(self) -> None:
        """Free the disk: there are no parts any more."""
        shutil.rmtree(self.folder, ignore_errors=True)  # what stays goes with the scratch


def by_range(column: str, starts: pl.Series) -> Number:
    """Rows into the ranges of `column` that begin at `starts`."""
    return lambda rows: starts.search_sorted(rows[column].fill_null(""), side="right") - 1


def by_hash(key: pl.Expr, parts: int) -> Number:
    """Rows of one `key` into one of so many parts, which are about equally large."""
    return lambda rows: rows.select(key.hash() % parts).to_series()


@contextmanager
def _on_disk(place: Path) -> Iterator[None]:
    """Say of an error of the disk what `place` was for."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise NightsiftError(
            f"could not use {place}, where a large day is held for a while: {one_line(error)}. See that it has room "
            "and that this user may write there, and run the step again"
        ) from error


@contextmanager
def scratch(ws: Workspace, name: str) -> Iterator[Path]:
    """A local folder that is gone when the block ends; what killed runs of `name` have left is removed first.

    It holds a file `lock`, and stands in the lake where that is local, else in the state folder: the system's temporary
    files may be held in memory. Several processes may use `name` at once: whoever uses a folder holds the lock in it,
    which ends with the process, however that ends. Raises `NightsiftError` where the folder cannot be made.
    """
    remote, prefix = "://" in ws.lake.root, f"{name}-"
    place = ws.home.root / "scratch" / ws.dataset.name if remote else Path(ws.lake.staging())
    with _on_disk(place):
        place.mkdir(parents=True, exist_ok=True)
        for left in place.glob(f"{prefix}*"):
            _remove_left(left)
        made = Path(tempfile.mkdtemp(prefix=".", dir=place))
    folder = place / f"{prefix}{uuid4().hex}"
    with ExitStack() as until_closed:  # a file server keeps the name of a file that is open
        for each in (made, folder):
            until_closed.callback(shutil.rmtree, each, ignore_errors=True)
        with _on_disk(made):
            lock = _open_lock(made)
            until_closed.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            made.rename(folder)  # seen by others once it is locked
        yield folder


def _open_lock(folder: Path) -> int:
    """The lock file of a folder: file servers tell other machines of locks on files, and not of those on folders."""
    return os.open(folder / "lock", os.O_RDWR | os.O_CREAT)


def _remove_left(folder: Path) -> None:
    """Remove `folder` unless a process holds it."""
    try:
        lock = _open_lock(folder)
    except OSError:
        return  # gone by now, or another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # in use
    finally:
        os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)
