"""A fleet of water pumps: one reading a minute from six sensors.

What is physics: a centrifugal pump's curve and the affinity laws (head falls with the square of the flow and grows with
the square of the speed), the system that it works against (a static lift and friction that grows with the square of the
flow), shaft power from flow, head and efficiency, the three-phase motor's current, and bearings and windings that
warm and cool as first-order lags (Gülich, Centrifugal Pumps, 3rd ed., chapters 1, 4 and 11). A leak lies between the
pump and the meters, so the pump delivers more, the meters see less, and the motor draws more.

What is invention: every number of the fleet (sizes, ages, wear, noise, how often readings fail), the shape of a day's
demand, how vibration depends on speed, age and operating point, how strong and how long faults are, and that a fault
ends on the same day, as if somebody had mended it. Rows after its end are labelled normal, although the windings may
still be up to 8 K too warm and cool for an hour.
"""

from dataclasses import dataclass, field, fields
from datetime import date, timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from scipy.signal import lfilter

from pipeline.simulate.plan import (
    FIRST_HOUR,
    LAST_HOUR,
    Choice,
    Day,
    Floats,
    Integers,
    Planted,
    day_after,
    microseconds,
    midnight,
    stream,
)  # fmt: skip

NEIGHBOURS = 5  # readings before and after a broken text that come with it
SENSORS = ("flow", "pressure", "vibration", "current", "bearing_temperature", "motor_temperature")
KINDS = ("leak", "cavitation", "bearing_wear", "stuck_sensor", "drift")
TOUCHES = {
    "leak": ("flow", "pressure", "current"),
    "cavitation": ("vibration", "flow", "pressure", "current"),
    "bearing_wear": ("vibration", "bearing_temperature", "current"),
}
STICKS = ("flow", "pressure", "current")  # sensors whose frozen value shows, as the load moves them all day
DRIFTS = ("flow", "pressure", "current", "motor_temperature")
LENGTHS = {"leak": (40, 180), "cavitation": (30, 120), "bearing_wear": (120, 240), "stuck_sensor": (90, 240),
           "drift": (180, 480)}  # minutes, shortest and longest  # fmt: skip

MINUTES = 1440
WARM_UP = 240  # minutes before midnight from which the lags start: six times the slowest, so that days join smoothly
KNOT = 15  # minutes between the knots of slow noise
SLOW = 180.0  # minutes, how long slow noise remembers
BEARING_LAG, MOTOR_LAG = 15.0, 40.0  # minutes
COOLING = 45  # minutes at the end of a bearing's wear in which it only cools: three times its lag
SHUTOFF, STATIC = 1.25, 0.4  # head at no flow and static lift, as shares of the rated head
VOLTS, POWER_FACTOR, MOTOR_EFFICIENCY = 400.0, 0.86, 0.93
BAR_PER_METRE = 0.0980665
NOISE = (0.6, 0.03, 0.05, 0.25, 0.15, 0.2)  # standard deviation in the sensor's unit; for vibration a share
DECIMALS = (1, 3, 3, 2, 1, 1)
LOST_CELLS, LOST_ROWS, OUTAGES = 0.001, 0.001, 0.02  # shares of cells and of rows; outages per pump and day


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the pumps are, arrays of shape `(pumps, 1)`: rated flow (m3/h) and head (m), age (years) and so on."""

    flow: Floats
    head: Floats
    suction: Floats  # bar
    efficiency: Floats  # of the new pump at its best point
    age: Floats  # years, on the first day
    smoothness: Floats  # mm/s of the new pump at rated speed
    bearing_rise: Floats  # K above the hall at rated speed
    motor_rise: Floats  # K above the hall at rated current
    base: Floats  # share of rated speed at night
    morning: Floats  # what demand adds to it
    evening: Floats
    shift: Floats  # hours, how much earlier or later than the others
    weekend: Floats  # what of the demand is left at the weekend
    second: Floats  # of the minute, when it reports


@dataclass(frozen=True, slots=True)
class Faults:
    """What physical faults do, arrays that broadcast to `(pumps, minutes)`; all zero for a healthy fleet."""

    leak: Floats = field(default_factory=lambda: np.zeros((1, 1)))  # share of the flow lost before the meters
    cavitation: Floats = field(default_factory=lambda: np.zeros((1, 1)))  # share of the pump's head lost
    friction: Floats = field(default_factory=lambda: np.zeros((1, 1)))  # of the bearings, added share
    shaking: Floats = field(default_factory=lambda: np.zeros((1, 1)))  # vibration, added share


@dataclass(frozen=True, slots=True)
class Fault:
    """A planned fault: pump's index, kind, first minute of the day, minutes, strength 0 to 1, sensor and sign."""

    pump: int
    kind: str
    start: int
    length: int
    strength: float
    sensor: int
    sign: int

    @property
    def window(self) -> slice:
        """The minutes of the day that are affected."""
        return slice(self.start, self.start + self.length)

    @property
    def features(self) -> tuple[str, ...]:
        """The sensors that show it."""
        return TOUCHES.get(self.kind, (SENSORS[self.sensor],))


