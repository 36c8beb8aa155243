"""The way back for every dataset: an Airflow DAG NAME_rollback for each YAML."""

from dataclasses import asdict
from typing import Any

from airflow.sdk import DAG, task

from pipeline.wiring import read_datasets, settings, workspace

DOC = """\
Makes the detector that was the champion of **{name}** ({description}) before the present one the champion again.

One step back a run, as `nightsift rollback {name}`; a run more goes one step further, to the first champion. It counts
from the next night on; nights that were scored meanwhile are out of date, and the DAG `backfill` scores them again.
"""


@task
def step(dataset: str) -> dict[str, Any]:
    """Say from which detector to which the step goes; fixed here, so that the next task cannot take two."""
    from pipeline.promotion import Moved, way_back

    now, back = way_back(workspace(dataset))
    return asdict(Moved(now.label, back.label))


@task
def rollback(dataset: str, step: dict[str, Any]) -> dict[str, Any]:
    """Take the step, once the earlier detector was loaded back and has scored a piece of a day."""
    from pipeline.promotion import Moved, rollback

    return asdict(rollback(workspace(dataset), Moved(**step)))


for dataset in read_datasets()[0]:
    with DAG(
        **settings(dataset, "rollback", hours=2),
        schedule=None,
        max_active_runs=1,
        doc_md=DOC.format(name=dataset.name, description=dataset.description),
    ):
        rollback(dataset.name, step(dataset.name))
