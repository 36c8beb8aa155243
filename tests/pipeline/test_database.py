"""A query's rows come canonical, selected by the database: SQLite and a PostgreSQL server of the test's own."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config import Dataset
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError
from pipeline.sources import read_sql
from tests.servers import Postgres, postgres_server

FIRST, SECOND = date(2024, 5, 1), date(2024, 5, 2)
START = datetime(2024, 5, 1, tzinfo=UTC)
MOMENTS = [START + timedelta(hours=hours) for hours in (-48, -0.01, 0, 11.5, 23.99, 24, 47.99, 48, 96)]
WITHIN = [2.0, 3.0, 4.0, 5.0, 6.0]


def dataset(sql: str, **changes: Any) -> Dataset:
    given = {
        "name": "demo",
        "kind": "transaction",
        "source": {"sql": sql, "connection_env": "DEMO_DATABASE"},
        "entity": "card",
        "event_time": "time",
        "features": [{"name": "amount"}],
        "file": Path("/d/demo.yaml"),
    }
    return Dataset(**{**given, **changes})


@pytest.fixture
def sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "a b.db"
    monkeypatch.setenv("DEMO_DATABASE", f"sqlite:///{file}")
    return file


def fill_sqlite(file: Path, rows: list[tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute('CREATE TABLE "pay ments" (card, time, amount, note)')
        database.executemany('INSERT INTO "pay ments" VALUES (?, ?, ?, ?)', rows)


SPELLINGS = {
    "iso": lambda moment: moment.isoformat(),
    "sqlite": lambda moment: moment.strftime("%Y-%m-%d %H:%M:%S"),
    "far zone": lambda moment: (moment + timedelta(hours=13)).strftime("%Y-%m-%dT%H:%M:%S+13:00"),
    "seconds": lambda moment: int(moment.timestamp()),
    "real": lambda moment: moment.timestamp(),
    "milliseconds": lambda moment: int(moment.timestamp() * 1000),
    "text of seconds": lambda moment: str(int(moment.timestamp())),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_sqlite_gives_the_days_rows(sqlite_file: Path, spelling: str) -> None:
    """However the time is kept, just the rows of the days come, and a day's rows do not depend on the other days."""
    fill_sqlite(sqlite_file, [("c", SPELLINGS[spelling](moment), i, None) for i, moment in enumerate(MOMENTS)])
    ds = dataset('SELECT * FROM "pay ments" -- all of it')
    both = read_sql(ds, FIRST, SECOND)
    assert both["amount"].to_list() == WITHIN
    assert both["source_row"].to_list() == [0, 1, 2, 0, 1]
    assert both["problems"].list.len().sum() == 0
    assert read_sql(ds, SECOND, SECOND).equals(both.tail(2))


def test_sqlite_cells_of_mixed_types_keep_every_digit(sqlite_file: Path) -> None:
    """A column's values have types of their own there: whole, real, text and null each stay what they are."""
    amounts = [1, 0.1 + 0.2, "123456.789012345", "abc", None, 1e300, 2**53]
    fill_sqlite(sqlite_file, [(i, "2024-05-01", amount, b"\x00\xff") for i, amount in enumerate(amounts)])
    frame = read_sql(dataset('SELECT * FROM "pay ments";'), FIRST, FIRST)
    assert frame["entity"].to_list() == [str(i) for i in range(len(amounts))]
    assert frame["amount"].to_list() == [1.0, 0.1 + 0.2, 123456.789012345, None, None, 1e300, 2.0**53]
    assert frame["problems"].to_list() == [[], [], [], ["amount: 'abc' is not a number"], [], [], []]
    assert frame["raw"][3] == '{"card": "3", "time": "2024-05-01", "amount": "abc", "note": "00FF"}'


