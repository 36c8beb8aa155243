"""Whole nights in processes that can be killed, and what they leave, to be compared with an undisturbed night's.

A process is forked from a server that has imported everything and computed nothing (`multiprocessing`'s forkserver), so
that a night costs its own work alone. What was delivered, the detector and the nights before come from a template,
which is copied to one place over and over: MLflow keeps absolute paths.
"""

import contextlib
import hashlib
import multiprocessing
import os
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from deltalake import DeltaTable

from pipeline.backfill import Backfill, backfill
from pipeline.incidents import read_incidents
from pipeline.ingest import ingest
from pipeline.lake import TABLES
from pipeline.night import renew, run_night
from pipeline.review import read_sheet, record_all
from pipeline.score import stale_days
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR, START, TRANSACTION, card_day, deliver, workspace_in

HISTORY = 5  # days that the detector learns from
MACHINES, CARDS = 4, 12
LATE = 20  # rows of the first night that come late
SENSOR_START = date(2024, 3, 25)  # the second night is the day on which the clocks of Berlin go forward
TEXTS = {
    "sensor": SENSOR.replace("epochs: 4", "epochs: 1") + "zone: Europe/Berlin\n",
    "transaction": TRANSACTION.replace("epochs: 4", "epochs: 1").replace(
        "window:", "  - {name: shop_risk, kind: label_rate, of: shop, over: 3d}\nwindow:"
    )
    + 'labels: {path: "{home}/labels/*", event_id: payment, label: fraud, delay: 1d, format: parquet}\n',
}
# It imports what nights need; nothing of that may start threads that a fork would lose.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.faults.preloaded"])


