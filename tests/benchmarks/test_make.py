"""What the targets of the Makefile run."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def recipe(target: str) -> str:
    """The commands of `target`, with the Makefile's variables filled in."""
    return subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_bench_runs_every_benchmark_that_needs_no_server() -> None:
    """That of the scheduler, which needs PostgreSQL, has a target of its own."""
    (loop,) = (line for line in recipe("bench").splitlines() if line.startswith("for name in "))
    there = {file.stem for file in (ROOT / "benchmarks").glob("[a-z]*.py")}
    assert set(loop.removeprefix("for name in ").partition(";")[0].split()) == there - {"scheduler"}
    assert "-m benchmarks.scheduler --json" in recipe("bench-scheduler")