@dataclass(frozen=True, slots=True)
class Duty:
    """Where pumps work: flow through the meters (m3/h), head (m), shaft power (kW), flow over the best point's flow."""

    flow: Floats
    head: Floats
    power: Floats
    ratio: Floats


def build_fleet(pumps: int, seed: int) -> Fleet:
    """`pumps` machines of similar size and different age; about a third of them barely follow the day's demand."""
    rng = stream(seed, "pumps/fleet")

    def between(low: float, high: float) -> Floats:
        return rng.uniform(low, high, (pumps, 1))

    lively = np.where(between(0, 1) < 0.7, 1.0, 0.4)
    return Fleet(
        flow=between(120, 220), head=between(30, 60), suction=between(0.3, 1.2), efficiency=between(0.74, 0.82),
        age=between(0, 15), smoothness=between(0.8, 1.6), bearing_rise=between(18, 28), motor_rise=between(40, 60),
        base=between(0.76, 0.82), morning=lively * between(0.10, 0.16), evening=lively * between(0.07, 0.14),
        shift=rng.normal(0, 0.6, (pumps, 1)), weekend=between(0.6, 1.0), second=between(0, 50),
    )  # fmt: skip


def operate(
    fleet: Fleet, speed: Floats, friction: Floats, faults: Faults, worn: Floats, *, static: float = STATIC
) -> Duty:
    """Where pump curve and system curve meet, `(pumps, minutes)`.

    `speed` is a share of the rated speed, `friction` the system's friction over its usual value, `worn` a share of
    head and efficiency lost to age, `static` the share of the rated head that is lift.
    Pump: `H = H0·s² - k·Q²`; system: `H = lift + r·((1 - leak)·Q)²`.
    """
    shutoff = SHUTOFF * fleet.head * (1 - worn) * (1 - faults.cavitation) * speed**2
    lift = static * fleet.head
    curve = (SHUTOFF - 1) * fleet.head / fleet.flow**2
    system = (1 - static) * fleet.head / fleet.flow**2 * friction * (1 - faults.leak) ** 2
    through = np.sqrt(np.maximum(shutoff - lift, 0) / (curve + system))
    head = shutoff - curve * through**2
    ratio = through / (speed * fleet.flow)
    efficiency = fleet.efficiency * (1 - worn) * (1 - 0.6 * (ratio - 1) ** 2)
    power = through * head * 9.81 / 3600 / efficiency
    return Duty(through * (1 - faults.leak), head, power, ratio)


def motor_current(power: Floats, rated: Floats) -> Floats:
    """Amperes of a three-phase motor at shaft power `power` (kW): working and magnetising part at right angles."""
    per_kilowatt = 1000 / (np.sqrt(3) * VOLTS * POWER_FACTOR * MOTOR_EFFICIENCY)
    return np.hypot(power * per_kilowatt, 0.35 * rated * per_kilowatt)


def lag(target: Floats, minutes: float) -> Floats:
    """A first-order lag along the last axis: what `target` pulls, reached with time constant `minutes`."""
    keep = float(np.exp(-1 / minutes))
    start = keep * target[:, :1]
    settled: Floats = lfilter([1 - keep], [1, -keep], target, axis=-1, zi=start)[0]
    return settled


def slow_noise(seed: int, name: str, day: int, rows: int) -> Floats:
    """Noise of mean 0 and variance 1 that wanders over hours, `(rows, WARM_UP + MINUTES)`, the same whoever asks.

    An autoregression over knots KNOT minutes apart, joined by straight lines. Each day draws its own knots and the
    recursion starts three days back, so that a day needs no history and yet joins the day before.
    """
    knots = MINUTES // KNOT
    drawn = np.hstack([stream(seed, name, each).standard_normal((rows, knots)) for each in range(day - 3, day + 2)])
    keep = float(np.exp(-KNOT / SLOW))
    walked = lfilter([np.sqrt(1 - keep**2)], [1, -keep], drawn, axis=-1)
    first = 3 * knots - WARM_UP // KNOT
    left, right = walked[:, first : 4 * knots, None], walked[:, first + 1 : 4 * knots + 1, None]
    share = np.arange(KNOT) / KNOT
    joined: Floats = (left * (1 - share) + right * share).reshape(rows, -1)
    return joined