# --- processes


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code (negative: by that signal), what it returned, and what it printed."""

    code: int
    value: Any
    said: str


def run(work: Callable[..., Any], *arguments: Any, watch: Callable[["Running"], None] | None = None) -> Ended:
    """Run `work(*arguments)` in a process of its own; `watch` sees it while it runs, to kill it for instance."""
    running = start(work, *arguments)
    if watch is not None:
        watch(running)
    return running.wait()


class Running:
    """A process that works; `heard` gives what it tells with `tell`.

    What it prints comes through a pipe: a file could not grow where files must not.
    """

    def __init__(self, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
        self._receiver, sender = _SERVER.Pipe(duplex=False)
        self._output, output = _SERVER.Pipe(duplex=False)
        self._process = _SERVER.Process(target=_work, args=(work, arguments, sender, output))
        self._process.start()
        sender.close()
        output.close()
        self._value: Any = None
        self._said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with open(self._output.fileno(), errors="replace", closefd=False) as stream:
            self._said = stream.read()

    def heard(self, timeout: float = 60.0) -> str | None:
        """The next thing that the process tells; None where it has ended without."""
        with contextlib.suppress(EOFError):
            if self._receiver.poll(timeout):
                kind, what = self._receiver.recv()
                if kind == "told":
                    return str(what)
                self._value = what
        return None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def wait(self, most: float = 300.0) -> Ended:
        """Wait for its end; where it tells nothing for `most` seconds, it hangs: it is killed, and this fails."""
        hangs = not self._heard_out(most)
        if hangs:
            self.kill()
        self._process.join()
        self._reader.join()
        code = self._process.exitcode
        for each in (self._process, self._receiver, self._output):
            each.close()
        assert not hangs, f"nothing was told for {most} seconds: {self._said}"
        assert code is not None
        return Ended(code, self._value, self._said)

    def _heard_out(self, most: float) -> bool:
        """Hear all that it tells until its end; False where it tells nothing for `most` seconds."""
        try:
            while self._receiver.poll(most):
                kind, what = self._receiver.recv()
                if kind == "value":
                    self._value = what
        except EOFError:
            return True
        return False


def start(work: Callable[..., Any], *arguments: Any) -> Running:
    """Begin `work(*arguments)` in a process of its own."""
    return Running(work, arguments)


_SENDERS: list[Connection] = []  # in a process that works, its way to whoever started it


def tell(what: str) -> None:
    """Tell the process that started this one."""
    _SENDERS[-1].send(("told", what))


def _work(work: Callable[..., Any], arguments: Sequence[Any], sender: Connection, output: Connection) -> None:
    _SENDERS.append(sender)
    with output:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(output.fileno(), number)
            # The stream of old may believe that it writes to a file, in which it could seek.
            stream = open(number, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for name in ("NIGHTSIFT_HOME", "NIGHTSIFT_DATASETS", "NIGHTSIFT_LAKE", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    sender.send(("value", work(*arguments)))


# --- what is delivered


def local_day(dataset_day: date, fault: str = "") -> pl.DataFrame:
    """A day of readings every ten minutes by the naive clock of Berlin; the flow of the machine `fault` is 8 too high.

    The day has as many readings as ten minutes have passed between its midnights.
    """
    zone = ZoneInfo("Europe/Berlin")
    start, end = (
        datetime.combine(day, clock(), zone).astimezone(UTC) for day in (dataset_day, dataset_day + timedelta(days=1))
    )
    instants = pl.datetime_range(start, end, "10m", closed="left", time_unit="us", eager=True)
    frames = []
    for number in range(MACHINES):
        rng, name = np.random.default_rng([dataset_day.toordinal(), number]), f"m{number}"
        wave = np.sin(2 * np.pi * np.arange(len(instants)) / 24 + number)
        flow, heat = (k * wave + rng.normal(0, 0.2, len(instants)) for k in (1, 2))
        flow[60:80] += 8 * (name == fault)
        frames.append(pl.DataFrame({"machine": [name] * len(instants), "time": instants, "flow": flow, "heat": heat}))
    return pl.concat(frames).with_columns(pl.col("time").dt.convert_time_zone(zone.key).dt.replace_time_zone(None))


def rows_of(kind: str, day: date, *, fault: bool = False) -> pl.DataFrame:
    """A day of the source of a `kind` of dataset."""
    if kind == "sensor":
        return local_day(day, "m1" if fault else "")
    return card_day((day - START.date()).days, CARDS, fault=fault)


def first_night(kind: str) -> date:
    """The first night after those that are learned from; it is scored in a template."""
    return (SENSOR_START if kind == "sensor" else START.date()) + timedelta(days=HISTORY)


def deliver_labels(ws: Workspace, day: date) -> None:
    """Write a file of labels of all events of `day`."""
    payments = rows_of("transaction", day)["payment"]
    folder = ws.home.root / "labels"
    folder.mkdir(exist_ok=True)
    frame = pl.DataFrame({"payment": payments, "fraud": [int(n % 9 == 0) for n in range(len(payments))]})
    frame.write_parquet(folder / f"{day}.parquet")


def make_template(place: Path, kind: str, text: str) -> None:
    """In `place`: a dataset with a champion and one night scored, and the next, with a fault, ready to be run."""
    from pipeline.train import train

    ws = workspace_in(place, text)
    night = first_night(kind)
    for day in (night - timedelta(days=n) for n in range(HISTORY, 0, -1)):
        deliver(ws, rows_of(kind, day), str(day))
        if kind == "transaction" and day < night - timedelta(days=1):
            deliver_labels(ws, day)
    start = ws.dataset.day_bounds(night - timedelta(days=HISTORY))[0]
    assert train(ws, start, ws.dataset.day_bounds(night)[0]).promoted
    deliver(ws, rows_of(kind, night).slice(LATE), str(night))
    run_night(ws, night)
    deliver(ws, rows_of(kind, night + timedelta(days=1), fault=True), str(night + timedelta(days=1)))


def deliver_late(ws: Workspace, kind: str) -> None:
    """Write the rows that were held back of the night that a template has scored, and labels of the day before it."""
    night = first_night(kind)
    deliver(ws, rows_of(kind, night).head(LATE), f"{night}-late")
    if kind == "transaction":
        deliver_labels(ws, night - timedelta(days=1))


def workspace(place: Path) -> Workspace:
    """The workspace that a template, or a copy of it, in `place` has."""
    return open_workspace("demo", place / "var", place / "datasets")


@dataclass(frozen=True, slots=True)
class Template:
    """A template's folder, kept under `kept`, and the one `place` where copies of it work."""

    kind: str
    kept: Path
    place: Path

    def fresh(self) -> None:
        """Put the template back into its place, as it was made."""
        refill(self.place, self.kept)

    @property
    def night(self) -> date:
        """The night that is to be run."""
        return first_night(self.kind) + timedelta(days=1)


