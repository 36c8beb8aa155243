"""What must hold of anything that a person has written: it is used, or told what is wrong with it and where."""

import gzip
from collections import Counter
from pathlib import Path

import polars as pl

from pipeline.tables import incidents_schema
from pipeline.workspace import open_workspace
from tests.conftest import SENSOR, card_day, sensor_day
from tests.fuzz.documents import FULL, SHIPPED_SUITES
from tests.fuzz.files import Delivered
from tests.fuzz.harness import Place
from tests.lake import DAY, at, incident

NIGHT = ("--from", "2026-01-05", "--to", "2026-01-06")
WITH_SUITE = SENSOR + "suite: ../expectations/demo.yaml\n"


def make_template(root: Path) -> Path:
    """A folder with source files for every dataset that is changed, labels and a calendar; `place` copies it."""
    here = Place(root)
    for name, text in SHIPPED_SUITES.items():
        here.put(f"expectations/{name}.yaml", text)
    here.put("var/labels/first.csv", "payment,is_fraud\n0-1,1\n0-2,0\n")
    here.put("var/calendar.csv", "start,end,entities,reason,action\n2026-01-05,,c1,holiday,mark\n")
    for folder in ("pumps", "cards"):
        (root / "var/source" / folder).mkdir(parents=True)
    cards, readings = card_day(0, 4), sensor_day(0, 2).gather_every(8)
    both = pl.concat([readings, cards], how="diagonal")  # a dataset of either kind finds its columns, and gaps
    both.with_columns(pl.col("machine", "card", "payment").fill_null("m0")).write_parquet(
        root / "var/source/all.parquet"
    )
    sensors = ("flow", "pressure", "vibration", "current", "bearing_temperature", "motor_temperature")
    pumps = readings.select(pl.col("machine").alias("pump"), "time", *(pl.lit(20.0).alias(name) for name in sensors))
    pumps.write_parquet(root / "var/source/pumps/0.parquet")
    shipped = cards.rename({"shop": "category"}).with_columns(terminal=pl.lit("t"), distance=pl.lit(1.0))
    here.put("var/source/cards/0.csv.gz", gzip.compress(shipped.write_csv().encode()))
    return root


def check_dataset(here: Place, content: bytes, tally: Counter[str]) -> None:
    """A dataset's YAML is refused with its name, or whatever it says is done with what there is."""
    here.put("datasets/demo.yaml", content)
    names = ("demo.yaml", "dataset demo", "/source/", "/expectations/", "/labels/", "calendar")
    end = here.run("check", names=names, codes=(0, 2))
    if end.code == 0:
        here.run("ingest", "demo", names=names, codes=(0, 3))
        here.run("validate", "demo", *NIGHT, names=(*names, "demo 2026-01-05"), codes=(0, 3))
    _count(tally, end.code)


def check_suite(here: Place, content: bytes, tally: Counter[str]) -> None:
    """A suite is refused with its file and entry, or the day is judged by it."""
    here.put("datasets/demo.yaml", WITH_SUITE)
    here.put("expectations/demo.yaml", content)
    end = here.run("check", names=("demo.yaml",), codes=(0, 2))
    if end.code == 0:
        told = here.json("validate", "demo", *NIGHT, names=("demo.yaml", "demo 2026-01-05"), codes=(0, 2, 3))
        landing, clean, bad = (here.rows(name, "2026-01-05") for name in ("landing", "clean", "quarantine"))
        duplicates = told[0]["rows_duplicate"] if told else landing
        assert landing == clean + bad + duplicates, f"{landing} rows: {clean} clean, {bad} quarantined, {told}"
        tally["quarantined"] += bad
    _count(tally, end.code)


def check_labels(here: Place, file: Delivered, tally: Counter[str]) -> None:
    """A file of labels lands as a whole, or not at all, with a sentence that names it."""
    here.put("datasets/demo.yaml", FULL)
    here.put(f"var/labels/{file.name}", file.content)
    here.run("check", names=(file.name,), codes=(0, 2))
    end = here.run("ingest", "demo", names=(file.name,), codes=(0, 2, 3))
    landed = here.table("labels")
    assert landed.filter(source="first.csv").height == 2, "a bad file of labels has kept a good one out"
    if end.code:
        assert landed.filter(source=file.name).is_empty(), f"labels of a refused file have landed: {end}"
    elif file.rows is not None:
        assert landed.filter(source=file.name).height == file.rows, f"rows of labels are gone: {end}"
    _count(tally, end.code)


def check_calendar(here: Place, content: bytes, tally: Counter[str]) -> None:
    """A calendar is refused with its file and row, or used."""
    here.put("datasets/demo.yaml", FULL)
    here.put("var/calendar.csv", content)
    _count(tally, here.run("check", names=("calendar.csv",), codes=(0, 2)).code)


def make_incidents(root: Path) -> list[str]:
    """Put a night with incidents into the template `root`; their ids."""
    here = Place(root)
    here.put("datasets/demo.yaml", SENSOR)
    rows = [incident(f"m{n}", at("01:00:00"), at("02:00:00"), ("flow", 1.0, 9.0, 1.0)) for n in range(3)]
    ws = open_workspace("demo", here.home, root / "datasets")
    ws.lake.replace("incidents", DAY, pl.DataFrame(rows, schema={"day": pl.Date, **incidents_schema()}, strict=False))
    return [row["incident_id"] for row in rows]


def check_verdicts(here: Place, content: bytes, tally: Counter[str]) -> None:
    """A sheet is recorded as a whole, or not at all, with its name and the lines that must be mended."""
    sheet = here.put("said it.csv", content)
    told = here.json("review", "demo", "--import", str(sheet), names=("said it.csv",), codes=(0, 2))
    recorded = here.table("verdicts").height
    assert recorded == (told["recorded"] if told else 0), f"{recorded} verdicts are recorded: {told}"
    _count(tally, 0 if told else 2)


def _count(tally: Counter[str], code: int) -> None:
    tally["cases"] += 1
    tally["errors" if code else "results"] += 1
