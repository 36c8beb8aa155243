"""What MLflow is told: a night has one page, however often and by however many processes it is run."""

from collections.abc import Callable
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.workspace import Workspace

KEY = "night 2026-01-05"


def pages(ws: Workspace) -> list[str]:
    """The ids of the nights' runs that are not deleted."""
    api = tracking.client(ws)
    return [run.info.run_id for run in api.search_runs([api.get_experiment_by_name("demo/nights").experiment_id])]


def test_a_night_that_is_logged_again_has_one_page(make_workspace: Callable[..., Workspace]) -> None:
    """With the numbers of the last time; without a key each is a run of its own."""
    ws = make_workspace()
    for number in range(2):
        with tracking.run(ws, "nights", "demo", KEY) as active:
            import mlflow

            mlflow.log_metric("steps", number)
    assert pages(ws) == [active.info.run_id]
    found = tracking.client(ws).get_run(active.info.run_id)
    assert (found.data.metrics["steps"], found.info.run_name, found.info.status) == (1, "demo", "FINISHED")
    with tracking.run(ws, "nights", "demo"):
        pass
    assert len(pages(ws)) == 2


def test_two_processes_that_begin_a_page_at_once_end_with_one(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both take the one that was begun first; the other is deleted."""
    ws, create, others = make_workspace(), MlflowClient.create_run, []

    def create_after_another(self: MlflowClient, experiment: str, **facts: Any) -> Any:
        others.append(create(self, experiment, start_time=1, **facts).info.run_id)
        return create(self, experiment, **facts)

    monkeypatch.setattr(MlflowClient, "create_run", create_after_another)
    with tracking.run(ws, "nights", "demo", KEY) as active:
        pass
    assert others == [active.info.run_id] == pages(ws)
