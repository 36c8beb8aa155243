"""The same data, seed and lock give the same detector and the same scores: in another process, with other threads,
another order of the rows, other shards, and other pieces in which rows are read and windows are laid out.

A GPU adds up in another order, and TensorFloat-32 rounds to ten bits; then decisions agree within `AGREE`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import SENSOR, TRANSACTION
from tests.figures import long, record

EQUAL = 1e-6  # what scores and what was learned may differ by, on CPUs
AGREE = 0.995  # of the decisions, where a network rounds otherwise: on a GPU, or in another precision
NOISE = 1e-3  # of what the network expects: what TensorFloat-32 and another order of addition come to
# Of a few days of payments, at the usual rate of false alarms, nothing would be called.
PAYMENTS = TRANSACTION.replace("false_alarms: 0.2", "false_alarms: 1")
YAMLS = {"sensor": SENSOR, "transaction": PAYMENTS} if long() else {"sensor": SENSOR}
ONE = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1",
       "PYTHONHASHSEED": "1"}  # fmt: skip
TWO = {**dict.fromkeys(ONE, "2"), "PYTHONHASHSEED": "4711"}
GPU = Path("/dev/nvidia0").exists()


def twin(folder: Path, yaml: str, environment: dict[str, str], **differs: object) -> Path:
    """The folder in which a process of its own has trained and scored."""
    about = {"yaml": yaml.replace("epochs: 4", "epochs: 2"), "shuffle": 0, "shards": [1], "parts": [], "noise": 0}
    command = [sys.executable, "-m", "tests.pipeline.twin", folder, json.dumps({**about, **differs})]
    root = Path(__file__).parents[2]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTSIFT_", "MLFLOW_"))}
    done = subprocess.run(command, cwd=root, env={**kept, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module", params=YAMLS)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The same training and night twice, with all that must not matter different."""
    root, begun = tmp_path_factory.mktemp(request.param), time.monotonic()
    yaml, off = YAMLS[request.param], {"CUDA_VISIBLE_DEVICES": "-1"}
    first = twin(root / "first", yaml, ONE | off, noise=NOISE)
    second = twin(root / "second", yaml, TWO | off, shuffle=7, shards=[1, 3, 7], parts=[[50, 3], [400, 64]])
    yield first, second
    found = [difference(wanted(first), pl.read_parquet(file)) for file in second.glob("*.parquet")]
    agreed = agreement(wanted(first), pl.read_parquet(first / "noise.parquet"))
    record(f"determinism-{request.param}", "The same night trained and scored in two processes that differ in threads, "
           "order of rows, shards and pieces; and with a network that rounds otherwise.",
           {"nights compared": len(found), "largest difference of scores": max(found),
            "decisions that agree in spite of rounding": agreed}, time.monotonic() - begun)  # fmt: skip


def wanted(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "1 shards.parquet")


def difference(left: pl.DataFrame, right: pl.DataFrame) -> float:
    """The largest difference of two nights' numbers; that rows and words are the same is taken for granted."""
    assert left.columns == right.columns
    assert len(left) == len(right) > 0
    numbers = [name for name, kind in left.schema.items() if kind.is_float()]
    exact = left.select(pl.exclude(*numbers, "detector_version"))
    assert exact.equals(right.select(exact.columns))
    return max(
        (float(np.nanmax(np.abs(a - b), initial=0)) if (np.isnan(a) == np.isnan(b)).all() else float("inf"))
        for a, b in ((frame_numbers(left, name), frame_numbers(right, name)) for name in numbers)
    )


def frame_numbers(frame: pl.DataFrame, name: str) -> np.ndarray:
    return frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()


def agreement(left: pl.DataFrame, right: pl.DataFrame) -> float:
    """The share of steps that both call the same."""
    return float((left["is_anomaly"] == right["is_anomaly"]).mean())


def test_the_same_training_ends_with_the_same_detector(twins: tuple[Path, Path]) -> None:
    """Weights, scaler, threshold and all else that was learned."""
    first, second = (np.load(folder / "detector.npz", allow_pickle=False) for folder in twins)
    assert sorted(first) == sorted(second)
    assert len([name for name in first if name.startswith("weight")]) > 5
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=EQUAL, err_msg=name)


@pytest.mark.parametrize(
    "way", ["1 shards", "3 shards", "7 shards", "50 rows and 3 windows", "400 rows and 64 windows"]
)
def test_the_same_night_has_the_same_scores(twins: tuple[Path, Path], way: str) -> None:
    """However it was divided, read and laid out: scores, what was expected, and decisions."""
    first, second = twins
    assert wanted(first)["is_anomaly"].sum() > 0
    assert difference(wanted(first), pl.read_parquet(second / f"{way}.parquet")) <= EQUAL


def test_decisions_outlast_another_rounding(twins: tuple[Path, Path]) -> None:
    """A network whose outputs are off as those of a GPU may be: the scores differ, 995 of 1,000 decisions do not."""
    first, _ = twins
    noise = pl.read_parquet(first / "noise.parquet")
    assert not noise["score"].equals(wanted(first)["score"])
    assert agreement(wanted(first), noise) >= AGREE


@pytest.mark.skipif(not GPU, reason="this machine has no GPU; the rounding of one is simulated above")
def test_a_gpu_decides_as_a_cpu_does(twins: tuple[Path, Path], request: pytest.FixtureRequest) -> None:
    """The same detector and night on the GPU."""
    folder = twin(twins[0], YAMLS[request.node.callspec.params["twins"]], {}, shards=[2])
    assert agreement(wanted(folder), pl.read_parquet(folder / "2 shards.parquet")) >= AGREE