def demanded_speed(fleet: Fleet, date_of_day: date, wander: Floats) -> Floats:
    """Speed over rated speed, `(pumps, WARM_UP + MINUTES)`: what a town's demand asks for, plus slow noise."""
    hours = np.arange(-WARM_UP, MINUTES) / 60 - fleet.shift

    def peak(at: float, width: float) -> Floats:
        distance = (hours - at + 12) % 24 - 12
        return np.exp(-0.5 * (distance / width) ** 2)

    demand = fleet.morning * peak(7.5, 2.2) + fleet.evening * peak(19, 2.6) + 0.5 * fleet.morning * peak(13, 3.5)
    weight = _weekend(fleet, date_of_day)
    return np.clip(fleet.base + weight * demand + 0.012 * wander, 0.70, 1.05)


def _weekend(fleet: Fleet, date_of_day: date) -> Floats:
    """What of the demand counts, `(pumps, WARM_UP + MINUTES)`: fades from day to day around midnight."""
    days = [date_of_day + timedelta(days=shift) for shift in (-1, 0, 1)]
    weights = [fleet.weekend if day.weekday() >= 5 else np.ones_like(fleet.weekend) for day in days]
    hours = np.arange(-WARM_UP, MINUTES) / 60
    after, until = np.clip(hours / 4 + 0.5, 0, 1), np.clip((hours - 24) / 4 + 0.5, 0, 1)
    return weights[0] * (1 - after) + weights[1] * (after - until) + weights[2] * until


