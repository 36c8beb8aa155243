"""The command line: whatever the DAGs do, without Airflow.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 the data gate refused.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.config import Dataset, Home, datasets_dir
from pipeline.errors import ConfigError, NightsiftError

if TYPE_CHECKING:
    from pipeline.workspace import Workspace

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Find what is abnormal in the last day's transactions or sensor readings.")  # fmt: skip
out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)

Name = Annotated[str, typer.Argument(help="the dataset: the name of its YAML, without .yaml")]
HomeDir = Annotated[Path | None, typer.Option("--home", envvar="NIGHTSIFT_HOME", help="state folder [default: var]")]
Datasets = Annotated[
    Path | None, typer.Option("--datasets", envvar="NIGHTSIFT_DATASETS", help="folder of YAMLs [default: datasets]")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for a machine")]
From = Annotated[str, typer.Option("--from", metavar="WHEN", help="first day or moment, included")]
To = Annotated[str, typer.Option("--to", metavar="WHEN", help="last day or moment, not included")]
Day = Annotated[str, typer.Option("--day", metavar="DAY", help="a day, such as 2024-01-31")]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a failure ends in one sentence on standard error and its exit code."""
    logging.basicConfig(level=os.environ.get("NIGHTSIFT_LOG", "WARNING"), format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app(args=list(argv) if argv is not None else None, standalone_mode=True)
    except NightsiftError as error:
        err.print(f"[bold]error:[/bold] {_plain(str(error))}")
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("NIGHTSIFT_LOG"):
            raise
        err.print(f"[bold]error:[/bold] this should not happen: {type(error).__name__}: {_plain(str(error))}\n"
                  "set NIGHTSIFT_LOG=DEBUG to see where, and report it with the command that you ran")  # fmt: skip
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("interrupted; what was committed stays, run the command again to go on")
        sys.exit(1)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _open(name: str, home: Path | None, datasets: Path | None) -> "Workspace":
    from pipeline.workspace import open_workspace

    return open_workspace(name, home, datasets)


def _show(value: Any, as_json: bool, *lines: str) -> None:
    """Print `value` as JSON for a machine, or `lines` for a person."""
    if as_json:
        print(json.dumps(value, default=str, indent=1))
    else:
        for line in lines:
            out.print(_plain(line))


def _say(line: str) -> None:
    err.print(_plain(line), style="dim")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_plain(str(cell)) for cell in row))
    out.print(table)


