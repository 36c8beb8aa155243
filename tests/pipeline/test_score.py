"""Which nights are to be scored, what a night is recorded to be made of, and what a kill leaves."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import tracking
from pipeline.errors import NightsiftError
from pipeline.ingest import ingest
from pipeline.night import why_missing
from pipeline.score import (
    Scored,
    Shard,
    bounds_between,
    config_digest,
    night_digest,
    plan_shards,
    publish,
    scan_clean,
    stale_days,
)
from pipeline.state import State, day_states, write_state
from pipeline.tables import clean_schema, drifts_schema, scores_schema
from pipeline.validate import validate
from pipeline.workspace import Workspace
from tests.conftest import SENSOR, START, deliver, sensor_day

FIRST = START.date()
SUITE = "expectations:\n  - type: expect_column_values_to_be_between\n    column: flow\n    max_value: 900\n"


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def record(ws: Workspace, *days: date) -> None:
    """What scoring these days from what is landed leaves."""
    for each in days:
        for step in ("score", "incidents"):
            write_state(ws, State(each, step, night_digest(ws, each), config_digest(ws.dataset), "1-abc", {}))


def publish_by(ws: Workspace, detector: str) -> None:
    """Publish one step of the first day, scored by `detector`."""
    shard = Shard(str(FIRST), 0, 1, detector, night_digest(ws, FIRST))
    stage(ws, shard)
    publish(ws, [shard])


def halves(ws: Workspace) -> list[Shard]:
    """Two shards of the first day."""
    first = Shard(str(FIRST), 0, 2, "1-abc", night_digest(ws, FIRST), end="m2")
    return [first, replace(first, index=1, begin="m2", end=None)]


def stage(ws: Workspace, shard: Shard) -> None:
    """Stage one step of the first day as what `shard` has scored."""
    row = {"entity": "m0", "event_time": START, "score": 1.0, "is_anomaly": False, "detector_version": shard.detector}
    schema = {name: kind for name, kind in scores_schema(ws.dataset).items() if name != "day"}
    told = json.dumps(asdict(Scored(shard.day, 1, 0, 1, shard.detector, 0.2)))
    ws.lake.stage(shard.part(0), pl.DataFrame([row], schema=schema))
    ws.lake.stage(shard.drifts, pl.DataFrame(schema=drifts_schema()).drop("detector_version", "day", strict=False))
    ws.lake.stage(shard.key, pl.DataFrame({"parts": [1], "scored": [told]}))


def staged(ws: Workspace) -> tuple[Workspace, list[Shard]]:
    """A night whose two shards are scored and not published."""
    deliver(ws, sensor_day(0), "day-0")
    ingest(ws)
    shards = halves(ws)
    for shard in shards:
        stage(ws, shard)
    return ws, shards


def test_what_a_second_run_stages_after_the_first_has_published_is_removed(
    make_workspace: Callable[..., Workspace],
) -> None:
    """Of two runs at the same time the slower one finds the night published, and leaves nothing of its own behind."""
    ws, shards = staged(make_workspace())
    first = publish(ws, shards)
    stage(ws, shards[1])
    assert publish(ws, shards).steps == first.steps
    assert [file for file in Path(ws.lake.root).rglob("_staging/**/*") if file.is_file()] == []


def test_a_night_that_another_run_has_published_meanwhile_is_published_once_more(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one night, of which one removes what is staged while the other one has just begun to publish it."""
    ws, shards = staged(make_workspace())

    def clear_then_write(ws: Workspace, state: State) -> None:
        ws.lake.unstage(shards[0].place)
        write_state(ws, state)

    monkeypatch.setattr("pipeline.score.write_state", clear_then_write)
    assert publish(ws, shards).steps == 2
    assert pl.read_delta(ws.lake.uri("scores"))["entity"].to_list() == ["m0", "m0"]
    assert why_missing(ws, FIRST, {"1-abc"}) == "it is not scored"  # only its incidents are missing


