"""Upkeep: small files merged, what nobody can need any more removed; safe while nights run."""

import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.config import Home, dataset_names
from pipeline.errors import NightsiftError
from pipeline.lake import ENDED, TABLES, Lake
from pipeline.progress import counted


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was done for the tables of a dataset, in files; or would be, in a dry run.

    merged: small ones that were made fewer
    unused: removed, as no version of the last 30 days has them
    """

    dataset: str
    merged: int
    unused: int


def keep_up(lake: Lake, now: datetime | None = None, *, dry_run: bool = False) -> Upkeep:
    """Look after the tables of a dataset; raises `NightsiftError` where they cannot be reached or written."""
    now = now or datetime.now(UTC)
    merged = unused = 0
    for table in counted("tables", TABLES):
        merged += lake.merge_files(table, now, dry_run=dry_run)
        unused += lake.remove_unused(table, dry_run=dry_run)
    return Upkeep(lake.dataset, merged, unused)


def lakes(home: Home, datasets: Path | None) -> list[Lake]:
    """The tables of every dataset, whether its YAML can be read or not."""
    return [Lake(home.lake, name) for name in dataset_names(datasets)]


def keep_up_all(lakes: Iterable[Lake], *, dry_run: bool = False) -> list[Upkeep]:
    """`keep_up` of each; in the end `NightsiftError` names each that failed, and why."""
    done, failed = [], []
    for lake in lakes:
        try:
            done.append(keep_up(lake, dry_run=dry_run))
        except NightsiftError as error:
            failed.append(str(error))
    if failed:
        raise NightsiftError("\n".join(failed))
    return done


def leftovers(home: Home, now: datetime) -> list[Path]:
    """What killed processes have left: in a local lake, of pages and of days that were held, half-fetched detectors."""
    return [path for path in _may_be_left(home) if _touched(path) < (now - ENDED).timestamp()]


def _may_be_left(home: Home) -> Iterator[Path]:
    if "://" not in home.lake:
        for folder in Path(home.lake).glob("*/"):
            yield from Lake(home.lake, folder.name).leftovers()
    yield from (home.root / "scratch").glob("*/*")
    for pages in (home.reports, home.data_docs):
        yield from pages.glob("*/.*.html.*")
    yield from (home.root / "detectors").rglob(".fetch-*")


def _touched(path: Path) -> float:
    """When anything in or below `path` was last written, in seconds since 1970; inf where it goes at this moment."""
    try:
        return max(each.stat().st_mtime for each in (path, *path.rglob("*")))
    except FileNotFoundError:
        return math.inf


def sweep(home: Home, now: datetime | None = None, *, dry_run: bool = False) -> list[Path]:
    """Remove what killed processes have left; what it was."""
    found = leftovers(home, now or datetime.now(UTC))
    for path in () if dry_run else found:
        with suppress(OSError):  # what cannot be removed, as another user's file, keeps nothing else from its upkeep
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    return [path for path in found if dry_run or not path.exists()]
