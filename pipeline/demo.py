"""The demo: two simulated sources, real Airflow runs, and what was found beside what was planted."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from pipeline.airflow_rest import Run, RunStatus
from pipeline.config import Home
from pipeline.errors import NightsiftError
from pipeline.incidents import entity_days, read_incidents
from pipeline.local import LocalAirflow, local_airflow
from pipeline.score import read_scored
from pipeline.simulate import Disturbance, Planted, Simulated, simulate
from pipeline.tables import EVERYONE, quarantine_schema, scores_schema
from pipeline.workspace import Workspace, open_workspace

START = date(2026, 3, 2)
HISTORY, NIGHTS = 21, 3
BACKFILLED = 2  # days before the first night that are scored afterwards
SEED = 7
out = Console(highlight=False, soft_wrap=True, width=None if Console().is_terminal else 120)


@dataclass(frozen=True, slots=True)
class Show:
    """One source of the demo: how many entities, and how many incidents are planted per entity and night."""

    name: str
    entities: int
    anomalies: float

    def deliver(self, home: Home, days: Sequence[int]) -> Simulated:
        """Write the source files that arrive on `days`: the first night's late rows come with the second night."""
        first = HISTORY
        return simulate(
            self.name, days=HISTORY + NIGHTS, entities=self.entities, seed=SEED,
            folder=home.root / "source" / self.name, start=START, anomalies=self.anomalies, anomalies_from=first,
            late=first, broken=first + 1, duplicates=first + 1,
            silent=first + 2 if self.name == "pumps" else False, only_days=days,
        )  # fmt: skip


SHOWS = (Show("pumps", 20, 0.15), Show("cards", 300, 0.01))


@dataclass(frozen=True, slots=True)
class Match:
    """What was planted in one source, which of it was found, and which incidents nobody planted."""

    found: list[tuple[Planted, str | None]]
    false_alarms: int
    entity_days: float
    budget: float

    @property
    def recall(self) -> float:
        """Share of the planted incidents that were found."""
        return sum(incident is not None for _, incident in self.found) / len(self.found)

    @property
    def rate(self) -> float:
        """False alarms per entity and day."""
        return self.false_alarms / self.entity_days


def run(home: Home, datasets: Path) -> dict[str, Match]:
    """The whole demo; by source what was found of it. Raises `NightsiftError` where a DAG run fails."""
    began = time.monotonic()
    say = _clock(began)
    if (home.root / "source").exists():
        raise NightsiftError(
            f"{home.root} holds a demo already; look at it with: make serve, or begin anew after: rm -r {home.root}"
        )
    with ThreadPoolExecutor(1) as aside:
        history = aside.submit(lambda: [show.deliver(home, range(HISTORY)) for show in SHOWS])
        with local_airflow(home, datasets, say=say) as airflow:
            for show, made in zip(SHOWS, history.result(), strict=True):
                say(f"{show.name}: {made.rows:,} rows of {show.entities} entities over {HISTORY} days")
            delivered = _nights(airflow, home, say)
    matches = _conclude(home, datasets, delivered)
    out.print(f"\nDone in {time.monotonic() - began:.0f} s. Look at it: [bold]make serve[/bold]")
    return matches


def _clock(began: float) -> Callable[[str], None]:
    return lambda text: out.print(f"[dim]{time.monotonic() - began:4.0f} s[/dim]  {text}")


def _nights(airflow: LocalAirflow, home: Home, say: Callable[[str], None]) -> dict[str, list[Simulated]]:
    """Train, then night after night: deliver the day's files, run the nights; at last the backfill."""
    dags = {"backfill"} | {f"{show.name}_{kind}" for show in SHOWS for kind in ("train", "ingest", "nightly")}
    airflow.wait_for_dags(dags)
    for dag in sorted(dags):
        airflow.unpause(dag)
    first = START + timedelta(days=HISTORY)
    _run(airflow, "train", {"from": str(START), "to": str(first)}, say)
    delivered: dict[str, list[Simulated]] = {show.name: [] for show in SHOWS}
    for night in range(NIGHTS):
        day = first + timedelta(days=night)
        for show in SHOWS:
            delivered[show.name].append(show.deliver(home, [HISTORY + night]))
            for trouble in delivered[show.name][-1].disturbances:
                say(f"{show.name} {day}: {_trouble(trouble)}")
        landed = _run(airflow, "ingest", {"day": str(day)}, say)
        nights = {night: name for run, name in landed.items() for night in airflow.nights_after(run)}
        _follow(airflow, nights, "nightly", say)
    days = {"first": str(first - timedelta(days=BACKFILLED)), "last": str(first - timedelta(days=1))}
    _run(airflow, "backfill", days, say)
    return delivered


def _run(airflow: LocalAirflow, kind: str, conf: dict[str, str], say: Callable[[str], None]) -> dict[Run, str]:
    """Run that kind of DAG for every source at once, to its end; each run with its source's name."""
    say(f"{kind} of {' and '.join(show.name for show in SHOWS)}: {', '.join(f'{k} {v}' for k, v in conf.items())}")
    runs = {_start(airflow, kind, show.name, conf): show.name for show in SHOWS}
    _follow(airflow, runs, kind, say)
    return runs


def _trouble(trouble: Disturbance) -> str:
    words = {
        "late": f"{trouble.rows} rows of {', '.join(trouble.entities)} held back, they come a day late",
        "duplicates": f"{trouble.rows} rows sent twice",
        "broken": f"{trouble.rows} broken rows sent",
        "silent": f"{', '.join(trouble.entities)} fell silent",
    }
    return words[trouble.kind]