def template(folder: Path, kind: str) -> Template:
    """Make a template in `folder`."""
    made = Template(kind, folder / "kept", folder / "place")
    ended = run(make_template, made.place, kind, TEXTS[kind])
    assert ended.code == 0, ended.said
    made.place.rename(made.kept)
    return made


Work = Callable[[Path, date], dict[str, Any]]


# --- what is run: each returns what MLflow has then


def whole_night(place: Path, night: date) -> dict[str, Any]:
    """What a scheduled night does: land what is new, run each day that is out of date, and tell what was not told."""
    ws = workspace(place)
    ingest(ws)
    for day in stale_days(ws, night):
        run_night(ws, day)
    renew(ws)
    return logged(ws)


def one_entity(place: Path, night: date) -> dict[str, Any]:
    """A backfill of one entity of a night."""
    ws = workspace(place)
    entity = "m1" if ws.dataset.kind == "sensor" else "c1"
    backfill(ws, Backfill("demo", night, night, (entity,), overwrite=True))
    return logged(ws)


def backfilled(place: Path, night: date) -> dict[str, Any]:
    """A backfill of a night that is done, and of the one before it, which has late rows."""
    ws = workspace(place)
    backfill(ws, Backfill("demo", night - timedelta(days=1), night))
    return logged(ws)


def reviewed(place: Path, night: date) -> dict[str, Any]:
    """The incidents of a night come back judged from a spreadsheet."""
    ws = workspace(place)
    names = sorted(read_incidents(ws, night, night)["incident_id"])
    lines = ["id,verdict,note", *(f"{name},confirmed,it leaks" for name in names)]
    record_all(ws, read_sheet(ws, "\n".join(lines).encode()), "ann")
    return logged(ws)


def command(place: Path, *arguments: str, limits: Mapping[int, int] | None = None) -> None:
    """The command line, under resource `limits` (of the module `resource`); it ends the process with its exit code."""
    from pipeline.cli import main

    for name, most in (limits or {}).items():
        resource.setrlimit(name, (most, most))
    main([*arguments, "--home", str(place / "var"), "--datasets", str(place / "datasets")])


def night_command(night: date, nights: int = 1) -> list[str]:
    """What runs so many whole nights, up to this one, from the command line."""
    first, end = night - timedelta(days=nights - 1), night + timedelta(days=1)
    return ["backfill", "demo", "--from", str(first), "--to", str(end), "--overwrite"]


# --- what is left


def logged(ws: Workspace) -> dict[str, Any]:
    """What MLflow has of the nights, without ids and clocks, and the champion."""
    from pipeline import tracking

    api = tracking.client(ws)
    experiment = api.get_experiment_by_name("demo/nights")
    found: dict[str, Any] = {"champion": tracking.label_of(ws, tracking.CHAMPION)}
    for night in api.search_runs([experiment.experiment_id]):
        folder = Path(night.info.artifact_uri.removeprefix("file://"))
        files = {str(f.relative_to(folder)): _digest(f.read_bytes()) for f in folder.rglob("*") if f.is_file()}
        numbers = {name: value for name, value in night.data.metrics.items() if not name.startswith("seconds/")}
        tags = {
            name: value
            for name, value in night.data.tags.items()
            if not name.startswith(("mlflow.note", "git_", "maker"))
        }
        parts = {
            "status": night.info.status, "metrics": numbers, "params": night.data.params, "tags": tags, "files": files,
            "inputs": sorted({each.dataset.name for each in night.inputs.dataset_inputs}),
        }  # fmt: skip
        twice = " again" * sum(name.startswith(f"{night.info.run_name}, status") for name in found)
        found |= {f"{night.info.run_name}, {part}{twice}": value for part, value in parts.items()}
    return found


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