def moment(text: str, dataset: Dataset, option: str) -> datetime:
    """A date or timestamp from the command line, in the dataset's zone where it names none, as UTC."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is neither a day (2024-01-31) nor a moment (2024-01-31T06:00)") from error
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=dataset.tz)
    return aware.astimezone(UTC)


def stretch(dataset: Dataset, first: str, last: str) -> tuple[datetime, datetime]:
    """The half-open stretch of time between `--from` and `--to`; raises `ConfigError` where it is empty."""
    start, end = moment(first, dataset, "--from"), moment(last, dataset, "--to")
    if start >= end:
        raise ConfigError(f"--from {first} must be before --to {last}, which is not included")
    return start, end


def days_of(dataset: Dataset, first: str, last: str) -> list[date]:
    """The days that the stretch between `--from` and `--to` touches."""
    start, end = stretch(dataset, first, last)
    begin, until = dataset.day_of(start), dataset.day_of(end - timedelta(microseconds=1))
    return [begin + timedelta(days=n) for n in range((until - begin).days + 1)]


@app.command()
def init(
    name: Name,
    source: Annotated[str, typer.Option(help="a file, glob or Delta table")],
    entity: Annotated[str, typer.Option(help="the column that names the machine, card or account")],
    event_time: Annotated[str, typer.Option(help="the column that says when it happened")],
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Look at the data and write a YAML and a suite that work as they are."""
    from pipeline.onboard import propose

    files = propose(name, source, entity, event_time, datasets_folder=datasets_dir(datasets))
    _show({"written": files}, as_json, *(f"wrote {file}" for file in files),
          f"next: nightsift check, then nightsift train {name} --from DAY --to DAY")  # fmt: skip


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="one dataset only")] = None,
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Check every YAML, every suite, that sources and labels can be reached, and that no feature sees a label early."""
    from pipeline.onboard import check as check_all

    findings = [f for f in check_all(datasets_dir(datasets), Home.at(home)) if name in (None, f.dataset)]
    if not findings:
        raise ConfigError(f"no dataset {name or 'at all'} in {datasets_dir(datasets)}; write one with: nightsift init")
    bad = [finding for finding in findings if not finding.ok]
    lines = [f"{'ok    ' if f.ok else 'FAILED'} {f.dataset} {f.what}: {f.message}" for f in findings]
    _show([asdict(finding) for finding in findings], as_json, *lines)
    if bad:
        raise typer.Exit(2)


@app.command()
def ingest(
    name: Name, first: From = "", last: To = "", home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """Bring every new or changed source file into `landing` (a query or table: the days between --from and --to)."""
    from pipeline.ingest import ingest as run

    ws = _open(name, home, datasets)
    days = days_of(ws.dataset, first, last) if first and last else [None]
    result = run(ws, days[0], days[-1])
    labels = f"{result.labels:,} labels, {result.labels_unknown:,} of them of unknown events"
    _show(asdict(result), as_json, f"{name}: {result.files} new files, {result.known} known, {result.rows:,} rows "
          f"on {len(result.days)} days{', ' + labels if ws.dataset.labels else ''}")  # fmt: skip


@app.command()
def validate(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """Validate the days between --from and --to: what passes goes to `clean`, the rest to `quarantine`."""
    from pipeline.ingest import ingest as bring
    from pipeline.validate import validate as run

    ws = _open(name, home, datasets)
    days = days_of(ws.dataset, first, last)
    bring(ws, days[0], days[-1])
    results = [run(ws, day) for day in days]
    _show([asdict(result) for result in results], as_json, *(
        f"{name} {r.day}: {r.rows_in:,} rows, {r.rows_clean:,} clean, {r.rows_quarantined:,} quarantined, "
        f"{r.rows_duplicate:,} duplicates{', ' + '; '.join(r.warnings) if r.warnings else ''}" for r in results
    ))  # fmt: skip


@app.command()
def train(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """Train a detector on the time between --from and --to, register it, and promote it by the YAML's rule.

    A training that was killed goes on where it was when the same command is given again.

    Example: nightsift train pumps --from 2024-01-01 --to 2024-01-31
    """
    from pipeline.train import train as run
    from pipeline.words import found_share

    ws = _open(name, home, datasets)
    start, end = stretch(ws.dataset, first, last)
    result = run(ws, start, end, _say)
    _show(asdict(result), as_json,
          f"{name}: detector {result.version}, {result.reason}",
          f"trained on {result.steps:,} steps of {result.entities:,} entities in {result.seconds:g} s",
          f"threshold {result.threshold:.4g} for {result.budget:g} false alarms per entity and day; "
          f"on the holdout {result.realised:.3g}; injected anomalies found {found_share(result.injected_recall)}",
          "", result.table)  # fmt: skip


@app.command()
def score(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """Score the days between --from and --to with the champion; ingests and validates what is not there yet.

    Example: nightsift score pumps --from 2024-01-31 --to 2024-02-03
    """
    from pipeline.night import score_days

    ws = _open(name, home, datasets)
    results = score_days(ws, days_of(ws.dataset, first, last), lambda r: None if as_json else _show_scored(name, r))
    if as_json:
        _show([asdict(result) for result in results], as_json)


def _show_scored(name: str, result: Any) -> None:
    out.print(f"{name} {result.day}: {result.steps:,} steps of {result.entities:,} entities scored by detector "
              f"{result.detector}, {result.anomalous:,} anomalous{_remarks(result)}")  # fmt: skip


def _remarks(result: Any) -> str:
    unseen, drifting = result.unseen, result.drifting
    return (f"; {unseen:,} of the entities were not there in training" if unseen else "") + (
        f"; slow drifts: {drifting:,}, see the report" if drifting else ""
    )


@app.command()
def scores(
    name: Name,
    first: From,
    last: To,
    target: Annotated[Path, typer.Option("--out", help="the Parquet file to write")],
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Write the scores between --from and --to to a Parquet file.

    Columns: entity, event_time, [event_id], score, p_value, threshold, is_anomaly.
    """
    from pipeline.night import export_scores

    ws = _open(name, home, datasets)
    rows = export_scores(ws, *stretch(ws.dataset, first, last), target)
    _show({"file": str(target), "rows": rows}, as_json, f"{name}: {rows:,} scored steps written to {target}")


