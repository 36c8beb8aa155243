"""What stands behind an incident: its entity's nights before, its raw rows, and since when a feature has moved."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipeline.background import NIGHTS, moved_of, past_of, raw_lines, read_backgrounds, read_raw
from pipeline.incidents import incident_id
from pipeline.review import record
from pipeline.tables import incidents_schema
from tests.lake import DAY, at, fill, incident, land, pumps, readings, silence, table, workspace

ALL = frozenset(DAY - timedelta(days=n) for n in range(1, NIGHTS + 1))


def night_before(ago: int, state: str = "open", **changes) -> dict:
    start = at("10:00") - timedelta(days=ago)
    return incident("pump-1", start, start, day=DAY - timedelta(days=ago), **changes) | {"state": state}


def past(*earlier: dict, scored: frozenset[date] = ALL):
    tonight = incident("pump-1", at("14:00"), at("15:00")) | {"state": "open"}
    reviewed = table([*earlier, tonight], incidents_schema() | {"state": pl.String})
    return past_of(tonight, reviewed, scored, pumps(), DAY)


@pytest.mark.parametrize(
    ("earlier", "told"),
    [
        ([], "no incident in the 28 nights before"),
        ([(5, "open")], "1 incident in the 28 nights before, not judged; on 2026-03-20"),
        ([(5, "dismissed")], "1 incident in the 28 nights before, dismissed; on 2026-03-20"),
        (
            [(9, "open"), (5, "open")],
            "2 incidents in the 28 nights before, none of them judged; the latest on 2026-03-20",
        ),
        (
            [(9, "confirmed"), (7, "dismissed"), (5, "open")],
            "3 incidents in the 28 nights before, 1 confirmed and 1 dismissed; the latest on 2026-03-20",
        ),
    ],
)
def test_the_nights_before_are_told_in_a_sentence(earlier: list[tuple[int, str]], told: str) -> None:
    """How many incidents, what became of them, and when the latest was."""
    assert past(*(night_before(*each) for each in earlier)).told == told


def test_nights_that_were_not_scored_are_no_quiet_ones() -> None:
    """The sentence says of how many nights anything is known, and the strip leaves the others out."""
    few = frozenset({DAY - timedelta(days=1), DAY - timedelta(days=2)})
    found = past(night_before(2, "confirmed"), scored=few)
    assert found.told == "1 incident in the 2 nights scored of the 28 before, confirmed; on 2026-03-23"
    assert found.nights == ("unknown",) * 26 + ("confirmed", "quiet")
    assert found.spoken == "incidents of the 28 nights before: 2026-03-23: confirmed"
    assert past(scored=frozenset()).told == "none of the 28 nights before was scored"


def test_a_night_with_several_incidents_has_the_state_of_most_weight() -> None:
    """One that was real says more than one that nobody judged, and that more than one that was nothing."""
    same = {"start": at("11:00") - timedelta(days=1), "incident_id": "x"}
    assert past(night_before(1, "dismissed"), night_before(1, "confirmed") | same).nights[-1] == "confirmed"
    assert past(night_before(1, "dismissed"), night_before(1, "open") | same).nights[-1] == "open"


def test_an_incident_over_midnight_is_one_of_each_of_its_nights() -> None:
    """The night in which it began is not quiet; sentence, strip and spoken text name it, also where it ends tonight."""
    over = night_before(5, "confirmed") | {"start": at("23:50") - timedelta(days=6)}
    found = past(over)
    assert found.told == "1 incident in the 28 nights before, confirmed; on 2026-03-19"
    assert found.nights == ("quiet",) * 22 + ("confirmed",) * 2 + ("quiet",) * 4
    assert found.spoken == "incidents of the 28 nights before: 2026-03-19: confirmed; 2026-03-20: confirmed"
    tonight = past(over | {"start": at("23:50") - timedelta(days=1), "day": DAY})
    assert (tonight.told[-10:], tonight.nights[-2:]) == ("2026-03-24", ("quiet", "confirmed"))
    long = past(over | {"start": at("23:50") - timedelta(days=40), "day": DAY - timedelta(days=27)})
    assert (long.told[-10:], long.nights[:3]) == ("2026-02-25", ("confirmed", "confirmed", "quiet"))


def test_an_incident_that_goes_on_is_not_its_own_past() -> None:
    """What began the night before and still lasts has the same id, and is no earlier incident."""
    mine = incident_id("pump-1", at("14:00"), "anomaly")
    assert past(night_before(1) | {"incident_id": mine}).told == "no incident in the 28 nights before"


def test_backgrounds_hold_verdicts_and_silences_of_the_entity_alone(tmp_path: Path) -> None:
    """All that befell the incidents' entities in the 28 nights counts, with its state; what befell others does not."""
    ws = workspace(tmp_path, pumps())
    tonight = incident("pump-1", at("14:00"), at("15:00"))
    fill(ws, readings(ws.dataset, ["pump-1", "pump-2"]), [tonight])
    for ago, entity in ((3, "pump-1"), (4, "pump-2"), (29, "pump-1")):
        start = at("10:00") - timedelta(days=ago)
        ws.lake.replace("incidents", start.date(), table([silence(entity, start, start)], incidents_schema()))
    record(ws, incident_id("pump-1", at("10:00") - timedelta(days=3), "silent"), "dismissed", "", "ana")
    found = read_backgrounds(ws, DAY, table([tonight], incidents_schema()))
    assert found.reviewed.sort("day").select("day", "kind", "state").rows() == [
        (date(2026, 3, 22), "silent", "dismissed"), (DAY, "anomaly", "open"),
    ]  # fmt: skip


