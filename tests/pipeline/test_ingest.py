"""Every source row lands once, whatever the order, repetition and lateness of files."""

import hashlib
import itertools
from datetime import UTC, date, datetime

import polars as pl
import pytest
import time_machine

from pipeline.errors import GateRefusedError, NightsiftError
from pipeline.ingest import _content_digest, ingest, land, place_in_days
from pipeline.lake import Lake
from pipeline.sources import list_files, read_delta, read_file
from pipeline.validate import validate
from tests.conftest import SENSOR, deliver, sensor_day, tables


def test_a_file_lands_once_and_again_only_when_it_changed(make_workspace):
    """A second ingest changes nothing; a changed file replaces what it brought."""
    ws = make_workspace()
    deliver(ws, sensor_day(0), "a")
    first = ingest(ws)
    assert (first.files, first.rows, first.days) == (1, 576, ["2026-01-05"])
    version = ws.lake.version("landing")
    assert ingest(ws).files == 0
    assert ws.lake.version("landing") == version
    deliver(ws, sensor_day(0).head(100), "a")
    assert ingest(ws).rows == 100
    assert len(tables(ws, "landing")["landing"]) == 100


def test_a_machine_of_many_features_lands_and_is_validated(make_workspace):
    """More columns than Delta keeps statistics of are no hindrance; a second ingest knows the file again."""
    names = [f"f{n}" for n in range(60)]
    features = "".join(f"  - {{name: {name}}}\n" for name in names)
    ws = make_workspace(SENSOR.replace("window:", f"{features}window:"))
    deliver(ws, sensor_day(0).with_columns(pl.lit(1.0).alias(name) for name in names), "a")
    assert ingest(ws).rows == 576
    assert validate(ws, date(2026, 1, 5)).rows_clean == 576
    assert ingest(ws).files == 0


def test_the_order_in_which_files_come_does_not_matter(make_workspace):
    """All orders of three files, one of them late rows of an earlier day, give the same landing."""
    parts = {"b": sensor_day(1), "a": sensor_day(0).head(500), "late": sensor_day(0).tail(76)}
    results = []
    for n, order in enumerate(itertools.permutations(parts)):
        ws = make_workspace(home=f"var{n}")
        for name in order:
            deliver(ws, parts[name], name)
            ingest(ws)
        results.append(tables(ws, "landing")["landing"])
    assert all(result.equals(results[0]) for result in results)


def test_good_files_land_even_when_one_is_broken(make_workspace):
    """A truncated file is named in the error; the others are in."""
    ws = make_workspace()
    deliver(ws, sensor_day(0), "a")
    file = deliver(ws, sensor_day(1), "b")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(GateRefusedError, match=r"b\.parquet"):
        ingest(ws)
    assert len(tables(ws, "landing")["landing"]) == 576
    (why,) = land(ws).refused
    assert "b.parquet" in why


def test_a_table_is_read_a_day_at_a_time(make_workspace, monkeypatch):
    """So that a stretch as long as a year fits into memory; a day that did not change is left alone."""
    ws, asked = make_workspace(SENSOR.replace('/*.parquet"', '/table", format: delta')), []
    table = ws.home.root / "source" / "table"
    pl.concat([sensor_day(n) for n in range(3)]).write_delta(table)

    def reading(dataset, home, first, last):
        asked.append((first, last))
        return read_delta(dataset, home, first, last)

    monkeypatch.setattr("pipeline.ingest.read_delta", reading)
    days = [date(2026, 1, n) for n in (4, 5, 6, 7)]
    first = ingest(ws, days[0], days[-1])
    assert (first.files, first.known, first.rows) == (3, 0, 3 * 576)
    assert asked == [(day, day) for day in days]
    sensor_day(1).head(10).write_delta(table, mode="append")
    again = ingest(ws, days[0], days[-1])
    assert (again.files, again.known, again.rows, again.days) == (1, 2, 586, ["2026-01-06"])


def test_a_digest_does_not_depend_on_how_much_is_written_at_once(make_workspace, monkeypatch):
    """It is that of all rows as one text, as the lake has it of tables that landed before."""
    frame = sensor_day(0)
    whole = hashlib.blake2b(frame.write_ndjson().encode(), digest_size=16).hexdigest()
    monkeypatch.setattr("pipeline.ingest.SLICE", 100)
    assert _content_digest(frame) == whole


