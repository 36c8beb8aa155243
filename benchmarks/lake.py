"""What a long life costs a lake: `python -m benchmarks.lake [--nights N] [--quick] [--json FILE]`.

The tables of 1,000 nights are written as nights write them, commit by commit, with a day for each night in the age of
their files. What nights, people and pages ask of the tables is timed on the young lake (its first 30 nights), on the
old one, and on the old one after `nightsift upkeep`: the median seconds of several answers. `ratio` is old over young.
"""

import argparse
import os
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks._common import Result
from benchmarks._common import main as run_benchmark
from pipeline.lake import ENDED, TABLES
from pipeline.workspace import Workspace, open_workspace

YOUNG, MACHINES, TIMES = 30, 4, 5  # nights, entities, answers that are timed
FIRST = date(2023, 1, 1)
DETECTOR, NAME = "1-0a1b2c3d", "bench"
TOLD: dict[str, Any] = {"told": {}, "recovered": {}, "singly": {}, "summary": []}
YAML = """\
kind: sensor
source: {path: "source/*.parquet"}
entity: machine
event_time: time
cadence: 1h
features: [{name: flow}, {name: pressure}]
"""


def measure(quick: bool, scratch: Path, nights: int) -> Result:
    """Seconds of each question while the lake is young, old, and kept up."""
    from pipeline.upkeep import keep_up

    count, young = (12, 4) if quick else (nights, min(YOUNG, nights))
    (scratch / "datasets").mkdir()
    (scratch / "datasets" / f"{NAME}.yaml").write_text(YAML)
    ws = open_workspace(NAME, scratch / "var", scratch / "datasets")
    fabricate(ws, range(count)[:young], count)
    seconds = {"young": ask(ws, young)}
    fabricate(ws, range(count)[young:], count)
    held = {"old": hold(ws)}
    seconds["old"] = ask(ws, count)
    began = time.perf_counter()
    done = keep_up(ws.lake, datetime.now(UTC) + 2 * ENDED)  # the log says itself when it wrote a day: just now
    took = time.perf_counter() - began
    seconds["kept"] = ask(ws, count)
    held["kept"] = hold(ws)
    ratio = {name: seconds["kept"][name] / least for name, least in seconds["young"].items()}
    return {
        "nights": count, "young_nights": young, "upkeep_seconds": took, "upkeep": asdict(done), "tables": held,
        "seconds": seconds, "ratio": ratio,
    }  # fmt: skip


def fabricate(ws: Workspace, nights: Iterable[int], count: int) -> None:
    """Write what these of `count` nights leave, each file as old as its night; the last night was today's."""
    from pipeline.score import night_digests
    from pipeline.validate import input_digest

    days = [FIRST + timedelta(days=night) for night in nights]
    ended = [time.time()]
    for day in days:
        land(ws, day)
        ended.append(time.time())
    digests, landed = night_digests(ws, days), ws.lake.landed()
    inputs = {day: input_digest(ws, day, landed) for day in days}
    for day in days:
        write_night(ws, day, inputs[day], digests[day])
        ended.append(time.time())
    age_files(ws, ended, [(count - (day - FIRST).days) * 86400.0 for day in (*days, *days)])


def land(ws: Workspace, day: date) -> None:
    """Land the file of a day."""
    from pipeline.tables import landing_schema

    rows = _readings(day).with_columns(source=pl.lit(f"{day}.parquet"), source_digest=pl.lit(f"{day:%Y%m%d}" * 4))
    ws.lake.replace_source(_as(rows.with_row_index("source_row"), landing_schema(ws.dataset)), f"{day}.parquet")


def write_night(ws: Workspace, day: date, inputs: str, digest: str) -> None:
    """The commits that a night makes, in its order; the incident of every third night is judged twice."""
    from pipeline.incidents import incident_id
    from pipeline.night import LOG
    from pipeline.report import report_state
    from pipeline.review import record
    from pipeline.score import Scored, config_digest
    from pipeline.state import State, write_state
    from pipeline.tables import clean_schema, drifts_schema, incidents_schema, quarantine_schema, scores_schema

    rows, config = _readings(day), config_digest(ws.dataset)
    ws.lake.replace("quarantine", day, pl.DataFrame(schema=quarantine_schema(ws.dataset)))
    ws.lake.replace("clean", day, _as(rows, clean_schema(ws.dataset)))
    counts = {"rows_in": len(rows), "rows_clean": len(rows), "rows_quarantined": 0, "rows_duplicate": 0, "warnings": []}
    write_state(ws, State(day, "validate", inputs, config, counts=counts))
    judged = {"score": 1.0, "p_value": 0.5, "threshold": 5.0, "is_anomaly": False, "detector_version": DETECTOR}
    ws.lake.replace("scores", day, _as(_constant(rows, judged), scores_schema(ws.dataset)))
    ws.lake.replace("drifts", day, pl.DataFrame(schema=drifts_schema()))
    scored = asdict(Scored(str(day), len(rows), 0, MACHINES, DETECTOR, 0.05))
    write_state(ws, State(day, "score", digest, config, DETECTOR, scored))
    entity, start = rows["entity"][0], rows["event_time"][3]
    incident = {
        "incident_id": incident_id(entity, start, "anomaly"), "entity": entity, "start": start, "end": start,
        "peak_time": start, "peak_score": 9.0, "threshold": 5.0, "p_value": 1e-5, "severity": 1.8, "steps": 3,
        "kind": "anomaly", "detector_version": DETECTOR,
    }  # fmt: skip
    ws.lake.replace("incidents", day, _as(pl.DataFrame([incident]), incidents_schema()))
    found = {"day": str(day), "incidents": 1, "silent": 0}
    made = State(day, "incidents", digest, ws.dataset.digest(), DETECTOR, found)
    for state in (made, *(report_state({"incidents": made}, step) for step in ("report", LOG))):
        assert state is not None
        write_state(ws, state)
    write_state(ws, State(day, "notify", "", "", counts=TOLD | {"on": str(day)}))
    write_state(ws, State(day, "drift", digest, config, DETECTOR, {"causes": []}))
    for verdict in ("dismissed", "confirmed") if day.toordinal() % 3 == 0 else ():
        record(ws, incident["incident_id"], verdict, "seen on the spot", "anna")


