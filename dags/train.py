"""The training of every dataset's detector: an Airflow DAG NAME_train for each YAML."""

from dataclasses import asdict
from typing import Any

from airflow.sdk import DAG, task

from pipeline.wiring import GPU, day_param, read_datasets, settings, stretch_of, workspace

DOC = """\
Trains a detector for **{name}** ({description}) and registers it in MLflow.

Learns from the days from `from` up to, but not including, `to`; by default the {days} days before the run. The new
detector becomes the champion if it is no worse than the present one by the rule of the training; the run's log and its
MLflow page say which it was, and why.
"""


@task(**GPU)
def train(dataset: str, params: dict[str, Any] | None = None, dag_run: Any = None) -> dict[str, Any]:
    """Fit, calibrate, evaluate, register and, where it earned it, promote a detector; returns its figures."""
    from pipeline.train import train

    ws = workspace(dataset)
    return asdict(train(ws, *stretch_of(ws.dataset, params or {}, dag_run)))


for dataset in read_datasets()[0]:
    with DAG(
        **settings(dataset, "train", hours=24),
        schedule=None,
        max_active_runs=1,
        doc_md=DOC.format(name=dataset.name, description=dataset.description, days=dataset.training.days),
        params={
            "from": day_param("First day", f"Empty: {dataset.training.days} days before the end"),
            "to": day_param("End", "The day after the last one to learn from; empty: the day of the run"),
        },
    ):
        train(dataset.name)
