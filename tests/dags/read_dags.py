"""Prints, as JSON, what Airflow makes of the DAG files; run as a process of its own, as the DAG processor is."""

import json
import sys
from pathlib import Path
from typing import Any

from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

HEAVY = ("polars", "deltalake", "pandas", "numpy", "tensorflow", "keras", "mlflow", "great_expectations", "matplotlib")
DAGS = Path(__file__).parents[2] / "dags"


def task_facts(task: Any) -> dict[str, Any]:
    return {
        "doc": task.doc_md,
        "owner": task.owner,
        "retries": task.retries,
        "backoff": task.retry_exponential_backoff,
        "delay": task.retry_delay.total_seconds(),
        "timeout": task.execution_timeout and task.execution_timeout.total_seconds(),
        "queue": task.queue,
        "pool": task.pool,
        "mapped": task.is_mapped,
        "at_once": task.max_active_tis_per_dagrun,
        "after": sorted(task.upstream_task_ids),
        "announces": [asset.name for asset in task.outlets],
        "trigger_rule": task.trigger_rule.value,
        "tells": bool(task.on_failure_callback),
    }


def dag_facts(dag: Any) -> dict[str, Any]:
    DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))  # the scheduler sees it so
    return {
        "doc": dag.doc_md,
        "tags": sorted(dag.tags),
        "owner": dag.owner,
        "catchup": dag.catchup,
        "timeout": dag.dagrun_timeout and dag.dagrun_timeout.total_seconds(),
        "timetable": type(dag.timetable).__name__,
        "asset": getattr(getattr(dag.timetable, "asset_condition", None), "name", None),
        "cron": getattr(dag.timetable, "expression", None),
        "zone": str(getattr(dag.timetable, "timezone", None)),
        "params": sorted(dag.params),
        "start": dag.start_date and str(dag.start_date),
        "tells": dag.has_on_failure_callback,
        "schema": {name: dag.params.get_param(name).schema for name in dag.params},
        "leaves": sorted(task.task_id for task in dag.leaves),
        "tasks": {task.task_id: task_facts(task) for task in dag.tasks},
    }


def main() -> None:
    before = set(sys.modules)
    bag = DagBag(str(DAGS))
    facts = {
        "errors": {Path(file).name: text for file, text in bag.import_errors.items()},
        "dags": {dag_id: dag_facts(dag) for dag_id, dag in bag.dags.items()},
        "heavy": [name for name in HEAVY if name in sys.modules and name not in before],
    }
    Path(sys.argv[1]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
