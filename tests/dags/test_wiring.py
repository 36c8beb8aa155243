"""What the DAG files share: which day, stretch or days a run is about."""

from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import wiring
from pipeline.config import Dataset, load_dataset
from pipeline.errors import ConfigError
from tests.dags.conftest import SHIPPED


def dataset(zone: str = "UTC") -> Dataset:
    return load_dataset("pumps", SHIPPED).model_copy(update={"zone": zone})


def run(**facts: datetime | str) -> SimpleNamespace:
    return SimpleNamespace(**{"partition_key": None, "logical_date": None, "run_after": None, **facts})


def test_a_night_is_the_day_before_its_run_in_the_zone_of_the_dataset() -> None:
    """At 23:30 UTC it is the next day in Berlin, so the night is another one there."""
    late = datetime(2026, 3, 5, 23, 30, tzinfo=UTC)
    assert wiring.night_of(dataset(), {}, run(run_after=late)) == date(2026, 3, 4)
    assert wiring.night_of(dataset("Europe/Berlin"), {}, run(run_after=late)) == date(2026, 3, 5)


def test_a_night_goes_by_its_partition_not_by_when_it_got_to_run() -> None:
    """A scheduled run that starts days late, or a backfill of the past, is about the day of its partition."""
    facts = run(partition_key="2026-03-04", run_after=datetime(2026, 3, 9, tzinfo=UTC))
    assert wiring.night_of(dataset(), {}, facts) == date(2026, 3, 4)


@pytest.mark.parametrize(
    ("cron", "zone", "moment", "due"),
    [
        ("30 2 * * *", "UTC", "2026-03-05T06:00", date(2026, 3, 4)),
        ("30 2 * * *", "Europe/Berlin", "2026-03-29T04:00", date(2026, 3, 28)),
        ("0 22 * * *", "UTC", "2026-03-05T06:00", date(2026, 3, 3)),
        ("30 2 * * 1-5", "UTC", "2026-03-07T06:00", None),
        ("30 2 * * 1-5", "UTC", "2026-03-09T06:00", date(2026, 3, 8)),
    ],
)
def test_the_night_that_is_due_is_that_of_the_last_scheduled_run(
    cron: str, zone: str, moment: str, due: date | None
) -> None:
    """On a day without a run none is due; clocks that change make no difference."""
    scheduled = dataset(zone).model_copy(update={"schedule": cron})
    assert wiring.night_due(scheduled, datetime.fromisoformat(moment).replace(tzinfo=UTC)) == due


def test_the_day_of_the_form_wins() -> None:
    """`day` chooses the night, whatever the clock and the partition say."""
    facts = run(partition_key="2026-03-04", run_after=datetime(2026, 3, 9, tzinfo=UTC))
    assert wiring.night_of(dataset(), {"day": "2026-01-31"}, facts) == date(2026, 1, 31)


@pytest.mark.parametrize(
    ("schedule", "partition", "last"),
    [
        ("30 2 * * *", "2026-03-04", "2026-03-04"),
        ("0 0 * * *", "2026-03-04", "2026-03-04"),
        ("30 23 * * *", "2026-03-04", "2026-03-04"),
        ("30 2 * * 1-5", "2026-03-06", "2026-03-08"),  # a Friday: the next run is on Monday
        ("30 2 * * 1-5", "2026-03-04", "2026-03-04"),
        ("30 2 1 * *", "2026-03-01", "2026-03-31"),
        (None, "2026-03-06", "2026-03-06"),
    ],
)
def test_no_day_is_left_out_where_the_schedule_leaves_out_days(schedule: str, partition: str, last: str) -> None:
    """A run is about every day since the run before; summer time, which begins on 29 March, changes nothing."""
    berlin = dataset("Europe/Berlin").model_copy(update={"schedule": schedule})
    found = wiring.nights_of(berlin, {}, run(partition_key=partition))
    assert found == (date.fromisoformat(partition), date.fromisoformat(last))


