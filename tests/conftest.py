"""What the tests share: a small sensor and a small transaction dataset, with source files, in a folder of their own."""

import gc
import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.workspace import Workspace, open_workspace

START = datetime(2026, 1, 5, tzinfo=UTC)

SENSOR = """
kind: sensor
source: {path: "{home}/source/*.parquet"}
entity: machine
event_time: time
cadence: 10m
features:
  - {name: flow, unit: m3/h, min: -50, max: 50}
  - {name: heat, unit: K, min: -50, max: 50}
window: {steps: 4, rows: 4}
model: {filters: [8], kernel: 3, latent: 4, epochs: 4, batch: 32}
threshold: {false_alarms: 0.2}
"""

TRANSACTION = """
kind: transaction
source: {path: "{home}/source/*.parquet"}
entity: card
event_time: time
event_id: payment
history: 5d
features:
  - {name: amount, unit: EUR, min: 0, max: 100000, log: true}
  - {name: shop, type: categorical}
sequence_features:
  - {name: since_last, kind: time_since_last}
  - {name: to_history, kind: ratio_to_history, of: amount, over: 5d}
  - {name: count_1h, kind: rolling_count, over: 1h}
window: {steps: 4, rows: 2}
model: {filters: [8], kernel: 3, latent: 4, epochs: 4, batch: 32}
threshold: {false_alarms: 0.2}
"""


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """The collector passes over what earlier modules left in this process: each look at all of it takes seconds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet() -> None:
    for name in ("mlflow", "alembic", "great_expectations"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture
def make_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Workspace]:
    """A workspace from a YAML text, with its home in a folder of the test's own."""
    for name in ("NIGHTSIFT_HOME", "NIGHTSIFT_DATASETS", "NIGHTSIFT_LAKE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def make(text: str = SENSOR, name: str = "demo", home: str = "var") -> Workspace:
        return workspace_in(tmp_path, text, name, home)

    return make


def workspace_in(root: Path, text: str, name: str = "demo", home: str = "var") -> Workspace:
    """A workspace from a YAML text, in folders of `root`: `datasets`, and `home` with an empty `source`."""
    folder = root / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    (root / home / "source").mkdir(parents=True, exist_ok=True)
    return open_workspace(name, root / home, folder)


def sensor_day(day: int, machines: int = 4, fault: tuple[str, int, int] | None = None) -> pl.DataFrame:
    """A day of readings every ten minutes; `fault` = (machine, first reading, last reading) lifts the flow by 8."""
    frames = []
    for number in range(machines):
        rng = np.random.default_rng([day, number])
        t = np.arange(144)
        wave = np.sin(2 * np.pi * (t + day * 144) / 24 + number)
        flow, heat = wave + rng.normal(0, 0.2, 144), 2 * wave + rng.normal(0, 0.2, 144)
        name = f"m{number}"
        if fault and fault[0] == name:
            flow[fault[1] : fault[2]] += 8
        times = [START + timedelta(days=day, minutes=10 * int(i)) for i in t]
        frames.append(pl.DataFrame({"machine": [name] * 144, "time": times, "flow": flow, "heat": heat}))
    return pl.concat(frames).with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))


def card_day(day: int, cards: int = 12, *, fault: bool = False) -> pl.DataFrame:
    """A day of payments: about six a card, from three shops; with `fault`, five of 5,000 in ten minutes on card c1."""
    rng = np.random.default_rng([7, day])
    n = cards * 6
    seconds = np.sort(rng.choice(86400, n, replace=False))
    frame = pl.DataFrame(
        {
            "payment": [f"{day}-{i}" for i in range(n)],
            "card": [f"c{i}" for i in rng.integers(0, cards, n)],
            "time": [START + timedelta(days=day, seconds=int(s)) for s in seconds],
            "amount": np.round(rng.lognormal(3, 0.5, n), 2),
            "shop": rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1]),
        }
    ).with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))
    if not fault:
        return frame
    burst = frame.head(5).with_columns(
        payment=pl.format("stolen-{}", pl.col("payment")), card=pl.lit("c1"), amount=pl.lit(5000.0),
        time=pl.lit(START + timedelta(days=day, hours=10)) + pl.duration(minutes=2 * pl.int_range(5)),
    )  # fmt: skip
    return pl.concat([frame, burst.cast(dict(frame.schema))])


def deliver(ws: Workspace, frame: pl.DataFrame, name: str) -> Path:
    """Write `frame` where the dataset's source is read."""
    file = ws.home.root / "source" / f"{name}.parquet"
    frame.write_parquet(file)
    return file


def tables(ws: Workspace, *names: str) -> dict[str, pl.DataFrame]:
    """The whole content of the named tables (all that a night writes, by default), in one order."""
    kept = names or ("landing", "clean", "quarantine", "scores", "drifts", "incidents", "partitions")
    found = {}
    for name in kept:
        if ws.lake.exists(name):
            frame = pl.read_delta(ws.lake.uri(name))
            order = [c for c in ("day", "source", "source_row", "entity", "event_time", "start", "step") if c in frame]
            found[name] = frame.select(sorted(frame.columns)).sort(order)
    return found


def predicted_by_registry(ws: Workspace) -> pl.DataFrame:
    """What the champion, loaded from the registry in a process of its own, says about all clean rows."""
    code = (
        "import sys, mlflow, polars as pl\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model(f'models:/{sys.argv[2]}@champion')\n"
        "frame = pl.read_delta(sys.argv[3]).drop('day').to_pandas()\n"
        "pl.from_pandas(model.predict(frame)).write_parquet(sys.argv[4])\n"
    )
    out = ws.home.root / "predicted.parquet"
    arguments = [ws.home.tracking_uri, ws.dataset.name, ws.lake.uri("clean"), str(out)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd="/", timeout=300)
    return pl.read_parquet(out)
