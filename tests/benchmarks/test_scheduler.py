"""The night that the scheduler's benchmark runs returns what the real one does."""

import os
import tempfile
from dataclasses import asdict

import pytest

# Importing airflow.sdk must not write to the home of whoever runs the tests.
_SCRATCH = tempfile.TemporaryDirectory()
os.environ.setdefault("AIRFLOW_HOME", _SCRATCH.name)

from benchmarks._empty_executor import CROWDED_DAY, DAY, MOST, SHARDS, result_of  # noqa: E402
from pipeline.incidents import Found  # noqa: E402
from pipeline.score import Scored, Shard  # noqa: E402


def test_what_the_empty_tasks_return_is_what_the_real_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, what was scored and what was found have the fields of the night's own; other tasks return nothing."""
    monkeypatch.setenv(SHARDS, "3")
    planned = result_of("validate", DAY, -1)
    shards = [Shard(**shard) for shard in planned]
    assert [asdict(shard) for shard in shards] == planned
    assert [(shard.index, shard.count) for shard in shards] == [(0, 3), (1, 3), (2, 3)]
    assert Scored(**result_of("score", DAY, 0)).steps > 0
    assert [Found(**found).silent for found in result_of("incidents", DAY, -1)] == [0]
    assert result_of("notify", DAY, -1) is None


def test_the_crowded_night_has_one_shard_more_than_airflow_maps() -> None:
    """Whatever the night is divided into, that one is divided into too many."""
    assert len(result_of("validate", CROWDED_DAY, -1)) == MOST + 1
