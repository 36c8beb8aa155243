"""Runs DAGs to their end in this process, with `dag.test()`, and writes as JSON how each ended.

Its arguments: a file of `[[dag_id, conf], ...]`, and the file to write to. The DAG files are read anew for each run, as
each task of a real Airflow does.
"""

import json
import sys
from pathlib import Path
from typing import Any

from airflow.dag_processing.dagbag import DagBag
from airflow.models.pool import Pool
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
    }


def main() -> None:
    initdb()
    with create_session() as session:
        Pool.create_or_update_pool("gpu", 1, "", include_deferred=False, session=session)
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(dag_id, conf) for dag_id, conf in asked]))


if __name__ == "__main__":
    main()
