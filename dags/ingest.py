"""What begins the night of every dataset: an Airflow DAG NAME_ingest for each YAML."""

from dataclasses import asdict
from typing import Any

from airflow.sdk import DAG, task

from pipeline.metrics import measured
from pipeline.wiring import day_param, ingest_timetable, landing, nights_of, read_datasets, settings, workspace

DOC = """\
Lands what is new of **{name}** ({description}) and says which days are to be scored.

Those are the days that have ended since the run before, and each earlier day that is out of date: its file came late,
was changed or mended, or its night was not done. Every such day is a partition of the asset `{asset}`, for each of
which `{name}_nightly` runs; so backfilling this DAG scores by itself. A file that was landed before is not read again.
Days for which the calendar has changed get their incidents and reports anew, and are not scored again.

Trigger it with `day` to choose the night; without, it is the day before the run in {zone}.
"""


@task
@measured
def ingest(
    dataset: str, params: dict[str, Any] | None = None, dag_run: Any = None, *, outlet_events: Any = None
) -> dict[str, Any]:
    """Land every source file that is new or changed; returns what came and the days to score, which it announces."""
    from pipeline.ingest import ingest
    from pipeline.score import context_days, stale_days

    ws = workspace(dataset)
    first, last = nights_of(ws.dataset, params or {}, dag_run)
    landed = ingest(ws, context_days(ws.dataset, first)[0], last)
    nights = [str(day) for day in stale_days(ws, first, last)]
    outlet_events[landing(ws.dataset)].add_partitions(nights)
    return {"nights": nights, **asdict(landed)}


@task
@measured
def renew(dataset: str) -> list[str]:
    """Make incidents and reports of the days anew for which the calendar has changed; returns the days."""
    from pipeline.night import renew

    return [str(day) for day in renew(workspace(dataset))]


for dataset in read_datasets()[0]:
    landed = landing(dataset)
    with DAG(
        **settings(dataset, "ingest", hours=12),
        schedule=ingest_timetable(dataset),
        max_active_runs=1,
        doc_md=DOC.format(name=dataset.name, description=dataset.description, asset=landed.name, zone=dataset.zone),
        params={"day": day_param("Day", "The night to land; empty: the day before the run")},
    ):
        ingest.override(outlets=[landed])(dataset.name) >> renew(dataset.name)
