"""A day of a table is replaced as a whole, by one writer at a time, and what readers see is never half of it."""

import errno
import re
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import DeltaError

from pipeline.errors import NightsiftError
from pipeline.lake import Lake, allow_open_files, quote

DAY, OTHER = date(2026, 1, 5), date(2026, 1, 6)
SCHEMA = {"entity": pl.String, "value": pl.Float64}


@pytest.fixture
def lake(tmp_path):
    return Lake(str(tmp_path / "lake"), "demo")


def frame(*values):
    return pl.DataFrame({"entity": ["a"] * len(values), "value": [float(v) for v in values]}, schema=SCHEMA)


def values(lake, first=None, last=None):
    return sorted(lake.scan("clean", SCHEMA, first, last).collect()["value"].to_list())


def test_a_table_that_does_not_exist_is_empty(lake):
    """Reading before the first write gives the declared columns and no rows."""
    found = lake.scan("clean", SCHEMA).collect()
    assert found.columns == ["day", "entity", "value"]
    assert len(found) == 0
    assert lake.version("clean") == -1


def test_a_day_is_replaced_by_frames_that_come_one_by_one(lake):
    """All of them in one commit, and none of them where making one of them fails."""
    lake.replace("clean", DAY, lambda: iter([frame(1, 2), frame(), frame(3)]))
    assert values(lake, DAY, DAY) == [1, 2, 3]
    assert lake.version("clean") == 1  # created, then written once

    def broken():
        yield frame(4)
        raise NightsiftError("the second cannot be made")

    with pytest.raises(NightsiftError, match="the second cannot be made"):
        lake.replace("clean", DAY, broken)
    assert values(lake, DAY, DAY) == [1, 2, 3]


def test_frames_that_cannot_be_made_are_not_asked_for_again(lake, monkeypatch):
    """Their own sentence is told, also where an object store that broke off would be asked again."""
    asked = []

    def broken():
        asked.append(1)
        yield frame(4)
        raise NightsiftError("a file already exists: move it away")

    monkeypatch.setattr("pipeline.lake._unanswered", lambda uri, error: type(error) is DeltaError)
    with pytest.raises(NightsiftError, match=r"^a file already exists: move it away$"):
        lake.replace("clean", DAY, broken)
    assert len(asked) == 1


def test_what_is_written_is_compressed(lake):
    """With Snappy, as Delta does by default."""
    lake.replace("clean", DAY, frame(1, 2))
    (file,) = Path(lake.uri("clean")).rglob("*.parquet")
    assert pq.read_metadata(file).row_group(0).column(0).compression == "SNAPPY"


def test_replace_touches_its_own_day_only_and_is_one_commit(lake):
    """Another day keeps its rows; the same day has the new ones only."""
    lake.replace("clean", DAY, frame(1, 2))
    lake.replace("clean", OTHER, frame(3))
    before = lake.version("clean")
    lake.replace("clean", DAY, frame(4))
    assert lake.version("clean") == before + 1
    assert values(lake) == [3.0, 4.0]
    assert values(lake, OTHER, OTHER) == [3.0]
    lake.replace("clean", DAY, frame())
    assert values(lake) == [3.0]


def test_where_narrows_what_is_replaced(lake):
    """Only the rows of the day that match are replaced, also with a quote in the value."""
    both = pl.DataFrame({"entity": ["a", "o'b"], "value": [1.0, 2.0]})
    lake.replace("clean", DAY, both)
    lake.replace("clean", DAY, both.filter(pl.col("entity") == "o'b"), where=f"entity = {quote(chr(39).join('ob'))}")
    assert values(lake) == [1.0, 2.0]


def test_a_column_declared_later_reads_as_null_in_old_rows(lake):
    """A feature added to the YAML does not make old partitions unreadable."""
    lake.replace("clean", DAY, frame(1))
    lake.replace("clean", OTHER, frame(2).with_columns(extra=pl.lit(5.0)))
    found = lake.scan("clean", {**SCHEMA, "extra": pl.Float64}).sort("value").collect()
    assert found["extra"].to_list() == [None, 5.0]


@pytest.mark.parametrize("same_day", [True, False])
def test_writers_at_once_leave_the_result_of_whole_writes(lake, same_day):
    """Of eight writers at once, all end; each day holds what exactly one of them wrote."""
    days = [DAY if same_day else date(2026, 1, 5 + n) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: lake.replace("clean", days[n], frame(n, n, n)), range(8)))
    for day in set(days):
        found = values(lake, day, day)
        assert len(found) == 3
        assert len(set(found)) == 1