def _readings(day: date) -> pl.DataFrame:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    steps = [(f"machine-{number}", midnight + timedelta(hours=n)) for number in range(MACHINES) for n in range(24)]
    frame = pl.DataFrame(steps, schema=["entity", "event_time"], orient="row")
    return frame.with_columns(day=pl.lit(day), flow=pl.lit(1.0), pressure=pl.lit(2.0))


def age_files(ws: Workspace, ended: Sequence[float], ages: Sequence[float]) -> None:
    """Make files older: those written between two neighbouring moments of `ended` by the age that goes with them."""
    for path in Path(ws.home.lake).rglob("*"):
        written = path.stat().st_mtime
        if path.is_file() and ended[0] < written <= ended[-1]:
            moment = written - ages[bisect_left(ended, written) - 1]
            os.utime(path, (moment, moment))


def _as(frame: pl.DataFrame, schema: dict[str, Any]) -> pl.DataFrame:
    missing = (pl.lit(None).alias(name) for name in schema if name not in frame.columns)
    return frame.with_columns(missing).select(pl.col(name).cast(kind) for name, kind in schema.items())


def _constant(frame: pl.DataFrame, values: dict[str, Any]) -> pl.DataFrame:
    return frame.with_columns(pl.lit(value).alias(name) for name, value in values.items())


def questions(ws: Workspace, nights: int) -> dict[str, Callable[[], object]]:
    """What nights, people and pages ask of the tables of so many nights."""
    from pipeline.doctor import pending_days, stale_nights
    from pipeline.night import renew
    from pipeline.review import read_reviewed
    from pipeline.score import night_digest, stale_days
    from pipeline.state import State, newest_day, read_state, states, write_state
    from pipeline.tables import clean_schema

    last = FIRST + timedelta(days=nights - 1)
    return {
        "read the state of a step": lambda: read_state(ws, last, "score"),
        "write the state of a step": lambda: write_state(ws, State(last, "bench", "", "")),
        "newest night": lambda: newest_day(ws, "incidents"),
        "states of a step, all nights": lambda: states(ws, "score"),
        "what has landed": ws.lake.landed,
        "rows of a day": ws.lake.scan("clean", clean_schema(ws.dataset), last, last).collect,
        "digest of a night": lambda: night_digest(ws, last),
        "days that are out of date": lambda: stale_days(ws, last),
        "incidents of a night, judged": lambda: read_reviewed(ws, last, last),
        "renew what the calendar changed": lambda: renew(ws),
        "doctor, pending and late days": lambda: (pending_days(ws, datetime.now(UTC)), stale_nights(ws)),
    }


def ask(ws: Workspace, nights: int) -> dict[str, float]:
    """The median seconds of each question."""
    return {name: statistics.median(_times(question)) for name, question in questions(ws, nights).items()}


def _times(question: Callable[[], object]) -> list[float]:
    seconds = []
    for _ in range(TIMES):
        began = time.perf_counter()
        question()
        seconds.append(time.perf_counter() - began)
    return seconds


def hold(ws: Workspace) -> Result:
    """For each table how many files there are on disk, of data and in the log, and how many of data are in use."""
    from deltalake import DeltaTable

    found = {}
    for table in TABLES:
        if ws.lake.exists(table):
            folder = Path(ws.lake.uri(table))
            paths = [path for path in folder.rglob("*") if path.is_file()]
            log = [path for path in paths if "_delta_log" in path.parts]
            used = len(DeltaTable(str(folder)).file_uris())
            found[table] = {"data_files": len(paths) - len(log), "data_files_in_use": used, "log_files": len(log)}
    return found


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nights", type=int, default=1000, help="how many nights the lake has seen (1000)")


if __name__ == "__main__":
    run_benchmark("What a long life costs a lake.", measure, _options)