@pytest.mark.parametrize("day", ["2026-03-09", "2026-03-10"])
def test_a_day_that_has_not_ended_is_refused(day: str) -> None:
    """By the clock of the zone: what is still to come is no silence."""
    noon = datetime(2026, 3, 9, 12, tzinfo=UTC)
    for params, key in (({"day": day}, None), ({}, day)):
        with pytest.raises(ConfigError, match=f"{day} has not ended: today is 2026-03-09 in UTC"):
            wiring.nights_of(dataset(), params, run(partition_key=key), noon)
    late = datetime(2026, 3, 8, 23, 30, tzinfo=UTC)
    assert wiring.night_of(dataset("Europe/Berlin"), {"day": "2026-03-08"}, run(), late) == date(2026, 3, 8)


def test_a_run_before_its_time_is_about_no_day_that_has_not_ended() -> None:
    """A Friday's partition, run on Sunday, ends with the Saturday."""
    weekdays = dataset().model_copy(update={"schedule": "30 2 * * 1-5"})
    found = wiring.nights_of(weekdays, {}, run(partition_key="2026-03-06"), datetime(2026, 3, 8, 12, tzinfo=UTC))
    assert found == (date(2026, 3, 6), date(2026, 3, 7))


def test_the_day_of_the_form_is_one_day() -> None:
    """Whoever asks for a Friday gets the Friday, whatever the schedule."""
    weekdays = dataset().model_copy(update={"schedule": "30 2 * * 1-5"})
    found = wiring.nights_of(weekdays, {"day": "2026-03-06"}, run(partition_key="2026-03-04"))
    assert found == (date(2026, 3, 6), date(2026, 3, 6))


def test_training_learns_from_the_days_before_its_run() -> None:
    """By default the stretch ends with the day before the run and is `training.days` long, in the dataset's zone."""
    facts = run(run_after=datetime(2026, 3, 9, 12, tzinfo=UTC))
    start, end = wiring.stretch_of(dataset("Europe/Berlin"), {"from": None, "to": None}, facts)
    assert (start, end) == (datetime(2026, 2, 8, 23, tzinfo=UTC), datetime(2026, 3, 8, 23, tzinfo=UTC))


def test_training_on_nothing_is_refused() -> None:
    """`from` on or after `to` is a mistake, and is said to be one."""
    with pytest.raises(ConfigError, match="from must be before to"):
        wiring.stretch_of(dataset(), {"from": "2026-03-02", "to": "2026-03-02"}, run())


def test_the_tasks_of_a_run_are_told_with_their_times() -> None:
    """Those that succeeded; the shards of a mapped one together."""
    done = [
        {"task_id": "validate", "map_index": -1, "state": "success", "operator": "op", "duration": 2.0},
        {"task_id": "score", "map_index": 0, "state": "success", "operator": "op", "duration": 3.0},
        {"task_id": "score", "map_index": 1, "state": "success", "operator": "op", "duration": 4.5},
        {"task_id": "notify", "map_index": -1, "state": "failed", "operator": "op", "duration": 1.0},
        {"task_id": "report", "map_index": -1, "state": "skipped", "operator": "op", "duration": None},
    ]
    asked = SimpleNamespace(
        dag_id="d", run_id="r", get_task_breadcrumbs=lambda dag, run: done * ((dag, run) == ("d", "r"))
    )
    assert wiring.task_seconds(asked) == {"validate": 2.0, "score": 7.5}


def test_the_tables_of_a_dataset_are_looked_after_also_where_its_yaml_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its rows are still there."""
    (tmp_path / "fans.yaml").write_text("kind: senser\n")
    (tmp_path / "pumps.yaml").write_text((SHIPPED / "pumps.yaml").read_text())
    monkeypatch.setenv("NIGHTSIFT_DATASETS", str(tmp_path))
    monkeypatch.setenv("NIGHTSIFT_HOME", str(tmp_path))
    monkeypatch.delenv("NIGHTSIFT_LAKE", raising=False)
    assert [lake.uri("clean") for lake in wiring.lakes()] == [
        f"{tmp_path}/lake/{name}/clean" for name in ("fans", "pumps")
    ]