def test_rows_in_the_future_land_with_a_problem_on_the_last_good_day(make_workspace):
    """A date in 2099 is a problem of its row, not a partition that no night ever sees."""
    ws = make_workspace()
    rows = sensor_day(0).head(3).with_columns(
        time=pl.Series([datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 4, tzinfo=UTC),
                        datetime(2099, 1, 1, tzinfo=UTC)]).cast(pl.Datetime("us", "UTC")))  # fmt: skip
    deliver(ws, rows, "a")
    ingest(ws)
    landed = tables(ws, "landing")["landing"].sort("source_row")
    assert landed["day"].cast(pl.String).to_list() == ["2026-01-05", "2026-01-04", "2026-01-05"]
    assert landed["problems"].to_list() == [[], [], ["event_time: 2099-01-01 00:00:00 is in the future"]]


def test_a_file_of_the_future_alone_blames_no_column(make_workspace):
    """It may be the clock."""
    ws = make_workspace()
    deliver(ws, sensor_day(0), "a")
    told = r"^a\.parquet: every event is later than 2026-01-01 00:00 UTC, a day ahead of this machine's clock; see that"
    with time_machine.travel(datetime(2025, 12, 31, tzinfo=UTC)), pytest.raises(GateRefusedError, match=told):
        ingest(ws)
    assert ingest(ws).rows == 576


def test_a_file_without_any_usable_time_is_refused(make_workspace):
    """The error names the file and the column."""
    ws = make_workspace()
    deliver(ws, sensor_day(0).with_columns(time=pl.lit(None, dtype=pl.Datetime("us", "UTC"))), "a")
    with pytest.raises(GateRefusedError, match=r"a\.parquet.*'?time'?"):
        ingest(ws)


def test_a_day_is_a_day_in_the_datasets_zone(make_workspace):
    """23:30 UTC belongs to the next day in Berlin."""
    ws = make_workspace(SENSOR + "zone: Europe/Berlin\n")
    deliver(ws, sensor_day(0), "a")
    (file,) = list_files(ws.dataset, ws.home)
    placed = place_in_days(read_file(ws.dataset, file), ws.dataset, "a", datetime.now(UTC))
    late = placed.filter(pl.col("event_time") == datetime(2026, 1, 5, 23, 30, tzinfo=UTC))
    assert late["day"].cast(pl.String).unique().to_list() == ["2026-01-06"]


def test_rows_that_are_lost_on_their_way_into_the_lake_are_told_and_read_again(make_workspace, monkeypatch):
    """The table is asked what it holds; nothing of such a file is kept, and the next ingest reads it whole."""
    ws = make_workspace()
    deliver(ws, sensor_day(0), "a")
    deliver(ws, sensor_day(1), "b")
    write = Lake.replace_source

    def lose(self, frame, source, *rest, **note):
        write(self, frame.head(-1) if source == "a.parquet" else frame, source, *rest, **note)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "replace_source", lose)
        with pytest.raises(NightsiftError, match=r"^a\.parquet has 576 rows, but 575 of them have landed in .*again$"):
            ingest(ws)
    assert ws.lake.landed()["source"].unique().to_list() == ["b.parquet"]
    assert ingest(ws).rows == 576


def test_a_day_that_is_not_read_whole_is_not_judged(make_workspace, monkeypatch):
    """The table's own count of the day's rows is what the night goes by."""
    ws = make_workspace()
    deliver(ws, sensor_day(0), "a")
    ingest(ws)
    scan = Lake.scan
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "scan", lambda self, table, *rest: scan(self, table, *rest).slice(1))
        with pytest.raises(NightsiftError, match=r"validation lost or made rows, so that nothing was written: .*576"):
            validate(ws, date(2026, 1, 5))
    assert not ws.lake.exists("clean")
    assert validate(ws, date(2026, 1, 5)).rows_in == 576


def test_a_name_that_is_too_long_for_the_lake_is_refused(make_workspace):
    """A sign of another script counts as many bytes; nothing is half-written."""
    ws = make_workspace()
    deliver(ws, sensor_day(0), "é" * 60)
    with pytest.raises(GateRefusedError, match="the name is too long for the lake"):
        ingest(ws)
    assert not ws.lake.exists("landing")
