"""Templates of a sensor and a transaction dataset, and a night that is to be run: made once for all tests of faults."""

import pytest

from tests.faults.harness import Template, template
from tests.faults.stage import Stage


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
