"""Upkeep makes tables of few files and frees the disk; no row changes, and nobody who reads or writes notices."""

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from deltalake.table import TableOptimizer

from pipeline.cli import main
from pipeline.config import Home
from pipeline.errors import NightsiftError
from pipeline.lake import ENDED, KEPT, RETENTION, Lake
from pipeline.upkeep import keep_up, keep_up_all, leftovers, sweep

DAY = date(2026, 1, 5)
DAYS = [DAY + timedelta(days=n) for n in range(3)]
LATER = datetime.now(UTC) + ENDED + timedelta(hours=1)  # by then no day was written for a while


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Three days of eight states, a verdict of each day in five commits, and a day that was replaced."""
    lake = Lake(str(tmp_path / "lake"), "demo")
    for day in DAYS:
        for step in "abcdefgh":
            write_step(lake, day, step, "first")
        for said in range(5):
            lake.append("verdicts", pl.DataFrame({"day": [day], "verdict": [f"{said}"]}))
        lake.replace("clean", day, frame("old"))
        lake.replace("clean", day, frame("new"))
    return lake


def frame(value: str) -> pl.DataFrame:
    return pl.DataFrame({"entity": ["a", "b"], "value": [value] * 2})


def write_step(lake: Lake, day: date, step: str, value: str) -> None:
    lake.replace("partitions", day, pl.DataFrame({"step": [step], "value": [value]}), where=f"step = '{step}'")


def rows(lake: Lake, table: str) -> list[tuple]:
    return sorted(pl.read_delta(lake.uri(table)).rows())


def files(lake: Lake, table: str) -> list[str]:
    return DeltaTable(lake.uri(table)).file_uris()


def set_retention(lake: Lake, *tables: str, text: str = "interval 0 seconds") -> None:
    for table in tables:
        DeltaTable(lake.uri(table)).alter.set_table_properties({RETENTION: text})


def test_small_files_of_days_that_rest_become_one(lake: Lake) -> None:
    """Rows stay as they are; a day that was written lately is left alone, and a dry run changes nothing."""
    before = {table: rows(lake, table) for table in ("partitions", "verdicts", "clean")}
    assert keep_up(lake).merged == 0
    assert keep_up(lake, LATER, dry_run=True).merged == 3 * 8 + 3 * 5
    assert len(files(lake, "partitions")) == 3 * 8
    assert keep_up(lake, LATER).merged == 3 * 8 + 3 * 5
    assert len(files(lake, "partitions")) == len(files(lake, "verdicts")) == 3
    assert {table: rows(lake, table) for table in before} == before
    assert keep_up(lake, LATER).merged == 0


def test_days_that_nights_replace_as_a_whole_keep_their_files(lake: Lake) -> None:
    """They are sorted by entity over the files, and few."""
    before = sorted(files(lake, "clean"))
    assert lake.merge_files("clean", LATER) == 0
    assert sorted(files(lake, "clean")) == before


def test_what_was_replaced_goes_when_its_time_is_over_and_not_before(lake: Lake) -> None:
    """A table says itself how long that is: a month, unless an operator has set another time in Delta's own way."""
    kept = {RETENTION: f"interval {KEPT.days} days", "delta.checkpointInterval": "10"}
    assert DeltaTable(lake.uri("clean")).metadata().configuration == kept
    on_disk = len(list(Path(lake.uri("clean")).rglob("*.parquet")))
    assert keep_up(lake).unused == 0
    old = DeltaTable(lake.uri("clean"), version=1).to_pyarrow_table()
    assert old.num_rows == 2
    set_retention(lake, "clean")
    assert keep_up(lake, dry_run=True).unused == 3
    assert keep_up(lake).unused == 3
    data = [path for path in Path(lake.uri("clean")).rglob("*.parquet") if "_delta_log" not in path.parts]
    assert (len(data), on_disk) == (3, 6)
    assert rows(lake, "clean") == sorted((day, *row) for day in DAYS for row in frame("new").rows())


