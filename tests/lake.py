"""A lake that no night has made: tables and states as a night would leave them, for tests of what reads them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.config import Dataset, Home
from pipeline.incidents import find_incidents, incident_id
from pipeline.lake import Lake
from pipeline.score import Scored
from pipeline.state import State, write_state
from pipeline.tables import (
    clean_schema,
    drifts_schema,
    incidents_schema,
    landing_schema,
    quarantine_schema,
    scores_schema,
    verdicts_schema,
)
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


@dataclass(frozen=True)
class Fault:
    """What a pump's sensor tells beside the truth: `size` spreads more, at once or (`slowly`) in the end."""

    entity: str
    feature: str
    start: datetime
    end: datetime
    size: float
    slowly: bool = False


# Of each sensor the unit, the usual level, how far the day moves it, and its spread.
SENSORS = {
    "flow": ("m3/h", 120, 9, 1.5), "pressure": ("bar", 5, 0.3, 0.08), "vibration": ("mm/s", 1.4, 0.05, 0.09),
    "current": ("A", 42, 4, 0.7), "bearing_temperature": ("°C", 36, 3, 0.5), "motor_temperature": ("°C", 47, 4, 0.6),
}  # fmt: skip
FAULTS = (
    Fault("pump-0018", "vibration", at("09:32"), at("10:12"), 45),
    Fault("pump-0007", "vibration", at("18:21"), at("21:04"), 12, slowly=True),
    Fault("pump-0007", "bearing_temperature", at("18:21"), at("21:04"), 9, slowly=True),
    Fault("pump-0014", "current", at("14:04"), at("17:21"), -8),
    Fault("pump-0003", "pressure", at("02:10"), at("02:25"), -10),
    Fault("pump-0003", "flow", at("02:10"), at("02:25"), -7),
    Fault("pump-0011", "motor_temperature", at("11:40"), at("13:10"), 9, slowly=True),
    Fault("pump-0001", "current", at("07:35"), at("07:37"), 7),
)


def fleet() -> Dataset:
    """Pumps that send six features a minute."""
    features = [{"name": name, "unit": unit} for name, (unit, *_) in SENSORS.items()]
    return pumps(cadence="1m", features=features, description="Water pumps of different age, six sensors each")


def observed_night(dataset: Dataset, entities: Sequence[str], faults: Sequence[Fault], days: int = 2) -> pl.DataFrame:
    """Clean and scored rows as a fleet sends them up to `DAY`; the score is the worst error in spreads, smoothed."""
    random, minutes = np.random.default_rng(7), np.arange(days * 1440)
    start = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC) - timedelta(days=days - 1)
    moments = pl.datetime_range(start, start + timedelta(days=days), "1m", time_unit="us", closed="left", eager=True)
    frames = []
    for number, entity in enumerate(entities):
        columns, errors = {}, []
        for name, (_, level, swing, spread) in SENSORS.items():
            expected = level * (0.9 + number % 7 / 30) + swing * np.sin(2 * np.pi * (minutes / 1440 - 0.3))
            value = expected + random.normal(0, spread, len(minutes))
            for fault in faults:
                if (fault.entity, fault.feature) == (entity, name):
                    during = moments.is_between(fault.start, fault.end).to_numpy()
                    rise = np.linspace(0.2, 1, during.sum()) if fault.slowly else random.uniform(0.6, 1, during.sum())
                    value[during] += fault.size * spread * rise
            errors.append(np.convolve(np.abs(value - expected) / spread, np.ones(5) / 5, "same"))
            columns |= {name: value.round(3), f"observed_{name}": value.round(3), f"expected_{name}": expected}
        score, total = np.max(errors, axis=0), np.sum(np.square(errors), axis=0)
        shares = {f"contribution_{name}": error**2 / total for name, error in zip(SENSORS, errors, strict=True)}
        told = {"entity": entity, "score": score, "p_value": np.exp(-3 * score), "threshold": 3.0,
                "is_anomaly": score > 3, "detector_version": "7-abc"}  # fmt: skip
        frames.append(pl.DataFrame({"event_time": moments} | columns | shares | told))
    return pl.concat(frames).with_columns(pl.col("event_time").dt.date().alias("day"))


def true_night(folder: Path) -> Workspace:
    """A night as a fleet of 20 pumps has it: faults, a silent pump, a drift, quarantined rows, and nights before it."""
    ws = workspace(folder, fleet())
    rows = observed_night(ws.dataset, [f"pump-{n:04}" for n in range(1, 21)], FAULTS)
    rows = rows.filter((pl.col("entity") != "pump-0009") | (pl.col("event_time") < at("16:20")))
    bad = [("pump-0004", f"flow: {812.5 + n} is above 400 m3/h", n) for n in range(5)]
    bad += [("pump-0017", "pressure: 'ERR 17' is not a number", 5)]
    kept = [
        {"entity": who, "event_time": at(f"03:0{n}"), "flow": 812.5 + n, "source": f"pumps-{DAY}.parquet",
         "source_row": 100 + n, "reasons": [why]} for who, why, n in bad
    ]  # fmt: skip
    fill(ws, rows, [], kept, ["warning: flow: 99.98 % of the rows are up to 400 m3/h, at least 99.99 % should be"])
    find_incidents(ws, DAY)
    _nights_before(ws)
    return ws


def _nights_before(ws: Workspace) -> None:
    """Four weeks of nights with now and then an incident, most of them judged, and a pump that has drifted lately."""
    names, said = [fault.entity for fault in FAULTS], []
    for ago in range(28, -1, -1):
        day = DAY - timedelta(days=ago)
        if ago < 9:
            drift = {"entity": "pump-0012", "feature": "bearing_temperature", "observed": 43.1, "usual": 36.4,
                     "deviations": 4.6}  # fmt: skip
            ws.lake.replace("drifts", day, table([drift], drifts_schema()))
        if ago == 0:
            continue
        start = at("10:00") - timedelta(days=ago)
        drivers = ("vibration", 0.9, 2.4, 1.4)
        found = [incident(names[ago % 8], start, start + timedelta(hours=1), drivers, day=day)] if ago % 3 else []
        ws.lake.replace("incidents", day, table(found, incidents_schema()))
        scored = Scored(str(day), 28800, 60, 20, "7-abc", 0.05)
        write_state(ws, State(day, "score", "i", "c", "7-abc", asdict(scored)))
        if ago % 5 != 1:
            verdict = {"verdict": ["confirmed", "dismissed"][ago % 4 // 2], "note": "", "reviewer": "ana",
                       "reviewed_at": start + timedelta(days=1)}  # fmt: skip
            said += [{name: each.get(name) for name in verdicts_schema()} | verdict for each in found]
    ws.lake.append("verdicts", pl.DataFrame(said, schema={"day": pl.Date} | verdicts_schema()))
