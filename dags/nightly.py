"""The night of every dataset: an Airflow DAG NAME_nightly for each YAML, one run for each day to score."""

from dataclasses import asdict
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, PartitionedAssetTimetable, chain, get_current_context, task

from pipeline.metrics import measured
from pipeline.wiring import (
    GPU,
    day_param,
    found_incidents,
    landing,
    night_of,
    read_datasets,
    settings,
    task_seconds,
    workspace,
)

DOC = """\
Finds what is abnormal in one day of **{name}** ({description}).

`validate → score → incidents → report`, then `notify` and `log`: each task reads tables of the lake and replaces its
own day in one commit, so a task or a run can be repeated at any time and changes nothing the second time. It runs for
each day that `{name}_ingest` has landed or found out of date.

A gate that refuses the data fails `validate` with the reason and leaves earlier results in place.

At last it is looked whether the latest nights say that the detector needs training; then `{name}_train` is started.
Where the YAML has `adapt: true` under `threshold`, the entities' thresholds are adapted for the nights to come before.

Trigger it with `day` to score what is landed of a day; to land it first, trigger `{name}_ingest`.
"""


@task
@measured
def validate(dataset: str, params: dict[str, Any] | None = None, dag_run: Any = None) -> list[dict[str, Any]]:
    """Judge the day by the dataset's suite: rows go to `clean` or to `quarantine`, or the gate refuses the day.

    Returns the shards to score.
    """
    from pipeline.score import plan_shards

    ws = workspace(dataset)
    day = night_of(ws.dataset, params or {}, dag_run)
    return [asdict(shard) for shard in plan_shards(ws, day)]


@task(map_index_template="{{ label }}", **GPU)
@measured
def score(dataset: str, shard: dict[str, Any]) -> dict[str, Any]:
    """Score one shard of the entities with the champion; nothing is visible yet."""
    from pipeline.score import Shard, score_shard

    get_current_context()["label"] = f"{shard['day']} shard {shard['index'] + 1} of {shard['count']}"
    return asdict(score_shard(workspace(dataset), Shard(**shard)))


@task
@measured
def incidents(dataset: str, shards: list[dict[str, Any]], *, outlet_events: Any = None) -> dict[str, Any]:
    """Publish the day's scores in one commit, then merge its anomalous steps into incidents."""
    from datetime import date

    from pipeline.incidents import find_incidents
    from pipeline.score import Shard, publish

    ws = workspace(dataset)
    publish(ws, [Shard(**shard) for shard in shards])
    found = find_incidents(ws, date.fromisoformat(shards[0]["day"]))
    outlet_events[found_incidents(ws.dataset)].add_partitions(found.day)
    return asdict(found)


@task
@measured
def report(dataset: str, day: str) -> str:
    """Write the day's report for a person to open; returns where it is."""
    from datetime import date

    from pipeline.report import write_report

    return str(write_report(workspace(dataset), date.fromisoformat(day)))


@task(max_active_tis_per_dag=1)  # two runs of one night would log it twice: MLflow can only be asked before
@measured
def log(dataset: str, day: str, ti: Any = None) -> dict[str, float]:
    """Log the night, with its report and how long its steps took, to MLflow; returns its numbers."""
    from datetime import date

    from pipeline.night import log_night

    return log_night(workspace(dataset), date.fromisoformat(day), task_seconds(ti))


@task(max_active_tis_per_dag=1)  # what one run of a night told, another of the same night must see
@measured
def notify(dataset: str, day: str) -> dict[str, Any]:
    """Tell those whom the YAML names."""
    from datetime import date

    from pipeline.notify import notify

    return asdict(notify(workspace(dataset), date.fromisoformat(day)))


@task
@measured
def adapt(dataset: str) -> dict[str, Any]:
    """Adapt the entities' thresholds to the latest nights: a new version of the detector, where they change by 5 %."""
    from pipeline.adapt import adapt

    return asdict(adapt(workspace(dataset)))


@task.short_circuit
@measured
def drift(dataset: str, day: str) -> list[str]:
    """Say whether the latest nights speak for training; returns the reasons that were not told before."""
    from datetime import date

    from pipeline.drift import note_drift

    return note_drift(workspace(dataset), date.fromisoformat(day))


for dataset in read_datasets()[0]:
    name = dataset.name
    with DAG(
        **settings(dataset, "nightly", hours=12),
        schedule=PartitionedAssetTimetable(assets=landing(dataset)),
        max_active_runs=1 if dataset.threshold.adapt else 2,  # no night is scored while the champion changes
        doc_md=DOC.format(name=name, description=dataset.description),
        params={"day": day_param("Day", "The night to find incidents in; empty: the day before the run")},
    ):
        shards = validate(name)
        scored = score.override(doc_md=score.function.__doc__).partial(dataset=name).expand(shard=shards)
        found = incidents.override(outlets=[found_incidents(dataset)])(name, shards)
        told, logged = notify(name, found["day"]), log(name, found["day"])
        retrain = TriggerDagRunOperator(
            task_id="retrain", trigger_dag_id=f"{name}_train", trigger_run_id="drift__{{ run_id }}",
            conf={"reason": "{{ ti.xcom_pull(task_ids='drift') | join(' ') }}"}, skip_when_already_exists=True,
            doc_md="Start the training, for the reasons that `drift` gave.",
        )  # fmt: skip
        scored >> found >> report(name, found["day"]) >> [told, logged]  # no outage of MLflow keeps a message back
        adapted = [adapt(name)] if dataset.threshold.adapt else []
        chain([told, logged], *adapted, drift(name, found["day"]), retrain)
