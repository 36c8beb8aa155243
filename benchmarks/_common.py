"""What the benchmarks share: their options, the real data, the metrics, and running `nightsift` as a user does."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
Result = dict[str, Any]


def main(about: str, measure: Callable[..., Result], sets: Sequence[str] = ()) -> None:
    """Run `measure(quick, scratch folder)`, print its figures, and write them to the file of `--json`.

    With `sets` there is an option `--sets`, and `measure` is given the chosen ones too.
    """
    options = argparse.ArgumentParser(description=about)
    options.add_argument("--quick", action="store_true", help="a smaller measurement, to see that it works")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    if sets:
        options.add_argument("--sets", nargs="+", choices=sets, default=sets, help="measure these only")
    given = options.parse_args()
    chosen = [given.sets] if sets else []
    with TemporaryDirectory(prefix="nightsift-bench-") as scratch:
        result = measure(given.quick, Path(scratch), *chosen)
    print(json.dumps(result, indent=1, default=float))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1, default=float) + "\n")


def real_data(name: str) -> Path:
    """The folder of a real data set, which is kept beside the project; ends the benchmark where it is missing."""
    folder = SHARED / "data" / name
    if not folder.is_dir():
        sys.exit(
            f"{folder} is not there: this benchmark reads real data kept beside the project, see docs/benchmarks.md"
        )
    return folder


def metrics() -> ModuleType:
    """The module of the metrics, kept beside the data."""
    spec = importlib.util.spec_from_file_location("evaluate", SHARED / "bench" / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nightsift(scratch: Path, *arguments: str) -> float:
    """Run a `nightsift` command with its state under `scratch`; the seconds that it took."""
    places = {"--datasets": scratch / "datasets"} | ({} if arguments[0] == "init" else {"--home": scratch / "var"})
    began = time.monotonic()
    command = [sys.executable, "-m", "pipeline.cli", *arguments, *(str(x) for pair in places.items() for x in pair)]
    subprocess.run(command, check=True, cwd=scratch, stdout=sys.stderr)
    return round(time.monotonic() - began, 1)
