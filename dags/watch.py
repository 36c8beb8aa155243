"""The deadline of every dataset that has a schedule and one: an Airflow DAG NAME_watch for each such YAML."""

from typing import Any

from airflow.sdk import DAG, task

from pipeline.wiring import night_due, read_datasets, settings, watch_timetable, workspace

DOC = """\
Looks at {deadline:%H:%M} {zone} whether last night of **{name}** ({description}) is done.

Where it is not, it says to the dataset's targets what is missing, once for each night, and fails. It goes by the tables
alone, so that it also speaks where the nightly run was never started.
"""


@task
def watch(dataset: str, dag_run: Any = None) -> str:
    """Fail, and tell whom it concerns, where the night that was due is not done; returns what was found."""
    from pipeline.watch import watch

    ws = workspace(dataset)
    day = night_due(ws.dataset, dag_run.logical_date or dag_run.run_after)
    return watch(ws, day) if day else "no night was due"


for dataset in read_datasets()[0]:
    if dataset.deadline is None:
        continue
    with DAG(
        **settings(dataset, "watch", hours=2) | {"start_date": None},  # with one, a new YAML's first run is in the past
        schedule=watch_timetable(dataset),
        max_active_runs=1,
        doc_md=DOC.format(
            name=dataset.name, description=dataset.description, deadline=dataset.deadline, zone=dataset.zone
        ),
    ):
        watch(dataset.name)