def test_shards_are_ranges_of_entities_with_about_as_many_rows_each(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entity is of exactly one, in order, also one that comes in between or beyond; and no shard is empty."""
    ws = make_workspace(SENSOR + "shards: 4\n")
    monkeypatch.setattr("pipeline.score.prepare", lambda *_: [])
    monkeypatch.setattr(tracking, "champion", lambda _: tracking.Version("1", "1-abc", Path()))
    rows = {f"m{n}": 5 + 10 * (n % 3) for n in range(9)}
    fill(ws, rows)
    planned = plan_shards(ws, FIRST)
    assert [shard.index for shard in planned] == [0, 1, 2, 3]
    names = [scan_clean(ws, FIRST, FIRST, shard).collect()["entity"] for shard in planned]
    most = sum(rows.values()) / 4 + max(rows.values())
    assert all(0 < len(each) <= most for each in names)
    fill(ws, rows | {"a": 1, "m35": 1, "z": 1, "Ä": 1})
    carried = [Shard(**json.loads(json.dumps(asdict(shard)))) for shard in planned]
    found = [
        name for shard in carried for name in scan_clean(ws, FIRST, FIRST, shard).collect()["entity"].unique().sort()
    ]
    assert found == sorted([*rows, "a", "m35", "z", "Ä"])
    assert [shard.key for shard in carried] == [shard.key for shard in planned]
    assert replace(planned[0], end="m1").key != planned[0].key


def test_there_are_no_more_shards_than_entities(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are asked for; and one where there is nothing to score."""
    ws = make_workspace(SENSOR + "shards: 4\n")
    monkeypatch.setattr("pipeline.score.prepare", lambda *_: [])
    monkeypatch.setattr(tracking, "champion", lambda _: tracking.Version("1", "1-abc", Path()))
    assert len(plan_shards(ws, FIRST)) == 1
    fill(ws, {"m1": 3, "m2": 3, "n1": 100})
    assert 1 < len(plan_shards(ws, FIRST)) <= 3
    assert [shard.begin for shard in plan_shards(ws, FIRST, entities=["m*"])] == [None, "m2"]


def test_shards_of_a_very_large_night_have_about_as_many_rows_each() -> None:
    """Of 96 million rows, counted in what Polars counts in."""
    counts = pl.DataFrame(
        {"entity": [f"{n:05}" for n in range(10_000)], "len": [9600] * 10_000}, schema_overrides={"len": pl.UInt32}
    )
    assert bounds_between(counts, 100) == [f"{n:05}" for n in range(100, 10_000, 100)]


def test_shards_that_an_earlier_version_planned_are_refused() -> None:
    """They name no bounds: each would score, and publish, all entities."""
    planned = {"day": str(FIRST), "index": 1, "count": 2, "detector": "1-abc", "inputs": "digest"}
    with pytest.raises(NightsiftError, match=r"2026-01-05 were planned by an earlier version; run validate again$"):
        Shard(**planned)
    assert Shard(**planned | {"index": 0, "count": 1}).begin is None


def fill(ws: Workspace, rows: dict[str, int]) -> None:
    """Make the first day in `clean` that of entities with so many rows each."""
    schema = {name: kind for name, kind in clean_schema(ws.dataset).items() if name != "day"}
    found = [
        {"entity": name, "event_time": START + timedelta(minutes=n)} for name, most in rows.items() for n in range(most)
    ]
    ws.lake.replace("clean", FIRST, pl.DataFrame(found, schema=schema))


def test_rows_that_land_while_a_night_is_planned_make_it_out_of_date(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input that a night is recorded to be made of is never newer than what was validated."""
    ws = make_workspace()
    deliver(ws, sensor_day(0).head(300), "day-0")
    ingest(ws)

    def validate_then_land(ws: Workspace, day: date) -> Any:
        done = validate(ws, day)
        deliver(ws, sensor_day(0), "day-0")
        ingest(ws)
        return done

    monkeypatch.setattr("pipeline.score.validate", validate_then_land)
    monkeypatch.setattr(tracking, "champion", lambda _: tracking.Version("1", "1-abc", Path()))
    (shard,) = plan_shards(ws, FIRST)
    assert shard.inputs != night_digest(ws, FIRST)


def test_a_kill_between_scores_and_their_record_leaves_a_night_to_be_done(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the day was done before from the same input: the record must not speak of other rows."""
    ws = make_workspace()
    deliver(ws, sensor_day(0), "day-0")
    ingest(ws)
    publish_by(ws, "1-abc")
    write_state(ws, State(FIRST, "incidents", night_digest(ws, FIRST), ws.dataset.digest(), "1-abc", {}))
    assert (stale_days(ws, day(30)), why_missing(ws, FIRST, {"1-abc"})) == ([day(30)], "")

    def die_at_the_end(ws: Workspace, state: State) -> None:
        if state.input_digest:
            raise KeyboardInterrupt
        write_state(ws, state)

    monkeypatch.setattr("pipeline.score.write_state", die_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        publish_by(ws, "2-def")
    assert stale_days(ws, day(30)) == [FIRST, day(30)]
    assert why_missing(ws, FIRST, {"1-abc"}) == "its scoring has not ended"


def test_a_night_whose_incidents_are_of_earlier_scores_is_not_done(make_workspace: Callable[..., Workspace]) -> None:
    """The process ended after the scores of another detector, and before their incidents."""
    ws = make_workspace()
    record(ws, FIRST)
    write_state(ws, State(FIRST, "incidents", night_digest(ws, FIRST), ws.dataset.digest(), "0-old", {}))
    assert day_states(ws, FIRST)["score"].detector_version == "1-abc"
    assert why_missing(ws, FIRST, {"0-old"}) == "its scoring has not ended"


@pytest.mark.parametrize("changed", ["yaml", "suite"])
def test_a_changed_configuration_concerns_the_last_week_alone(
    make_workspace: Callable[..., Workspace], tmp_path: Path, changed: str
) -> None:
    """Months of history are left to a backfill; a late file of long ago is scored as ever."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "suite.yaml").write_text(SUITE)
    text = f"{SENSOR}suite: suite.yaml\n"
    ws, old, latest, tonight = make_workspace(text), FIRST, day(60), day(61)
    record(ws, old, latest)
    assert stale_days(ws, tonight) == [tonight]
    if changed == "yaml":
        ws = make_workspace(text.replace("unit: K", "unit: C"))
    else:
        (tmp_path / "datasets" / "suite.yaml").write_text(SUITE.replace("900", "800"))
    assert stale_days(ws, tonight) == [latest, tonight]
    record(ws, old, latest)
    deliver(ws, sensor_day(0), "late")
    ingest(ws)
    assert stale_days(ws, tonight) == [old, tonight]