@dataclass(frozen=True, slots=True)
class Pumps:
    """The simulator of pumps; makes any day by itself."""

    seed: int
    start: date
    fleet: Fleet
    names: pl.Series
    entity: ClassVar[str] = "pump"
    event_id: ClassVar[str | None] = None
    ending: ClassVar[str] = ".parquet"
    ways_to_break: ClassVar[int] = 8

    @classmethod
    def build(cls, pumps: int, seed: int, start: date) -> "Pumps":
        """`pumps` machines named pump-0001 and so on."""
        width = max(4, len(str(pumps)))
        names = pl.Series("pump", [f"pump-{number + 1:0{width}}" for number in range(pumps)])
        return cls(seed, start, build_fleet(pumps, seed), names)

    def day(self, index: int, chosen: Choice) -> Day:
        """The readings of day `index`, sorted by pump and time; columns pump, time, the six sensors, kind."""
        planned = plan_faults(self.seed, index, chosen)
        readings = self._readings(index, planned)
        times = self._times(index)
        kept = _lose(self.seed, index, readings, planned)
        kinds = np.zeros(kept.shape, np.int8)
        for fault in planned:
            kinds[fault.pump, fault.window] = 1 + KINDS.index(fault.kind)
        frame = _frame(self.names, times, readings, kinds, kept)
        return Day(frame, tuple(self._planted(index, fault, times) for fault in planned))

    def _readings(self, index: int, planned: list[Fault]) -> Floats:
        """What the sensors say, `(6, pumps, MINUTES)`, before anything is lost."""
        truth = self._truth(index, plan_effects(planned, len(self.names), self.seed, index))
        noise = stream(self.seed, "pumps/sensors", index).standard_normal(truth.shape, dtype=np.float32)
        for sensor, sd in enumerate(NOISE):
            truth[sensor] += noise[sensor] * sd * (truth[sensor] if SENSORS[sensor] == "vibration" else 1)
        _mislead(truth, planned, self.fleet)
        return np.stack([np.round(values, places) for values, places in zip(truth, DECIMALS, strict=True)])

    def _truth(self, index: int, faults: Faults) -> Floats:
        """What truly happens in the fleet, `(6, pumps, MINUTES)`: the physics, without the sensors."""
        fleet, pumps = self.fleet, len(self.names)
        today = day_after(self.start, index)
        years = fleet.age + index / 365
        speed = demanded_speed(fleet, today, slow_noise(self.seed, "pumps/demand", index, pumps))
        friction = 1 + 0.04 * slow_noise(self.seed, "pumps/friction", index, pumps)
        rated = operate(fleet, np.ones((1, 1)), np.ones((1, 1)), Faults(), np.zeros((1, 1)))
        duty = operate(fleet, speed, friction, faults, 0.006 * years)
        current = motor_current(duty.power * (1 + 0.05 * faults.friction), rated.power)
        hall = _hall(self.seed, index, today)
        load = current / motor_current(rated.power, rated.power)
        bearing = lag(hall + fleet.bearing_rise * speed**1.5 * (1 + 0.01 * years + faults.friction), BEARING_LAG)
        motor = lag(hall + fleet.motor_rise * load**2, MOTOR_LAG)
        vibration = fleet.smoothness * speed**2 * (1 + 0.08 * years) * (1 + 1.5 * (duty.ratio - 1) ** 2)
        vibration = vibration * (1 + faults.shaking)
        pressure = fleet.suction + BAR_PER_METRE * duty.head
        return np.stack([part[:, WARM_UP:] for part in (duty.flow, pressure, vibration, current, bearing, motor)])

    def _times(self, index: int) -> Integers:
        """Event times, `(pumps, MINUTES)`, microseconds: each pump at its own second, give or take 2 s."""
        start = microseconds(midnight(day_after(self.start, index)))
        rng = stream(self.seed, "pumps/clock", index)
        jitter = rng.integers(0, 4000, (len(self.names), MINUTES), dtype=np.int64) * 1000
        return start + np.arange(MINUTES) * 60_000_000 + (self.fleet.second * 1000).astype(np.int64) * 1000 + jitter

    def _planted(self, index: int, fault: Fault, times: Integers) -> Planted:
        window = times[fault.pump, fault.window]
        base = midnight(day_after(self.start, index))
        first, last = (base + timedelta(microseconds=int(at) - microseconds(base)) for at in window[[0, -1]])
        return Planted(base.date(), self.names[fault.pump], fault.kind, first, last, len(window), fault.features)

    def spoil(self, frame: pl.DataFrame, rows: list[int]) -> dict[str, pl.DataFrame]:
        """Six rows broken in place, and two with a text for a number, each among the readings before and after it.

        Only a file whose columns are texts can hold a text, so these stand in a file of their own.
        """
        wrong = {"pump": None, "time": None, "flow": float("inf"), "pressure": -50.0, "vibration": 9999.0,
                 "bearing_temperature": 850.0}  # fmt: skip
        in_place, texts = rows[: len(wrong)], rows[len(wrong) :]
        number = pl.int_range(pl.len())
        cells = [
            pl.when(number == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
            for row, (column, value) in zip(in_place, wrong.items(), strict=False)
        ]
        around = {each for row in texts for each in range(row - NEIGHBOURS, row + NEIGHBOURS + 1)} - set(in_place)
        moved = sorted(each for each in around if 0 <= each < frame.height)
        words = [texts.index(row) if row in texts else None for row in moved]
        text = pl.Series("pressure", [None if word is None else ("ERR 17", "12,4 bar")[word] for word in words])
        as_text = frame[moved].with_columns(pl.col(SENSORS).cast(pl.String))
        return {
            "": frame.with_columns(cells).filter(~number.is_in(moved)),
            "-text": as_text.with_columns(pl.coalesce(text, "pressure").alias("pressure")),
        }

    def write(self, frame: pl.DataFrame, file: Path) -> None:
        """Write the readings as Parquet."""
        frame.write_parquet(file, compression="zstd", compression_level=1)


def plan_faults(seed: int, day: int, chosen: Choice) -> list[Fault]:
    """The day's faults, one pump each, within the hours that keep clear of midnight."""
    rng = stream(seed, "pumps/faults", day)
    return [_plan_fault(int(pump), chosen.kind(turn, KINDS), rng) for turn, pump in
            enumerate(chosen.entities[: chosen.count])]  # fmt: skip


def _plan_fault(pump: int, kind: str, rng: np.random.Generator) -> Fault:
    length = int(rng.integers(*LENGTHS[kind], endpoint=True))
    start = int(rng.integers(FIRST_HOUR * 60, LAST_HOUR * 60 - length, endpoint=True))
    sensor = str(rng.choice(DRIFTS if kind == "drift" else STICKS))
    return Fault(pump, kind, start, length, float(rng.random()), SENSORS.index(sensor), int(rng.choice((-1, 1))))


def plan_effects(planned: list[Fault], pumps: int, seed: int, day: int) -> Faults:
    """What the day's physical faults do, arrays `(pumps, WARM_UP + MINUTES)`; sensor faults do nothing here."""
    if not any(fault.kind in TOUCHES for fault in planned):
        return Faults()
    faults = Faults(*(np.zeros((pumps, WARM_UP + MINUTES)) for _ in fields(Faults)))
    rng = stream(seed, "pumps/effects", day)
    for fault in planned:
        at = (fault.pump, slice(WARM_UP + fault.start, WARM_UP + fault.start + fault.length))
        _act(faults, fault, at, rng)
    return faults


def _act(faults: Faults, fault: Fault, at: tuple[int, slice], rng: np.random.Generator) -> None:
    """Write one fault's course into the arrays: leaks open fast, cavities flutter, bearings heat up slowly."""
    minute = np.arange(fault.length)
    if fault.kind == "leak":
        faults.leak[at] = (0.15 + 0.15 * fault.strength) * np.clip((minute + 1) / 10, 0, 1)
    elif fault.kind == "cavitation":
        flutter = np.exp(rng.normal(0, 0.35, fault.length))
        faults.cavitation[at] = np.minimum((0.05 + 0.07 * fault.strength) * flutter, 0.3)
        faults.shaking[at] = np.minimum((0.6 + 1.2 * fault.strength) * flutter, 6)
    elif fault.kind == "bearing_wear":
        course = np.clip((minute + 1) / (0.5 * fault.length), 0, 1) * (minute < fault.length - COOLING)
        faults.friction[at] = (0.4 + 0.6 * fault.strength) * course
        faults.shaking[at] = (0.6 + 1.4 * fault.strength) * course


def _mislead(readings: Floats, planned: list[Fault], fleet: Fleet) -> None:
    """Let stuck and drifting sensors show what they do, in place."""
    rated = (fleet.flow, BAR_PER_METRE * fleet.head, None, None, None, None)
    for fault in planned:
        shown = readings[fault.sensor, fault.pump]
        if fault.kind == "stuck_sensor":
            shown[fault.window] = shown[fault.start]
        elif fault.kind == "drift":
            scale = rated[fault.sensor]
            size = float(np.mean(shown) if scale is None else scale[fault.pump, 0])
            course = np.linspace(0, 1, fault.length)
            shown[fault.window] += fault.sign * (0.10 + 0.12 * fault.strength) * size * course


def _hall(seed: int, index: int, today: date) -> Floats:
    """The air around the pumps, °C, `(1, WARM_UP + MINUTES)`: the year, the day, and the weather's slow noise."""
    hours = np.arange(-WARM_UP, MINUTES) / 60
    turn = 2 * np.pi * (today.timetuple().tm_yday + hours / 24) / 365
    warmth: Floats = 15 - 6 * np.cos(turn) - 2.5 * np.cos(2 * np.pi * (hours - 3) / 24)
    return warmth + slow_noise(seed, "pumps/weather", index, 1)


def _lose(seed: int, day: int, readings: Floats, planned: list[Fault]) -> np.ndarray:
    """Lose cells (in place, NaN), rows and whole stretches, never within a fault; True where a row stays."""
    sensors, pumps, minutes = readings.shape
    rng = stream(seed, "pumps/losses", day)
    safe = np.zeros((pumps, minutes), bool)
    for fault in planned:
        safe[fault.pump, fault.window] = True
    kept = np.ones((pumps, minutes), bool)
    lost = rng.integers(0, kept.size, rng.poisson(LOST_ROWS * kept.size))
    kept.flat[lost] = False
    for pump in rng.integers(0, pumps, rng.poisson(OUTAGES * pumps)):
        start = int(rng.integers(0, minutes - 30))
        kept[pump, start : start + int(rng.integers(5, 30))] = False
    cells = rng.integers(0, pumps * minutes, rng.poisson(LOST_CELLS * kept.size * sensors))
    which = rng.integers(0, sensors, len(cells))
    outside = ~safe.flat[cells]
    readings.reshape(sensors, -1)[which[outside], cells[outside]] = np.nan
    return kept | safe


def _frame(names: pl.Series, times: Integers, readings: Floats, kinds: Integers, kept: np.ndarray) -> pl.DataFrame:
    """The kept rows as a frame: pump, time, six sensors, kind."""
    who = np.repeat(np.arange(len(names)), kept.sum(axis=1))
    columns = {name: pl.Series(values[kept]).fill_nan(None) for name, values in zip(SENSORS, readings, strict=True)}
    words = pl.Series([None, *KINDS], dtype=pl.String)
    return pl.DataFrame(
        {
            "pump": names.gather(who),
            "time": pl.Series(times[kept]).cast(pl.Datetime("us", "UTC")),
            **columns,
            "kind": words.gather(kinds[kept]),
        }
    )
