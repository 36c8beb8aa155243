"""What a row costs in each step: `python -m benchmarks.night [--quick] [--json FILE]`.

Simulated pumps (six sensors, a reading a minute) go through ingest, validate, train, score and the rest of the night,
each step in a process of its own. Reported for each step: rows, what networks ran on, seconds of the clock, seconds of
processor time over all threads (which tells a busy machine from slow code), rows per second of it, and peak memory,
with what the process had before the step. The step score is run twice: in `first_seconds` it has to load and trace the
network, the second time counts. For each table: bytes a row on disk, and files and commits that a day adds.
"""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from benchmarks._common import ROOT, Result
from benchmarks._common import main as run_benchmark
from pipeline.simulate import simulate
from pipeline.workspace import Workspace, open_workspace

FULL, QUICK = (50, 4), (10, 4)  # pumps, days
FIRST = date(2026, 3, 2)
COUNTED = ("landing", "clean", "scores")
GIB = 2**30


def measure(quick: bool, scratch: Path) -> Result:
    """The figures of every step and every table."""
    entities, days = QUICK if quick else FULL
    (scratch / "datasets").mkdir()
    pumps = (ROOT / "datasets" / "pumps.yaml").read_text()
    suite = ROOT / "expectations" / "pumps.yaml"
    (scratch / "datasets" / "pumps.yaml").write_text(pumps.replace("../expectations/pumps.yaml", str(suite)))
    source = scratch / "var" / "source" / "pumps"
    simulate("pumps", days=days, entities=entities, seed=0, folder=source, start=FIRST)
    night = FIRST + timedelta(days=days - 1)
    steps = {step.__name__: _alone(step, scratch, night) for step in (ingest, validate, train, score, finish)}
    return {
        "cores": os.cpu_count(), "entities": entities, "days": days,
        "bytes_per_source_row": sum(file.stat().st_size for file in source.glob("*.parquet")) / steps["ingest"]["rows"],
        "steps": steps, "tables": _tables(_workspace(scratch), days),
    }  # fmt: skip


def _alone(step: Callable[[Workspace, date], int], scratch: Path, night: date) -> Result:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, step, scratch, night).result()


def _measured(step: Callable[[Workspace, date], int], scratch: Path, night: date) -> Result:
    from models.devices import find_devices

    _import_all()
    ws, before, times = _workspace(scratch), _peak(), []
    for _ in range(2 if step is score else 1):
        began, started = time.process_time(), time.monotonic()
        rows = step(ws, night)
        times.append(time.process_time() - began)
    return {
        "rows": rows, "devices": str(find_devices()), "wall_seconds": time.monotonic() - started,
        "seconds": times[-1], "first_seconds": times[0], "rows_per_core_second": rows / times[-1],
        "peak_gib": _peak() / GIB, "peak_gib_before": before / GIB,
    }  # fmt: skip


def _import_all() -> None:
    import great_expectations
    import matplotlib.figure
    import mlflow
    import tensorflow

    assert all((great_expectations, matplotlib, mlflow, tensorflow))


def _workspace(scratch: Path) -> Workspace:
    return open_workspace("pumps", scratch / "var", scratch / "datasets")


def _peak() -> int:
    """Bytes that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ingest(ws: Workspace, _: date) -> int:
    """Land every source file; the rows."""
    from pipeline.ingest import ingest as run

    return run(ws).rows


def validate(ws: Workspace, night: date) -> int:
    """Judge every day; the rows."""
    from pipeline.config import days_between
    from pipeline.validate import validate as run

    return sum(run(ws, day).rows_in for day in days_between(FIRST, night))


def train(ws: Workspace, night: date) -> int:
    """Train on all days but the night's; the steps."""
    from pipeline.train import train as run

    return run(ws, ws.dataset.day_bounds(FIRST)[0], ws.dataset.day_bounds(night)[0], lambda _: None).steps


def score(ws: Workspace, night: date) -> int:
    """Score the night in one shard; the steps."""
    from pipeline.score import plan_shards, score_shard

    (shard,) = plan_shards(ws, night)
    return score_shard(ws, shard).steps


def finish(ws: Workspace, night: date) -> int:
    """Publish the night, find its incidents, write its report; the steps."""
    from pipeline.incidents import find_incidents
    from pipeline.night import report_night
    from pipeline.score import plan_shards, publish

    steps = publish(ws, plan_shards(ws, night)).steps
    find_incidents(ws, night)
    report_night(ws, night)
    return steps


def _tables(ws: Workspace, days: int) -> Result:
    """For each table that grows with the rows: bytes a row, and what a day adds to it in files and commits."""
    found = {}
    for table in COUNTED:
        folder = Path(ws.lake.uri(table))
        files = [file for file in folder.rglob("*.parquet") if "_delta_log" not in file.parts]
        rows = pl.scan_delta(str(folder)).select(pl.len()).collect().item()
        nights = 1 if table == "scores" else days
        found[table] = {
            "bytes_per_row": sum(file.stat().st_size for file in files) / rows,
            "files_per_day": len(files) / nights,
            "commits_per_day": len(list(folder.glob("_delta_log/*.json"))) / nights,
        }
    return found


if __name__ == "__main__":
    run_benchmark("What a row costs in each step.", measure)