def test_a_table_of_before_gets_its_retention(lake: Lake) -> None:
    """One that was made without, by an earlier version, has it after its first upkeep, and loses nothing by it."""
    schema = pl.DataFrame({"day": [DAY], "x": [1]}).to_arrow().schema
    table = DeltaTable.create(lake.uri("scores"), schema, partition_by=["day"])
    assert RETENTION not in table.metadata().configuration
    lake.replace("scores", DAY, pl.DataFrame({"x": [1]}))
    lake.replace("scores", DAY, pl.DataFrame({"x": [2]}))
    assert lake.remove_unused("scores", dry_run=True) == 0
    assert RETENTION not in DeltaTable(lake.uri("scores")).metadata().configuration
    assert lake.remove_unused("scores") == 0
    assert DeltaTable(lake.uri("scores")).metadata().configuration[RETENTION] == f"interval {KEPT.days} days"
    assert rows(lake, "scores") == [(DAY, 2)]


def test_files_that_no_log_names_go_when_they_are_old(lake: Lake) -> None:
    """A killed writer has left them; those of a writer that still runs are young."""
    folder = Path(lake.uri("clean")) / f"day={DAY}"
    written = next(folder.glob("*.parquet"))
    for name, age in (("left.parquet", KEPT + timedelta(days=1)), ("young.parquet", KEPT - timedelta(days=1))):
        (folder / name).write_bytes(written.read_bytes())
        make_older(folder / name, age)
    assert keep_up(lake).unused == 1
    assert not (folder / "left.parquet").exists()
    assert (folder / "young.parquet").exists()


def make_older(path: Path, age: timedelta) -> None:
    moment = time.time() - age.total_seconds()
    os.utime(path, (moment, moment))


def test_the_log_is_short_after_upkeep(lake: Lake) -> None:
    """What is older than a month and stands in a checkpoint is no file of its own any more."""
    log = Path(lake.uri("partitions")) / "_delta_log"
    for path in log.iterdir():
        make_older(path, KEPT + timedelta(days=10))
    before, there = len(list(log.iterdir())), rows(lake, "partitions")
    keep_up(lake)
    assert len(list(log.iterdir())) < before / 4
    assert rows(lake, "partitions") == there
    write_step(lake, DAY, "a", "second")
    assert len(rows(lake, "partitions")) == len(there)


def test_names_of_sources_may_be_odd(lake: Lake) -> None:
    """A file name stands in the path of its partition; no live file is taken for one that nobody knows."""
    names = ["a b.csv", "ü ö.csv", "x%20y.csv", "p#1.csv", "sub/dir/q.csv", "k=v&z.csv", "o'clock.csv", "50%.csv",
             "q?", "co:lon", "_under.csv", ".dot", "tab\tx", "日本.csv", "a+b", "back\\slash", "[x]*",
             "_delta_log/x"]  # fmt: skip
    for digest in ("old", "new"):
        for name in names:
            known = {"day": [DAY], "source": [name], "source_digest": [digest]}
            lake.replace_source(pl.DataFrame(known), name)
    set_retention(lake, "landing")
    assert lake.remove_unused("landing") == len(names)
    assert rows(lake, "landing") == sorted((DAY, name, "new") for name in names)


