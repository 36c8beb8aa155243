"""Mixed precision decides as float32 does: on the same weights, and after a training of its own."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from models.autoencoder import build_autoencoder
from models.devices import find_devices
from pipeline.ingest import ingest
from pipeline.score import load_detector, scan_clean, score_frame
from pipeline.tracking import CHAMPION, client, version
from pipeline.train import Trained, train
from pipeline.validate import validate
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR, START, TRANSACTION, card_day, deliver, sensor_day, workspace_in

HISTORY = 8
FAULTY = START.date() + timedelta(days=HISTORY)
AGREE = 0.995  # of the steps: what lies as close to the threshold as bfloat16 rounds may be called otherwise


@pytest.fixture(scope="module", params=["sensor", "transaction"])
def ws(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A detector trained in float32, and a faulty day to score."""
    root = tmp_path_factory.mktemp(request.param)
    made = workspace_in(root, SENSOR if request.param == "sensor" else TRANSACTION)
    for day in range(HISTORY + 1):
        fault = day == HISTORY
        readings = sensor_day(day, fault=("m1", 60, 80) if fault else None)
        deliver(made, readings if request.param == "sensor" else card_day(day, fault=fault), f"day-{day:02}")
    learn(made)
    ingest(made)
    validate(made, FAULTY)
    return made


def learn(ws: Workspace) -> Trained:
    return train(ws, ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(FAULTY)[0])


def decisions(ws: Workspace, precision: str | None = None, label: str = CHAMPION) -> pl.Series:
    """What a detector calls anomalous on the faulty day, perhaps with its network in another precision."""
    detector = load_detector(version(ws, label).folder)
    if precision is not None:
        model = build_autoencoder(replace(detector.config, precision=precision))
        model.set_weights(detector.model.get_weights())
        detector = replace(detector, model=model)
    clean = scan_clean(ws, START.date(), FAULTY).collect()
    tonight = pl.col("event_time") >= ws.dataset.day_bounds(FAULTY)[0]
    return score_frame(detector, clean, ws.dataset, tonight)["is_anomaly"]


def test_the_training_run_says_what_it_ran_on(ws: Workspace) -> None:
    """MLflow has the devices as a tag, and how many GPUs there were as a metric; a GPU here would be named."""
    api = client(ws)
    (run, *_) = api.search_runs([api.get_experiment_by_name("demo/train").experiment_id])
    gpus = len(find_devices().gpus)
    assert run.data.metrics["gpus"] == gpus
    assert run.data.tags["devices"] == str(find_devices())


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_the_same_weights_decide_the_same(ws: Workspace, precision: str) -> None:
    """The fault is found, and at least 995 of 1000 steps are called the same."""
    wanted, found = decisions(ws), decisions(ws, precision)
    assert wanted.sum() > 0
    assert (wanted == found).mean() >= AGREE, (wanted.sum(), found.sum())


def test_a_detector_trained_in_mixed_precision_decides_the_same(ws: Workspace) -> None:
    """`model.precision` reaches the registered detector, which calls nearly all steps as that of float32 does."""
    wanted = decisions(ws)
    file = Path(ws.dataset.file)
    file.write_text(file.read_text().replace("model: {", "model: {precision: mixed_bfloat16, ", 1))
    mixed = open_workspace("demo", ws.home.root, file.parent)
    trained = learn(mixed).version
    assert load_detector(version(mixed, trained).folder).config.precision == "mixed_bfloat16"
    found = decisions(mixed, label=trained)
    assert found.sum() > 0
    assert (wanted == found).mean() >= AGREE, (wanted.sum(), found.sum())
