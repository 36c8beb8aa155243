"""Whether false alarms keep their promise: each set trained once, its threshold set for budgets from 0.1 to 10.

On the test rows of the real sets an incident that touches no labelled anomaly is a false alarm, and their time is that
of the rows that are not labelled. Such rows hold faults that nobody labelled and machines that have changed since. The
simulator's pumps and cards are normal throughout. One network and one prediction for all budgets; what a budget changes
is the threshold and how views are balanced. Ingest and validation are those of a user; rows are scored in one go.
"""

import sys
from datetime import timedelta
from pathlib import Path

import polars as pl

from benchmarks._common import DAY, ROOT, Result, nightsift, real_data
from pipeline import tracking, train
from pipeline.config import Threshold
from pipeline.incidents import entity_days
from pipeline.score import predict, weigh
from pipeline.sequences import build_steps, in_order
from pipeline.simulate import simulate
from pipeline.workspace import Workspace, open_workspace

BUDGETS = (0.1, 0.3, 1.0, 3.0, 10.0)
TELLING = 5  # promised false alarms in the whole stretch, from which on a rate is told
REAL = ("skab", "asd", "smd", "nab")
SIMULATED = {"pumps": (20, 14, 14), "cards": (1000, 21, 14)}  # entities, days to train on, days to test
NOBODY = pl.DataFrame(schema={"entity": pl.String, "start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")})


def measure(quick: bool, scratch: Path) -> Result:
    """By set its normal entity-days, and for each budget what was aimed at and realised, per entity and day."""
    found: Result = {}
    for name in ("pumps",) if quick else (*REAL, *SIMULATED):
        folder = scratch / name
        found[name] = realised(*(_real(name, folder) if name in REAL else _simulated(name, folder)))
        print(name, found[name], file=sys.stderr)
    return found


def _real(name: str, folder: Path) -> tuple[Workspace, pl.DataFrame]:
    """The workspace of a set with the YAML of `nightsift init`, and what its rows are."""
    (folder / "source").mkdir(parents=True)
    data, labels = (pl.read_parquet(real_data(name) / f"{what}.parquet") for what in ("data", "labels"))
    data.write_parquet(folder / "source" / "rows.parquet")
    nightsift(folder, "init", name, "--source", "source/*.parquet", "--entity", "entity", "--event-time", "timestamp")
    about = labels.select(
        "entity", event_time="timestamp", test=pl.col("split") == "test", anomalous=pl.col("is_anomaly") == 1
    )
    return open_workspace(name, folder / "var", folder / "datasets"), about


def _simulated(name: str, folder: Path) -> tuple[Workspace, pl.DataFrame]:
    entities, learned, tested = SIMULATED[name]
    source = folder / "var" / "source" / name
    simulate(name, days=learned + tested, entities=entities, seed=1, folder=source, anomalies=0)
    rows = pl.concat(pl.read_parquet(file) for file in sorted((source / "labels").glob("rows-*.parquet")))
    test = pl.col("event_time") >= rows["event_time"].min() + timedelta(days=learned)
    about = rows.select("entity", "event_time", test=test, anomalous="is_anomaly")
    return open_workspace(name, folder / "var", ROOT / "datasets"), about


def realised(ws: Workspace, about: pl.DataFrame) -> Result:
    """What becomes of each budget on the normal rows to be tested.

    `about`: for each row entity, event_time, whether it is to be tested (the others are learned from) and whether it is
    anomalous.
    """
    moments = about["event_time"]
    first, end = moments.min(), moments.max() + DAY
    keys = ["entity", "event_time"]
    clean = in_order(train.snapshot(ws, first, end, print), ws.dataset)
    about = about.with_columns(pl.col("event_time").cast(clean.schema["event_time"])).unique(keys, keep="first")
    rows = clean.select(keys).join(about, on=keys, how="left", maintain_order="left")
    with tracking.run(ws, "train", "budgets"):
        learned = train.learn(ws.dataset, clean.filter(~rows["test"]), first, {}, NOBODY, NOBODY, print)
    steps = build_steps(clean, ws.dataset, learned.detector.encodings)
    test = rows["test"].to_numpy()[steps.first]
    predicted = predict(learned.detector, steps, test)
    known = train.labels_of(learned.clean)[learned.steps.first]
    day = pl.col("event_time").dt.convert_time_zone(ws.dataset.zone).dt.date().alias("day")
    normal = rows.filter(pl.col("test") & ~pl.col("anomalous"))
    days = entity_days(normal.select("entity", day), ws.dataset)
    found: Result = {"entity_days": days}
    for budget in BUDGETS:
        dataset = ws.dataset.model_copy(update={"threshold": Threshold(false_alarms=budget)})
        detector, _ = train.set_threshold(learned.detector, dataset, learned.steps, learned.part, known, print)
        score = weigh(detector, steps, predicted).score / detector.threshold.factor(steps.names)[steps.entity]
        alarm = pl.Series(score > detector.threshold.value)
        count = false_alarms(rows[steps.first].filter(alarm), ws.dataset.merge_within)
        found[str(budget)] = {
            "aimed": detector.threshold.aimed, "realised": count / days, "telling": budget * days >= TELLING
        }  # fmt: skip
    return found


def false_alarms(alarms: pl.DataFrame, merge: timedelta) -> int:
    """How many incidents the alarms (entity, event_time, anomalous; in order) are that touch nothing anomalous."""
    last = pl.col("event_time").shift().over("entity")
    new = last.is_null() | (pl.col("event_time") - last > merge)
    incidents = alarms.with_columns(new.cum_sum().alias("incident")).group_by("incident")
    return int((~incidents.agg(pl.col("anomalous").any())["anomalous"]).sum())