def test_sqlite_types_may_change_far_into_the_table(sqlite_file: Path) -> None:
    """The driver looks at a first batch only; a text behind it must not break the night."""
    rows: list[tuple[Any, ...]] = [(f"c{i:05}", "2024-05-01", i, None) for i in range(3000)]
    fill_sqlite(sqlite_file, [*rows, ("d", "2024-05-01", "oops", "x")])
    frame = read_sql(dataset('SELECT * FROM "pay ments"'), FIRST, FIRST)
    assert frame.height == 3001
    assert frame["problems"].list.len().arg_max() == 3000


def test_the_order_of_rows_does_not_matter(sqlite_file: Path) -> None:
    """Two reads of one content are equal, whatever order the database has."""
    rows = [("b", "2024-05-01 10:00", 1, 1), ("a", "2024-05-01 11:00", 2, 2), ("b", "2024-05-01 09:00", 3, 3)]
    fill_sqlite(sqlite_file, rows)
    frames = [
        read_sql(dataset(f'SELECT * FROM "pay ments" ORDER BY {order}'), FIRST, FIRST) for order in ("1", "2", "3 DESC")
    ]
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])
    assert frames[0]["amount"].to_list() == [2.0, 3.0, 1.0]


def test_no_rows_are_an_empty_canonical_frame(sqlite_file: Path) -> None:
    """A day without rows is empty, with all columns and their types."""
    fill_sqlite(sqlite_file, [])
    frame = read_sql(dataset('SELECT * FROM "pay ments"'), FIRST, FIRST)
    assert frame.height == 0
    assert frame.schema["amount"] == pl.Float64


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the YAML and the key that name it."""
    monkeypatch.delenv("DEMO_DATABASE", raising=False)
    with pytest.raises(ConfigError, match=r"demo\.yaml: source\.connection_env.*DEMO_DATABASE is not set"):
        read_sql(dataset("SELECT 1"), FIRST, FIRST)


def test_an_address_of_another_kind_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address may hold a password: the message names its variable alone."""
    monkeypatch.setenv("DEMO_DATABASE", "mysql://user:hunter2@host/db")
    with pytest.raises(ConfigError, match="DEMO_DATABASE must hold") as caught:
        read_sql(dataset("SELECT 1"), FIRST, FIRST)
    assert "hunter2" not in str(caught.value)


def test_a_missing_sqlite_file_is_told_and_not_created(sqlite_file: Path) -> None:
    """Opening a database must not make one."""
    with pytest.raises(NightsiftError, match=r"DEMO_DATABASE names the SQLite file .*a b\.db, which does not exist"):
        read_sql(dataset("SELECT 1"), FIRST, FIRST)
    assert not sqlite_file.exists()


@pytest.mark.parametrize("sql", ["SELECT * FROM nothing", "SELEC 1", 'DROP TABLE "pay ments"'])
def test_a_wrong_query_is_a_sentence(sqlite_file: Path, sql: str) -> None:
    """The database's own words, with the YAML and the key."""
    fill_sqlite(sqlite_file, [])
    with pytest.raises(ConfigError, match=r"demo\.yaml: source\.sql: the query failed: .*(nothing|SELEC|DROP)"):
        read_sql(dataset(sql), FIRST, FIRST)


def test_a_query_can_only_read(sqlite_file: Path) -> None:
    """A database is opened for reading alone, whatever the query tries."""
    fill_sqlite(sqlite_file, [("a", "2024-05-01", 1, None)])
    with pytest.raises(NightsiftError):
        read_sql(dataset('SELECT 1); DROP TABLE "pay ments" --'), FIRST, FIRST)
    assert read_sql(dataset('SELECT * FROM "pay ments"'), FIRST, FIRST).height == 1