def test_upkeep_gives_way_to_a_night_that_commits_first(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be merged is gone: nothing is, and the night's rows stand."""
    compact = TableOptimizer.compact

    def late(self: TableOptimizer, *args, **kwargs) -> dict:
        write_step(lake, DAY, "a", "second")
        return compact(self, *args, **kwargs)

    monkeypatch.setattr(TableOptimizer, "compact", late)
    before = len(files(lake, "partitions"))
    assert lake.merge_files("partitions", LATER) == 0
    assert len(files(lake, "partitions")) == before
    assert (DAY, "a", "second") in rows(lake, "partitions")


@pytest.mark.parametrize("keep", [
    pytest.param(lambda lake: lake.merge_files("partitions", LATER), id="merged"),
    pytest.param(lambda lake: set_retention(lake, "partitions"), id="properties set"),
    pytest.param(lambda lake: lake.remove_unused("partitions"), id="checkpoint and vacuum"),
])  # fmt: skip
def test_a_night_that_commits_after_upkeep_stands(lake: Lake, keep: Callable[[Lake], object]) -> None:
    """Its rows do, beside all that were merged under it meanwhile; where it has to, it tries again by itself."""

    kept = [keep]

    def slowly() -> Iterator[pl.DataFrame]:
        yield pl.DataFrame({"step": ["a"], "value": ["second"]})
        if kept:
            with ThreadPoolExecutor(1) as pool:  # the night has read the table's version, and has not committed
                pool.submit(kept.pop(), lake).result()
        yield pl.DataFrame(schema={"step": pl.String, "value": pl.String})

    lake.replace("partitions", DAY, slowly, where="step = 'a'")
    assert not kept
    assert rows(lake, "partitions") == sorted(
        (day, step, "second" if (day, step) == (DAY, "a") else "first") for day in DAYS for step in "abcdefgh"
    )


def test_what_killed_processes_left_is_swept_once_it_is_old(lake: Lake, tmp_path: Path) -> None:
    """Staged shards, files torn while they were written, half-fetched detectors; a dry run only tells."""
    home = Home(tmp_path)
    left = [
        Path(lake.root) / "demo" / "_staging" / "2026-01-05",
        Path(lake.uri("clean")) / f"day={DAY}" / "part-00005.snappy.parquet#1",
        Path(lake.uri("clean")) / "_delta_log" / "00000000000000000009.json#1",
        home.reports / "demo" / ".2026-01-05.html.0a1b",
        home.data_docs / "demo" / ".2026-01-05.html.0a1b",
        home.root / "scratch" / "demo" / "validate-2026-01-05-0a1b",
        home.root / "detectors" / "demo" / ".fetch-abc",
    ]
    for path in left:
        file = path if path.suffix else path / "0-of-2.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    assert leftovers(home, datetime.now(UTC)) == []
    assert sorted(leftovers(home, LATER)) == sorted(sweep(home, LATER, dry_run=True)) == sorted(left)
    assert all(path.exists() for path in left)
    sweep(home, LATER)
    assert not any(path.exists() for path in left)
    assert len(rows(lake, "clean")) == 6


def test_what_cannot_be_removed_keeps_nothing_else_and_is_not_told_as_removed(lake: Lake, monkeypatch) -> None:
    """As what a worker of another user has left."""
    home = Home(Path(lake.root).parent)
    theirs, ours = (home.reports / "demo" / f".2026-01-0{n}.html.0a1b" for n in (1, 2))
    theirs.parent.mkdir(parents=True)
    for page in (theirs, ours):
        page.write_text("x")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == theirs:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert sweep(home, LATER) == [ours]
    assert theirs.exists()


def test_one_broken_table_keeps_no_other_dataset_from_its_upkeep(lake: Lake) -> None:
    """It is named, with the reason, when the others are done."""
    other = Lake(lake.root, "broken")
    other.replace("clean", DAY, frame("x"))
    for path in (Path(other.uri("clean")) / "_delta_log").iterdir():
        path.write_text("{")
    set_retention(lake, "clean")
    with pytest.raises(NightsiftError, match="broken/clean"):
        keep_up_all([other, lake])
    assert keep_up(lake).unused == 0


def test_the_command_says_what_it_does(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a sentence for each dataset, or as JSON; a dry run says what would be."""
    (tmp_path / "datasets").mkdir()
    yaml = "kind: sensor\nsource: {path: x/*.csv}\nentity: a\nevent_time: t\ncadence: 1h\nfeatures: [{name: b}]\n"
    (tmp_path / "datasets" / "demo.yaml").write_text(yaml)
    set_retention(lake, "clean")
    places = ["--home", str(tmp_path), "--datasets", str(tmp_path / "datasets")]
    for arguments in (["--dry-run"], ["demo", "--json"], []):
        with pytest.raises(SystemExit) as ended:
            main(["upkeep", *arguments, *places])
        assert ended.value.code == 0
    first, *told = capsys.readouterr().out.split("\n", 2)
    assert first == "demo: would be merged: 0 small files; would be removed: 3 unused ones"
    data, _ = json.JSONDecoder().raw_decode(told[1])
    assert data == {"datasets": [{"dataset": "demo", "merged": 0, "unused": 3}], "leftovers": []}
    with pytest.raises(SystemExit) as ended:
        main(["upkeep", "nope", *places])
    assert ended.value.code == 2
