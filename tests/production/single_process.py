"""Trains and runs every night in one process: `HOME DATASETS TRAIN_FROM TRAIN_TO LAST`; what the cluster is held to."""

import contextlib
import os
import sys
from datetime import UTC, date, datetime
from pathlib import Path


def main() -> None:
    """Train from the first day up to the second, then run the nights from there to the last one, in order."""
    del os.environ["MLFLOW_TRACKING_URI"]  # a SQLite file in the home
    from pipeline.config import days_between
    from pipeline.night import run_night
    from pipeline.train import train
    from pipeline.workspace import open_workspace

    with contextlib.suppress(OSError):  # behind the cluster that is waited for, also where sessions share alike
        Path("/proc/self/autogroup").write_text("19")
    os.nice(19)
    home, datasets, first, after, last = sys.argv[1:]
    ws = open_workspace("pumps", home, datasets)
    train(ws, *(datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (first, after)))
    for day in days_between(date.fromisoformat(after), date.fromisoformat(last)):
        run_night(ws, day)
    (ws.home.root / "done").touch()
