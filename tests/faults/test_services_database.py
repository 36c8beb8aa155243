"""PostgreSQL as a source is down, does not answer, or goes in the middle of a query: no row is lost or there twice."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from threading import Thread

import polars as pl
import pytest
from adbc_driver_postgresql.dbapi import connect

from pipeline.errors import NightsiftError
from pipeline.ingest import ingest
from pipeline.workspace import Workspace
from tests.conftest import SENSOR, START, tables
from tests.faults.services import Count
from tests.figures import recorded
from tests.servers import Postgres, postgres_server

FILES = 'source: {path: "{home}/source/*.parquet"}'
QUERY = 'source: {sql: "SELECT *, pg_sleep(0.01)::text FROM readings", connection_env: READINGS}'
DAYS = START.date(), START.date() + timedelta(days=1)
ROWS = 200
count = Count("the database")
_figures = recorded("services-database", count.what, count.told)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server with a table of readings, whose query takes two seconds."""
    with postgres_server() as server:
        server.run(
            "CREATE TABLE readings AS SELECT 'm' || n % 4 AS machine, n::float AS flow, -n::float AS heat, "
            "TIMESTAMPTZ '2026-01-05 00:00+00' + n * INTERVAL '10 minutes' AS time "
            f"FROM generate_series(0, {ROWS - 1}) n"
        )
        yield server


@pytest.fixture
def ws(postgres: Postgres, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("READINGS", postgres.address())
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    return make_workspace(SENSOR.replace(FILES, QUERY))


def crash_in_query(postgres: Postgres) -> None:
    """End the server as soon as it is at work on the dataset's query."""
    busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
    with connect(postgres.address(), autocommit=True) as connection, connection.cursor() as cursor:
        while True:
            cursor.execute(f"{busy} AND state = 'active'")
            if cursor.fetchone() != (0,):
                break
            time.sleep(0.02)
    postgres.stop()


def refused(ws: Workspace) -> str:
    """The sentence with which an ingest ends, whose exit code is 1: Airflow tries again."""
    with pytest.raises(NightsiftError) as failed:
        ingest(ws, *DAYS)
    assert type(failed.value) is NightsiftError
    assert "s3cret" not in str(failed.value)
    return str(failed.value)


def test_a_database_that_is_down_slow_or_goes_is_a_sentence_and_loses_nothing(
    postgres: Postgres, ws: Workspace
) -> None:
    """At the start, and in the middle of the query; when it is back the rows are there, each once."""
    postgres.stop()
    assert "cannot connect to the database in READINGS" in refused(ws)
    postgres.start()

    with postgres.silent():
        assert "timeout expired" in refused(ws)

    crash = Thread(target=crash_in_query, args=(postgres,))
    crash.start()
    assert "dataset demo: the database in READINGS broke off: " in refused(ws)
    crash.join()
    postgres.start()

    assert not ws.lake.exists("landing")
    ingest(ws, *DAYS)
    ingest(ws, *DAYS)
    landed = tables(ws, "landing")["landing"]
    flows = landed["flow"].cast(pl.Float64).sort().to_list()
    lost = flows != [float(n) for n in range(ROWS)]
    count.add(struck=3, lost=lost)
    assert not lost