def _follow(airflow: LocalAirflow, runs: Mapping[Run, str], kind: str, say: Callable[[str], None]) -> None:
    """Wait for the end of all `runs`, each with its source's name; raises `NightsiftError` where one fails, and why."""
    seen: dict[tuple[Run, str, int], str] = {}

    def follow(status: RunStatus) -> None:
        for task in status.tasks:
            key = (status.run, task.task_id, task.map_index)
            if task.state in ("running", "success", "failed", "up_for_retry") and seen.get(key) != task.state:
                seen[key] = task.state
                label = task.label if task.map_index >= 0 else ""
                took = f" in {task.seconds:.0f} s" if task.seconds and task.state != "running" else ""
                say(f"{runs[status.run]} {kind}: {task.task_id} {label} {task.state}{took}".replace("  ", " "))

    for status in airflow.wait_all(list(runs), on_change=follow):
        if status.state != "success":
            raise NightsiftError(f"{runs[status.run]} {kind} failed: {airflow.explain(status)}")


def _start(airflow: LocalAirflow, kind: str, name: str, conf: dict[str, str]) -> Run:
    if kind == "backfill":  # one DAG for all sources
        return airflow.trigger(kind, {**conf, "dataset": name})
    return airflow.trigger(f"{name}_{kind}", conf)


def _conclude(home: Home, datasets: Path, delivered: dict[str, list[Simulated]]) -> dict[str, Match]:
    """Print what was found beside what was planted, and where to look on; by source what was found."""
    matches = {}
    for show in SHOWS:
        ws = open_workspace(show.name, home.root, datasets)
        planted = [incident for made in delivered[show.name] for incident in made.planted]
        match = matches[show.name] = match_planted(ws, planted)
        _print_match(ws, match)
        _print_rest(ws, [trouble for made in delivered[show.name] for trouble in made.disturbances])
    out.print(
        f"\nReports         {home.reports}\nValidation      {home.data_docs}\nMLflow store    {home.tracking_uri}"
    )
    return matches


def night_days() -> tuple[date, date]:
    """The first and the last night of the demo."""
    first = START + timedelta(days=HISTORY)
    return first, first + timedelta(days=NIGHTS - 1)


def match_planted(ws: Workspace, planted: Sequence[Planted]) -> Match:
    """Each planted incident with the id of the most severe one found that overlaps it in time on the same entity."""
    found = read_incidents(ws, *night_days()).filter(pl.col("kind") == "anomaly")
    slack = min(ws.dataset.merge_within, timedelta(hours=1))
    matches, hits = [], set[str]()
    for incident in planted:
        overlap = found.filter(
            (pl.col("entity") == incident.entity)
            & (pl.col("start") <= incident.end + slack)
            & (pl.col("end") >= incident.start - slack)
        )
        hits |= set(overlap["incident_id"])
        matches.append((incident, overlap["incident_id"][0] if len(overlap) else None))
    scores = ws.lake.scan("scores", scores_schema(ws.dataset), *night_days()).select("day", "entity").collect()
    promised = read_scored(ws, night_days()[-1]).promised
    return Match(matches, len(found) - len(hits), entity_days(scores, ws.dataset), promised or 0.0)


def _print_match(ws: Workspace, match: Match) -> None:
    found = {row["incident_id"]: row for row in read_incidents(ws, *night_days()).iter_rows(named=True)}
    table = Table(title=f"\n{ws.dataset.name}: planted incidents, and what was found", title_justify="left", box=None)
    for column in ("planted", "entity", "from", "to", "found", "severity", "driven by"):
        table.add_column(column)
    for incident, hit in match.found:
        row = found.get(hit or "")
        told = ["[red]missed[/red]", "", ""]
        if row is not None:
            drivers = ", ".join(f"{d['feature']} {d['share']:.0%}" for d in row["drivers"][:2])
            told = [f"{row['start']:%d %b %H:%M}", f"{row['severity']:.1f}", drivers]
        table.add_row(incident.kind, incident.entity, f"{incident.start:%d %b %H:%M}", f"{incident.end:%H:%M}", *told)
    out.print(table)
    kept = "kept" if match.recall >= 0.9 and match.rate <= 2 * match.budget else "not kept"
    out.print(
        f"found {sum(hit is not None for _, hit in match.found)} of {len(match.found)} planted incidents "
        f"({match.recall:.0%}); {match.false_alarms} false alarms in {match.entity_days:,.0f} entity-days: "
        f"{match.rate:.3f} per entity and day, promised {match.budget:g} "
        f"(9 of 10 found, at most twice the promise: {kept})"
    )


def _print_rest(ws: Workspace, troubles: Sequence[Disturbance]) -> None:
    """Silence and quarantine, beside what went wrong with the delivery."""
    silent = read_incidents(ws, *night_days()).filter(pl.col("kind") == "silent")
    names = ["the source" if name == EVERYONE else name for name in silent["entity"]]
    planted = [entity for trouble in troubles if trouble.kind == "silent" for entity in trouble.entities]
    out.print(f"silent: {', '.join(names) or 'none'} (planted: {', '.join(planted) or 'none'})")
    rows = ws.lake.scan("quarantine", quarantine_schema(ws.dataset), *night_days()).collect()
    broken = sum(trouble.rows for trouble in troubles if trouble.kind == "broken")
    out.print(f"in quarantine: {len(rows)} rows (broken rows sent: {broken})")
    for (reason,), part in rows.explode("reasons").group_by("reasons", maintain_order=True):
        out.print(f"  {len(part)} × {reason}", markup=False)
