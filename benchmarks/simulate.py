"""How fast the simulator writes: `python -m benchmarks.simulate [--quick] [--json FILE]`.

Ten million rows of each source (a tenth with --quick), each in a fresh process; files go to a temporary folder.
Reported for each: rows, seconds from the first draw to the last file, rows a second, seconds of processor time over all
threads (which tells a busy machine from slow code), and the process' peak memory.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pipeline.simulate import simulate

# Source: entities, days; about 1 440 readings of a pump and 2.4 payments of a card a day.
FULL = {"pumps": (1000, 7), "cards": (100_000, 46)}
QUICK = {"pumps": (700, 1), "cards": (100_000, 5)}


def measure(kind: str, entities: int, days: int) -> dict[str, str | float]:
    """One run: kind, entities, days, rows, seconds, rows_per_second, cpu_seconds, peak_gib."""
    with tempfile.TemporaryDirectory() as folder:
        start, worked = time.perf_counter(), time.process_time()
        rows = simulate(kind, days=days, entities=entities, seed=0, folder=Path(folder)).rows
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "kind": kind, "entities": entities, "days": days, "rows": rows, "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds), "cpu_seconds": round(worked, 2), "peak_gib": round(peak, 2),
    }  # fmt: skip


def measure_alone(kind: str, entities: int, days: int) -> dict[str, str | float]:
    """`measure` in a process of its own, so that one source's memory is not counted as the other's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, kind, entities, days).result()


def main() -> None:
    """Measure both sources, print a table, and write the results where --json says."""
    parser = argparse.ArgumentParser(description="How fast the simulator writes.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    results = [measure_alone(kind, *size) for kind, size in sizes.items()]
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"{'source':8}{'rows':>12}{'seconds':>9}{'rows/s':>10}{'cpu s':>8}{'peak GiB':>10}")
    for each in results:
        print(f"{each['kind']:8}{each['rows']:12,}{each['seconds']:9.1f}{each['rows_per_second']:10,}"
              f"{each['cpu_seconds']:8.1f}{each['peak_gib']:10.2f}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({"simulate": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
