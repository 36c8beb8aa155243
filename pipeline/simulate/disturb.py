"""What goes wrong with a delivery: rows that come late, come twice, come broken, or never come."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.errors import ConfigError
from pipeline.simulate.plan import Day, Integers, Simulator, stream

When = bool | int | Collection[int] | None  # which days: none, the usual one (True), one index, or several

NOON = 12
SHARE_LATE = 0.05  # of the entities that sent something in the afternoon
SHARE_TWICE = 0.002  # of the rows


@dataclass(frozen=True, slots=True)
class Disturbances:
    """On which days (indices) what goes wrong, and from which day on and by which entity (index) nothing comes."""

    late: frozenset[int]
    duplicates: frozenset[int]
    broken: frozenset[int]
    silent_from: int | None
    silent_entity: int | None

    def silent(self, index: int) -> int | None:
        """The entity (index) that sends nothing on day `index`; None where all send."""
        return self.silent_entity if self.silent_from is not None and index >= self.silent_from else None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A day's rows as they are delivered: on time (`frame`, with the column kind), held back, and never sent.

    `repeated` and `broken` are row positions in `frame`: those that come twice and those that come broken.
    """

    frame: pl.DataFrame
    held: pl.DataFrame
    silent: pl.DataFrame
    repeated: Integers
    broken: Integers


def plan_disturbances(
    seed: int, *, days: int, entities: int, late: When, duplicates: When, broken: When, silent: When
) -> Disturbances:
    """The plan; True means the last day, or for late rows the day before it. Raises `ConfigError` for a day outside."""
    silent_days = _indices("silent", silent, days - 1, days)
    if len(silent_days) > 1:
        raise ConfigError("silent: one machine falls silent on one day and stays so; give one day index")
    return Disturbances(
        _indices("late", late, days - 2, days - 1),
        _indices("duplicates", duplicates, days - 1, days),
        _indices("broken", broken, days - 1, days),
        next(iter(silent_days), None),
        int(stream(seed, "silent").integers(entities)) if silent_days else None,
    )


def _indices(name: str, when: When, usual: int, limit: int) -> frozenset[int]:
    """The day indices that `when` means."""
    if when is None or when is False:
        return frozenset()
    if when is True:
        when = usual
    chosen = frozenset({when} if isinstance(when, int) else when)
    wrong = sorted(index for index in chosen if not 0 <= index < limit)
    if wrong:
        room = f"indices from 0 to {limit - 1} are possible" if limit > 0 else "there are too few days for it"
        extra = " (late rows arrive on the next day, so the last day has none)" if name == "late" else ""
        raise ConfigError(f"{name}: day index {wrong[0]} is outside the simulated days; {room}{extra}")
    return chosen


def deliver(source: Simulator, day: Day, index: int, plan: Disturbances, seed: int) -> Delivery:
    """What of `day` is delivered when; rows of incidents are never late, repeated or broken."""
    frame, silent = _silence(source, day.frame, index, plan)
    rng = stream(seed, "disturbances", index)
    late = _late(source, frame, rng) if index in plan.late else pl.lit(False)
    on_time, held = frame.filter(~late), frame.filter(late)
    sound = rng.permutation(on_time.select(pl.col("kind").is_null().arg_true()).to_series().to_numpy())
    broken = sound[: source.ways_to_break] if index in plan.broken else sound[:0]
    twice = max(1, int(SHARE_TWICE * len(sound))) if index in plan.duplicates else 0
    repeated = sound[source.ways_to_break :][:twice]
    return Delivery(on_time, held, silent, repeated, broken)


def as_sent(source: Simulator, delivery: Delivery) -> dict[str, pl.DataFrame]:
    """The frames of the day's own files, by what is added to the file's name; a repeated row follows the first."""
    order = np.sort(np.concatenate([np.arange(delivery.frame.height), delivery.repeated]))
    frame = delivery.frame.drop("kind")
    if len(delivery.repeated):
        frame = frame[order]
    broken = [int(row) for row in np.searchsorted(order, delivery.broken)]
    return source.spoil(frame, broken) if broken else {"": frame}


def _silence(
    source: Simulator, frame: pl.DataFrame, index: int, plan: Disturbances
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that are sent, and those of the silent entity that are not."""
    entity = plan.silent(index)
    if entity is None:
        return frame, frame.clear()
    gone = pl.col(source.entity) == source.names[entity]
    return frame.filter(~gone), frame.filter(gone)


def _late(source: Simulator, frame: pl.DataFrame, rng: np.random.Generator) -> pl.Expr:
    """Which rows are held back: the afternoon of some entities that have no incident on this day."""
    hit = frame.filter(pl.col("kind").is_not_null())[source.entity]
    afternoon = pl.col("time").dt.hour() >= NOON
    able = frame.filter(afternoon & ~pl.col(source.entity).is_in(hit.unique().implode()))
    names = able[source.entity].unique().sort()
    count = min(len(names), max(1, round(SHARE_LATE * len(names))))
    return afternoon & pl.col(source.entity).is_in(names.gather(rng.permutation(len(names))[:count]).implode())
