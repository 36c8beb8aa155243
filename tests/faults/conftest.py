"""Templates of a sensor and a transaction dataset, made once for the tests of a file."""

import pytest

from tests.faults.harness import Template, template


@pytest.fixture(scope="module")
def sensor(tmp_path_factory) -> Template:
    """Readings by the naive clock of Berlin."""
    return template(tmp_path_factory.mktemp("sensor"), "sensor")


@pytest.fixture(scope="module")
def transaction(tmp_path_factory) -> Template:
    """Payments, with labels that come late."""
    return template(tmp_path_factory.mktemp("transaction"), "transaction")