@app.command()
def backfill(
    name: Name,
    first: From,
    last: To,
    entities: Annotated[
        list[str] | None, typer.Option(help="score these alone: a name or glob, once for each [default: all]")
    ] = None,
    detector: Annotated[
        str, typer.Option(help="champion, challenger, or a version's number or label; none becomes the champion")
    ] = "champion",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="do again what is up to date")] = False,
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Run every night between --from and --to, report included; a night that is up to date stays as it is.

    Example: nightsift backfill pumps --from 2024-01-01 --to 2024-02-01 --entities 'pump-00*' --detector 3
    """
    from pipeline.backfill import Backfill
    from pipeline.backfill import backfill as run

    ws = _open(name, home, datasets)
    days = days_of(ws.dataset, first, last)
    asked = Backfill(name, days[0], days[-1], tuple(entities or ()), detector, overwrite)
    nights = run(ws, asked, say=lambda night: None if as_json else _show_night(name, night))
    if as_json:
        _show([asdict(night) for night in nights], as_json)


@app.command()
def missing(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """List the nights between --from and --to that are not done, and why; exits with 1 where there are any.

    A night is done when it was scored wholly, by the champion, from what is landed of it and of the days before it.
    """
    from pipeline.night import missing_days

    ws = _open(name, home, datasets)
    days = days_of(ws.dataset, first, last)
    found = missing_days(ws, days[0], days[-1])
    end = f"{len(found)} of {len(days)} days are not done" if found else f"all {len(days)} days are done"
    told = {str(day): why for day, why in found.items()}
    _show(told, as_json, *(f"{name} {day}: {why}" for day, why in told.items()), f"{name}: {end}")
    if found:
        raise typer.Exit(1)


def _show_night(name: str, night: Any) -> None:
    done = "was up to date" if night.skipped else f"{night.steps:,} steps scored"
    out.print(f"{name} {night.day}: {done}, {night.incidents} incidents ({night.silent} silent), "
              f"{night.rows_quarantined:,} rows in quarantine{f', report {night.report}' if night.report else ''}"
              f"{_remarks(night)}")  # fmt: skip


@app.command()
def incidents(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """List the incidents between --from and --to, the most severe first."""
    from pipeline.incidents import read_incidents
    from pipeline.words import drivers_in_words

    ws = _open(name, home, datasets)
    days = days_of(ws.dataset, first, last)
    frame = read_incidents(ws, days[0], days[-1])
    if as_json:
        _show(frame.to_dicts(), as_json)
        return
    _table(f"{len(frame)} incidents of {name}", ["id", "entity", "from", "to", "severity", "kind", "driven by",
                                              "expected"], [
        (row["incident_id"], row["entity"], _local(row["start"], ws.dataset), _local(row["end"], ws.dataset),
         "" if row["severity"] is None else f"{row['severity']:.2f}", row["kind"], drivers_in_words(row),
         row["reason"] or "")
        for row in frame.iter_rows(named=True)
    ])  # fmt: skip


def _local(when: datetime, dataset: Dataset) -> str:
    return f"{when.astimezone(dataset.tz):%Y-%m-%d %H:%M} {dataset.zone}"


@app.command()
def notify(
    name: Name,
    day: Day,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be sent now; send nothing")] = False,
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Tell those whom the YAML names what they have not heard of a day, as the night does.

    Example: nightsift notify pumps --day 2024-01-31 --dry-run
    """
    from pipeline.notify import notify as run
    from pipeline.notify import preview
    from pipeline.words import count

    ws = _open(name, home, datasets)
    if dry_run:
        seen = preview(ws, _day(day))
        _show([asdict(one) for one in seen], as_json, *(line for one in seen for line in one.lines))
        return
    told = run(ws, _day(day))
    _show(asdict(told), as_json, f"{name} {day}: {count(told.incidents, 'incident')}, {told.news} new, "
          f"{told.recovered} recovered; told to {count(told.sent, 'target')}")  # fmt: skip


