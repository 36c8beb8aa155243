"""The facts that travel through the simulator, its streams of random numbers, and which entities are hit on a day."""

import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

# Incidents keep clear of midnight: every one lies between these hours, so that it belongs to one day without doubt.
FIRST_HOUR, LAST_HOUR = 2, 22


@dataclass(frozen=True, slots=True)
class Planted:
    """One planted incident of one entity.

    `kind` names the fault or fraud; `start` and `end` are the first and last affected row's event time (aware, UTC);
    `rows` is how many rows are affected; `features` are the source columns that it touches; `origin` is the terminal
    where a cloned card was copied, else None.
    """

    day: date
    entity: str
    kind: str
    start: datetime
    end: datetime
    rows: int
    features: tuple[str, ...]
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Something wrong with the delivery, not with an entity: `kind` is late, duplicates, broken or silent.

    `day` is the day whose rows it concerns; `rows` is how many were held back, repeated or broken, or never came;
    `entities` are those concerned (empty where rows of any entity were taken); `file` is where the rows arrive, None
    where they never do.
    """

    day: date
    kind: Literal["late", "duplicates", "broken", "silent"]
    rows: int
    entities: tuple[str, ...] = ()
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Day:
    """A day's rows as they truly were: `frame` has the source's columns in file order and a last column, `kind`.

    `kind` (String) names the incident that a row belongs to; null where the row is normal.
    """

    frame: pl.DataFrame
    planted: tuple[Planted, ...]


class Simulator(Protocol):
    """What the pumps and the cards both give: days, and how their rows are written and broken."""

    entity: ClassVar[str]  # the source column that names the entity
    event_id: ClassVar[str | None]  # the source column that identifies a row, where there is one
    ending: ClassVar[str]  # how the names of its files end
    ways_to_break: ClassVar[int]  # how many rows `spoil` wants

    @property
    def names(self) -> pl.Series:
        """The entities' names, in order."""
        ...

    def day(self, index: int, chosen: "Choice") -> Day:
        """The rows of day `index` with the chosen incidents."""
        ...

    def spoil(self, frame: pl.DataFrame, rows: list[int]) -> dict[str, pl.DataFrame]:
        """`frame` with the given rows broken, one way each: frames to write, by what is added to the file's name."""
        ...

    def write(self, frame: pl.DataFrame, file: Path) -> None:
        """Write the rows as this source would."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """How many incidents a day has, whom they may hit, and from which kind on the kinds take turns."""

    count: int
    entities: Integers
    turn: int

    def kind(self, position: int, kinds: tuple[str, ...]) -> str:
        """The kind of the day's incident number `position`: kinds take turns, so that all of them come."""
        return kinds[(self.turn + position) % len(kinds)]


def stream(seed: int, name: str, day: int = 0) -> np.random.Generator:
    """The random numbers of one purpose and one day, independent of all other purposes and days."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), day + 1000])


def choose(seed: int, day: int, entities: int, rate: float, spared: int | None) -> Choice:
    """The day's choice at `rate` incidents per entity and day; never hits the entity with index `spared`.

    The count is the expected number, rounded up or down at random so that its mean is right.
    """
    rng = stream(seed, "incidents", day)
    expected = rate * entities
    order = rng.permutation(entities)
    return Choice(int(expected + rng.random()), order[order != spared], int(expected * day))


def midnight(day: date) -> datetime:
    """The first moment of `day`, aware, UTC."""
    return datetime.combine(day, time(), UTC)


def day_after(start: date, index: int) -> date:
    """The date of day `index`, where day 0 is `start`."""
    return start + timedelta(days=index)


def microseconds(moment: datetime) -> int:
    """`moment` (aware) as microseconds since 1970."""
    return int(moment.timestamp()) * 1_000_000
