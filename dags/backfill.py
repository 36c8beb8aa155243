"""Nights of the past for every dataset: an Airflow DAG NAME_backfill, with a form, for each YAML."""

from dataclasses import asdict
from datetime import date
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from pipeline.wiring import GPU, days_of, read_datasets, settings, workspace

DOC = """\
Runs the night of **{name}** ({description}) for every day from `first` to `last`.

By default only what is missing or out of date is done; with `overwrite` every day is scored again by the present
champion. It is the same code as the nightly run, each day is replaced in one commit, and it can run beside the nightly
runs. The last task fails, and names the days, unless every day that was asked for is done.
"""
FORM = {
    "first": Param(type="string", format="date", title="First day", description="The first night to run"),
    "last": Param(type="string", format="date", title="Last day", description="The last night to run"),
    "overwrite": Param(
        default=False, type="boolean", title="Overwrite", description="Off: only what is missing; on: every day again"
    ),
}


@task
def plan(dataset: str, params: dict[str, Any] | None = None) -> list[str]:
    """Check the form and land what is new; returns the days to run."""
    from pipeline.ingest import ingest
    from pipeline.night import missing_days
    from pipeline.score import context_days

    days, ws = days_of(params or {}), workspace(dataset)
    ingest(ws, context_days(ws.dataset, days[0])[0], days[-1])
    wanted = days if (params or {})["overwrite"] else missing_days(ws, days[0], days[-1])
    return [str(day) for day in wanted]


@task(map_index_template="{{ label }}", max_active_tis_per_dagrun=2, **GPU)
def night(dataset: str, day: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one night; returns what it found."""
    from pipeline.night import run_night

    get_current_context()["label"] = day
    return asdict(run_night(workspace(dataset), date.fromisoformat(day), overwrite=(params or {})["overwrite"]))


@task(trigger_rule="all_done")
def check(dataset: str, planned: list[str], done: Any, params: dict[str, Any] | None = None) -> str:
    """Make sure that every day that was asked for is done, and that no night failed."""
    from pipeline.night import missing_days

    days = days_of(params or {})
    missing = {str(day) for day in missing_days(workspace(dataset), days[0], days[-1])}
    missing |= set(planned) - {night["day"] for night in done or []}
    if missing:
        raise AirflowFailException(f"{len(missing)} of {len(days)} days are not done: {', '.join(sorted(missing))}")
    return f"all {len(days)} days are done"


for dataset in read_datasets()[0]:
    with DAG(
        **settings(dataset, "backfill", hours=48),
        schedule=None,
        max_active_runs=1,
        doc_md=DOC.format(name=dataset.name, description=dataset.description),
        params=FORM,
    ):
        days = plan(dataset.name)
        nights = night.override(doc_md=night.function.__doc__).partial(dataset=dataset.name).expand(day=days)
        check(dataset.name, days, nights)
