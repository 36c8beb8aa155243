"""Nights of the past on demand: one Airflow DAG with a form, for all datasets."""

from dataclasses import asdict
from datetime import date
from typing import Any

from airflow.sdk import DAG, Param, TaskGroup, get_current_context, task

from pipeline.backfill import AT_ONCE, MOST_DAYS, read_form
from pipeline.errors import NightsiftError
from pipeline.wiring import GPU, bounds, owners, read_datasets, workspace

DOC = f"""\
Runs the nights of a dataset from `first` to `last`, both included, at most {MOST_DAYS} days: of all entities, or of
those that are named alone, by the champion or by any other version of the detector, without making it the champion.

By default only what is missing or out of date is run; with `overwrite` every day is. It is the same code as the nightly
run, each day (or the rows of the named entities) is replaced in one commit, and it can run beside the nightly runs and
beside other backfills. The version is chosen once, at the start. What cannot be run is refused before there is a run.

What another version than the champion scored stays so: no nightly run scores it again unless its input changes. It is
not what the champion says of the day, which therefore counts as missing for the next backfill by the champion. A day of
which only some entities were ever scored counts as missing too.

The last task fails, and names each day that was asked for and is not done, with the reason.
"""
DATASETS = read_datasets()[0]
NAMES = [dataset.name for dataset in DATASETS]
FORM = {
    "dataset": Param(type="string", enum=NAMES, title="Dataset", description="What to score"),
    "first": Param(type="string", format="date", title="First day", description="The first night to run"),
    "last": Param(type="string", format="date", title="Last day", description="The last night to run"),
    "entities": Param(
        default=[], type=["null", "array"], items={"type": "string", "minLength": 1}, title="Entities",
        description="Names, or globs such as pump-00*, one a line: only their rows are replaced. Empty: all. A day of "
        "which only some entities were ever scored goes on counting as missing",
    ),
    "detector": Param(
        default="champion", type="string", pattern="^(champion|challenger|[1-9][0-9]*(-[0-9a-f]{8})?)$",
        title="Detector", description="champion, challenger, or a version by number or label, which does not become "
        "the champion. What another version than the champion scored stays until its input changes, and counts as "
        "missing for the next backfill by the champion",
    ),
    "overwrite": Param(
        default=False, type="boolean", title="Overwrite", description="Off: only what is missing; on: every day again"
    ),
    "at_once": Param(
        default=2, type="integer", enum=list(AT_ONCE), title="At once",
        description="How many days run at the same time, if the pool gpu has as many slots",
    ),
}  # fmt: skip


@task
def plan(params: dict[str, Any] | None = None) -> list[dict[str, str]]:
    """Land what is new and choose the days to run; returns each with the version of the detector that scores it."""
    from pipeline.backfill import plan

    asked = read_form(params or {})
    planned = plan(workspace(asked.dataset), asked)
    return [{"day": str(day), "detector": planned.detector} for day in planned.days]


@task.branch
def choose(params: dict[str, Any] | None = None) -> str:
    """Choose the task that runs as many nights at once as were asked for."""
    return f"nights.at_once_{read_form(params or {}).at_once}"


@task(map_index_template="{{ label }}", **GPU)
def night(day: str, detector: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one night; returns what it found."""
    from pipeline.backfill import run_day

    get_current_context()["label"] = day
    asked = read_form(params or {})
    return asdict(run_day(workspace(asked.dataset), asked, date.fromisoformat(day), detector))


@task(trigger_rule="all_done", retries=0)  # it looks at what is done, and does nothing that could be tried again
def check(planned: list[dict[str, str]] | None, ran: list[Any], params: dict[str, Any] | None = None) -> str:
    """Make sure that every day that was asked for is done, and that no night failed."""
    from pipeline.backfill import verify

    if planned is None:
        raise NightsiftError("nothing was run: the task plan says why")
    asked, done = read_form(params or {}), {night["day"] for nights in ran for night in nights or []}
    failed = {date.fromisoformat(each["day"]): "its night failed" for each in planned if each["day"] not in done}
    label = planned[0]["detector"] if planned else asked.detector
    return verify(workspace(asked.dataset), asked, label, failed)


if NAMES:
    with DAG(
        "backfill",
        **bounds(owners(DATASETS), hours=48, told=""),
        description="Nights of the past, of any dataset, with a form",
        tags=["nightsift", "backfill", *NAMES],
        schedule=None,
        doc_md=DOC,
        params=FORM,
    ):
        days, lanes = plan(), []
        chosen = choose()
        with TaskGroup("nights", tooltip="One task for each number of nights at once; all but the chosen are skipped"):
            for number in AT_ONCE:
                # How many run at once is fixed when the file is read, so there is a task for each that can be chosen.
                lane = night.override(task_id=f"at_once_{number}", max_active_tis_per_dagrun=number,
                                      doc_md=night.function.__doc__)  # fmt: skip
                lanes.append(lane.expand_kwargs(days))
        days >> chosen >> lanes
        check(days, lanes)
