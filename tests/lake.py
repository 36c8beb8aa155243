"""A lake that no night has made: tables and states as a night would leave them, for tests of what reads them."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.config import Dataset, Home
from pipeline.incidents import incident_id
from pipeline.lake import Lake
from pipeline.score import Scored
from pipeline.state import State, write_state
from pipeline.tables import clean_schema, incidents_schema, landing_schema, quarantine_schema, scores_schema
from pipeline.workspace import Workspace

DAY = date(2026, 3, 25)


def pumps(**changes) -> Dataset:
    fields = {
        "name": "pumps", "kind": "sensor", "source": {"path": "x.parquet"}, "entity": "pump", "event_time": "time",
        "cadence": "5m", "description": "Water pumps",
        "features": [{"name": "flow", "unit": "m3/h", "max": 400}, {"name": "vibration", "unit": "mm/s"}],
    }  # fmt: skip
    return Dataset(**{**fields, **changes})


def cards(**changes) -> Dataset:
    fields = {
        "name": "cards", "kind": "transaction", "source": {"path": "x.csv"}, "entity": "card", "event_time": "time",
        "features": [{"name": "amount", "unit": "EUR", "min": 0, "log": True}, {"name": "shop", "type": "categorical"}],
        "sequence_features": [{"name": "since_last", "kind": "time_since_last"},
                              {"name": "count_1h", "kind": "rolling_count", "over": "1h"}],
    }  # fmt: skip
    return Dataset(**{**fields, **changes})


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{DAY}T{text}").replace(tzinfo=UTC)


def incident(entity: str, start: datetime, end: datetime, *drivers: tuple, severity: float = 2.0, **changes) -> dict:
    names = ("feature", "share", "observed", "expected")
    row = {
        "day": DAY, "incident_id": incident_id(entity, start, "anomaly"), "entity": entity, "start": start, "end": end,
        "peak_time": start, "peak_score": 5.0 * severity, "threshold": 5.0, "p_value": 2e-5, "severity": severity,
        "steps": 3, "drivers": [dict(zip(names, driver, strict=True)) for driver in drivers], "kind": "anomaly",
        "detector_version": "7-abc",
    }  # fmt: skip
    return row | changes


def silence(entity: str, start: datetime, end: datetime) -> dict:
    nothing = dict.fromkeys(("peak_score", "threshold", "p_value", "severity", "drivers", "detector_version"))
    name = {"incident_id": incident_id(entity, start, "silent")}
    return incident(entity, start, end) | {"kind": "silent", "steps": 0} | name | nothing


def table(rows: list[dict], schema: dict) -> pl.DataFrame:
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def readings(dataset: Dataset, entities: list[str], days: int = 2) -> pl.DataFrame:
    """Clean and scored rows in one frame: quiet signals, but for vibration from 14:00 to 15:00 in the first entity."""
    start = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC) - timedelta(days=days - 1)
    moments = [start + dataset.cadence * i for i in range(int(timedelta(days=days) / dataset.cadence))]
    high = np.array([at("14:00") <= t <= at("15:00") for t in moments])
    frames = []
    for number, entity in enumerate(entities):
        bad = high & (number == 0)
        wave = np.sin(np.arange(len(moments)) / 20)
        frames.append(pl.DataFrame({
            "entity": entity, "event_time": moments, "flow": 100 + wave, "vibration": 3 + wave / 10 + 12 * bad,
            "score": 1 + wave / 2 + 9 * bad, "p_value": 0.3, "threshold": 5.0, "is_anomaly": bad,
            "expected_flow": 100.0, "expected_vibration": 3.0, "observed_flow": 100 + wave,
            "observed_vibration": 3 + wave / 10 + 12 * bad, "contribution_flow": 0.38, "contribution_vibration": 0.62,
            "detector_version": "7-abc",
        }))  # fmt: skip
    frame = pl.concat(frames).with_columns(pl.col("event_time").dt.cast_time_unit("us"))
    return frame.with_columns(pl.col("event_time").dt.convert_time_zone(dataset.zone).dt.date().alias("day"))


def land(ws: Workspace, rows: pl.DataFrame, source: str) -> None:
    """Write rows of one file, in their order, as they have landed."""
    schema = landing_schema(ws.dataset)
    there = rows.with_columns(
        pl.lit(source).alias("source"), pl.lit("d").alias("source_digest"), source_row=pl.int_range(pl.len())
    )
    missing = (pl.lit(None).alias(name) for name in schema if name not in there.columns)
    ws.lake.replace_source(there.with_columns(missing).select(pl.col(n).cast(t) for n, t in schema.items()), source)


def fill(
    ws: Workspace,
    rows: pl.DataFrame,
    incidents: list[dict],
    quarantine: Sequence[dict] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write what a night leaves: its tables and the states of its steps; each day of `rows` has come in a file."""
    for (day,), part in rows.group_by("day", maintain_order=True):
        ws.lake.replace("clean", day, part.select(list(clean_schema(ws.dataset))))
        land(ws, part, f"{ws.dataset.name}-{day}.parquet")
    ws.lake.replace("scores", DAY, rows.filter(day=DAY).select(list(scores_schema(ws.dataset))))
    ws.lake.replace("incidents", DAY, table(incidents, incidents_schema()))
    ws.lake.replace("quarantine", DAY, table(list(quarantine), quarantine_schema(ws.dataset)))
    clean = len(rows.filter(day=DAY))
    counts = {
        "rows_in": clean + len(quarantine) + 4, "rows_clean": clean, "rows_quarantined": len(quarantine),
        "rows_duplicate": 4, "warnings": list(warnings),
    }  # fmt: skip
    write_state(ws, State(DAY, "validate", "i", "c", counts=counts))
    scored = Scored(str(DAY), clean, 0, rows["entity"].n_unique(), "7-abc", 0.05)
    write_state(ws, State(DAY, "score", "i", "c", "7-abc", asdict(scored)))
    write_state(ws, State(DAY, "incidents", "i", "c", "7-abc", {}))


def workspace(tmp_path: Path, dataset: Dataset) -> Workspace:
    return Workspace(dataset, Home(tmp_path), Lake(str(tmp_path / "lake"), dataset.name))
