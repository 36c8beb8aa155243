"""What the benchmarks share: their options, the real data, the metrics, and running `nightsift` as a user does."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import polars as pl
import yaml

from benchmarks import _rivals

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
DEFAULT_KIND = "convlstm1d"
DAY = timedelta(days=1)
Result = dict[str, Any]


def main(
    about: str, measure: Callable[..., Result], add: Callable[[argparse.ArgumentParser], None] | None = None
) -> None:
    """Run `measure(quick, scratch folder)`, print its figures, and write them to the file of `--json`.

    What options `add` adds to the parser, `measure` is given by name too.
    """
    options = argparse.ArgumentParser(description=about)
    options.add_argument("--quick", action="store_true", help="a smaller measurement, to see that it works")
    options.add_argument("--json", type=Path, help="write the figures to this file")
    if add is not None:
        add(options)
    given = vars(options.parse_args())
    quick, file = given.pop("quick"), given.pop("json")
    with TemporaryDirectory(prefix="nightsift-bench-") as scratch:
        result = measure(quick, Path(scratch), **given)
    print(json.dumps(result, indent=1, default=float))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, default=float) + "\n")


def bound(seconds: float, most: float) -> Result:
    """Whether so many seconds keep to at most `most` of them, as fields of a result: `kept` or `missed`."""
    return {"bound_seconds": most, "bound": "kept" if seconds <= most else "missed"}


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


def compare(
    name: str,
    scratch: Path,
    train: pl.DataFrame,
    test: pl.DataFrame,
    judge: Callable[[pl.DataFrame], Result],
    rivals: Mapping[str, _rivals.Fit],
    *,
    kinds: Sequence[str],
    seeds: int,
) -> Result:
    """For each contender what `judge` makes of its scores, and the seconds of fitting and scoring.

    Ours is run with each of the `kinds` of network and the seeds 0, 1, … so many: means, with the least and the
    greatest where there are several. `train` and `test` have entity, timestamp and features.
    """
    found: Result = {}
    for kind in kinds:
        runs = []
        for seed in range(seeds):
            scores, seconds = detect(scratch / f"{kind}-{seed}", name, train, test, kind=kind, seed=seed)
            runs.append(judge(scores) | {"seconds": seconds})
        found["nightsift" if kind == DEFAULT_KIND else f"nightsift, {kind}"] = over_seeds(runs)
    for rival, fit in rivals.items():
        scores, seconds = _rivals.run(fit, train, test)
        found[rival] = judge(scores) | {"seconds": seconds}
    return found


def over_seeds(runs: Sequence[Result]) -> Result:
    """The means of the runs' figures, and where there are several the least and the greatest, by figure."""
    if len(runs) == 1:
        return runs[0]
    by_name = {name: [run[name] for run in runs] for name in runs[0] if name != "seconds"}
    return {
        **{name: sum(values) / len(values) for name, values in by_name.items()},
        "range": {name: [min(values), max(values)] for name, values in by_name.items()},
        "seeds": len(runs),
        "seconds": {part: sum(run["seconds"][part] for run in runs) / len(runs) for part in runs[0]["seconds"]},
    }


def detect(
    folder: Path, name: str, train: pl.DataFrame, test: pl.DataFrame, *, kind: str = DEFAULT_KIND, seed: int = 0
) -> tuple[pl.DataFrame, dict[str, float]]:
    """Entity, timestamp, score and alarm as a user gets them, and the seconds of fitting and scoring.

    The training rows come in one file, the test rows later in a second one; the YAML is that of `nightsift init`.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    train.write_parquet(source / "1-train.parquet")
    nightsift(folder, "init", name, "--source", "source/*.parquet", "--entity", "entity", "--event-time", "timestamp")
    set_model(folder / "datasets" / f"{name}.yaml", kind, seed)
    moments = pl.concat([train["timestamp"], test["timestamp"]]).dt.date()
    first, end = moments.min(), moments.max() + DAY
    until = train["timestamp"].dt.date().max() + DAY
    seconds = {"fit": nightsift(folder, "train", name, "--from", str(first), "--to", str(until)), "score": 0.0}
    test.write_parquet(source / "2-test.parquet")
    for begin, stop in stretches(test["timestamp"].dt.date()):
        seconds["score"] += nightsift(folder, "score", name, "--from", str(begin), "--to", str(stop))
    nightsift(folder, "scores", name, "--from", str(first), "--to", str(end), "--out", "scores.parquet")
    scored = pl.read_parquet(folder / "scores.parquet")
    return scored.select(
        "entity", pl.col("event_time").alias("timestamp"), "score", is_anomaly_pred="is_anomaly"
    ), seconds


def set_model(file: Path, kind: str, seed: int) -> None:
    """Set model.kind and model.seed in a YAML; it stays as it is where both are the defaults."""
    if (kind, seed) == (DEFAULT_KIND, 0):
        return
    dataset = yaml.safe_load(file.read_text())
    dataset["model"] = {**dataset.get("model", {}), "kind": kind, "seed": seed}
    file.write_text(yaml.safe_dump(dataset, sort_keys=False, allow_unicode=True))


def stretches(days: pl.Series) -> Iterator[tuple[date, date]]:
    """The days as half-open stretches without a gap."""
    ordered = days.unique().sort()
    new = (ordered.diff() != DAY).fill_null(value=True).cum_sum()
    for part in ordered.to_frame("day").with_columns(new.alias("run")).partition_by("run", maintain_order=True):
        yield part["day"][0], part["day"][-1] + DAY
