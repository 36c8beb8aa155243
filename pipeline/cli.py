"""The command line: whatever the DAGs do, without Airflow.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 the data gate refused.
"""

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pipeline import completion
from pipeline.config import YEARS, Dataset, Home, dataset_names, datasets_dir, days_between, load_dataset
from pipeline.errors import ConfigError, NightsiftError
from pipeline.terminal import LogLines, err, fail, out, plain, print_table, say, show, width, working, wrapped

if TYPE_CHECKING:
    import polars as pl

    from pipeline.doctor import Check
    from pipeline.workspace import Workspace


class _InPanels(TyperGroup):
    """The commands under the headings that they name, each with the first sentence of its help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - click calls it
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            told = panels.setdefault(getattr(command, "rich_help_panel", None) or "Others", [])
            told.append((name, (command.help or "").split("\n\n")[0]))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


HELP = """Find what is abnormal in the last day's transactions or sensor readings.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 the data gate refused."""
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, cls=_InPanels, help=HELP)

SET_UP, NIGHT, LOOK, DETECTOR, OPERATE = "Set up", "The night", "Look and judge", "Detector", "Operate"

Name = Annotated[
    str, typer.Argument(help="the dataset: the name of its YAML, without .yaml", autocompletion=completion.datasets)
]
HomeDir = Annotated[Path | None, typer.Option("--home", envvar="NIGHTSIFT_HOME", help="state folder [default: var]")]
Datasets = Annotated[
    Path | None, typer.Option("--datasets", envvar="NIGHTSIFT_DATASETS", help="folder of YAMLs [default: datasets]")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for a machine")]
From = Annotated[str, typer.Option("--from", metavar="WHEN", help="first day or moment, included")]
To = Annotated[str, typer.Option("--to", metavar="WHEN", help="last day or moment, not included")]
Day = Annotated[
    str, typer.Option("--day", metavar="DAY", help="a day, such as 2024-01-31", autocompletion=completion.days)
]
Latest = Annotated[
    str | None,
    typer.Option("--day", metavar="DAY", help="[default: the latest night]", autocompletion=completion.days),
]
Since = Annotated[
    str | None, typer.Option("--from", metavar="WHEN", help="first day, included", autocompletion=completion.days)
]
Until = Annotated[
    str | None, typer.Option("--to", metavar="WHEN", help="last day, not included", autocompletion=completion.days)
]
Nights = Annotated[
    int | None, typer.Option("--nights", min=1, max=1000, help="so many nights, up to --to or the latest [default: 1]")
]
Entities = Annotated[list[str] | None, typer.Option("--entity", help="these alone: a name or glob, once for each")]
Severity = Annotated[float | None, typer.Option("--severity", help="at least as severe, in times the threshold")]
AnyState = Literal["open", "confirmed", "dismissed", "all"]


def command(panel: str, *examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command under the heading `panel`, with `examples` at the end of its help."""
    title = "Example:" if sum(line.startswith("nightsift") for line in examples) == 1 else "Examples:"
    return app.command(rich_help_panel=panel, epilog="\n".join(["\b", title, *(f"  {line}" for line in examples)]))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a failure ends in one sentence on standard error and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whose encoding may not have every character that we print
            stream.reconfigure(errors="backslashreplace")
    lines, level = LogLines(), os.environ.get("NIGHTSIFT_LOG", "WARNING")
    lines.setLevel(level)  # there are libraries that set the level of their own loggers
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", handlers=[lines])
    logging.getLogger("urllib3").setLevel(os.environ.get("NIGHTSIFT_LOG", "ERROR"))  # each try that it repeats
    # It logs the traceback of an error that it also raises; a level would not outlast MLflow's import.
    logging.getLogger("mlflow.store.db.utils").addFilter(lambda _: bool(os.environ.get("NIGHTSIFT_LOG")))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app(args=list(argv) if argv is not None else None, prog_name="nightsift", standalone_mode=True)
    except NightsiftError as error:
        fail(str(error))
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - raised, it would be printed with whatever secret a driver quotes
        fail(traceback.format_exc() if os.environ.get("NIGHTSIFT_LOG") else _unforeseen(error))
        sys.exit(1)
    except KeyboardInterrupt:
        err().print("interrupted; what was committed stays, run the command again to go on")
        sys.exit(1)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Polars', at a file that is cut off
            raise
        fail("a file of a table cannot be read to its end; a night says which, and what to do: nightsift backfill "
             "NAME --from DAY --to DAY --overwrite")  # fmt: skip
        sys.exit(1)


def _unforeseen(error: Exception) -> str:
    """What to say of an error that no step has put into words."""
    if isinstance(error, OSError) and error.filename:
        return (f"{error.filename}: {error.strerror}; see that it is there, and that this user may read and write it, "
                "or choose another --home")  # fmt: skip
    if isinstance(error, MemoryError):
        return ("there is not enough memory; give the process more, or let it take fewer entities at once: shards "
                "in the YAML. What was committed stays, run the command again to go on")  # fmt: skip
    from pipeline.lake import UNREADABLE, unreachable

    how = "set NIGHTSIFT_LOG=DEBUG to see where, and report it with the command that you ran"
    if isinstance(error, UNREADABLE):
        return f"{unreachable('a table', error)}. If it is none of these, {how}"
    return f"this should not happen: {type(error).__name__}: {error}\n{how}"


def _open(name: str, home: Path | None, datasets: Path | None) -> "Workspace":
    from pipeline.workspace import open_workspace

    return open_workspace(name, home, datasets)


def moment(text: str, dataset: Dataset, option: str) -> datetime:
    """A date or timestamp from the command line, in the dataset's zone where it names none, as UTC."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is neither a day (2024-01-31) nor a moment (2024-01-31T06:00)") from error
    _require_sensible(parsed, text, option)
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
    return days_between(begin, until)


def _begun(dataset: Dataset, days: list[date]) -> list[date]:
    """The days; raises `ConfigError` where one is still to come, which would be taken for a day of silence."""
    if days[-1] > (today := dataset.day_of(datetime.now(UTC))):
        raise ConfigError(f"{days[-1]} is still to come: today is {today} in {dataset.zone}; choose an earlier --to")
    return days


def nights_asked(ws: "Workspace", since: str | None, until: str | None, nights: int | None) -> tuple[date, date]:
    """The first and the last night that is asked for: the latest that was scored, where nothing says otherwise."""
    if since and nights:
        raise ConfigError("--nights counts back from --to, or from the latest night; leave it out, or --from")
    if since and until:
        days = days_of(ws.dataset, since, until)
        return days[0], days[-1]
    last = ws.dataset.day_of(moment(until, ws.dataset, "--to") - timedelta(microseconds=1)) if until else _latest(ws)
    first = (
        ws.dataset.day_of(moment(since, ws.dataset, "--from")) if since else last - timedelta(days=(nights or 1) - 1)
    )
    if first > last:
        raise ConfigError(f"--from {since} is after {last}, the latest night that is scored; choose an earlier one")
    return first, last


def _latest(ws: "Workspace") -> date:
    from pipeline.state import newest_day

    newest = newest_day(ws, "incidents")
    if newest is None:
        name = ws.dataset.name
        raise NightsiftError(f"no night of {name} is scored yet in {ws.home.lake}; choose another --home, or run: "
                             f"nightsift score {name} --from DAY --to DAY")  # fmt: skip
    return newest


def _day(text: str, option: str = "--day") -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a day such as 2024-01-31") from error
    _require_sensible(day, text, option)
    return day


def _require_sensible(day: date, text: str, option: str) -> None:
    if day.year not in YEARS:
        raise ConfigError(f"{option} {text!r} lies outside the years {YEARS[0]} to {YEARS[-1]}; choose a day of theirs")


def _past(ws: "Workspace", text: str | None) -> date:
    """The day that is asked for, else the latest that was scored; raises `ConfigError` where it is still to come."""
    if text is None:
        return _latest(ws)
    day = _day(text)
    if day > ws.dataset.day_of(datetime.now(UTC)):
        raise ConfigError(f"--day {day} is still to come; the latest night that is scored is {_latest(ws)}")
    return day


@command(
    SET_UP,
    "nightsift init wells --source 'data/wells/*.parquet' \\",
    "    --entity well --event-time time",
)
def init(
    name: Annotated[str, typer.Argument(help="what the dataset shall be called")],
    source: Annotated[str, typer.Option(help="a file, glob or Delta table")],
    entity: Annotated[str, typer.Option(help="the column that names the machine, card or account")],
    event_time: Annotated[str, typer.Option(help="the column that says when it happened")],
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Look at the data and write a YAML and a suite that work as they are."""
    from pipeline.onboard import propose

    files = propose(name, source, entity, event_time, datasets_folder=datasets_dir(datasets))
    show({"written": files}, as_json, *(f"wrote {file}" for file in files),
         f"next: nightsift check, then nightsift train {name} --from DAY --to DAY")  # fmt: skip


@command(SET_UP, "nightsift check", "nightsift check wells")
def check(
    name: Annotated[str | None, typer.Argument(help="one dataset only", autocompletion=completion.datasets)] = None,
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Check YAMLs, suites, sources and labels.

    Every YAML and suite can be read, sources and labels can be reached, and no feature sees a label early.
    """
    from pipeline.onboard import check as check_all

    if name is not None and name not in dataset_names(datasets):
        load_dataset(name, datasets)
    with working(as_json):
        findings = [f for f in check_all(datasets_dir(datasets), Home.at(home)) if name in (None, f.dataset)]
    if not findings:
        raise ConfigError(f"no dataset at all in {datasets_dir(datasets)}; write one with: nightsift init")
    bad = [finding for finding in findings if not finding.ok]
    lines = [f"{'ok    ' if f.ok else 'FAILED'} {f.dataset} {f.what}: {f.message}" for f in findings]
    show([asdict(finding) for finding in findings], as_json, *lines)
    if bad:
        raise typer.Exit(2)


@command(
    SET_UP,
    "nightsift simulate pumps --days 24 --anomalies-from 21 --late",
    "nightsift simulate cards --entities 300 --out data/cards",
)
def simulate(
    kind: Annotated[str, typer.Argument(help="pumps or cards", autocompletion=completion.simulators)],
    days: Annotated[int, typer.Option(min=1, help="how many days")] = 21,
    entities: Annotated[int, typer.Option(min=1, help="how many pumps or cards")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same files")] = 0,
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
    """Write source files of simulated pumps or cards.

    One file a day, with labelled anomalies.
    """
    from pipeline.simulate import simulate as run

    folder = target or Home.at(home).root / "source" / kind
    with working(as_json):
        result = run(kind, days=days, entities=entities, seed=seed, folder=folder, start=_day(start, "--start"),
                     anomalies=anomalies, anomalies_from=anomalies_from, late=late, duplicates=duplicates,
                     broken=broken)  # fmt: skip
    show({"files": len(result.files), "rows": result.rows, "planted": len(result.planted)}, as_json,
         f"wrote {result.rows:,} rows in {len(result.files)} files under {folder}; "
         f"{len(result.planted)} planted incidents")  # fmt: skip


@command(SET_UP, "nightsift demo --home var")
def demo(home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Simulate, train and run nights in a real Airflow.

    Three nights and a backfill as Airflow DAG runs; prints what was found beside what was planted.
    """
    from pipeline.demo import run

    with working(as_json):
        matches = run(Home.at(home), datasets_dir(datasets))
    if as_json:
        show({name: asdict(match) | {"recall": match.recall, "rate": match.rate} for name, match in matches.items()},
             as_json)  # fmt: skip


@command(NIGHT, "nightsift ingest pumps", "nightsift ingest wells --from 2026-03-01 --to 2026-03-08")
def ingest(
    name: Name, first: From = "", last: To = "", home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """Bring new and changed source files into `landing`.

    Of a query or table: the days between --from and --to.
    """
    from pipeline.ingest import ingest as run

    ws = _open(name, home, datasets)
    if bool(first) != bool(last):
        raise ConfigError("--from and --to go together; give both or neither")
    days = days_of(ws.dataset, first, last) if first and last else [None]
    with working(as_json):
        result = run(ws, days[0], days[-1])
    labels = f"{result.labels:,} labels, {result.labels_unknown:,} of them of unknown events"
    show(asdict(result), as_json, f"{name}: {result.files} new files, {result.known} known, {result.rows:,} rows "
         f"on {len(result.days)} days{', ' + labels if ws.dataset.labels else ''}")  # fmt: skip


@command(NIGHT, "nightsift validate pumps --from 2026-03-23 --to 2026-03-26")
def validate(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """Let what passes the suite into `clean`.

    What fails goes to `quarantine`, with the reason.
    """
    from pipeline.ingest import ingest as bring
    from pipeline.progress import counted
    from pipeline.validate import validate as run

    ws = _open(name, home, datasets)
    days = _begun(ws.dataset, days_of(ws.dataset, first, last))
    results = []
    with working(as_json):
        bring(ws, days[0], days[-1])
        for day in counted("nights", days):
            results.append(run(ws, day))
            if not as_json:
                show(None, False, _validated(name, results[-1]))
    if as_json:
        show([asdict(result) for result in results], as_json)


def _validated(name: str, result: Any) -> str:
    warnings = ", " + "; ".join(result.warnings) if result.warnings else ""
    return (f"{name} {result.day}: {result.rows_in:,} rows, {result.rows_clean:,} clean, {result.rows_quarantined:,} "
            f"quarantined, {result.rows_duplicate:,} duplicates{warnings}")  # fmt: skip


@command(NIGHT, "nightsift score pumps --from 2024-01-31 --to 2024-02-03")
def score(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """Score days with the champion, and find their incidents.

    Ingests and validates what is not there yet.
    """
    from pipeline.night import score_days

    ws = _open(name, home, datasets)
    days = _begun(ws.dataset, days_of(ws.dataset, first, last))
    with working(as_json):
        results = score_days(ws, days, lambda r: None if as_json else show(None, False, _scored(name, r)))
    if as_json:
        show([asdict(result) for result in results], as_json)


def _scored(name: str, result: Any) -> str:
    return (f"{name} {result.day}: {result.steps:,} steps of {result.entities:,} entities scored by detector "
            f"{result.detector}, {result.anomalous:,} anomalous{_remarks(result)}")  # fmt: skip


def _remarks(result: Any) -> str:
    unseen, drifting = result.unseen, result.drifting
    return (f"; {unseen:,} of the entities were not there in training" if unseen else "") + (
        f"; slow drifts: {drifting:,}, see the report" if drifting else ""
    )


@command(
    NIGHT,
    "nightsift backfill pumps --from 2024-01-01 --to 2024-02-01",
    "nightsift backfill pumps --from 2024-01-01 --to 2024-02-01 \\",
    "    --entities 'pump-00*' --entities pump-0112 --detector 3 --overwrite",
)
def backfill(
    name: Name,
    first: From,
    last: To,
    entities: Annotated[
        list[str] | None, typer.Option(help="score these alone: a name or glob, once for each [default: all]")
    ] = None,
    detector: Annotated[
        str,
        typer.Option(
            help="champion, challenger, or a version's number or label; none becomes the champion",
            autocompletion=completion.detectors,
        ),
    ] = "champion",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="do again what is up to date")] = False,
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Run whole nights of the past, reports included.

    A night that is up to date stays as it is.
    """
    from pipeline.backfill import Backfill
    from pipeline.backfill import backfill as run

    ws = _open(name, home, datasets)
    days = days_of(ws.dataset, first, last)
    asked = Backfill(name, days[0], days[-1], tuple(entities or ()), detector, overwrite)
    with working(as_json):
        nights = run(ws, asked, say=lambda night: None if as_json else show(None, False, _filled(name, night)))
    if as_json:
        show([asdict(night) for night in nights], as_json)


def _filled(name: str, night: Any) -> str:
    done = "was up to date" if night.skipped else f"{night.steps:,} steps scored"
    return (f"{name} {night.day}: {done}, {night.incidents} incidents ({night.silent} silent), "
            f"{night.rows_quarantined:,} rows in quarantine{f', report {night.report}' if night.report else ''}"
            f"{_remarks(night)}")  # fmt: skip


@command(NIGHT, "nightsift missing pumps --from 2024-01-01 --to 2024-02-01")
def missing(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """List the nights that are not done, and why.

    Exits with 1 where there are any. A night is done when it was scored wholly, by the champion, from what is landed of
    it and of the days before it.
    """
    from pipeline.night import missing_days

    ws = _open(name, home, datasets)
    days = days_of(ws.dataset, first, last)
    with working(as_json):
        found = missing_days(ws, days[0], days[-1])
    end = f"{len(found)} of {len(days)} days are not done" if found else f"all {len(days)} days are done"
    told = {str(day): why for day, why in found.items()}
    show(told, as_json, *(f"{name} {day}: {why}" for day, why in told.items()), f"{name}: {end}")
    if found:
        raise typer.Exit(1)


@command(NIGHT, "nightsift notify pumps --dry-run", "nightsift notify pumps --day 2024-01-31")
def notify(
    name: Name,
    day: Latest = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be sent now; send nothing")] = False,
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Tell those whom the YAML names what they have not heard of a night."""
    from pipeline.notify import notify as run
    from pipeline.notify import preview
    from pipeline.words import count

    ws = _open(name, home, datasets)
    night = _past(ws, day)
    if dry_run:
        seen = preview(ws, night)
        show([asdict(one) for one in seen], as_json, *(line for one in seen for line in one.lines))
        return
    with working(as_json):
        told = run(ws, night)
    show(asdict(told), as_json, f"{name} {night}: {count(told.incidents, 'incident')}, {told.news:,} new, "
         f"{told.recovered:,} recovered; told to {count(told.sent, 'target')}")  # fmt: skip


@command(
    LOOK,
    "nightsift incidents pumps",
    "nightsift incidents pumps --nights 7 --state open --severity 2",
    "nightsift incidents pumps --from 2024-01-01 --entity 'pump-00*' --json",
)
def incidents(
    name: Name,
    since: Since = None,
    until: Until = None,
    nights: Nights = None,
    entity: Entities = None,
    severity: Severity = None,
    state: Annotated[AnyState, typer.Option(help="what analysts said of them")] = "all",
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """List the incidents of the latest night, or of others.

    The most severe come first; severity is how many times the threshold the score reached. Times are in the zone of the
    dataset.
    """
    ws = _open(name, home, datasets)
    first, last = nights_asked(ws, since, until, nights)
    found, everything = _chosen(ws, first, last, entity, severity, state)
    if as_json:
        show(found.to_dicts(), as_json)
    else:
        _list(ws, first, last, found, everything)


def _chosen(
    ws: "Workspace", first: date, last: date, entity: list[str] | None, severity: float | None, state: AnyState
) -> tuple["pl.DataFrame", "pl.DataFrame"]:
    """The incidents of the nights that are asked for, and all of these nights."""
    from pipeline.review import choose, read_reviewed

    everything = read_reviewed(ws, first, last)
    return choose(everything, entity or (), severity, None if state == "all" else state), everything


def _list(ws: "Workspace", first: date, last: date, found: "pl.DataFrame", everything: "pl.DataFrame") -> None:
    from pipeline.review import count_states
    from pipeline.walk import in_columns
    from pipeline.words import count

    when = _when(first, last)
    if found.is_empty():
        out().print(_nothing(ws, first, last, everything))
        return
    some = f"{len(found):,} of " if len(found) < len(everything) else ""
    out().print(f"{some}{count(len(everything), 'incident')} of {ws.dataset.name} {when} ({count_states(found)}), "
                f"times in {ws.dataset.zone}", style="bold", soft_wrap=width() is None)  # fmt: skip
    print_table(in_columns(found, ws.dataset))


def _when(first: date, last: date) -> str:
    return f"on {first}" if first == last else f"from {first} to {last}"


def _nothing(ws: "Workspace", first: date, last: date, everything: "pl.DataFrame") -> str:
    """Why there is nothing to list, and what to do."""
    from pipeline.review import count_states
    from pipeline.state import states

    name, when, nights = ws.dataset.name, _when(first, last), (last - first).days + 1
    if len(everything):
        there = f"{len(everything):,} incidents of {name} {when} ({count_states(everything)})"
        return f"none of the {there} is one that is asked for; change --state, --severity or --entity"
    done = states(ws, "incidents")["day"]
    scored = int(done.is_between(first, last).sum())
    if not scored:
        known = f"; the latest that is: {done[-1]}" if len(done) else ""
        return (f"no night of {name} {when} is scored{known}; run: nightsift score {name} --from {first} --to "
                f"{last + timedelta(days=1)}")  # fmt: skip
    some = f" ({scored} of {nights} nights are scored)" if scored < nights else ""
    return f"nothing abnormal in {name} {when}{some}; what was looked at: nightsift report {name} --day {last}"


@command(LOOK, "nightsift report pumps --open", "nightsift report pumps --day 2024-01-31")
def report(
    name: Name,
    day: Latest = None,
    opened: Annotated[bool, typer.Option("--open", help="show it in the browser")] = False,
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Write the report of a night, and log it to MLflow."""
    from pipeline.night import report_night

    ws = _open(name, home, datasets)
    night = _past(ws, day)
    with working(as_json):
        page = report_night(ws, night)
    shown = opened and _browse(page)
    hint = f"there is no browser to open here; copy the file, or open {page.as_uri()} where one is"
    show({"report": str(page), "day": str(night), "opened": shown}, as_json, f"wrote {page}",
         *([hint] if opened and not shown else []))  # fmt: skip


def _browse(page: Path) -> bool:
    """Open the page in a browser with windows; False where there is none."""
    import webbrowser

    windows = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return (windows or not sys.platform.startswith("linux")) and webbrowser.open(page.as_uri())


@command(
    LOOK,
    "nightsift review pumps",
    "nightsift review pumps 4814822a1e5b confirmed --note 'bearing replaced'",
    "nightsift review pumps --nights 7 --export open.csv",
    "nightsift review pumps --import open.csv",
)
def review(
    name: Name,
    incident: Annotated[
        str | None, typer.Argument(help="an incident's id [default: all]", autocompletion=completion.incidents)
    ] = None,
    verdict: Annotated[
        str | None, typer.Argument(help="confirmed, dismissed or withdrawn", autocompletion=completion.verdicts)
    ] = None,
    note: Annotated[str, typer.Option(help="why")] = "",
    since: Since = None,
    until: Until = None,
    nights: Nights = None,
    entity: Entities = None,
    severity: Severity = None,
    state: Annotated[AnyState, typer.Option(help="what analysts said of them")] = "open",
    target: Annotated[
        str | None, typer.Option("--export", metavar="FILE", help="write a CSV to fill in; - for standard output")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--import", metavar="FILE", help="record such a CSV's verdicts; - for standard input")
    ] = None,
    reviewer: Annotated[str, typer.Option(help="who says it [default: the user]")] = "",
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Say what an incident was: confirmed or dismissed.

    With an incident and a verdict, records it. On a terminal, else, goes through the open incidents of the latest night
    (or others) one by one; elsewhere lists them. A CSV takes verdicts on many: all of its lines are recorded, or none.

    Confirmed ones are kept out of the next training; dismissed ones raise the threshold of their entity there.
    A verdict that is withdrawn makes the incident open again.
    """
    ws, by = _open(name, home, datasets), reviewer.strip() or _user()
    if note and not verdict:
        raise ConfigError(f"--note belongs to a verdict: nightsift review {name} INCIDENT confirmed --note …")
    if sum(map(bool, (incident, target, source))) > 1:
        raise ConfigError("an incident, --export and --import are three ways to review; choose one")
    if source:
        _import(ws, source, by, as_json)
    elif incident and verdict:
        _record(ws, incident, verdict, note, by, as_json)
    elif incident:
        _review_one(ws, incident, by, as_json)
    else:
        first, last = nights_asked(ws, since, until, nights)
        found, everything = _chosen(ws, first, last, entity, severity, state)
        if target:
            _export(ws, found, target, as_json)
        elif as_json:
            show(found.to_dicts(), as_json)
        else:
            if len(found) and _interactive():
                _walk(ws, found, by)
            else:
                _list(ws, first, last, found, everything)
                _go_on(name, found, first, last)
            _tell_lost(ws)


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _record(ws: "Workspace", incident: str, verdict: str, note: str, by: str, as_json: bool) -> None:
    from pipeline.review import record

    entry = record(ws, incident, verdict, note, by)
    is_now = "open again" if verdict == "withdrawn" else verdict
    show(entry, as_json, f"{ws.dataset.name}: incident {incident} of {entry['entity']} is {is_now}")


def _review_one(ws: "Workspace", incident: str, by: str, as_json: bool) -> None:
    from pipeline.review import read_one
    from pipeline.walk import in_lines

    found = read_one(ws, incident)
    if as_json:
        show(found.row(0, named=True), as_json)
    elif _interactive():
        _walk(ws, found, by)
    else:
        say_it = f"nightsift review {ws.dataset.name} {incident} confirmed|dismissed|withdrawn --note …"
        show(None, False, *in_lines(ws, found.row(0, named=True), width()), f"say what it was: {say_it}")


def _walk(ws: "Workspace", found: "pl.DataFrame", by: str) -> None:
    """Ask for a verdict on one incident after the other, and tell what came of it."""
    from pipeline.walk import walk

    given = walk(ws, found, by, tell=lambda line: out().print(plain(line)), key=typer.getchar, ask=input, room=width())
    said = [f"{given[word]:,} {word}" for word in ("confirmed", "dismissed") if given[word]]
    left = len(found) - given["confirmed"] - given["dismissed"]
    counts = f"{' and '.join(said) or 'nothing recorded'}, {left:,} left"
    out().print(f"\n{ws.dataset.name}: {counts}" + ("; the next training heeds it" if said else ""))


def _go_on(name: str, found: "pl.DataFrame", first: date, last: date) -> None:
    """What to do with the incidents that were listed, or where there are none, where to look for more."""
    again = f"--from {first} --to {last + timedelta(days=1)}"
    if len(found):
        show(None, False, f"record one: nightsift review {name} ID confirmed|dismissed --note …",
             f"or many:    nightsift review {name} {again} --export open.csv")  # fmt: skip
    else:
        show(None, False, f"earlier nights: nightsift review {name} --nights 28")


def _tell_lost(ws: "Workspace") -> None:
    """Each verdict that still counts on an incident that is gone, and how to take it back."""
    from pipeline.review import read_lost
    from pipeline.words import clean_text

    name = ws.dataset.name
    for row in read_lost(ws).iter_rows(named=True):
        incident = row["incident_id"]
        which = f"incident {incident} of {clean_text(row['entity'])} on {row['day']}"
        show(None, False, f"{which} is {row['verdict']} and gone, as its night was scored again; to take that back: "
             f"nightsift review {name} {incident} withdrawn")  # fmt: skip


def _export(ws: "Workspace", found: "pl.DataFrame", target: str, as_json: bool) -> None:
    """Write the CSV; with a mark at its beginning by which spreadsheets know UTF-8, where it is a file."""
    from pipeline.review import sheet

    text, name = sheet(found, ws), ws.dataset.name
    if target == "-":
        if as_json:
            raise ConfigError("--json and --export - would both write to the standard output; choose one")
        sys.stdout.write(text)
        return
    try:
        with Path(target).open("x", encoding="utf-8-sig", newline="") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{target} is there already, and may hold verdicts: nightsift review {name} --import "
                          f"{target}; or remove it, or choose another name") from error  # fmt: skip
    show({"file": target, "incidents": len(found)}, as_json, f"{name}: {len(found):,} incidents written to {target}",
         f"fill in verdict and note, then: nightsift review {name} --import {target}")  # fmt: skip


def _import(ws: "Workspace", source: str, by: str, as_json: bool) -> None:
    from pipeline.review import read_sheet, record_all

    now = datetime.now(UTC)
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{source} cannot be read: {error.strerror}; name the CSV that --export has written"
        ) from error
    try:
        said = read_sheet(ws, content)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    entries = record_all(ws, said, by, now)
    new = sum(entry["reviewed_at"] == now for entry in entries)
    known = f", {len(entries) - new:,} were recorded before" if len(entries) > new else ""
    show({"recorded": new, "known": len(entries) - new}, as_json,
         f"{ws.dataset.name}: {new:,} verdicts recorded{known}" if entries else
         f"{source} holds no verdict; write confirmed, dismissed or withdrawn into its column verdict")  # fmt: skip


def _user() -> str:
    """The name of whoever runs the command."""
    import getpass

    try:
        return os.environ.get("USER") or getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


@command(LOOK, "nightsift scores pumps --from 2024-01-31 --to 2024-02-03 --out s.parquet")
def scores(
    name: Name,
    first: From,
    last: To,
    target: Annotated[Path, typer.Option("--out", help="the Parquet file to write")],
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Write scores to a Parquet file.

    Columns: entity, event_time, [event_id], score, p_value, threshold, is_anomaly.
    """
    from pipeline.night import export_scores

    ws = _open(name, home, datasets)
    rows = export_scores(ws, *stretch(ws.dataset, first, last), target)
    show({"file": str(target), "rows": rows}, as_json, f"{name}: {rows:,} scored steps written to {target}")


@command(DETECTOR, "nightsift train pumps --from 2024-01-01 --to 2024-01-31")
def train(
    name: Name, first: From, last: To, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False
) -> None:
    """Train a detector, register and perhaps promote it.

    On the time between --from and --to; the rule in the YAML says whether it becomes the champion. A training that was
    killed goes on where it was when the same command is given again.
    """
    from pipeline.train import train as run
    from pipeline.words import found_share

    ws = _open(name, home, datasets)
    start, end = stretch(ws.dataset, first, last)
    with working(as_json):
        result = run(ws, start, end, say)
    show(asdict(result), as_json,
         f"{name}: detector {result.version}, {result.reason}",
         f"trained on {result.steps:,} steps of {result.entities:,} entities in {result.seconds:g} s",
         f"threshold {result.threshold:.4g} for {result.budget:g} false alarms per entity and day; "
         f"on the holdout {result.realised:.3g}; injected anomalies found {found_share(result.injected_recall)}",
         "", result.table)  # fmt: skip


@command(DETECTOR, "nightsift promote pumps 7")
def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="a version's number in the registry")],
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Make a registered detector the champion.

    Once it was loaded back and has scored a piece of a day.
    """
    from pipeline.promotion import promote as run

    with working(as_json):
        moved = run(_open(name, home, datasets), version)
    came = f", before it was {moved.before}" if moved.before else ""
    show({"champion": moved.after, "before": moved.before}, as_json,
         f"{name}: detector {moved.after} is the champion{came}")  # fmt: skip


@command(DETECTOR, "nightsift rollback pumps")
def rollback(name: Name, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Make the champion before this one champion again.

    Once more goes one step further back.
    """
    from pipeline.promotion import rollback as run

    with working(as_json):
        moved = run(_open(name, home, datasets))
    show({"champion": moved.after, "before": moved.before}, as_json,
         f"{name}: back from detector {moved.before} to {moved.after}, which is the champion again")  # fmt: skip


@command(DETECTOR, "nightsift drift pumps --day 2024-01-31")
def drift(name: Name, day: Day, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Say whether the nights up to a day speak for training.

    Scores that are distributed otherwise, features that have moved, or too much that analysts dismissed.
    """
    from pipeline.drift import find_drift

    ws = _open(name, home, datasets)
    night = _past(ws, day)
    with working(as_json):
        found = find_drift(ws, night)
    lines = [f"{name}: {reason}" for reason in found.reasons.values()]
    show(asdict(found), as_json, *(lines or [f"{name} {day}: nothing speaks for training"]))


@command(DETECTOR, "nightsift adapt pumps")
def adapt(name: Name, home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Let the nights that were scored move the thresholds.

    Of each entity, by what the champion has scored, as a new version of the detector.
    """
    from pipeline.adapt import adapt as run

    with working(as_json):
        result = run(_open(name, home, datasets))
    show(asdict(result), as_json, f"{name}: {result.reason}")


@command(OPERATE, "nightsift serve")
def serve(home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Open Airflow and MLflow on 127.0.0.1 until Ctrl-C.

    With --json the addresses, once they answer.
    """
    from pipeline.local import USER
    from pipeline.local import serve as run

    if not as_json:
        run(Home.at(home), datasets_dir(datasets))
        return
    run(Home.at(home), datasets_dir(datasets), say, lambda airflow: show(
        {"airflow": airflow.url, "mlflow": airflow.setup.mlflow_url, "user": USER,
         "password_file": airflow.setup.password_file}, as_json))  # fmt: skip


@command(OPERATE, "nightsift upkeep --dry-run", "nightsift upkeep pumps")
def upkeep(
    name: Annotated[str | None, typer.Argument(help="one dataset alone", autocompletion=completion.datasets)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
    home: HomeDir = None,
    datasets: Datasets = None,
    as_json: Json = False,
) -> None:
    """Keep the tables fast and the disk free.

    Small files are merged, and what was replaced more than 30 days ago is removed, as is what killed processes have
    left. It can run at any time, beside nights too.
    """
    from pipeline.lake import Lake
    from pipeline.upkeep import keep_up_all, lakes, sweep

    place = Home.at(home)
    those = lakes(place, datasets) if name is None else [Lake(place.lake, load_dataset(name, datasets).name)]
    with working(as_json):
        left = sweep(place, dry_run=dry_run)  # first: a table that is broken keeps nothing else from its upkeep
        done = keep_up_all(those, dry_run=dry_run)
    would = "would be " if dry_run else ""
    show({"datasets": [asdict(each) for each in done], "leftovers": left}, as_json,
         *(f"{each.dataset}: {would}merged: {each.merged:,} small files; {would}removed: {each.unused:,} unused ones"
           for each in done),
         f"leftovers of killed processes that {would or 'were '}removed: {len(left):,}")  # fmt: skip


LEVELS = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


@command(OPERATE, "nightsift doctor", "nightsift doctor --json | jq '.[] | select(.level == \"FAIL\")'")
def doctor(home: HomeDir = None, datasets: Datasets = None, as_json: Json = False) -> None:
    """Check this installation; exit code 1 if a check fails.

    Versions, connections, permissions, disk, GPUs, pending days and leftovers.
    """
    from pipeline.doctor import examine

    with working(as_json):
        checks = examine(Home.at(home), datasets_dir(datasets))
    if as_json:
        show([asdict(check) for check in checks], as_json)
    else:
        _tell(checks)
    if any(check.level == "FAIL" for check in checks):
        raise typer.Exit(1)


def _tell(checks: Sequence["Check"]) -> None:
    """The checks in columns; a remedy stands below its check on one line, so that it can be copied."""
    from rich.text import Text

    console, room = out(), width()
    indent = max((len(check.what) for check in checks), default=0) + 8
    for check in checks:
        head, *more = wrapped(f"{check.level:<6}{plain(check.what)}", plain(check.message), indent, room)
        console.print(Text.assemble((check.level, LEVELS[check.level]), head[len(check.level) :]))
        for line in more:
            console.print(line)
        if check.remedy:
            console.print(f"      → {plain(check.remedy)}", style="bold")
    ok, warnings, failed = (sum(check.level == level for check in checks) for level in LEVELS)
    console.print(f"{ok} ok, {warnings} warning{'' if warnings == 1 else 's'}, {failed} failed")


if __name__ == "__main__":
    main()
