"""What unknown data is like: which columns are features, what its cadence is, how far its values reach.

Pure functions over a sample of a source; `pipeline.onboard` reads the sample and writes what is found into a YAML.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import polars as pl

from pipeline.canonical import parse_number, parse_text, parse_time
from pipeline.errors import ConfigError

LABEL = re.compile(
    r"(is_?)?(label|anomaly|anomalous|outlier|fraud|attack|target|ground_?truth|changepoint|failure)s?", re.I
)
IDENTIFIER = re.compile(r"(^|.*[_\W])(id|uuid|guid|key|code|no|nr|number|zip|iban)$|.*[a-z]I[dD]$|.*_id_.*", re.I)


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of a source to look at: the source's columns as they are, and each row's entity and time (UTC)."""

    frame: pl.DataFrame
    entity: pl.Series
    times: pl.Series
    naive: bool


@dataclass(frozen=True, slots=True)
class Column:
    """What becomes of a source column: `left_out` says why it is none of the features (empty: it is one)."""

    name: str
    type: str = "numeric"
    values: pl.Series | None = None
    left_out: str = ""


def understand(name: str, frame: pl.DataFrame, entity: str, event_time: str) -> Sample:
    """The rows of `frame` that have an entity and a time; raises `ConfigError` where there is none."""
    times = parse_time(frame[event_time], "event_time", "UTC").values
    entities = parse_text(frame[entity], "entity", required=True).values
    whole = times.is_not_null() & entities.is_not_null()
    if not whole.any():
        raise ConfigError(
            f"{name}: no row has both a name in {entity} and a readable time in {event_time} "
            f"(such as {frame[event_time].drop_nulls().head(1).to_list()!r}); choose other columns"
        )
    dtype = frame[event_time].dtype
    text = dtype == pl.String and not frame[event_time].str.contains(r":[\d.]+ ?([Zz]|UTC|[+-]\d\d:?(\d\d)?)$").any()
    naive = text or dtype == pl.Date or (isinstance(dtype, pl.Datetime) and dtype.time_zone is None)
    return Sample(frame.filter(whole), entities.filter(whole), times.filter(whole), naive)


def columns_of(sample: Sample, entity: str, event_time: str) -> list[Column]:
    """What becomes of each column beside the entity's and the event time's, in the order of the source."""
    return [_column(sample.frame[name]) for name in sample.frame.columns if name not in (entity, event_time)]


def _column(cells: pl.Series) -> Column:
    """Whether a column is a numeric or a categorical feature, or why it is none."""
    if cells.dtype.is_nested() or cells.dtype.is_temporal() or cells.dtype == pl.Binary:
        return Column(cells.name, left_out=f"of type {cells.dtype}")
    given = _text_to_null(cells).drop_nulls()
    numbers = _numbers(given)
    if reason := _says_nothing(cells.name, given, numbers):
        return Column(cells.name, left_out=reason)
    if numbers is not None and not (IDENTIFIER.fullmatch(cells.name) or _counts_up(numbers, cells)):
        return Column(cells.name, values=numbers)
    if given.n_unique() == cells.len():
        return Column(cells.name, type="identifier", left_out="different in every row")
    if given.n_unique() > 0.5 * given.len():
        return Column(cells.name, left_out="different in most rows")
    return Column(cells.name, type="categorical", values=given)


def _says_nothing(name: str, given: pl.Series, numbers: pl.Series | None) -> str:
    """Why no model can learn from the column's values; empty where one can."""
    if given.is_empty():
        return "no value in the sample"
    if given.n_unique() == 1:
        return f"always {plain(given[0])}"
    if numbers is not None and LABEL.fullmatch(name) and set(numbers.unique()) == {0.0, 1.0}:
        return "looks like a label, which is not known when a night is scored"
    return ""


def _text_to_null(cells: pl.Series) -> pl.Series:
    if cells.dtype.is_float():
        return cells.fill_nan(None)
    return parse_text(cells, cells.name).values if not cells.dtype.is_numeric() else cells


def _numbers(given: pl.Series) -> pl.Series | None:
    """The finite values where the column is one of numbers, else None."""
    cells = parse_number(given, given.name)
    values = cells.values.drop_nulls()
    return values if values.len() and cells.problems.null_count() == given.len() else None


def _counts_up(numbers: pl.Series, cells: pl.Series) -> bool:
    """A row number: whole, in every row another, never falling."""
    whole = bool((numbers == numbers.round()).all())
    return whole and numbers.len() == cells.len() >= 20 and numbers.n_unique() == numbers.len() and numbers.is_sorted()


def find_cadence(sample: Sample) -> timedelta | None:
    """The time between two readings where most follow each other by that time; None for events at any time."""
    table = pl.DataFrame({"entity": sample.entity, "time": sample.times}).sort("entity", "time")
    gaps = table.select(pl.col("time").diff().over("entity").dt.total_microseconds()).to_series()
    gaps = gaps.filter(gaps > 0)
    if gaps.is_empty():
        return None
    usual = int(gaps.round_sig_figs(2).mode().sort()[0])
    near = gaps.filter(gaps.is_between(0.8 * usual, 1.2 * usual))
    if near.len() < 0.5 * gaps.len():
        return None
    return _rounded(timedelta(microseconds=_quantiles(near, 0.5)[0]))


def _rounded(gap: timedelta) -> timedelta:
    """A round time within a fiftieth of `gap` where there is one."""
    for unit in (timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1), timedelta(milliseconds=1)):
        near = round(gap / unit) * unit
        if near and abs(near - gap) <= gap / 50:
            return near
    return gap


def fitting_window(kind: str, sample: Sample) -> tuple[int, int]:
    """Steps and rows: small enough that a typical entity's history holds several windows."""
    if kind == "transaction":
        return 8, 4
    (typical,) = _quantiles(sample.entity.value_counts()["count"], 0.5)
    return next(size for size, least in (((8, 8), 512), ((8, 4), 128), ((4, 4), 48), ((4, 2), 0)) if typical >= least)


def generous_bounds(numbers: pl.Series) -> tuple[float, float]:
    """Bounds far outside of what was seen: ten times its range on either side, but 0 where nothing is negative."""
    low, high = _quantiles(numbers, 0, 1)
    margin = min(10 * (high - low), 1e300)
    return 0.0 if low >= 0 else _two_digits(low - margin, math.floor), _two_digits(high + margin, math.ceil)


def _two_digits(value: float, towards: Callable[[float], int]) -> float:
    """`value` rounded to two digits, up (`math.ceil`) or down (`math.floor`)."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return float(f"{towards(value / unit) * unit:.1e}")


def is_heavy_tailed(numbers: pl.Series) -> bool:
    """Whether a non-negative value spans orders of magnitude, so that its logarithm is the better measure."""
    low, middle, high = _quantiles(numbers, 0, 0.5, 0.99)
    return low >= 0 and middle > 0 and high > 10 and high > 4 * middle


def plain(value: Any) -> Any:
    """A number as short as it is read back: whole ones without a point. Anything else as it is."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")


def _quantiles(numbers: pl.Series, *shares: float) -> list[float]:
    return [float(numbers.quantile(share) or 0.0) for share in shares]