def test_landed_tells_sources_and_digests_from_metadata(lake):
    """Each source file's digest and row count per day are known without reading rows."""
    rows = pl.DataFrame({"day": [DAY, DAY, OTHER], "source": ["o'x y.csv"] * 3, "source_digest": ["d" * 32] * 3})
    lake.replace_source(rows, "o'x y.csv")
    found = lake.landed().sort("day")
    assert found.rows() == [(DAY, "o'x y.csv", "d" * 32, 2), (OTHER, "o'x y.csv", "d" * 32, 1)]
    lake.replace_source(rows.head(1), "o'x y.csv")
    assert lake.landed().rows() == [(DAY, "o'x y.csv", "d" * 32, 1)]


def test_staged_results_are_whole_and_removed_together(lake):
    """What is staged is read back; what was never staged is None; unstaging removes the folder."""
    lake.stage("2026-01-05/x/0-of-2", frame(1))
    assert lake.staged("2026-01-05/x/0-of-2").equals(frame(1))
    assert lake.staged("2026-01-05/x/1-of-2") is None
    lake.unstage("2026-01-05/x")
    assert lake.staged("2026-01-05/x/0-of-2") is None


def test_what_is_held_stays_when_it_is_unstaged(lake):
    """It can be read as often as wanted; what was never staged cannot be held."""
    lake.stage("night/0", frame(1, 2))
    held = lake.hold("night/0")
    lake.unstage("night")
    assert [held.read(["value"]).equals(frame(1, 2).select("value")) for _ in range(2)] == [True, True]
    held.close()
    assert lake.hold("night/0") is None


def test_what_is_staged_and_broken_is_a_sentence(lake):
    """Whether it is read at once or held; and a name is no pattern."""
    lake.stage("night/[0]", frame(1))
    held = lake.hold("night/[0]")
    assert held.read(["value"]).equals(frame(1).select("value"))
    target = Path(lake.staging("night/[0].parquet"))
    target.write_bytes(target.read_bytes()[:-9])
    told = rf"^{re.escape(str(target))} cannot be reached: "
    with pytest.raises(NightsiftError, match=told):
        lake.staged("night/[0]")
    with pytest.raises(NightsiftError, match=told):
        held.read(["value"])
    held.close()


