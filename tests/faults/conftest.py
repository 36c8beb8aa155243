"""Templates of a sensor and a transaction dataset, and a night that is to be run: made once for all tests of faults."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from pipeline.train import train
from pipeline.workspace import Workspace
from tests.conftest import SENSOR, START, deliver, sensor_day, workspace_in
from tests.faults.harness import Template, template
from tests.faults.stage import Stage

HISTORY = 6
DAY = START.date() + timedelta(days=HISTORY)


@pytest.fixture(scope="session")
def sensor(tmp_path_factory) -> Template:
    """Readings by the naive clock of Berlin."""
    return template(tmp_path_factory.mktemp("sensor"), "sensor")


@pytest.fixture(scope="session")
def transaction(tmp_path_factory) -> Template:
    """Payments, with labels that come late."""
    return template(tmp_path_factory.mktemp("transaction"), "transaction")


@pytest.fixture(scope="session")
def stage(sensor) -> Stage:
    """A night of readings that is to be run: the day on which clocks go forward."""
    return Stage(sensor)


def trained(root: Path) -> Workspace:
    """A workspace in the folder, with a champion that has learned the days before `DAY`."""
    ws = workspace_in(root, SENSOR)
    deliver(ws, pl.concat(sensor_day(day) for day in range(HISTORY)), "history")
    train(ws, ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(DAY)[0])
    return ws
