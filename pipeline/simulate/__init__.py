"""A simulator of two sources, `pumps` (sensor) and `cards` (transaction), with known anomalies planted in them.

It feeds the demonstration, the tests and the benchmarks: one file a day as a real source would write, and beside them,
in the folder `labels`, what was planted. `pumps.py` and `cards.py` say what of it is physics and what is invention.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import polars as pl

from pipeline.errors import ConfigError
from pipeline.progress import counted
from pipeline.simulate.cards import Cards
from pipeline.simulate.disturb import Delivery, Disturbances, When, as_sent, deliver, plan_disturbances
from pipeline.simulate.plan import Day, Disturbance, Planted, Simulator, choose, day_after
from pipeline.simulate.pumps import Pumps

__all__ = ["Disturbance", "Planted", "Simulated", "read_labels", "read_planted", "simulate"]

SOURCES: dict[str, type[Pumps] | type[Cards]] = {"pumps": Pumps, "cards": Cards}
START = date(2026, 3, 2)  # a Monday
INCIDENTS = {"pumps": 0.02, "cards": 0.002}  # per entity and day
Schema = dict[str, pl.DataType | type[pl.DataType]]
UTC_TIME = pl.Datetime("us", "UTC")
PLANTED: Schema = {
    "day": pl.Date, "entity": pl.String, "kind": pl.String, "start": UTC_TIME, "end": UTC_TIME, "rows": pl.Int64,
    "features": pl.List(pl.String), "origin": pl.String,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Simulated:
    """What was written: the source's files in order, their rows together, what was planted, and what went wrong."""

    kind: str
    folder: Path
    files: tuple[Path, ...]
    rows: int
    planted: tuple[Planted, ...]
    disturbances: tuple[Disturbance, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of `simulate`: what every day needs."""

    kind: str
    source: Simulator
    seed: int
    start: date
    folder: Path
    rate: float
    rate_from: int
    plan: Disturbances

    def truth(self, index: int) -> Day:
        """Day `index` as it truly was."""
        rate = self.rate if index >= self.rate_from else 0.0
        return self.source.day(index, choose(self.seed, index, len(self.source.names), rate, self.plan.silent(index)))

    def file(self, index: int, suffix: str = "") -> Path:
        """The file of day `index`."""
        return self.folder / f"{self.kind}-{day_after(self.start, index)}{suffix}{self.source.ending}"


def simulate(
    kind: Literal["pumps", "cards"] | str,
    *,
    days: int,
    entities: int,
    seed: int,
    folder: Path,
    start: date = START,
    anomalies: float | None = None,
    anomalies_from: int = 0,
    late: When = False,
    duplicates: When = False,
    broken: When = False,
    silent: When = False,
    only_days: Collection[int] | None = None,
) -> Simulated:
    """Write `days` daily files of `entities` pumps or cards into `folder`, and their labels into `folder/labels`.

    Days are counted from 0, the day `start`. A day's content depends on the seed, the entities and what is planted on
    that very day, not on how many days are asked for; `only_days` writes just the files that arrive on these days,
    byte for byte as the whole run would.

    - `anomalies`: planted incidents per entity and day, from day `anomalies_from` on; their kinds take turns. Left out:
      0.02 for pumps, 0.002 for cards.
    - `late`: days on whose afternoon some entities' rows are held back; they arrive in the next day's file `…-late`.
    - `duplicates`: days in whose file some rows stand twice.
    - `broken`: days with rows that cannot be right (no entity, text in a number, values far outside, no time).
    - `silent`: the day from which one entity sends nothing any more.

    Each of the last four takes a day index; late, duplicates and broken also several; True is the last day (for late
    rows the day before it). Files: `pumps-2026-03-02.parquet` (broken texts in a file `…-text`) or
    `cards-2026-03-02.csv.gz`. Labels: `planted-DAY.parquet`, one row an incident, and `rows-DAY.parquet`, one row for
    each row that the source holds by itself: entity, event_time, event_id (cards), is_anomaly, kind.
    Raises `ConfigError` for an unknown kind and for numbers that make no sense.
    """
    anomalies = INCIDENTS.get(kind, 0.0) if anomalies is None else anomalies
    _check(kind, days, entities, seed=seed, anomalies=anomalies, only_days=only_days)
    plan = plan_disturbances(
        seed, days=days, entities=entities, late=late, duplicates=duplicates, broken=broken, silent=silent
    )
    source = SOURCES[kind].build(entities, seed, start)
    run = _Run(kind, source, seed, start, Path(folder), anomalies, anomalies_from, plan)
    (run.folder / "labels").mkdir(parents=True, exist_ok=True)
    indices = sorted(range(days) if only_days is None else set(only_days))
    parts = [_write_day(run, index) for index in counted("days", indices)]
    return Simulated(
        kind,
        run.folder,
        tuple(file for part in parts for file in part.files),
        sum(part.rows for part in parts),
        tuple(planted for part in parts for planted in part.planted),
        tuple(disturbance for part in parts for disturbance in part.disturbances),
    )


def read_planted(folder: Path) -> pl.DataFrame:
    """What is planted in the files of `folder`: day, entity, kind, start, end, rows, features, origin."""
    return _read(folder, "planted", PLANTED)


def read_labels(folder: Path) -> pl.DataFrame:
    """The label of every row of the files in `folder`: entity, event_time, event_id (cards), is_anomaly, kind."""
    return _read(
        folder, "rows", {"entity": pl.String, "event_time": UTC_TIME, "is_anomaly": pl.Boolean, "kind": pl.String}
    )


def _read(folder: Path, what: str, schema: Schema) -> pl.DataFrame:
    files = sorted((Path(folder) / "labels").glob(f"{what}-*.parquet"))
    return pl.read_parquet(files) if files else pl.DataFrame(schema=schema)


def _check(
    kind: str, days: int, entities: int, *, seed: int, anomalies: float, only_days: Collection[int] | None
) -> None:
    if kind not in SOURCES:
        raise ConfigError(f"simulate knows {' and '.join(SOURCES)}, not {kind!r}")
    if days < 1 or entities < 1 or seed < 0:
        raise ConfigError(f"simulate needs 1 day or more, 1 entity or more and a seed of 0 or more; given were {days} "
                          f"days, {entities} entities and seed {seed}")  # fmt: skip
    if not 0 <= anomalies <= 1:
        raise ConfigError(f"anomalies are incidents per entity and day, from 0 to 1, not {anomalies:g}")
    outside = [index for index in only_days or () if not 0 <= index < days]
    if outside:
        raise ConfigError(f"only_days: day index {outside[0]} is outside the {days} days; use 0 to {days - 1}")


def _write_day(run: _Run, index: int) -> Simulated:
    """Write what arrives on day `index`: its own rows, and what was held back on the day before."""
    day = run.truth(index)
    delivery = deliver(run.source, day, index, run.plan, run.seed)
    frames = as_sent(run.source, delivery)
    written = {run.file(index, suffix): frame for suffix, frame in frames.items()}
    if index - 1 in run.plan.late:
        before = deliver(run.source, run.truth(index - 1), index - 1, run.plan, run.seed)
        if before.held.height:
            written[run.file(index, "-late")] = before.held.drop("kind")
    for file, frame in written.items():
        _write(run.source, frame, file)
    _write_labels(run, index, day.planted, pl.concat([delivery.frame, delivery.held]))
    rows = sum(frame.height for frame in written.values())
    wrongs = tuple(_describe(run, index, delivery))
    return Simulated(run.kind, run.folder, tuple(written), rows, day.planted, wrongs)


def _write(source: Simulator, frame: pl.DataFrame, file: Path) -> None:
    """Write aside and rename, so that nobody reads half a file."""
    aside = file.with_name(f".{file.name}.part")
    source.write(frame, aside)
    aside.replace(file)


def _write_labels(run: _Run, index: int, planted: tuple[Planted, ...], rows: pl.DataFrame) -> None:
    """The two label files of day `index`; `rows` are the day's rows as they truly were, with their kind."""
    labels, day = run.folder / "labels", day_after(run.start, index)
    pl.DataFrame([{name: getattr(each, name) for name in PLANTED} for each in planted], schema=PLANTED).write_parquet(
        labels / f"planted-{day}.parquet"
    )
    event_id = [] if run.source.event_id is None else [pl.col(run.source.event_id).alias("event_id")]
    rows.select(
        pl.col(run.source.entity).alias("entity"),
        pl.col("time").alias("event_time"),
        *event_id,
        pl.col("kind").is_not_null().alias("is_anomaly"),
        "kind",
    ).write_parquet(labels / f"rows-{day}.parquet", compression_level=1)


def _describe(run: _Run, index: int, delivery: Delivery) -> Iterator[Disturbance]:
    """What went wrong with the rows of day `index`."""
    day, entity = day_after(run.start, index), run.source.entity
    if delivery.held.height:
        names = tuple(delivery.held[entity].unique().sort())
        yield Disturbance(day, "late", delivery.held.height, names, run.file(index + 1, "-late"))
    if len(delivery.repeated):
        yield Disturbance(day, "duplicates", len(delivery.repeated), (), run.file(index))
    if len(delivery.broken):
        yield Disturbance(day, "broken", len(delivery.broken), (), run.file(index))
    silent = run.plan.silent(index)
    if silent is not None:
        yield Disturbance(day, "silent", delivery.silent.height, (run.source.names[silent],))