def test_files_that_cannot_be_opened_are_a_sentence(lake, monkeypatch):
    """As when too many are open."""
    lake.stage("night/0", frame(1))

    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(NightsiftError, match=r"night/0.parquet cannot be reached: .*Too many open files"):
        lake.hold("night/0")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 10**9), (1 << 16, 10**9)),
        ((1024, 4096), (4096, 4096)),
        ((1024, resource.RLIM_INFINITY), (1 << 16, resource.RLIM_INFINITY)),
        ((10**6, 10**9), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_the_limit_of_open_files_is_raised_within_reason(monkeypatch, before, after):
    """Never lowered, and never to what a process that closes all numbers up to it would count for hours."""
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    allow_open_files()
    assert limits == ([] if after is None else [after])


def test_what_cannot_be_staged_is_a_sentence_and_leaves_nothing(lake, monkeypatch):
    """A disk that is full while a shard is written: the message names the file, and no part of it takes up room."""
    target = f"{lake.root}/demo/_staging/night/0.parquet"
    with monkeypatch.context() as full:
        full.setattr(pl.DataFrame, "write_parquet", _full_disk)
        with pytest.raises(NightsiftError, match=f"could not write {target}: .*No space left on device.* again$"):
            lake.stage("night/0", frame(1))
    assert [file for file in Path(lake.root).rglob("*") if file.is_file()] == []
    lake.stage("night/0", frame(1))
    assert lake.staged("night/0").equals(frame(1))


def _full_disk(_, file):
    Path(file).write_bytes(b"PAR1")
    raise pl.exceptions.ComputeError("parquet: underlying IO error:\nNo space left on device (os error 28)")


def test_staging_goes_on_while_others_remove_the_folder(lake):
    """Two runs of one night: one stages shards while the other has published and clears up."""
    with ThreadPoolExecutor(2) as pool:
        cleared = pool.submit(lambda: [lake.unstage("night") for _ in range(300)])
        for number in range(100):
            lake.stage(f"night/{number}", frame(number))
        cleared.result()
    lake.stage("night/0", frame(1))
    assert lake.staged("night/0").equals(frame(1))


@pytest.mark.parametrize("size", [0.5, 0], ids=["half", "empty"])
def test_a_commit_that_is_cut_off_is_named_with_the_way_back(lake, size):
    """Also an empty one, which Delta takes for a commit that changes nothing."""
    lake.replace("clean", DAY, frame(1))
    lake.require_whole(DAY, DAY)
    commit = Path(lake.uri("clean")) / "_delta_log" / f"{lake.version('clean'):020}.json"
    commit.write_bytes(commit.read_bytes()[: int(commit.stat().st_size * size)])
    told = rf"{commit} is gone or cut off.*: delete that file, move \S*/partitions away.* nightsift backfill demo"
    with pytest.raises(NightsiftError, match=told):
        lake.require_whole(DAY, DAY)
    if size:
        with pytest.raises(NightsiftError, match=told):
            lake.scan("clean", SCHEMA)


@pytest.mark.parametrize("size", [0.5, 0], ids=["half", "empty"])
def test_a_checkpoint_that_is_cut_off_is_named_and_deleted(lake, size):
    """The commits before it say the same."""
    for value in range(12):
        lake.replace("clean", DAY, frame(value))
    log = Path(lake.uri("clean")) / "_delta_log"
    (checkpoint,) = log.glob("*.checkpoint.parquet")
    checkpoint.write_bytes(checkpoint.read_bytes()[: int(checkpoint.stat().st_size * size)])
    told = rf"^{checkpoint} is cut off.*: delete that file and _last_checkpoint beside it; no row is lost$"
    for read in (
        lambda: lake.require_whole(DAY, DAY),
        lambda: values(lake),
        lambda: lake.replace("clean", DAY, frame(1)),
    ):
        with pytest.raises(NightsiftError, match=told):
            read()
    checkpoint.unlink()
    (log / "_last_checkpoint").unlink()
    lake.require_whole(DAY, DAY)
    assert values(lake) == [11]


@pytest.mark.parametrize(("table", "remedy"), [("scores", r"move \S*/scores away, "), ("verdicts", "from a backup, ")])
def test_a_checkpoint_that_alone_knows_of_the_rows_is_not_to_be_deleted(lake, table, remedy):
    """As where upkeep has removed the commits before it, a month after they were made."""
    for value in range(3):
        lake.append(table, frame(value).with_columns(day=DAY))
    log = Path(lake.uri(table)) / "_delta_log"
    lake.remove_unused(table)
    for old in sorted(log.glob("*.json"))[:-1]:
        old.unlink()
    assert len(lake.scan(table, SCHEMA).collect()) == 3
    (checkpoint,) = log.glob("*.checkpoint.parquet")
    checkpoint.write_bytes(b"")
    with pytest.raises(NightsiftError, match=rf"^{checkpoint} is gone or cut off.*: .*{remedy}"):
        lake.scan(table, SCHEMA)


def test_a_log_that_cannot_be_opened_is_not_called_cut_off(lake, monkeypatch):
    """As another user's, or where too many files are open: nothing is to be deleted."""
    for value in range(12):
        lake.replace("clean", DAY, frame(value))

    def refuse(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.lake.DeltaTable", refuse)
    monkeypatch.setattr("pipeline.lake.pl.read_parquet_schema", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for use in (lambda: values(lake), lambda: lake.replace("clean", DAY, frame(1))):
        with pytest.raises(NightsiftError, match="Permission denied"):
            use()


def test_a_name_with_a_rare_line_break_is_no_cut_commit(lake):
    """JSON leaves these three as they are, and they stand in the statistics of the commit."""
    lake.replace("clean", DAY, frame(1).with_columns(entity=pl.lit("a\u0085b\u2028c\u2029d")))
    commit = Path(lake.uri("clean")) / "_delta_log" / f"{lake.version('clean'):020}.json"
    assert "a\u0085b\u2028c\u2029d" in commit.read_text(encoding="utf-8")
    lake.require_whole(DAY, DAY)


def test_a_data_file_that_is_cut_off_or_gone_is_named_where_its_day_is_read(lake):
    """A table of source files can be made again, the verdicts of analysts cannot."""
    lake.replace_source(
        frame(1).with_columns(day=DAY, source=pl.lit("a b/c.csv"), source_digest=pl.lit("d")), "a b/c.csv"
    )
    lake.append("verdicts", frame(1).with_columns(day=DAY))
    lake.require_whole(DAY, DAY)
    for table, remedy in (("verdicts", "bring .* back from a backup"), ("landing", "move .*/landing away")):
        (file,) = Path(lake.uri(table)).rglob("*.parquet")
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(NightsiftError, match=f"{file.name} is gone or cut off.*: {remedy}"):
            lake.require_whole(DAY, DAY)
        file.unlink()
        with pytest.raises(NightsiftError, match=file.name):
            lake.require_whole(DAY, DAY)
        lake.require_whole(OTHER, OTHER)
        shutil.rmtree(lake.uri(table))