Contents = Mapping[str, Mapping[Any, str]]


def contents(ws: Workspace) -> Contents:
    """What stands in each table, as a digest of each day's rows; raises where a table cannot be read."""
    found = {}
    for table in TABLES:
        if ws.lake.exists(table):
            found[table] = _by_day(pl.read_delta(ws.lake.uri(table)), table)
    return found


def _by_day(frame: pl.DataFrame, table: str) -> dict[Any, str]:
    clocks = ["reviewed_at"] if table == "verdicts" else []
    frame = frame.select(sorted(set(frame.columns) - set(clocks)))
    key = ["day", "source"] if "source_digest" in frame.columns else ["day"]
    parts = frame.partition_by(key, as_dict=True)
    return {day: _digest("\n".join(sorted(part.write_ndjson().splitlines())).encode()) for day, part in parts.items()}


def pages(ws: Workspace) -> dict[str, str]:
    """The pages of the nights, of the report and of the data docs, by name."""
    folders = (ws.home.reports, ws.home.data_docs)
    return {str(file): _digest(file.read_bytes()) for folder in folders for file in sorted(folder.rglob("[!.]*.html"))}


@dataclass(frozen=True, slots=True)
class Left:
    """All that a night leaves: tables, pages, and what MLflow has."""

    tables: Contents
    pages: Mapping[str, str]
    logged: Mapping[str, Any]


def left(ws: Workspace, said: Mapping[str, Any]) -> Left:
    """What stands there now, with what MLflow has `said`."""
    return Left(contents(ws), pages(ws), said)


def losses(found: Left, expected: Left) -> list[str]:
    """What differs between two, each in a few words; nothing where nothing was lost, doubled or changed."""
    pairs = ((found.pages, expected.pages), (found.logged, expected.logged))
    flat = [({(t, d): v for t, days in left.tables.items() for d, v in days.items()}) for left in (found, expected)]
    return [
        f"{name}: {one.get(name, 'gone')} instead of {other.get(name, 'nothing')}"
        for one, other in ((flat[0], flat[1]), *pairs)
        for name in sorted({*one, *other}, key=str)
        if one.get(name) != other.get(name)
    ]


def states_of(ws: Workspace) -> dict[str, dict[Any, set[str]]]:
    """Of every table and day, all that a reader could have seen there since the table began: of every commit."""
    seen: dict[str, dict[Any, set[str]]] = {}
    for table in contents(ws):
        versions = range(DeltaTable(ws.lake.uri(table)).version() + 1)
        for version in versions:
            frame = pl.read_delta(ws.lake.uri(table), version=version)
            for day, digest in _by_day(frame, table).items():
                seen.setdefault(table, {}).setdefault(day, set()).add(digest)
    return seen


def torn(ws: Workspace, seen: Mapping[str, Mapping[Any, set[str]]]) -> list[str]:
    """The days of tables that hold what no undisturbed night ever shows; raises where a table cannot be read."""
    return [
        f"{table} {day}"
        for table, days in contents(ws).items()
        for day, digest in days.items()
        if digest not in seen.get(table, {}).get(day, set())
    ]


def unended(ws: Workspace) -> list[str]:
    """The pages that are there in part."""
    folders = (ws.home.reports, ws.home.data_docs)
    files = (file for folder in folders for file in folder.rglob("[!.]*.html"))
    return [str(file) for file in files if not file.read_text(encoding="utf-8").rstrip().endswith("</html>")]


def refill(place: Path, kept: Path) -> None:
    """Make the folder `place`, which may be where a disk is mounted, a copy of `kept`."""
    for each in place.iterdir() if place.is_dir() else ():
        shutil.rmtree(each)
    shutil.copytree(kept, place, dirs_exist_ok=True)
