"""A source's files, tables and queries become canonical frames."""

import hashlib
import json
import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config import Dataset, Home
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError
from pipeline.sources import list_files, read_delta, read_file, source_path

START = datetime(2024, 5, 1, tzinfo=UTC)


def dataset(folder: Path, path: str, **changes: Any) -> Dataset:
    given = {
        "name": "demo",
        "kind": "transaction",
        "source": {"path": path},
        "entity": "pump",
        "event_time": "time",
        "features": [{"name": "flow"}],
        "file": folder / "datasets" / "demo.yaml",
    }
    return Dataset(**{**given, **changes})


def put(folder: Path, name: str, content: str | bytes = "pump,time,flow\na,2024-05-01,1\n") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def names(folder: Path, path: str) -> list[str]:
    return [file.name for file in list_files(dataset(folder, path), Home(folder / "var"))]


def only_file(folder: Path, path: Path) -> pl.DataFrame:
    ds = dataset(folder, str(path))
    (file,) = list_files(ds, Home(folder))
    return read_file(ds, file)


def test_a_path_is_taken_from_the_yamls_folder_and_home_is_filled_in(tmp_path: Path) -> None:
    """Where a command is started does not matter."""
    home = Home(tmp_path / "var")
    assert source_path(dataset(tmp_path, "../data/x.csv"), home) == str(tmp_path / "data/x.csv")
    assert source_path(dataset(tmp_path, "{home}/x/*.csv"), home) == str(tmp_path / "var/x/*.csv")
    assert source_path(dataset(tmp_path, "file:///d/a%20b.csv"), home) == "/d/a b.csv"
    assert source_path(dataset(tmp_path, "s3://bucket/x/*.csv"), home) == "s3://bucket/x/*.csv"


def test_files_are_listed_by_name_with_digest_and_size(tmp_path: Path) -> None:
    """The digest is that of the content: a file that moved with its folder is the same file."""
    for root in ("one", "two"):
        put(tmp_path, f"{root}/b.csv", "bb")
        put(tmp_path, f"{root}/a.csv", "a")
    one = list_files(dataset(tmp_path, "../one/*.csv"), Home(tmp_path))
    two = list_files(dataset(tmp_path, "../two/*.csv"), Home(tmp_path))
    assert [(f.name, f.digest, f.size) for f in one] == [(f.name, f.digest, f.size) for f in two]
    assert [f.name for f in one] == ["a.csv", "b.csv"]
    assert one[0].digest == hashlib.blake2b(b"a", digest_size=16).hexdigest()
    assert one[1].size == 2


def test_globs_match_as_in_a_shell(tmp_path: Path) -> None:
    """`*` stays within a folder, `**/` is any depth, a name is relative to the fixed part; dot files are uploads."""
    for name in ("a.csv", "b.csv", "b.txt", ".c.csv", "x/d.csv", "x/y/e.csv", ".z/f.csv", "g(1).csv", "x/.h.csv"):
        put(tmp_path / "in", name)
    assert names(tmp_path, "../in/*.csv") == ["a.csv", "b.csv", "g(1).csv"]
    assert names(tmp_path, "../in/[ab].csv") == ["a.csv", "b.csv"]
    assert names(tmp_path, "../in/?.csv") == ["a.csv", "b.csv"]
    assert names(tmp_path, "../in/**/*.csv") == ["a.csv", "b.csv", "g(1).csv", "x/d.csv", "x/y/e.csv"]
    assert names(tmp_path, "../in/*/d.csv") == ["x/d.csv"]
    assert names(tmp_path, "../in/g(1).csv") == ["g(1).csv"]
    assert names(tmp_path, f"file://{tmp_path}/in/a.csv") == ["a.csv"]


@pytest.mark.parametrize("path", ["../in/*.parquet", "../none/*.csv", "../none/x.csv"])
def test_no_file_is_refused_with_what_was_looked_for(tmp_path: Path, path: str) -> None:
    """A night without any source file stops with the glob, not with an empty result."""
    put(tmp_path, "in/a.csv")
    with pytest.raises(GateRefusedError, match=rf"demo: no source file matches {tmp_path}.*correct source.path"):
        names(tmp_path, path)


def test_a_folder_as_source_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """A folder is not a glob."""
    put(tmp_path, "in.csv/a.csv")
    with pytest.raises(GateRefusedError, match=r"that is a folder.*/\*\.parquet"):
        names(tmp_path, "../in.csv")


def test_a_scheme_that_is_not_supported_is_named(tmp_path: Path) -> None:
    """The message says which are."""
    with pytest.raises(ConfigError, match=r"ftp://.*s3://, gs:// or az://"):
        names(tmp_path, "ftp://host/x.csv")


