"""A year of nights in one go, part of it killed and gone on beside upkeep and readers (six nights in a normal run)."""

import shutil
import subprocess
import sys
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from pipeline.backfill import Backfill, backfill
from pipeline.report import report_file
from pipeline.train import train
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR, START, deliver, sensor_day, tables, workspace_in
from tests.figures import long, record
from tests.pipeline.beside import beside, readers, upkeep

NIGHTS, DISTURBED, KILLED_AFTER = (365, 90, 30) if long() else (6, 6, 2)
HISTORY, MACHINES, AGO = 6, 2, timedelta(days=728)
FIRST = (START - AGO).date() + timedelta(days=HISTORY)
LAST = FIRST + timedelta(days=DISTURBED - 1)
YEAR, PART = Backfill("demo", FIRST, FIRST + timedelta(days=NIGHTS - 1)), Backfill("demo", FIRST, LAST)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two machines with a champion, and a file for each night to come; every fifth night has a fault."""
    root = tmp_path_factory.mktemp("year")
    ws = workspace_in(root, SENSOR.replace("epochs: 4", "epochs: 1"))
    for day in range(HISTORY + NIGHTS):
        fault = ("m1", 60, 75) if day >= HISTORY and day % 5 == 0 else None
        deliver(ws, sensor_day(day, MACHINES, fault).with_columns(pl.col("time") - AGO), f"day-{day:03}")
    train(ws, ws.dataset.day_bounds(FIRST - timedelta(days=HISTORY))[0], ws.dataset.day_bounds(FIRST)[0])
    return ws


def copy(ws: Workspace, folder: Path) -> Workspace:
    shutil.copytree(ws.home.root, folder)
    return open_workspace("demo", folder, ws.dataset.file.parent)


def done(ws: Workspace) -> int:
    """How many nights have their report."""
    days = (FIRST + timedelta(days=n) for n in range(DISTURBED))
    return sum(report_file(ws, day).exists() for day in days)


def test_a_year_in_one_go_survives_a_kill_upkeep_and_readers(trained: Workspace, tmp_path: Path) -> None:
    """The tables are those of the undisturbed year, only what is missing was run again, no reader saw half a day."""
    quiet, disturbed = copy(trained, tmp_path / "quiet"), copy(trained, tmp_path / "disturbed")
    ended = [time.monotonic()]
    nights = backfill(quiet, YEAR, lambda _: ended.append(time.monotonic()))
    assert len(nights) == NIGHTS
    assert not any(night.skipped for night in nights)

    began = time.monotonic()
    loops = (upkeep, disturbed.lake), (readers, disturbed.lake, MACHINES * 144)
    with beside(*loops) as end:
        kill_after(disturbed, KILLED_AFTER)
        before = done(disturbed)
        again = backfill(disturbed, PART)
        told = end()
    lasted = time.monotonic() - began
    assert KILLED_AFTER <= before < DISTURBED
    assert sum(night.skipped for night in again) >= before - 1  # the last one may have had its report, and no more
    expected, found = (until_last(tables(ws)) for ws in (quiet, disturbed))
    assert expected.keys() == found.keys()
    assert {name: frame.equals(found[name]) for name, frame in expected.items()} == dict.fromkeys(expected, True)
    assert told["merged"] > 0
    assert told["reads"] > 0
    assert told["halves"] == 0
    quarter = NIGHTS // 4
    seconds = [end - start for start, end in pairwise(ended)]
    first, last = sum(seconds[1 : quarter + 1]) / quarter, sum(seconds[-quarter:]) / quarter
    figures = {
        "nights": NIGHTS, "seconds": round(sum(seconds), 1), "seconds_a_night": round(sum(seconds) / NIGHTS, 2),
        "last_quarter_over_first": round(last / first, 2), "killed_after_nights": before,
        "run_again": len(again) - sum(night.skipped for night in again), "tables_that_differ": 0,
    }  # fmt: skip
    record("backfill", "Nights run in one go, killed on the way and gone on", figures, sum(seconds))
    figures = {
        "nights": DISTURBED, "rounds_of_upkeep": told["rounds"], "files_merged": told["merged"],
        "files_removed": told["unused"], "reads_beside": told["reads"], "days_seen_half": told["halves"],
        "tables_that_differ": 0,
    }  # fmt: skip
    record("upkeep", "Upkeep again and again while nights are written and read", figures, lasted)


def until_last(found: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    return {name: frame.filter(pl.col("day") <= LAST) for name, frame in found.items()}


def kill_after(ws: Workspace, nights: int) -> None:
    """Run the backfill on the command line and kill it once so many nights are done."""
    to = str(LAST + timedelta(days=1))
    command = [sys.executable, "-m", "pipeline.cli", "backfill", "demo", "--from", str(FIRST), "--to", to,
               "--home", str(ws.home.root), "--datasets", str(ws.dataset.file.parent)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        while done(ws) < nights:
            assert running.poll() is None
            time.sleep(0.2)
        running.kill()