@app.command()
def report(name: Name, day: Day, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Write the report of a scored day and log the night to MLflow."""
    from pipeline.night import report_night

    page = report_night(_open(name, home, datasets), _day(day))
    _show({"report": str(page)}, as_json, f"wrote {page}")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--day {text!r} is not a day such as 2024-01-31") from error


@app.command()
def review(
    name: Name,
    incident: Annotated[str, typer.Argument(help="the incident's id, as `nightsift incidents` lists it")],
    verdict: Annotated[str, typer.Argument(help="confirmed or dismissed")],
    note: Annotated[str, typer.Option(help="why")] = "",
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Record an analyst's verdict on an incident.

    Confirmed ones are kept out of the next training; dismissed ones raise the threshold of their entity there.
    """
    from pipeline.review import record

    entry = record(_open(name, home, datasets), incident, verdict, note, os.environ.get("USER", "unknown"))
    _show(entry, as_json, f"{name}: incident {incident} of {entry['entity']} is {verdict}")


@app.command()
def adapt(name: Name, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Adapt the entities' thresholds to the nights that the champion has scored, as a new version of the detector."""
    from pipeline.adapt import adapt as run

    result = run(_open(name, home, datasets))
    _show(asdict(result), as_json, f"{name}: {result.reason}")


@app.command()
def drift(name: Name, day: Day, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Say whether the nights up to a day speak for training: scores, features, or what analysts dismissed."""
    from pipeline.drift import find_drift

    found = find_drift(_open(name, home, datasets), _day(day))
    lines = [f"{name}: {reason}" for reason in found.reasons.values()]
    _show(asdict(found), as_json, *(lines or [f"{name} {day}: nothing speaks for training"]))


@app.command()
def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="a version's number in the registry")],
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Make a registered detector the champion, once it was loaded back and has scored a piece of a day."""
    from pipeline.promotion import promote as run

    moved = run(_open(name, home, datasets), version)
    came = f", before it was {moved.before}" if moved.before else ""
    _show({"champion": moved.after, "before": moved.before}, as_json,
          f"{name}: detector {moved.after} is the champion{came}")  # fmt: skip


@app.command()
def rollback(name: Name, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Make the detector before the champion the champion again; once more goes one step further back."""
    from pipeline.promotion import rollback as run

    moved = run(_open(name, home, datasets))
    _show({"champion": moved.after, "before": moved.before}, as_json,
          f"{name}: back from detector {moved.before} to {moved.after}, which is the champion again")  # fmt: skip


@app.command()
def simulate(
    kind: Annotated[str, typer.Argument(help="pumps or cards")],
    days: Annotated[int, typer.Option(min=1)] = 21,
    entities: Annotated[int, typer.Option(min=1)] = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    start: Annotated[str, typer.Option(metavar="DAY", help="the first day")] = "2026-03-02",
    anomalies: Annotated[float, typer.Option(min=0, help="planted incidents per entity and day")] = 0.05,
    anomalies_from: Annotated[int, typer.Option(min=0, help="days at the beginning without planted incidents")] = 0,
    target: Annotated[Path | None, typer.Option("--out", help="folder [default: HOME/source/KIND]")] = None,
    late: Annotated[
        bool, typer.Option("--late", help="hold back some rows of the last day but one for a late file")
    ] = False,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="repeat some rows of the last day")] = False,
    broken: Annotated[bool, typer.Option("--broken", help="spoil some rows of the last day")] = False,
    home: HomeDir = None,
    as_json: Json = False,
) -> None:
    """Write source files of simulated pumps or cards, one a day, with labelled anomalies."""
    from pipeline.simulate import simulate as run

    folder = target or Home.at(home).root / "source" / kind
    result = run(kind, days=days, entities=entities, seed=seed, folder=folder, start=_day(start), anomalies=anomalies,
                 anomalies_from=anomalies_from, late=late, duplicates=duplicates, broken=broken)  # fmt: skip
    _show({"files": len(result.files), "rows": result.rows, "planted": len(result.planted)}, as_json,
          f"wrote {result.rows:,} rows in {len(result.files)} files under {folder}; "
          f"{len(result.planted)} planted incidents")  # fmt: skip


@app.command()
def doctor(home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Check versions, connections, permissions, disk, GPUs, pending days and leftovers; exit code 1 if one fails."""
    from pipeline.doctor import examine

    checks = examine(Home.at(home), datasets_dir(datasets))
    lines = [f"{c.level:<5}{c.what}: {c.message}{c.remedy and chr(10) + '     → ' + c.remedy}" for c in checks]
    _show([asdict(check) for check in checks], as_json, *lines)
    if any(check.level == "FAIL" for check in checks):
        raise typer.Exit(1)


@app.command()
def demo(home: HomeDir = None, datasets: Datasets = None) -> None:
    """Simulate, train, run three nights and a backfill as Airflow DAG runs, and print what was found."""
    from pipeline.demo import run

    run(Home.at(home), datasets_dir(datasets))


@app.command()
def serve(home: HomeDir = None, datasets: Datasets = None) -> None:
    """Open Airflow and MLflow on 127.0.0.1 until Ctrl-C."""
    from pipeline.local import serve as run

    run(Home.at(home), datasets_dir(datasets))


if __name__ == "__main__":
    main()
