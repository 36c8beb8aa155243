"""Speed of the masked ConvLSTM1D beside stock Keras, and what its mask is worth; every ratio is of one process.

`python -m benchmarks.model [--quick] --json FILE`. Each setting (default threads, one pinned core, two processes of one
thread, the JAX backend) is a process of its own; within it the contenders take turns.
"""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, Result, main

Shape = tuple[int, int, int, int]
SHAPES: tuple[Shape, ...] = (
    (64, 8, 8, 1),
    (64, 16, 16, 8),
    (64, 8, 32, 8),
    (64, 32, 8, 38),
    (64, 32, 32, 8),
    (256, 16, 16, 8),
    (256, 8, 8, 38),
)
CONTENDERS = ["stock", "ours", "ours xla", "ours xla masked"]
PEERS = ["stock", "ours", "lstm", "conv1d"]


def measure(quick: bool, scratch: Path) -> Result:
    """Return the rows of every setting, geometric means of the ratios, and the figures of quality."""
    shapes = [SHAPES[0], SHAPES[1]] if quick else list(SHAPES)
    repeats = 3 if quick else 7
    default = _speed(shapes, CONTENDERS, repeats)
    peers = _speed(shapes[:2], PEERS, repeats)
    pinned = _speed(shapes, ["stock", "ours", "ours xla"], repeats, cores=[0], threads=1)
    parts = _speed(shapes, ["stock", "ours parts"], repeats, threads=1)
    jax = _speed(shapes[:2], ["stock", "ours"], repeats, backend="jax")
    pairs = _pairs(shapes, default, scratch, seconds=1 if quick else 3)
    return {
        "cores": os.cpu_count(),
        "default threads": default,
        "peers": peers,
        "one pinned core": pinned,
        "one thread an operation": parts,
        "JAX": jax,
        "two processes of one thread": pairs,
        "geometric means over stock": {
            "default threads": _means(default),
            "peers": _means(peers),
            "one pinned core": _means(pinned),
            "one thread an operation": _means(parts),
            "one thread an operation, over stock at default threads": _means(_over(parts, default)),
            "JAX": _means(jax),
            "two processes of one thread": _means(pairs),
        },
        "first step": _first_steps(scratch),
        "peak memory MiB": {kind: _run("memory", shape=SHAPES[5], kind=kind)["made"] for kind in ("stock", "ours")},
        "loss curves": _run("loss_curves", shape=(16, 8, 8, 2))["made"],
        "half masked": {
            where: _run("half_masked", where=where, seeds=1 if quick else 3, epochs=4 if quick else 30)["made"]
            for where in ("ends", "gaps")
        },
    }


def _speed(shapes: list[Shape], kinds: list[str], repeats: int, **setting: Any) -> list[Result]:
    """Rows of one setting, with their ratio over stock and their share of the peak of the same process."""
    result = _run("speed", shapes=shapes, kinds=kinds, repeats=repeats, peak=True, **setting)
    rows, peak = result["made"], result["peak"]
    return [
        row | {"peak gflops": peak, "share of peak": row["gflops"] / peak if row["gflops"] else None}
        for row in _over(rows, rows)
    ]


def _over(rows: list[Result], others: list[Result]) -> list[Result]:
    """Rows with their ratio over the stock layer's seconds among the others."""
    stock = {(tuple(row["shape"]), row["what"]): row["seconds"] for row in others if row["kind"] == "stock"}
    return [row | {"ratio": stock[tuple(row["shape"]), row["what"]] / row["seconds"]} for row in rows]


def _pairs(shapes: list[Shape], default: list[Result], scratch: Path, seconds: float) -> list[Result]:
    """Calls a second of two processes, each of one thread on its own core, over those of the stock layer's default."""
    rows = []
    for shape, kind, what in itertools.product(shapes, ("ours", "ours xla"), ("predict", "train")):
        barrier = scratch / f"{shape}-{kind}-{what}"
        barrier.mkdir()
        options = {"shape": shape, "kind": kind, "what": what, "seconds": seconds, "barrier": str(barrier)}
        running = [_start("steady", cores=[core], threads=1, **options) for core in (0, 1)]
        rate = sum(_finish(process)["made"] for process in running)
        rows.append({"shape": shape, "kind": kind, "what": what, "calls a second": rate, "seconds": 1 / rate})
    return _over(rows, default)


def _first_steps(scratch: Path) -> dict[str, dict[str, float]]:
    """Seconds of the first train step and prediction of a new process, without and with a warm compile cache."""
    cache = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={scratch / 'xla'}"}
    found = {kind: _run("first_step", shape=SHAPES[1], kind=kind)["made"] for kind in ("stock", "ours", "ours xla")}
    for warmth in ("filling the cache", "warm cache"):
        found[f"ours xla, {warmth}"] = _run("first_step", shape=SHAPES[1], kind="ours xla", environment=cache)["made"]
    return found


def _means(rows: list[Result]) -> dict[str, dict[str, float]]:
    """By kind and by what was done: the geometric mean of the ratios over stock, the least, the mean share of peak."""
    means: dict[str, dict[str, float]] = {}
    for kind, what in sorted({(row["kind"], row["what"]) for row in rows}):
        chosen = [row for row in rows if (row["kind"], row["what"]) == (kind, what)]
        means[f"{kind}, {what}"] = {"ratio": _geometric([row["ratio"] for row in chosen])}
        means[f"{kind}, {what}"]["least"] = min(row["ratio"] for row in chosen)
        if chosen[0].get("share of peak"):
            means[f"{kind}, {what}"]["share of peak"] = _geometric([row["share of peak"] for row in chosen])
    return means


def _geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _run(task: str, **setting: Any) -> Result:
    return _finish(_start(task, **setting))


def _start(
    task: str,
    *,
    backend: str = "tensorflow",
    cores: list[int] | None = None,
    threads: int | None = None,
    peak: bool = False,
    environment: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start a worker; what it says beside its result goes to the terminal."""
    given = {"task": task, "cores": cores, "threads": threads, "peak": peak, "with": options}
    print(f"{task} {json.dumps(options)[:150]}", file=sys.stderr, flush=True)
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks._model_worker", json.dumps(given)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> Result:
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"A worker ended with {process.returncode}: see above.")
    result: Result = json.loads(said.splitlines()[-1])
    return result


if __name__ == "__main__":
    main(__doc__, measure)
