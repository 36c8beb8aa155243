"""What the registered model reads in a plain frame; what it scores is in test_night.py."""

from datetime import UTC, datetime

import polars as pl
import pytest

from pipeline.errors import ConfigError
from pipeline.registered import read
from tests.lake import pumps


def at(times: pl.Series) -> pl.DataFrame:
    """One step of a pump in Berlin for each time, as the model reads it."""
    frame = pl.DataFrame({"event_time": times}).with_columns(entity=pl.lit("p1"), flow=1.0, vibration=2.0)
    return read(frame, pumps(zone="Europe/Berlin"))


@pytest.mark.parametrize(
    ("local", "utc"), [("2026-10-25 02:10", "2026-10-25 00:10"), ("2026-03-29 02:10", "2026-03-29 01:10")]
)
@pytest.mark.parametrize("as_text", [True, False])
def test_local_times_of_the_hour_in_which_clocks_change_are_read(local: str, utc: str, as_text: bool) -> None:
    """One that happens twice is the earlier one, one that never happens is a near one; a night knows them likewise."""
    (moment,) = at(pl.Series([local] if as_text else [datetime.fromisoformat(local)]))["event_time"]
    assert moment == datetime.fromisoformat(utc).replace(tzinfo=UTC)


@pytest.mark.parametrize("number", [1_774_432_800, 1_774_432_800_000_000, 1_774_432_800.5])
def test_numbers_are_no_times(number: float) -> None:
    """They do not say whether they count seconds or nanoseconds, and a wrong guess would be believed."""
    with pytest.raises(ConfigError, match=r"which does not say of what unit .* pandas\.to_datetime"):
        at(pl.Series([number]))


@pytest.mark.parametrize("times", [["2026-03-25 10:00", "yesterday"], ["2026-03-25 10:00", None]])
def test_what_is_no_time_is_quoted(times: list[str | None]) -> None:
    """A missing one too: a step without a time has no place."""
    with pytest.raises(ConfigError, match=r"of which not all are times .event_time: ('yesterday' is not|missing)"):
        at(pl.Series(times))