def test_a_missing_column_is_refused_with_the_query_columns(sqlite_file: Path) -> None:
    """As for a file."""
    fill_sqlite(sqlite_file, [("a", "2024-05-01", 1, None)])
    with pytest.raises(GateRefusedError, match=r"source\.sql: there is no column 'amount'.*card, time"):
        read_sql(dataset('SELECT card, time FROM "pay ments"'), FIRST, FIRST)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL, in a zone that is not the tests', that lives as long as this module's tests."""
    with postgres_server("nightsift", "timezone=America/New_York") as started:
        yield started


@pytest.fixture
def payments(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """A table with the moments in a column of every type that a time is kept in."""
    monkeypatch.setenv("DEMO_DATABASE", server.address())
    values = ", ".join(f"('c', {i}, '{moment.isoformat()}')" for i, moment in enumerate(MOMENTS))
    server.run(
        "DROP TABLE IF EXISTS payments",
        f"""CREATE TABLE payments AS SELECT v.card, v.amount::numeric(12, 2) AS amount, v.t::timestamptz AS aware,
        v.t::timestamptz AT TIME ZONE 'UTC' AS naive, v.t AS words,
        extract(epoch FROM v.t::timestamptz)::bigint AS seconds,
        extract(epoch FROM v.t::timestamptz)::float8 AS real, v.t::timestamptz::date AS "the day", 7 AS "user"
        FROM (VALUES {values}) AS v (card, amount, t)""",
    )
    return server


@pytest.mark.parametrize("column", ["aware", "naive", "words", "seconds", "real"])
def test_postgresql_gives_the_days_rows(payments: Postgres, column: str) -> None:
    """Whatever type the event time has and whatever zone the server is in."""
    both = read_sql(dataset("SELECT * FROM payments;", event_time=column), FIRST, SECOND)
    assert both["amount"].to_list() == WITHIN
    assert both["event_time"][1] == MOMENTS[3]
    assert both["problems"].list.len().sum() == 0
    assert read_sql(dataset("SELECT * FROM payments", event_time=column), SECOND, SECOND).equals(both.tail(2))


def test_postgresql_types_become_canonical(payments: Postgres) -> None:
    """Numeric, boolean, enum, uuid, JSON and text columns are features and names like any other."""
    sql = """SELECT 'b2c3e1d4-0000-4000-8000-000000000001'::uuid::text AS card, DATE '2024-05-01' AS time,
    1234567.89::numeric AS amount, true AS flag, 'x'::varchar AS shop, '{"a": 1}'::jsonb AS more"""
    features = [{"name": "amount"}, {"name": "flag"}, {"name": "shop", "type": "categorical"}]
    frame = read_sql(dataset(sql, features=features), FIRST, FIRST)
    row = frame.drop("source_row", "problems", "raw").row(0)
    assert row == ("b2c3e1d4-0000-4000-8000-000000000001", START, 1234567.89, 1.0, "x")
    assert frame["problems"].to_list() == [[]]


def test_postgresql_is_asked_for_the_days_rows_only(payments: Postgres) -> None:
    """The database selects: a row outside the days that would fail to compute is never computed."""
    payments.run(
        "DROP TABLE IF EXISTS many",
        "CREATE TABLE many AS SELECT 'c' AS card, TIMESTAMPTZ '2024-05-01Z' + i * INTERVAL '1 day' AS time, "
        "i AS amount FROM generate_series(0, 1) AS i",
        "INSERT INTO many VALUES ('c', '2024-06-01 12:00Z', -1)",
    )
    sql = "SELECT card, time, CASE WHEN amount < 0 THEN 1 / (amount + 1) ELSE amount END AS amount FROM many"
    assert read_sql(dataset(sql), FIRST, SECOND)["amount"].to_list() == [0.0, 1.0]
    with pytest.raises(ConfigError, match="division by zero"):
        read_sql(dataset(sql), date(2024, 6, 1), date(2024, 6, 1))


def test_a_wrong_query_does_not_show_the_address(payments: Postgres) -> None:
    """The database's words, without the connection string."""
    with pytest.raises(ConfigError, match=r"source\.sql: the query failed: .*nothing") as caught:
        read_sql(dataset("SELECT * FROM nothing"), FIRST, FIRST)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named, the address is not shown."""
    monkeypatch.setenv("DEMO_DATABASE", "postgresql://user:hunter2@127.0.0.1:9/db")
    with pytest.raises(NightsiftError, match="cannot connect to the database in DEMO_DATABASE") as caught:
        read_sql(dataset("SELECT 1"), FIRST, FIRST)
    assert "hunter2" not in str(caught.value)
