"""The night of every dataset: an Airflow DAG NAME_nightly for each YAML."""

from dataclasses import asdict
from typing import Any

from airflow.sdk import DAG, get_current_context, task

from pipeline.wiring import GPU, day_param, night_of, read_datasets, settings, timetable, workspace

DOC = """\
Finds what is abnormal in one day of **{name}** ({description}).

`ingest → validate → score → incidents → report → notify`: each task reads tables of the lake and replaces its own day
in one commit, so a task or a run can be repeated at any time and changes nothing the second time. Days that were scored
before and whose data came late are scored again in the same run.

A gate that refuses the data fails `validate` with the reason and leaves earlier results in place.

Where the YAML has `adapt: true` under `threshold`, a last task adapts the entities' thresholds for the nights to come.

Trigger it with `day` to choose the night; without, it is the day before the run in {zone}.
"""


@task
def ingest(dataset: str, params: dict[str, Any] | None = None, dag_run: Any = None) -> dict[str, Any]:
    """Land every source file that is new or changed.

    Returns the days to score: the night's own, and earlier ones that files have changed since they were scored.
    """
    from pipeline.ingest import ingest
    from pipeline.score import context_days, stale_days

    ws = workspace(dataset)
    day = night_of(ws.dataset, params or {}, dag_run)
    landed = ingest(ws, context_days(ws.dataset, day)[0], day)
    return {"day": str(day), "nights": [str(d) for d in stale_days(ws, day)], **asdict(landed)}


@task
def validate(dataset: str, nights: list[str]) -> list[dict[str, Any]]:
    """Judge the days by the dataset's suite: rows go to `clean` or to `quarantine`, or the gate refuses the day.

    Returns the shards to score.
    """
    from datetime import date

    from pipeline.score import plan_shards, prepare

    ws = workspace(dataset)
    shards = []
    for day in map(date.fromisoformat, nights):
        prepare(ws, day)
        shards += plan_shards(ws, day)
    return [asdict(shard) for shard in shards]


@task(map_index_template="{{ label }}", **GPU)
def score(dataset: str, shard: dict[str, Any]) -> dict[str, Any]:
    """Score one shard of the entities with the champion; nothing is visible yet."""
    from pipeline.score import Shard, score_shard

    get_current_context()["label"] = f"{shard['day']} shard {shard['index'] + 1} of {shard['count']}"
    return asdict(score_shard(workspace(dataset), Shard(**shard)))


@task
def incidents(dataset: str, nights: list[str], shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Publish each day's scores in one commit, then merge its anomalous steps into incidents."""
    from datetime import date

    from pipeline.incidents import find_incidents
    from pipeline.score import Shard, publish

    ws = workspace(dataset)
    found = []
    for day in nights:
        publish(ws, [Shard(**shard) for shard in shards if shard["day"] == day])
        found.append(asdict(find_incidents(ws, date.fromisoformat(day))))
    return found


@task
def report(dataset: str, nights: list[str]) -> list[str]:
    """Write each day's report for a person to open and log the night to MLflow; returns where the reports are."""
    from datetime import date

    from pipeline.night import report_night

    ws = workspace(dataset)
    return [str(report_night(ws, date.fromisoformat(day))) for day in nights]


@task
def notify(dataset: str, day: str) -> dict[str, Any]:
    """Tell those whom the YAML names."""
    from datetime import date

    from pipeline.notify import notify

    return asdict(notify(workspace(dataset), date.fromisoformat(day)))


@task
def adapt(dataset: str) -> dict[str, Any]:
    """Adapt the entities' thresholds to the latest nights: a new version of the detector, where they change by 5 %."""
    from pipeline.adapt import adapt

    return asdict(adapt(workspace(dataset)))


for dataset in read_datasets()[0]:
    name = dataset.name
    with DAG(
        **settings(dataset, "nightly", hours=12),
        schedule=timetable(dataset),
        max_active_runs=1 if dataset.threshold.adapt else 2,  # no night is scored while the champion changes
        doc_md=DOC.format(name=name, description=dataset.description, zone=dataset.zone),
        params={"day": day_param("Day", "The night to find incidents in; empty: the day before the run")},
    ):
        night = ingest(name)
        shards = validate(name, night["nights"])
        scored = score.override(doc_md=score.function.__doc__).partial(dataset=name).expand(shard=shards)
        found = incidents(name, night["nights"], shards)
        told = notify(name, night["day"])
        scored >> found >> report(name, night["nights"]) >> told
        if dataset.threshold.adapt:
            told >> adapt(name)