def test_azure_needs_its_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable is named."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        names(tmp_path, "az://box/x.csv")


@pytest.mark.parametrize("attempts", ["many", "0", "-1", "2.5"])
def test_a_number_of_attempts_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: str
) -> None:
    """The message names the variable and what it must be."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    with pytest.raises(ConfigError, match=f"AWS_MAX_ATTEMPTS must be a number from 1 on, not '{attempts}'"):
        names(tmp_path, "s3://bucket/in/*.csv")


def test_a_store_that_does_not_answer_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store's error comes with the address, without a traceback."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION"):
        monkeypatch.setenv(f"AWS_{name}", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(NightsiftError, match="cannot read s3://bucket/in/"):
        names(tmp_path, "s3://bucket/in/*.csv")


def test_a_file_that_changes_between_listing_and_reading_is_refused(tmp_path: Path) -> None:
    """What lands under a digest is what has that digest."""
    put(tmp_path, "in/a.csv")
    ds = dataset(tmp_path, "../in/*.csv")
    (file,) = list_files(ds, Home(tmp_path))
    put(tmp_path, "in/a.csv", "pump,time,flow\n")
    with pytest.raises(GateRefusedError, match=r"in/a\.csv changed while it was read"):
        read_file(ds, file)
    (tmp_path / "in/a.csv").unlink()
    with pytest.raises(GateRefusedError, match=r"in/a\.csv is gone"):
        read_file(ds, file)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    """Parquet, CSV, gzipped CSV and NDJSON of one table are one canonical frame."""
    table = pl.DataFrame({"pump": ["a", "b"], "time": [START, START + timedelta(hours=1)], "flow": [0.1, None]})
    text = table.with_columns(pl.col("time").dt.to_string("iso:strict"))
    table.write_parquet(tmp_path / "x.parquet")
    text.write_csv(tmp_path / "x.csv")
    text.write_csv(tmp_path / "x.csv.gz", compression="gzip")
    text.write_ndjson(tmp_path / "x.ndjson")
    frames = [only_file(tmp_path, tmp_path / f"x.{end}") for end in ("parquet", "csv", "csv.gz", "ndjson")]
    assert frames[0].select("entity", "event_time", "flow").rows() == table.rows()
    assert all(frame.equals(frames[0]) for frame in frames)


def test_a_header_only_csv_is_an_empty_canonical_frame(tmp_path: Path) -> None:
    """Nothing came; that is for the suite to judge."""
    frame = only_file(tmp_path, put(tmp_path, "x.csv", "pump,time,flow\n"))
    assert frame.height == 0
    assert frame.columns == ["entity", "event_time", "flow", "source_row", "problems", "raw"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "", "is empty"),
        ("x.csv", "pump,time\na,2024-05-01\n", "no column 'flow'.*pump, time"),
        ("x.csv", "pump,time,flow\na,b,1\na,c,2\n", "'time' can be read"),
        ("x.csv", b"pump,time,flow\n\xff\xff,1,2\n", "not UTF-8"),
        ("x.parquet", b"PAR1 and no more", "not a whole Parquet"),
        ("x.ndjson", '{"pump": "a", "time": "2024-05-01"}\n', "no column 'flow'.*pump, time"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    """The sentence names the file and what is wrong with it."""
    with pytest.raises(GateRefusedError, match=rf"{tmp_path}/{name}.*{words}"):
        only_file(tmp_path, put(tmp_path, name, content))


def test_unreadable_lines_are_rows_with_problems_and_text(tmp_path: Path) -> None:
    """A ragged CSV line and a line that is not JSON are not lost: they are told, whole, in their place."""
    text = "pump,time,flow\na,2024-05-01,1\nb,2024-05-01\nc,2024-05-01,x\n"
    ragged = only_file(tmp_path, put(tmp_path, "x.csv", text))
    assert ragged["entity"].to_list() == ["a", "b", "c"]
    assert ragged["event_time"].to_list() == [START] * 3
    assert ragged["problems"].to_list() == [
        [], ["the line has 2 fields, the header has 3"], ["flow: 'x' is not a number"],
    ]  # fmt: skip
    assert [raw and json.loads(raw) for raw in ragged["raw"]] == [
        None, {"line": "b,2024-05-01"}, {"pump": "c", "time": "2024-05-01", "flow": "x"},
    ]  # fmt: skip
    good, bad = (json.dumps({"pump": "a", "time": "2024-05-01", "flow": flow}) for flow in (1, "x"))
    lines = [good, "oops", bad]
    broken = only_file(tmp_path, put(tmp_path, "x.ndjson", "\n".join(lines)))
    assert broken["problems"].list.len().to_list() == [0, 1, 1]
    assert "not JSON" in broken["problems"][1][0]
    assert broken["raw"].to_list() == [None, '{"line": "oops"}', lines[2]]


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


MOMENTS = [at(-48), at(-0.01), at(0), at(11.5), at(23.99), at(24), at(47.99), at(48), at(96)]
SPELLINGS = {
    "aware": pl.Series(MOMENTS, dtype=pl.Datetime("us", "UTC")),
    "naive": pl.Series(MOMENTS, dtype=pl.Datetime("us", "UTC")).dt.replace_time_zone(None),
    "nanoseconds": pl.Series(MOMENTS, dtype=pl.Datetime("us", "UTC")).dt.timestamp("ns") // 1000 * 1000,
    "seconds": pl.Series([moment.timestamp() for moment in MOMENTS]),
    "text": pl.Series([moment.isoformat() for moment in MOMENTS]),
    "text in another zone": pl.Series(
        [(moment + timedelta(hours=13)).strftime("%Y-%m-%dT%H:%M:%S+13:00") for moment in MOMENTS]
    ),
    "text of numbers": pl.Series([f"{moment.timestamp():.0f}" for moment in MOMENTS]),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_delta_tables_days_are_read_exactly(tmp_path: Path, spelling: str) -> None:
    """Whatever type the event time has, just the rows of the days asked for come, in canonical order."""
    times = SPELLINGS[spelling]
    table = pl.DataFrame({"pump": ["b", "a", "b"] * 3, "time": times, "flow": range(9)})
    table.reverse().write_delta(tmp_path / "table")
    ds = dataset(tmp_path, "../table", source={"path": "../table", "format": "delta"})
    both = read_delta(ds, Home(tmp_path), date(2024, 5, 1), date(2024, 5, 2))
    assert sorted(both["flow"].to_list()) == [2, 3, 4, 5, 6]
    assert both.rows() == sorted(both.rows())
    one = read_delta(ds, Home(tmp_path), date(2024, 5, 2), date(2024, 5, 2))
    assert sorted(one["flow"].to_list()) == [5, 6]
    second = both.filter(pl.col("event_time") >= at(24))
    assert one.equals(second), "a day's rows and their numbers do not depend on the other days that were read"


def test_a_delta_tables_days_are_days_of_the_datasets_zone(tmp_path: Path) -> None:
    """In Tokyo the second of May begins at 15 o'clock UTC on the first."""
    table = pl.DataFrame({"pump": "a", "time": [at(14.9), at(15), at(38.9), at(39)], "flow": range(4)})
    table.write_delta(tmp_path / "t")
    ds = dataset(tmp_path, "t", source={"path": "../t", "format": "delta"}, zone="Asia/Tokyo")
    assert read_delta(ds, Home(tmp_path), date(2024, 5, 2), date(2024, 5, 2))["flow"].to_list() == [1, 2]


