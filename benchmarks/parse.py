"""How long Airflow takes to read the DAG files: `python -m benchmarks.parse [--datasets N] [--quick] [--json FILE]`.

Each file of dags/ is read with 1,000 datasets in a process of its own, as Airflow's DAG processor reads it: seconds of
the clock and of the processor, and seconds of the processor for turning the DAGs into what the scheduler reads. The
bound is Airflow's own, `[core] dagbag_import_timeout`. `a_task` is what a worker reads that runs a task of one dataset.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks._common import ROOT, Result, bound
from benchmarks._common import main as run_benchmark

MOST = 30.0  # seconds that Airflow gives a file by default
YAML = """\
kind: sensor
description: Water pumps of plant {number}, one reading a minute
source: {{path: "{{home}}/source/{name}/*.parquet"}}
entity: pump
event_time: time
cadence: 1m
features:
  - {{name: flow, unit: m3/h, min: 0, max: 400}}
  - {{name: pressure, unit: bar, min: 0, max: 25}}
  - {{name: vibration, unit: mm/s, min: 0, max: 60}}
schedule: "30 2 * * *"
deadline: "06:00"
"""


def measure(quick: bool, scratch: Path, datasets: int) -> Result:
    """The figures of every DAG file, and of a file as a task reads it."""
    count = 10 if quick else datasets
    names = write_datasets(scratch / "datasets", count)
    files = {file.name: read(file, scratch) for file in sorted((ROOT / "dags").glob("*.py"))}
    slowest = max(each["seconds"] for each in files.values())
    task = read(ROOT / "dags" / "nightly.py", scratch, dag=f"{names[0]}_nightly")
    return {"datasets": count, "files": files, "a_task": task, **bound(slowest, MOST)}


def write_datasets(folder: Path, count: int) -> list[str]:
    """Write so many YAMLs, with a schedule and a deadline, so that each has all DAGs; their names."""
    folder.mkdir()
    names = [f"plant{number:04}" for number in range(count)]
    for number, name in enumerate(names):
        (folder / f"{name}.yaml").write_text(YAML.format(number=number, name=name))
    return names


def read(file: Path, scratch: Path, dag: str = "") -> Result:
    """What reading the DAG file took; with `dag`, as a worker does that runs one of its tasks."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(scratch / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600",
        "NIGHTSIFT_HOME": str(scratch / "var"), "NIGHTSIFT_DATASETS": str(scratch / "datasets"),
        **({"_AIRFLOW_PARSING_CONTEXT_DAG_ID": dag} if dag else {}),
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks._read_dags", str(file)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", type=int, default=1000, help="how many YAMLs there are (1000)")


if __name__ == "__main__":
    run_benchmark("How long Airflow takes to read the DAG files.", measure, _options)
