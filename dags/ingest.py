"""What begins the night of every dataset: an Airflow DAG NAME_ingest for each YAML."""

from dataclasses import asdict
from typing import Any

from airflow.sdk import DAG, task

from pipeline.errors import GateRefusedError
from pipeline.metrics import measured
from pipeline.wiring import day_param, ingest_timetable, landing, nights_of, read_datasets, settings, workspace

DOC = """\
Lands what is new of **{name}** ({description}) and says which days are to be scored.

Those are the days that have ended since the run before, and each earlier day that is out of date: its file came late,
was changed or mended, or its night was not done. Every such day is a partition of the asset `{asset}`, for each of
which `{name}_nightly` runs; so backfilling this DAG scores by itself. A file that was landed before is not read again,
unless the clock now says otherwise of a row's being in the future. One that cannot be read fails the run, and keeps no
night from being scored. Days for which the calendar has changed get their incidents and reports anew, and are not
scored again; what is explained no more is told.

Trigger it with `day` to choose the night; without, it is the day before the run in {zone}.
"""


@task
@measured
def ingest(
    dataset: str, params: dict[str, Any] | None = None, dag_run: Any = None, *, outlet_events: Any = None
) -> dict[str, Any]:
    """Land every source file that is new or changed; returns what came and the days to score, which it announces.

    Files that cannot be read keep no night from being run: `complain` names them.
    """
    from pipeline.ingest import land
    from pipeline.score import context_days, stale_days

    ws = workspace(dataset)
    first, last = nights_of(ws.dataset, params or {}, dag_run)
    landed = land(ws, context_days(ws.dataset, first)[0], last)
    nights = [str(day) for day in stale_days(ws, first, last)]
    outlet_events[landing(ws.dataset)].add_partitions(nights)
    return {"nights": nights, **asdict(landed)}


@task
@measured
def renew(dataset: str) -> list[str]:
    """Make incidents and reports of the days anew for which the calendar has changed; returns the days."""
    from pipeline.night import renew

    return [str(day) for day in renew(workspace(dataset))]


@task
@measured
def notify(dataset: str, days: list[str]) -> list[dict[str, Any]]:
    """Tell those whom the YAML names what the calendar explains no more."""
    from datetime import date

    from pipeline.notify import notify_all

    return [asdict(told) for told in notify_all(workspace(dataset), [date.fromisoformat(day) for day in days])]


@task
def complain(refused: list[str]) -> None:
    """Fail with the name of each source file that could not be read, and what to do."""
    if refused:
        raise GateRefusedError("\n".join(refused))


for dataset in read_datasets()[0]:
    landed = landing(dataset)
    with DAG(
        **settings(dataset, "ingest", hours=12),
        schedule=ingest_timetable(dataset),
        max_active_runs=1,
        doc_md=DOC.format(name=dataset.name, description=dataset.description, asset=landed.name, zone=dataset.zone),
        params={"day": day_param("Day", "The night to land; empty: the day before the run")},
    ):
        came, renewed = ingest.override(outlets=[landed])(dataset.name), renew(dataset.name)
        came >> renewed
        notify(dataset.name, renewed)
        complain(came["refused"])
