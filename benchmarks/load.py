"""Whether a hundred million rows pass in one night: `python -m benchmarks.load --rows 100e6 --memory 4G --json FILE`.

So many machines send three numbers every nine seconds for a day, in files of about a million rows each, in order of
time. Among them are a few faults, and in each file rows out of bounds and rows twice. A detector is trained beforehand
on the day before of some of the machines. Then the night is run, from source files to incidents, report and MLflow, on
two cores, with a process for each of two shards as Airflow's workers have, within the memory that is given to all of
them together: by a control group where one can be made. Files and training
are not measured; with `--keep FOLDER` they are kept there for the next run.

Reported for each step: seconds of the clock, seconds of processor time over all threads and processes, rows a second,
peak memory of all processes (PSS), and what limits it. The run fails where a row is lost: rows in are rows clean, in
quarantine and twice, each clean row is scored, and every fault is among the incidents.
"""

import argparse
import multiprocessing
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks._common import Result, bound, nightsift
from benchmarks._common import main as run_benchmark
from benchmarks._figures import keep as keep_figures
from benchmarks._limits import Limit, Watch, limited, size
from pipeline.workspace import Workspace, open_workspace

if TYPE_CHECKING:
    from pipeline.score import Shard

MOST = 45 * 60.0  # seconds that the night may take
ROWS, QUICK, CORES = 100_000_000, 200_000, 2
NIGHT = date(2026, 3, 4)
BEFORE = NIGHT - timedelta(days=1)
CADENCE = timedelta(seconds=9)
READINGS = timedelta(days=1) // CADENCE  # of a machine a day
PERIOD = 400  # readings, of the slow wave that all features follow
TRAINED = 300  # machines, at most, that training sees
FILE = 1_100_000  # rows of a source file, at most
BAD, TWICE = 3, 5  # rows of a file
GIB = 2**30
DATASET = """\
kind: sensor
source: {{path: "{source}/*.parquet"}}
entity: machine
event_time: time
cadence: 9s
features:
  - {{name: flow, unit: m3/h, min: -100, max: 100}}
  - {{name: heat, unit: K, min: -100, max: 100}}
  - {{name: load, unit: kW, min: -100, max: 100}}
window: {{steps: 2, rows: 32}}
model: {{filters: [8], kernel: 3, latent: 4, epochs: 4, windows: 2000}}
threshold: {{false_alarms: 0.01}}
shards: 2
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """From reading `first` to `last` the machine's `feature` is higher by `lift`; without a feature it sends nothing.

    machine: as a share of all, 0 to 1
    """

    machine: float
    feature: str | None
    first: int
    last: int
    lift: float = 0.0

    def machine_of(self, machines: int) -> int:
        """Its number, of so many."""
        return int(self.machine * machines)


FAULTS = (
    Fault(0.05, "flow", 1000, 1600, 4.0),
    Fault(0.25, "heat", 5000, 5400, -5.0),
    Fault(0.50, "load", 8000, 9000, 6.0),
    Fault(0.75, "flow", 3000, 3200, 8.0),
    Fault(0.95, None, 4000, 4800),
)


def readings(machines: int, day: date, first: int, last: int) -> pl.DataFrame:
    """The readings numbered `first` to `last` of the day of so many machines, in order of time; always the same."""
    rng = np.random.default_rng([day.toordinal(), first])
    number, at = np.arange(machines), np.arange(first, last)[:, None]
    wave = np.sin(2 * np.pi * (at / PERIOD + number * 0.37)).astype(np.float32)
    noise = rng.standard_normal((3, *wave.shape), np.float32) * np.float32(0.2)
    features = {"flow": wave + noise[0], "heat": 2 * wave + noise[1], "load": wave**2 + noise[2]}
    times = datetime.combine(day, clock(), UTC) + pl.Series(at[:, 0]) * CADENCE
    columns = {
        "number": np.tile(number, len(at)),
        "reading": np.repeat(at[:, 0], machines),
        "time": times.cast(pl.Datetime("us", "UTC"))[np.repeat(np.arange(len(at)), machines)],
        **{name: values.ravel().astype(np.float64).round(4) for name, values in features.items()},
    }
    names = pl.Series([f"m{n:05}" for n in number])
    return pl.DataFrame(columns).with_columns(machine=names[columns["number"]])


def faulty(frame: pl.DataFrame, machines: int) -> pl.DataFrame:
    """The readings with the faults that fall among them, some rows out of bounds and some twice."""
    for fault in FAULTS:
        struck = (pl.col("number") == fault.machine_of(machines)) & pl.col("reading").is_between(
            fault.first, fault.last, "left"
        )
        if fault.feature is None:
            frame = frame.filter(~struck)
        else:
            lifted = pl.when(struck).then(pl.col(fault.feature) + fault.lift).otherwise(fault.feature)
            frame = frame.with_columns(lifted.alias(fault.feature))
    row = pl.int_range(pl.len())
    frame = frame.with_columns(flow=pl.when(row < BAD).then(pl.lit(500.0)).otherwise("flow"))
    return pl.concat([frame, frame.tail(TWICE)])


def deliver(folder: Path, machines: int) -> Result:
    """Write the source files of the night; how many files, and rows in all, out of bounds, and twice."""
    parts = next(n for n in range(1, READINGS + 1) if READINGS % n == 0 and machines * READINGS / n <= FILE)
    each, rows = READINGS // parts, 0
    for part in range(parts):
        frame = faulty(readings(machines, NIGHT, part * each, (part + 1) * each), machines)
        frame.drop("number", "reading").write_parquet(folder / f"night-{part:03}.parquet")
        rows += len(frame)
    return {"files": parts, "rows": rows, "quarantined": parts * BAD, "duplicate": parts * TWICE}


def prepare(folder: Path, machines: int) -> Result:
    """Source files and a trained detector in `folder`, where they are not there yet; what `deliver` has written."""
    told = folder / f"{machines}.parquet"
    if not told.exists():
        shutil.rmtree(folder, ignore_errors=True)
        source = folder / "source"
        source.mkdir(parents=True)
        (folder / "datasets").mkdir()
        (folder / "datasets" / "load.yaml").write_text(DATASET.format(source=source.resolve()))
        known = readings(min(machines, TRAINED), BEFORE, 0, READINGS)
        known.drop("number", "reading").write_parquet(source / "before.parquet")
        nightsift(folder, "train", "load", "--from", str(BEFORE), "--to", str(NIGHT))
        pl.DataFrame([deliver(source, machines)]).write_parquet(told)
    return pl.read_parquet(told).row(0, named=True)


def measure(quick: bool, scratch: Path, rows: float | None, memory: int, keep: Path | None) -> Result:
    """The figures of every step; `SystemExit` where the night was killed, or a row or a fault was lost."""
    machines = ceil((rows or (QUICK if quick else ROWS)) / READINGS)
    folder, home = keep or scratch / "kept", scratch / "night"
    delivered = prepare(folder, machines)
    shutil.copytree(folder / "var", home)
    context = multiprocessing.get_context("spawn")
    with limited(memory, CORES) as limit:
        try:
            with ProcessPoolExecutor(1, context, limit.enter) as pool:
                night = pool.submit(run, limit, home, folder / "datasets", machines).result()
        except BrokenProcessPool:
            sys.exit(f"the night was killed: its memory is bounded by {limit}")
    wanted = {"rows_in": delivered["rows"], "rows_clean": night["steps_scored"],
              "rows_quarantined": delivered["quarantined"], "rows_duplicate": delivered["duplicate"],
              "faults_found": len(FAULTS)}  # fmt: skip
    wrong = [f"{name} is {night[name]:,}, not {value:,}" for name, value in wanted.items() if night[name] != value]
    if night["rows_in"] != night["rows_clean"] + night["rows_quarantined"] + night["rows_duplicate"]:
        wrong.append("rows in are not rows clean, in quarantine and twice")
    if wrong:
        sys.exit(f"the night went wrong: {'; '.join(wrong)}")
    seconds = sum(step["seconds"] for step in night["steps"].values())
    peak = max(step["peak_gib"] for step in night["steps"].values())
    return {
        "machines": machines, "files": delivered["files"], "cores": CORES, "memory_bytes": memory,
        "memory_by": str(limit), **night, "seconds": seconds, "peak_gib": peak, **bound(seconds, MOST),
    }  # fmt: skip


def run(limit: Limit, home: Path, datasets: Path, machines: int) -> Result:
    """The night, step by step as the tasks of the nightly DAG take it; what each step took, and what was counted."""
    from pipeline.night import summary
    from pipeline.report import report_file

    watch, ws, steps = Watch(limit), open_workspace("load", home, datasets), {}
    for name, work in night_steps(ws):
        steps[name] = measured(work, watch)
        print(f"{name}: {steps[name]}", file=sys.stderr, flush=True)
    night = summary(ws, NIGHT, report_file(ws, NIGHT), skipped=False)
    for step in steps.values():
        step["rows_per_second"] = night.rows_in / step["seconds"]
        step["core_seconds_per_million_rows"] = step["core_seconds"] / (night.rows_in / 1e6)
    return {
        "rows_in": night.rows_in, "rows_clean": night.rows_clean, "rows_quarantined": night.rows_quarantined,
        "rows_duplicate": night.rows_duplicate, "steps_scored": night.steps, "incidents": night.incidents,
        "faults_found": found_faults(ws, machines), "steps": steps,
    }  # fmt: skip


def night_steps(ws: Workspace) -> Iterator[tuple[str, Callable[[], object]]]:
    """The steps of the night and their names, in order."""
    from pipeline.incidents import find_incidents
    from pipeline.ingest import ingest
    from pipeline.night import log_night
    from pipeline.report import write_report
    from pipeline.score import Shard, context_days, plan_shards, publish

    shards: list[Shard] = []
    yield "ingest", lambda: ingest(ws, context_days(ws.dataset, NIGHT)[0], NIGHT)
    yield "validate", lambda: shards.extend(plan_shards(ws, NIGHT))
    yield "score", lambda: score_at_once(ws, shards)
    yield "publish", lambda: publish(ws, shards)
    yield "incidents", lambda: find_incidents(ws, NIGHT)
    yield "report", lambda: write_report(ws, NIGHT)
    yield "log", lambda: log_night(ws, NIGHT)


def score_at_once(ws: Workspace, shards: "list[Shard]") -> None:
    """Score each shard in a process of its own, as many at once as there are cores: as the tasks of a night do."""
    home, datasets = ws.home.root, ws.dataset.file.parent
    with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in [pool.submit(_score, home, datasets, shard) for shard in shards]:
            done.result()


def _score(home: Path, datasets: Path, shard: "Shard") -> None:
    from pipeline.score import score_shard

    score_shard(open_workspace("load", home, datasets), shard)


def measured(work: Callable[[], object], watch: Watch) -> Result:
    """What `work` took: seconds of the clock and of the cores, most memory, and what limited it."""
    watch.peak, before, began = 0, _core_seconds(), time.monotonic()
    work()
    seconds, spent = time.monotonic() - began, _core_seconds() - before
    watch.look()
    return {
        "seconds": seconds,
        "core_seconds": spent,
        "peak_gib": watch.peak / GIB,
        "limited_by": limit_of(spent / seconds),
    }


def limit_of(cores: float) -> str:
    """What limits a step that keeps so many cores busy, of `CORES`."""
    if cores >= 0.75 * CORES:
        return "processor, all cores"
    return "processor, one core" if cores >= 0.75 else "waiting: disk, or other work on the machine"


def _core_seconds() -> float:
    """Processor time of this process, and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def found_faults(ws: Workspace, machines: int) -> int:
    """How many of the injected faults an incident of the machine overlaps."""
    from pipeline.incidents import read_incidents

    incidents, start = read_incidents(ws, NIGHT, NIGHT), ws.dataset.day_bounds(NIGHT)[0]
    return sum(
        not incidents.filter(
            pl.col("entity") == f"m{fault.machine_of(machines):05}",
            pl.col("kind") == ("silent" if fault.feature is None else "anomaly"),
            pl.col("start") < start + fault.last * CADENCE,
            pl.col("end") > start + fault.first * CADENCE,
        ).is_empty()
        for fault in FAULTS
    )


def add(options: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    options.add_argument("--rows", type=float, help=f"rows of the night [default: {ROWS:,}, with --quick {QUICK:,}]")
    options.add_argument("--memory", type=size, default="4G", help="of all processes together [default: 4G]")
    options.add_argument("--keep", type=Path, help="where source files and detector stay for the next run")


def load(quick: bool, scratch: Path, **options: object) -> Result:
    """As `measure`, whose figures are kept for docs/guarantees.md too."""
    found = measure(quick, scratch, **options)  # type: ignore[arg-type]
    told = {name: value for name, value in found.items() if name not in ("steps", "seconds")}
    told |= {f"{name}_{what}": round(step[what], 2) for name, step in found["steps"].items()
             for what in ("seconds", "core_seconds", "peak_gib")}  # fmt: skip
    keep_figures(
        "load", "One night from source files to incidents, every row scored, on two cores within a bound on memory.",
        told, command=f"python -m benchmarks.load --rows {found['rows_in']:.0e}", seconds=found["seconds"],
    )  # fmt: skip
    return found


if __name__ == "__main__":
    run_benchmark("Whether a hundred million rows pass in one night.", load, add)
