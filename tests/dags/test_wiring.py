"""What the DAG files share: which day, stretch or days a run is about."""

from datetime import UTC, date, datetime
from types import SimpleNamespace

import pytest

from pipeline import wiring
from pipeline.config import Dataset, load_dataset
from pipeline.errors import ConfigError
from tests.dags.conftest import SHIPPED


def dataset(zone: str = "UTC") -> Dataset:
    return load_dataset("pumps", SHIPPED).model_copy(update={"zone": zone})


def run(**facts: datetime) -> SimpleNamespace:
    return SimpleNamespace(**{"data_interval_end": None, "logical_date": None, "run_after": None, **facts})


def test_a_night_is_the_day_before_its_run_in_the_zone_of_the_dataset() -> None:
    """At 23:30 UTC it is the next day in Berlin, so the night is another one there."""
    late = datetime(2026, 3, 5, 23, 30, tzinfo=UTC)
    assert wiring.night_of(dataset(), {}, run(run_after=late)) == date(2026, 3, 4)
    assert wiring.night_of(dataset("Europe/Berlin"), {}, run(run_after=late)) == date(2026, 3, 5)


def test_a_scheduled_night_goes_by_its_interval_not_by_when_it_got_to_run() -> None:
    """A scheduled run that starts a day late, or a backfill of the past, is about the day of its interval."""
    facts = run(data_interval_end=datetime(2026, 3, 5, 2, 30, tzinfo=UTC), run_after=datetime(2026, 3, 9, tzinfo=UTC))
    assert wiring.night_of(dataset(), {}, facts) == date(2026, 3, 4)


def test_the_day_of_the_form_wins() -> None:
    """`day` chooses the night, whatever the clock says."""
    facts = run(run_after=datetime(2026, 3, 9, tzinfo=UTC))
    assert wiring.night_of(dataset(), {"day": "2026-01-31"}, facts) == date(2026, 1, 31)


def test_training_learns_from_the_days_before_its_run() -> None:
    """By default the stretch ends with the day before the run and is `training.days` long, in the dataset's zone."""
    facts = run(run_after=datetime(2026, 3, 9, 12, tzinfo=UTC))
    start, end = wiring.stretch_of(dataset("Europe/Berlin"), {"from": None, "to": None}, facts)
    assert (start, end) == (datetime(2026, 2, 8, 23, tzinfo=UTC), datetime(2026, 3, 8, 23, tzinfo=UTC))


def test_training_on_nothing_is_refused() -> None:
    """`from` on or after `to` is a mistake, and is said to be one."""
    with pytest.raises(ConfigError, match="from must be before to"):
        wiring.stretch_of(dataset(), {"from": "2026-03-02", "to": "2026-03-02"}, run())