def test_raw_rows_are_named_by_file_and_number(tmp_path: Path) -> None:
    """Rows side by side are a stretch, few ones are named, many ones lie between; what others sent does not count."""
    ws = workspace(tmp_path, pumps())
    rows = readings(ws.dataset, ["pump-1", "pump-2"], days=1)
    land(ws, rows.filter(entity="pump-1"), "together.parquet")
    land(ws, rows.sort("event_time", "entity"), "mixed.csv")
    land(ws, rows.filter((pl.col("event_time") == at("14:05")) | (pl.col("entity") == "pump-2")), "late.csv")
    found = read_raw(ws, DAY, table([incident("pump-1", at("14:00"), at("15:00"))], incidents_schema()))
    assert raw_lines(found) == (
        "late.csv, row 1",
        "mixed.csv, 13 rows between 337 and 361",
        "together.parquet, rows 169 to 181",
    )
    short = read_raw(ws, DAY, table([incident("pump-1", at("14:00"), at("14:05"))], incidents_schema()))
    assert raw_lines(short)[1] == "mixed.csv, rows 337 and 339"


def test_more_files_than_can_be_named_are_counted() -> None:
    """The first three files are named, in their order, the others counted."""
    row = {"incident_id": "i", "rows": 1, "first": 1234, "last": 1234, "few": [1234]}
    raw = pl.DataFrame([row | {"source": f"{n}.csv"} for n in range(5)])
    assert raw_lines(raw) == (*(f"{n}.csv, row 1,234" for n in range(3)), "and rows of 2 more files")


def test_raw_rows_of_an_incident_over_midnight_come_from_both_days(tmp_path: Path) -> None:
    """An incident that began the day before names the rows of both days' files."""
    ws = workspace(tmp_path, pumps())
    fill(ws, readings(ws.dataset, ["pump-1"]), [])
    start = datetime(2026, 3, 24, 23, 50, tzinfo=UTC)
    found = read_raw(ws, DAY, table([incident("pump-1", start, at("00:05"))], incidents_schema()))
    assert raw_lines(found) == ("pumps-2026-03-24.parquet, rows 287 to 288", "pumps-2026-03-25.parquet, rows 1 to 2")


def test_a_feature_has_moved_since_the_first_night_without_a_break() -> None:
    """A scored night on which it had not moved is a break, a night that was not scored is none."""
    nights = [DAY - timedelta(days=n) for n in range(10)]
    moved = {DAY, nights[1], nights[3], nights[6]}
    found = moved_of(moved, ALL - {nights[2]}, DAY)
    assert found.since == nights[3]
    assert len(found.nights) == NIGHTS + 1
    assert found.nights[-4:] == ("moved", "unknown", "moved", "moved")
    assert moved_of({DAY}, ALL, DAY).since == DAY
