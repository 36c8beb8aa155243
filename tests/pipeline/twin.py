"""Trains a detector and scores a night in a process of its own, whose environment and order of work differ.

Its arguments: a folder, and as JSON `{"yaml": …, "shuffle": …, "shards": […], "parts": […], "noise": …}`. It writes
`detector.npz`, all that was learned, and one `NAME.parquet` of scores for each way to score the night.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl

from pipeline import score, tracking
from pipeline.ingest import ingest
from pipeline.tables import scores_schema
from pipeline.train import train
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import START, card_day, sensor_day

HISTORY = 6
NIGHT = START.date() + timedelta(days=HISTORY)


@dataclass(frozen=True)
class Twin:
    """What differs: the seed that files and rows are shuffled with (0: not), and the ways to score the night."""

    yaml: str
    shuffle: int
    shards: list[int]
    parts: list[list[int]]
    noise: float


def deliver(folder: Path, twin: Twin) -> None:
    """The same rows: a file a day, or shuffled over as many files, whose names are in no order."""
    folder.mkdir(parents=True)
    sensor = "kind: sensor" in twin.yaml
    fault = ("m1", 60, 80)
    days = [
        sensor_day(day, 3, fault if day == HISTORY else None) if sensor else card_day(day, fault=day == HISTORY)
        for day in range(HISTORY + 1)
    ]
    if twin.shuffle:
        rows = pl.concat(days).sample(fraction=1, shuffle=True, seed=twin.shuffle)
        days = [rows[number :: len(days)] for number in range(len(days))][::-1]
    for number, frame in enumerate(days):
        frame.write_parquet(folder / f"{number * 7919 % 101 if twin.shuffle else number:03}.parquet")


def scored(ws: Workspace, shards: int) -> pl.DataFrame:
    """The night's scores, of so many shards."""
    file = ws.dataset.file
    kept = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("shards:"))
    file.write_text(f"{kept}\nshards: {shards}\n")
    again = open_workspace("demo", ws.home.root, file.parent)
    planned = score.plan_shards(again, NIGHT)
    for shard in planned:
        score.score_shard(again, shard)
    score.publish(again, planned)
    return again.lake.scan("scores", scores_schema(again.dataset), NIGHT, NIGHT).collect().sort("entity", "event_time")


def noisy(expect: Callable[..., Any], noise: float) -> Callable[..., Any]:
    """A network that rounds otherwise: what it expects is off by so large a share of it, at random."""
    random = np.random.default_rng(1)

    def perturbed(*arguments: Any, **options: Any) -> Any:
        found = expect(*arguments, **options)
        return (found * (1 + noise * random.standard_normal(found.shape))).astype(np.float32)

    return perturbed


def learned(folder: Path) -> dict[str, Any]:
    """Weights, scaler, threshold and all else of a detector, as arrays."""
    from models.detector import Detector

    detector = Detector.load(folder)
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        held = dict(arrays)
    weights = {f"weight {number:03}": array for number, array in enumerate(detector.model.get_weights())}
    return {**held, **weights, "threshold": np.array(detector.threshold.value)}


def trained(folder: Path, twin: Twin) -> Workspace:
    """A workspace with a champion."""
    (folder / "datasets").mkdir(parents=True)
    (folder / "datasets" / "demo.yaml").write_text(twin.yaml)
    deliver(folder / "var" / "source", twin)
    ws = open_workspace("demo", folder / "var", folder / "datasets")
    ingest(ws)
    train(ws, *(ws.dataset.day_bounds(day)[0] for day in (START.date(), NIGHT)))
    np.savez(folder / "detector.npz", **learned(tracking.champion(ws).folder))
    return ws


def main(folder: Path, twin: Twin) -> None:
    """Train, where that was not done in the folder before, and score."""
    known = (folder / "detector.npz").exists()
    ws = open_workspace("demo", folder / "var", folder / "datasets") if known else trained(folder, twin)
    for shards in twin.shards:
        scored(ws, shards).write_parquet(folder / f"{shards} shards.parquet")
    for rows, windows in twin.parts:
        with mock.patch.object(score, "PART", rows), mock.patch.object(score, "CHUNK", windows):
            scored(ws, 1).write_parquet(folder / f"{rows} rows and {windows} windows.parquet")
    if twin.noise:
        from models import autoencoder

        with mock.patch.object(autoencoder, "expect", noisy(autoencoder.expect, twin.noise)):
            scored(ws, 1).write_parquet(folder / "noise.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Twin(**json.loads(sys.argv[2])))
