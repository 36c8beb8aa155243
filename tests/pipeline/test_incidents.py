"""Incidents: what fell silent and since when, what the calendar makes of them, and of which scores they are."""

import itertools
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.calendar import Planned
from pipeline.config import Dataset
from pipeline.errors import NightsiftError
from pipeline.incidents import (
    anomalies,
    find_incidents,
    read_incidents,
    renew_incidents,
    silences,
    stale_incidents,
    thinned,
)
from pipeline.score import Scored, config_digest
from pipeline.state import State, read_state, write_state
from pipeline.tables import EVERYONE, clean_schema, scores_schema
from pipeline.workspace import Workspace
from tests.conftest import SENSOR

DAY = date(2026, 3, 25)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
START = datetime(2026, 3, 25, tzinfo=UTC)
PUMPS = Dataset(name="demo", kind="sensor", source={"path": "x.parquet"}, entity="pump", event_time="time",
                cadence="10m", features=[{"name": "flow"}], window={"steps": 4, "rows": 3})  # fmt: skip
CARDS = Dataset(name="demo", kind="transaction", source={"path": "x.parquet"}, entity="card", event_time="time",
                features=[{"name": "amount"}])  # fmt: skip

BERLIN = CARDS.model_copy(update={"zone": "Europe/Berlin"})


def readings(*stretches: tuple[str, float, float]) -> pl.DataFrame:
    """Readings every ten minutes of (entity, first hour, last hour), counted from the beginning of the day."""
    rows = [
        (name, START + first * HOUR + n * 10 * MINUTE)
        for name, first, last in stretches
        for n in range(int((last - first) * 6) + 1)
    ]
    return pl.DataFrame(rows, schema={"entity": pl.String, "event_time": pl.Datetime("us", "UTC")}, orient="row")


