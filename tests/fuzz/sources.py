"""What must hold of any files that a source delivers: every row is somewhere, and what is refused is told."""

import os
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

from tests.fuzz.files import Delivered
from tests.fuzz.harness import Place, place

YAML = """
kind: sensor
source: {path: "{home}/source/*.FORM"}
entity: machine
event_time: time
cadence: 10m
zone: ZONE
features:
  - {name: flow, unit: m3/h, min: -50, max: 50}
  - {name: heat, type: TYPE}
window: {steps: 4, rows: 4}
model: {filters: [8], kernel: 3, latent: 4, epochs: 4, batch: 32}
threshold: {false_alarms: 0.2}
suite: ../expectations/demo.yaml
"""
# A lenient suite lets days of bad rows pass, so that these are quarantined; the strict one refuses such a day.
SUITE = """
readable: READABLE
expectations:
  - {type: expect_column_values_to_not_be_null, column: heat, severity: warning}
  - {type: expect_column_values_to_be_between, column: flow, min_value: -50, max_value: 50, mostly: READABLE}
"""


def yaml_text(form: str, zone: str, heat: str) -> str:
    """The dataset's YAML for files that end on `form`."""
    return YAML.replace("FORM", form).replace("ZONE", zone).replace("TYPE", heat)


def check_delivery(
    text: str, readable: float, files: list[Delivered], tally: Counter[str], template: Path | None = None
) -> None:
    """Check, ingest twice and validate `files`; raises `AssertionError` where one of the promises does not hold."""
    with place(template) as here:
        here.put("datasets/demo.yaml", text)
        here.put("expectations/demo.yaml", SUITE.replace("READABLE", str(readable)))
        for file in files:
            Path(os.fsdecode(os.fsencode(here.home / "source" / file.name))).write_bytes(file.content)
        names = _names(files)
        here.run("check", names=names, codes=(0, 2))
        refused = _ingest(here, files)
        for day in _days(here)[:2]:
            _validate(here, day, tally)
        tally["cases"] += 1
        tally["errors" if refused else "results"] += 1


def _ingest(here: Place, files: list[Delivered]) -> str:
    """Ingest, and again; what was said of refused files. Every row of every other file has landed, and stays."""
    names = _names(files)
    unreachable = any(
        not name.isprintable() and "\udcff" in name for name in names
    )  # the store cannot list such a name
    end = here.run("ingest", "demo", names=names, codes=(1,) if unreachable else (0, 3))
    landed = here.landed()
    for file in files:
        if file.rows is not None and file.name in landed:
            assert landed[file.name] == file.rows, f"{file} has {file.rows} rows, {landed[file.name]} have landed"
        # A file is refused, which is told, or all that it has has landed; a file without rows lands without a trace.
        if file.rows and file.name not in landed:
            assert end.code, f"{file} has not landed, and nothing is said: {end}"
    again = here.run("ingest", "demo", names=names, codes=(end.code,))
    assert here.landed() == landed, f"a second ingest has changed what landed: {end} {again}"
    return end.err


def _names(files: list[Delivered]) -> tuple[str, ...]:
    """What an error names: the file, or the source where the store cannot say a file's name."""
    names = tuple(file.name for file in files)
    return (*names, "/source/*.") if any("\udcff" in name for name in names) else names


def _days(here: Place) -> list[str]:
    days = here.workspace().lake.landed()["day"].unique().sort()
    return [str(day) for day in days if day is not None]


def _validate(here: Place, day: str, tally: Counter[str]) -> None:
    """Validate a day: each of its rows is clean, quarantined or a duplicate, or the day is refused as a whole."""
    first = date.fromisoformat(day)
    landing = here.rows("landing", day)
    names = (*(path.name for path in (here.home / "source").iterdir()), f"demo {day}")
    if first > date.today() + timedelta(days=2):
        return
    told = here.json(
        "validate", "demo", "--from", day, "--to", str(first + timedelta(days=1)), names=names, codes=(0, 2, 3)
    )
    clean, quarantined = here.rows("clean", day), here.rows("quarantine", day)
    if told is None:
        assert clean == quarantined == 0, f"a refused day has {clean} clean and {quarantined} quarantined rows"
        tally["days refused"] += 1
        return
    (counts,) = told
    assert counts["rows_in"] == landing, f"{landing} rows have landed: {counts}"
    assert (counts["rows_clean"], counts["rows_quarantined"]) == (clean, quarantined), (
        f"the tables hold others: {counts}"
    )
    assert landing == clean + quarantined + counts["rows_duplicate"], f"rows were lost or made: {counts}"
    tally["rows"] += landing
    tally["quarantined"] += quarantined
    tally["duplicates"] += counts["rows_duplicate"]


def check_night(here: Place, files: list[Delivered], day: str, length: timedelta, tally: Counter[str]) -> None:
    """Score a night beside bad files; its steps are scored, or a sentence names what has stopped it."""
    for file in files:
        Path(os.fsdecode(os.fsencode(here.home / "source" / file.name))).write_bytes(file.content)
    names = (*_names(files), f"demo {day}")
    stretch = ("--from", day, "--to", str(date.fromisoformat(day) + length))
    told = here.json("score", "demo", *stretch, names=names, codes=(0, 1, 3))
    assert told is None or told[0]["steps"] == here.rows("scores", day), f"other scores stand in the table: {told}"
    tally["cases"] += 1
    tally["results" if told else "errors"] += 1