def test_a_broken_delta_table_is_a_sentence(tmp_path: Path) -> None:
    """One whose data file is cut off."""
    pl.DataFrame({"pump": "a", "time": [at(1)], "flow": [1.0]}).write_delta(tmp_path / "t")
    (file,) = (tmp_path / "t").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-9])
    ds = dataset(tmp_path, "t", source={"path": "../t", "format": "delta"})
    with pytest.raises(NightsiftError, match=rf"^cannot read {tmp_path}/t: "):
        read_delta(ds, Home(tmp_path), date(2024, 5, 1), date(2024, 5, 1))


def test_a_missing_delta_table_or_column_is_refused(tmp_path: Path) -> None:
    """With the address and the columns that are there."""
    ds = dataset(tmp_path, "t", source={"path": "../t", "format": "delta"})
    with pytest.raises(GateRefusedError, match=rf"no Delta table at {tmp_path}/t"):
        read_delta(ds, Home(tmp_path), date(2024, 5, 1), date(2024, 5, 1))
    pl.DataFrame({"pump": ["a"], "time": [START]}).write_delta(tmp_path / "t")
    with pytest.raises(GateRefusedError, match=r"no column 'flow'.*pump, time"):
        read_delta(ds, Home(tmp_path), date(2024, 5, 1), date(2024, 5, 1))


def test_a_name_that_is_no_utf_8_is_told(tmp_path: Path) -> None:
    """The store cannot list it, so that the folder is named."""
    put(tmp_path, "in/a.csv")
    put(tmp_path, os.fsdecode(b"in/\xff.csv"))
    with pytest.raises(NightsiftError, match=r"in/\*\.csv: a file there has a name that is not UTF-8; rename it"):
        names(tmp_path, "../in/*.csv")
