"""The tables of all datasets kept fast, and the disk free: one Airflow DAG, once a week."""

from airflow.sdk import DAG, CronTriggerTimetable, task

from pipeline.wiring import bounds, home_folder, lakes, owners, read_datasets

DOC = """\
Upkeep of the tables of every dataset, on Sundays at noon, UTC, and on demand.

Small files of days that rest are merged; what was replaced more than 30 days ago is removed, and what killed processes
have left. It is safe beside running nights, trainings and backfills: what they read is kept for longer than any of them
lasts, and where both write at once, upkeep gives way. `nightsift upkeep` does the same.
"""


@task
def tables() -> dict[str, int]:
    """Merge and remove files, one dataset after the other; returns how many in all.

    A dataset that fails keeps no other from its upkeep; the task names each that did.
    """
    from pipeline.upkeep import keep_up_all

    done = keep_up_all(lakes())
    return {"merged": sum(each.merged for each in done), "unused": sum(each.unused for each in done)}


@task
def leftovers() -> list[str]:
    """Remove what killed processes have left; returns what it was."""
    from pipeline.config import Home
    from pipeline.upkeep import sweep

    return [str(path) for path in sweep(Home.at(home_folder()))]


with DAG(
    "upkeep",
    **bounds(owners(read_datasets()[0]), hours=24, told=None) | {"start_date": None},
    description="Upkeep of the tables of all datasets",
    tags=["nightsift", "upkeep"],
    schedule=CronTriggerTimetable("0 12 * * 0", timezone="UTC"),
    max_active_runs=1,
    doc_md=DOC,
):
    tables()
    leftovers()