def told(found: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Each silence as (entity, first hour, last hour, reason)."""
    rows = found.sort("entity", "start").select("entity", "start", "end", "reason").rows()
    return [(who, (a - START) / HOUR, (b - START) / HOUR, reason) for who, a, b, reason in rows]


def during(first: float, last: float, *entities: str, suppress: bool = False) -> Planned:
    return Planned(START + first * HOUR, START + last * HOUR, entities, "seals", suppress)


OTHERS = ("m2", -48, 23.5)


@pytest.mark.parametrize(
    ("stretches", "found"),
    [
        ([("m1", -48, 23.5), OTHERS], []),
        ([("m1", -48, 14), OTHERS], [("m1", 14, 24, None)]),
        ([("m1", -48, -34), OTHERS], [("m1", -34, 24, None)]),
        ([("m1", -48, -34), ("m1", 10, 23.5), OTHERS], [("m1", -34, 10, None)]),
        ([("m1", -48, -1), ("m1", 1.5, 23.5), OTHERS], [("m1", -1, 1.5, None)]),
        ([("m1", -48, -5), ("m1", 0, 23.5), OTHERS], []),
        ([("m1", 12, 23.5), OTHERS], []),
        ([("m1", -190, -180), OTHERS], []),
        ([("m1", -48, 14), ("m2", -48, 14)], [(EVERYONE, 14, 24, None)]),
        ([("m1", -48, 14), ("m2", -48, 12)], [(EVERYONE, 14, 24, None)]),
        ([("m1", -48, 14), ("m2", -48, 4)], [(EVERYONE, 14, 24, None), ("m2", 4, 24, None)]),
        ([("m1", -48, -34), ("m2", -48, -30)], [(EVERYONE, -30, 24, None)]),
        ([], [(EVERYONE, 0, 24, None)]),
    ],
)
def test_a_silence_begins_with_the_last_reading_before_it(stretches: list[Any], found: list[Any]) -> None:
    """Also over days; who joins, or was gone for a week, is not missed; what is missing of all is one incident."""
    assert told(silences(readings(*stretches), PUMPS, DAY)) == found


def test_a_silence_over_several_nights_is_one_incident() -> None:
    """It has the same id on each day, so that it stands in a list once, and is told once."""
    seen = readings(("m1", -48, 14), ("m2", -48, 71.5))
    days = [DAY + timedelta(days=n) for n in range(3)]
    (first,), (second,), (third,) = (
        silences(seen.filter(pl.col("event_time") < PUMPS.day_bounds(day)[1]), PUMPS, day)["incident_id"]
        for day in days
    )
    assert first == second == third


@pytest.mark.parametrize(
    ("stretches", "found"),
    [
        ([("c1", -200, -170), ("c2", -200, 23.5)], []),
        ([("c1", -200, 10), ("c2", -200, 9)], [(EVERYONE, 10, 24, None)]),
        ([("c1", -200, -30)], [(EVERYONE, -30, 24, None)]),
        ([("c1", -200, -192), ("c1", -178, -170), ("c1", -156, 2), ("c1", 23, 23.5)], []),
        ([("c1", 2, 3)], []),
        ([], [(EVERYONE, 0, 24, None)]),
    ],
)
def test_of_transactions_only_the_whole_source_falls_silent(stretches: list[Any], found: list[Any]) -> None:
    """A card that rests is no incident; all of them for a day, or for twice as long as they ever did, is one."""
    assert told(silences(readings(*stretches), CARDS, DAY)) == found


@pytest.mark.parametrize(
    ("calendar", "found"),
    [
        ([during(8, 12, suppress=True)], []),
        ([during(8, 12, "m1", suppress=True)], []),
        ([during(8, 12, "m2", suppress=True)], [("m1", 8, 12, None)]),
        ([during(7, 12.5)], [("m1", 8, 12, "seals")]),
        ([during(10, 16)], [("m1", 8, 10, None), ("m1", 10, 12, "seals")]),
        ([during(9.5, 20, suppress=True)], [("m1", 8, 9.5, None)]),
        ([during(8, 11, suppress=True)], []),
    ],
)
def test_the_calendar_takes_its_time_out_of_a_silence(calendar: list[Planned], found: list[Any]) -> None:
    """What is left must itself be longer than a window, here two hours, or 1.5 in a row."""
    seen = readings(("m1", -48, 8), ("m1", 12, 23.5), OTHERS)
    short = PUMPS.model_copy(update={"window": PUMPS.window.model_copy(update={"rows": 2})})
    assert told(silences(seen, short, DAY, calendar)) == found


def test_a_holiday_of_a_whole_source_is_no_incident_but_the_day_after_is() -> None:
    """Marked or suppressed by an entry about all; the silence that goes on begins when the holiday ends."""
    seen = readings(("m1", -48, -2))
    assert told(silences(seen, PUMPS, DAY, [during(0, 24, suppress=True)])) == []
    assert told(silences(seen, PUMPS, DAY, [during(0, 24)])) == [(EVERYONE, 0, 24, "seals")]
    assert told(silences(seen, PUMPS, DAY + timedelta(days=1), [during(0, 24)])) == [(EVERYONE, 24, 48, None)]


MINUTES = st.lists(st.integers(-8 * 24 * 60, 24 * 60 - 1), max_size=40)
SEEN = st.dictionaries(st.sampled_from(["a", "b", "c"]), MINUTES)


@settings(max_examples=300, deadline=None)
@given(seen=SEEN, full=st.integers(0, 2), rests=st.sampled_from([(), (30, 290), (-700, 40), (200, 1440)]))
@pytest.mark.parametrize("dataset", [PUMPS, CARDS, BERLIN], ids=["pumps", "cards", "berlin"])
def test_few_steps_tell_every_silence(dataset: Dataset, seen: dict[str, list[int]], full: int, rests: Any) -> None:
    """Of all entities and the source the same silences, to the microsecond, as all steps tell."""
    start = dataset.day_bounds(DAY)[0]
    steady = [m for m in range(-600, 1440, 10) if not (rests and rests[0] <= m < rests[1])]
    fleet = seen | {f"f{n}": [m + n for m in steady] for n in range(full)}
    rows = [(name, start + minute * MINUTE) for name, minutes in fleet.items() for minute in minutes]
    every = pl.DataFrame(rows, schema=readings().schema, orient="row")
    few = thinned(every.lazy(), dataset, DAY)
    assert few.join(every, on=["entity", "event_time"], how="anti").is_empty() or dataset.cadence is None
    assert set(few["entity"]) == set(every["entity"])
    calendar = [during(2, 4), during(9, 12, "a", suppress=True)]
    whole, thin = (silences(each, dataset, DAY, calendar).sort("entity", "start") for each in (every, few))
    assert thin.equals(whole)


def test_few_steps_are_few() -> None:
    """Not all that a sensor sends, but two in each stretch of a window, and two of all the days before."""
    every = readings(("m1", -100, 23.5), ("m2", -100, 23.5))
    assert len(thinned(every.lazy(), PUMPS, DAY)) <= 2 * (2 * 12 + 2) < len(every) / 20


def scored(*times: float, entity: str = "m1", day: date = DAY) -> pl.DataFrame:
    """Anomalous steps of an entity at these hours, the later the higher."""
    rows = [
        {"day": day, "entity": entity, "event_time": START + t * HOUR, "score": 5 + n, "threshold": 4.0,
         "p_value": 1e-4, "is_anomaly": True, "observed_flow": 1.0, "expected_flow": 0.0, "contribution_flow": 1.0,
         "detector_version": "1-abc"}
        for n, t in enumerate(times)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=scores_schema(PUMPS))


def test_an_incident_ends_where_an_entry_begins_or_ends() -> None:
    """A fault before the maintenance is not excused by it; what happens in it has its reason, or is left out."""
    steps = scored(8, 9, 10, 11, 12)
    assert told(anomalies(steps, PUMPS, DAY)) == [("m1", 8, 12, None)]
    assert told(anomalies(steps, PUMPS, DAY, [during(9, 11)])) == [
        ("m1", 8, 8, None), ("m1", 9, 10, "seals"), ("m1", 11, 12, None)
    ]  # fmt: skip
    assert told(anomalies(steps, PUMPS, DAY, [during(9, 11, "m*", suppress=True)])) == [
        ("m1", 8, 8, None), ("m1", 11, 12, None)
    ]  # fmt: skip
    assert told(anomalies(steps, PUMPS, DAY, [during(9, 11, "m2")])) == [("m1", 8, 12, None)]


def publish(ws: Workspace, day: date, scores: pl.DataFrame, seen: pl.DataFrame, made_of: str = "old") -> None:
    """What a scored day leaves."""
    ws.lake.replace("scores", day, scores.drop("day"))
    rows = seen.filter(pl.col("event_time").is_between(*ws.dataset.day_bounds(day), "left"))
    schema = {name: kind for name, kind in clean_schema(ws.dataset).items() if name not in ("day", *seen.columns)}
    ws.lake.replace("clean", day, rows.with_columns(pl.lit(None, dtype=kind).alias(n) for n, kind in schema.items()))
    counts = asdict(Scored(str(day), len(scores), len(scores), 2, "1-abc", 0.05))
    write_state(ws, State(day, "score", made_of, config_digest(ws.dataset), "1-abc", counts))


def test_a_changed_calendar_renews_the_incidents_of_its_days_alone(make_workspace: Any) -> None:
    """Without scoring: the table `scores` keeps its version; days that an entry does not touch keep their incidents."""
    text = ONE_FEATURE
    ws = make_workspace(text)
    seen = readings(("m1", -24, 71.5), ("m2", -24, 71.5))
    days = [DAY + timedelta(days=n) for n in range(10)]
    for n, day in enumerate(days):
        publish(ws, day, scored(24 * n + 8, day=day), seen)
        find_incidents(ws, day)
    assert stale_incidents(ws) == []
    (first,) = read_incidents(ws, DAY, DAY)["reason"]
    assert first is None
    version = ws.lake.version("scores")
    ws = make_workspace(f"{text}calendar: {{entries: [{{start: 2026-03-25, reason: seals}}]}}\n")
    assert renew_incidents(ws) == days[:8]  # the day itself, and those whose silences may reach back to it
    assert renew_incidents(ws) == []
    assert read_incidents(ws, DAY, DAY)["reason"].to_list() == ["seals"]
    state = read_state(ws, DAY, "incidents")
    assert state is not None
    assert (state.counts["incidents"], state.counts["marked"]) == (1, 1)
    assert read_incidents(ws, days[1], days[1]).filter(kind="anomaly")["reason"].to_list() == [None]
    assert ws.lake.version("scores") == version
    ws = make_workspace(f"{text}calendar: {{entries: [{{start: 2026-03-25, reason: x, action: suppress}}]}}\n")
    assert renew_incidents(ws) == days[:8]
    assert len(read_incidents(ws, DAY, DAY)) == 0
    assert renew_incidents(make_workspace(text)) == days[:8]
    assert read_incidents(ws, DAY, DAY)["reason"].to_list() == [None]


ONE_FEATURE = SENSOR.replace("  - {name: heat, unit: K, min: -50, max: 50}\n", "")


@pytest.fixture
def two_days(make_workspace: Any) -> Workspace:
    """A day and the one before it, each scored with one anomalous step."""
    ws: Workspace = make_workspace(ONE_FEATURE)
    for day, hour in ((BEFORE, -16), (DAY, 0.1)):
        publish(ws, day, scored(hour, day=day), readings(("m1", -24, 23.5)))
    return ws


BEFORE = DAY - timedelta(days=1)


@pytest.mark.parametrize(("moved", "hour", "start", "made_of"), [(DAY, 20, 20, "new"), (BEFORE, -0.1, -0.1, "old")])
def test_incidents_are_made_of_the_scores_that_their_record_names(
    two_days: Workspace, monkeypatch: pytest.MonkeyPatch, moved: date, hour: float, start: float, made_of: str
) -> None:
    """Where another run publishes the day, or the day before, while its incidents are made, they are made again."""

    def overtaken(*args: Any) -> pl.DataFrame:
        monkeypatch.setattr("pipeline.incidents.anomalies", anomalies)
        publish(two_days, moved, scored(hour, day=moved), readings(), "new")
        return anomalies(*args)

    monkeypatch.setattr("pipeline.incidents.anomalies", overtaken)
    find_incidents(two_days, DAY)
    (found,) = read_incidents(two_days, DAY, DAY).filter(kind="anomaly")["start"]
    assert (found - START) / HOUR == start
    state = read_state(two_days, DAY, "incidents")
    assert state is not None
    assert state.input_digest == made_of


def test_a_day_that_others_score_all_the_time_is_told(two_days: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few tries; whoever comes last makes its incidents."""
    numbers = itertools.count()

    def overtaken(*args: Any) -> pl.DataFrame:
        publish(two_days, DAY, scored(8), readings(), str(next(numbers)))
        return anomalies(*args)

    monkeypatch.setattr("pipeline.incidents.anomalies", overtaken)
    with pytest.raises(NightsiftError, match="2026-03-25: the day is being scored by others; run it again"):
        find_incidents(two_days, DAY)
    assert next(numbers) == 5


def test_a_source_that_is_silent_for_longer_than_a_week_keeps_its_beginning(make_workspace: Any) -> None:
    """The last reading is looked for beyond the days that a night reads."""
    ws = make_workspace(ONE_FEATURE)
    from tests.conftest import deliver, sensor_day

    deliver(ws, sensor_day(0), "first")
    from pipeline.ingest import ingest
    from pipeline.validate import validate

    ingest(ws)
    first, late = date(2026, 1, 5), date(2026, 2, 20)
    validate(ws, first)
    publish(ws, late, scored(), readings())
    find_incidents(ws, late)
    (row,) = read_incidents(ws, late, late).to_dicts()
    assert (row["entity"], row["start"]) == (EVERYONE, datetime(2026, 1, 5, 23, 50, tzinfo=UTC))
