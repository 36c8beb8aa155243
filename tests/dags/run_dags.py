"""Runs DAGs to their end in this process, with `dag.test()`, and writes as JSON how each ended.

Its arguments: a file of `[[dag_id, conf], ...]`, and the file to write to. The DAG files are read anew for each run, as
each task of a real Airflow does. Where a person is asked, Ann answers at once with the conf's `answer`.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.dag_processing.dagbag import DagBag
from airflow.models.pool import Pool
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.utils.db import initdb
from airflow.utils.session import create_session

DAGS = Path(__file__).parents[2] / "dags"


def run(dag_id: str, conf: dict[str, Any]) -> dict[str, Any]:
    result = DagBag(str(DAGS)).dags[dag_id].test(logical_date=None, run_conf=conf)
    tasks = result.get_task_instances()
    return {
        "state": str(result.state),
        "tasks": [
            {"id": ti.task_id, "state": str(ti.state), "label": ti.rendered_map_index, "tries": ti.try_number}
            for ti in tasks
        ],
        "xcom": {ti.task_id: ti.xcom_pull(task_ids=ti.task_id) for ti in tasks if ti.map_index < 0},
        "asked": {ti.task_id: ti.xcom_pull(task_ids=ti.task_id, key="asked") for ti in tasks if ti.map_index < 0},
    }


def answer(self: ApprovalOperator, context: Any) -> Any:
    """What the operator does once Airflow has the answer; the question as it was asked is kept beside it."""
    context["ti"].xcom_push(key="asked", value=self.body)
    user = {"id": "7", "name": "Ann"}
    event = {"chosen_options": [context["dag_run"].conf["answer"]], "params_input": {}, "responded_by_user": user}
    done = self.execute_complete(context, {**event, "responded_at": datetime.now(UTC)})
    return {"chosen_options": done["chosen_options"], "responded_by_user": user}


def main() -> None:
    ApprovalOperator.execute = answer
    initdb()
    with create_session() as session:
        Pool.create_or_update_pool("gpu", 1, "", include_deferred=False, session=session)
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(dag_id, conf) for dag_id, conf in asked]))


if __name__ == "__main__":
    main()
