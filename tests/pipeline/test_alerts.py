"""The message that a run has failed: what Airflow's callbacks leave, and make of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.alerts import keep_error, tell_failure
from pipeline.errors import ConfigError, DeadlineMissedError, GateRefusedError, NightsiftError
from tests.conftest import SENSOR
from tests.pipeline.test_notify import SECRET, Server


class Instance(SimpleNamespace):
    """A task instance of Airflow, as far as a callback needs it."""

    task_id, map_index, log_url = "validate", -1, "http://airflow/dags/demo_nightly/runs/r/tasks/validate"

    def xcom_push(self, key: str, value: Any) -> None:
        self.kept = {key: value}

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.kept[key]


def fail(error: BaseException | None, folder: Path, ti: Instance | None = None, reason: str = "task_failure") -> None:
    """What Airflow does of a run whose task ended with `error`, or was killed."""
    (folder / "demo.yaml").write_text(SENSOR + "notify: {urls_env: [OPS]}\n")
    ti = ti or Instance()
    keep_error({"ti": ti, "exception": error} if error else {"ti": ti})
    tell_failure("demo", folder, {"dag": SimpleNamespace(dag_id="demo_nightly"), "run_id": "r", "ti": ti,
                                  "reason": reason})  # fmt: skip


@pytest.mark.parametrize(
    ("error", "index", "reason", "first"),
    [
        (GateRefusedError("demo 2026-03-05: refused"), -1, "task_failure",
         "The task validate failed: demo 2026-03-05: refused"),
        (ValueError("no such column"), 3, "task_failure", "The task validate[3] failed: ValueError: no such column"),
        (OSError("postgresql://ann:hunter2secret@db/x is gone"), -1, "task_failure",
         "The task validate failed: OSError: postgresql://***@db/x is gone"),
        (None, -1, "task_failure", "The task validate failed."),
        (None, -1, "timed_out", "The run took too long and was ended; the task validate was not done."),
    ],
)  # fmt: skip
def test_a_failed_run_is_told_with_task_error_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, index: int, reason: str, first: str
) -> None:
    """One of our errors is its sentence; a killed process leaves none; no password of an address is told."""
    server = Server()
    monkeypatch.setenv("OPS", server.url)
    fail(error, tmp_path, Instance(map_index=index), reason)
    server.stop()
    (message,) = server.received
    lines = message["message"].splitlines()
    assert message["title"] == "demo: demo_nightly failed"
    assert lines[0] == first
    assert lines[-2:] == ["Run: r", f"Log: {Instance.log_url}"]
    assert ("It left no error" in message["message"]) == (error is None and reason != "timed_out")
    assert SECRET not in message["message"]


def test_what_was_told_already_is_not_told_as_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missed deadline fails its task after its own message."""
    server = Server()
    monkeypatch.setenv("OPS", server.url)
    fail(DeadlineMissedError("demo 2026-03-05 is not done"), tmp_path)
    server.stop()
    assert server.received == []


def test_a_run_without_a_task_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow names none where none of the run's tasks is in the DAG any more."""
    server = Server()
    monkeypatch.setenv("OPS", server.url)
    (tmp_path / "demo.yaml").write_text(SENSOR + "notify: {urls_env: [OPS]}\n")
    tell_failure("demo", tmp_path, {"dag": SimpleNamespace(dag_id="demo_train"), "run_id": "r", "reason": "x"})
    server.stop()
    assert server.received[0]["message"].splitlines()[0] == "It failed."


def test_a_target_that_fails_is_named_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the DAG processor's log says what to mend; nothing of the address is in it."""
    monkeypatch.setenv("OPS", f"nosuchservice://{SECRET}")
    with pytest.raises(NightsiftError, match="OPS: not a URL that Apprise knows") as error:
        fail(ValueError("x"), tmp_path)
    assert SECRET not in str(error.value)
    monkeypatch.delenv("OPS")
    with pytest.raises(ConfigError, match="names OPS, but this environment variable is not set"):
        fail(ValueError("x"), tmp_path)
