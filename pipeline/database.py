"""A source that is a query: PostgreSQL and SQLite through ADBC, with the stretch of days as the query's condition."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import adbc_driver_manager
import polars as pl
import pyarrow as pa

from pipeline.allowed import require_connection
from pipeline.config import Dataset
from pipeline.errors import ConfigError, NightsiftError, one_line

ISO_DATE = "____-__-__%"  # LIKE pattern of a text that sorts by its day
EVERY_ROW = 2**30
PATIENCE = "10"  # seconds for which PostgreSQL may take a connection, where PGCONNECT_TIMEOUT does not say otherwise


@dataclass(frozen=True, slots=True)
class Stretch:
    """The days `first` to `last` (both included) of a dataset, as conditions on an event time column of any type.

    A condition keeps every row that can belong to those days, and few others: text is compared by its date alone, with
    room for every zone, and text that is no ISO date is kept. The rows are then judged exactly, as canonical times.
    """

    dataset: Dataset
    first: date
    last: date

    @property
    def instants(self) -> tuple[datetime, datetime]:
        """Start and end in UTC, half-open."""
        return self.dataset.day_bounds(self.first)[0], self.dataset.day_bounds(self.last)[1]

    @property
    def local(self) -> tuple[datetime, datetime]:
        """Start and end on the clock of the dataset's zone, naive, half-open."""
        return datetime.combine(self.first, time()), datetime.combine(self.last + timedelta(days=1), time())

    @property
    def dates(self) -> tuple[str, str]:
        """Dates that enclose the days as text, whatever zone is written behind the time."""
        return str(self.first - timedelta(days=2)), str(self.last + timedelta(days=3))

    @property
    def epochs(self) -> list[tuple[int, int]]:
        """Start and end as seconds, milliseconds, microseconds and nanoseconds since 1970."""
        start, end = (int(moment.timestamp()) for moment in self.instants)
        return [(start * unit, end * unit) for unit in (1, 10**3, 10**6, 10**9)]

    def expression(self, dtype: pl.DataType) -> pl.Expr:
        """The condition for Polars, on an event time column of `dtype`."""
        column = pl.col(self.dataset.event_time)
        if isinstance(dtype, pl.Datetime) and dtype.time_zone:
            return column.is_between(*self.instants, closed="left")
        if dtype in (pl.Datetime, pl.Date):
            return column.is_between(*self.local, closed="left")
        if dtype.is_numeric():
            return pl.any_horizontal(column.is_between(start, end) for start, end in self.epochs)
        if dtype == pl.String:
            start, end = self.dates
            dated = column.is_between(pl.lit(start), pl.lit(end), closed="left")
            return dated | ~column.str.contains(r"^\d{4}-\d\d-\d\d")
        return pl.lit(True)

    def sqlite(self) -> str:
        """The condition for SQLite, where each value has a type of its own."""
        column = quote_name(self.dataset.event_time)
        return f"CASE typeof({column}) WHEN 'text' THEN {self._text(column, '')} ELSE {self._number(column)} END"

    def postgresql(self, dtype: pa.DataType) -> str:
        """The condition for PostgreSQL, on an event time column that Arrow gives as `dtype`."""
        column = quote_name(self.dataset.event_time)
        if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype):
            zoned = pa.types.is_timestamp(dtype) and dtype.tz
            kind, (start, end) = ("TIMESTAMPTZ", self.instants) if zoned else ("TIMESTAMP", self.local)
            return f"{column} >= {kind} '{start.isoformat()}' AND {column} < {kind} '{end.isoformat()}'"
        text = pa.types.is_string(dtype) or pa.types.is_large_string(dtype)
        return self._text(column, 'COLLATE "C"') if text else self._number(column)

    def _text(self, column: str, collate: str) -> str:
        start, end = self.dates
        dated = f"{column} {collate} >= '{start}' AND {column} {collate} < '{end}'"
        return f"({dated} OR {column} NOT LIKE '{ISO_DATE}')"

    def _number(self, column: str) -> str:
        return "(" + " OR ".join(f"{column} BETWEEN {start} AND {end}" for start, end in self.epochs) + ")"


@dataclass(frozen=True, slots=True)
class Database:
    """An open connection to the database that a dataset's query runs in."""

    dataset: Dataset
    connection: Any
    is_sqlite: bool

    @property
    def query(self) -> str:
        """The dataset's query as a subselect; on lines of its own, as it may end with a comment."""
        return f"(\n{(self.dataset.source.sql or '').strip().rstrip(';')}\n) AS source"

    def schema(self) -> pa.Schema:
        """Names and types of the query's columns."""
        return self._arrow(f"SELECT * FROM {self.query} LIMIT 0").schema

    def rows(self, schema: pa.Schema, stretch: Stretch) -> pl.DataFrame:
        """The query's rows that can belong to `stretch`, with all their columns; from SQLite every cell as text."""
        if self.is_sqlite:  # a column's values have types of their own there, which the driver would bend into one
            cells = ", ".join(_as_text(quote_name(name)) for name in schema.names)
            return self._fetch(f"SELECT {cells} FROM {self.query} WHERE {stretch.sqlite()}")
        kind = schema.field(self.dataset.event_time).type
        return self._fetch(f"SELECT * FROM {self.query} WHERE {stretch.postgresql(kind)}")

    def _fetch(self, query: str) -> pl.DataFrame:
        return pl.DataFrame(pl.from_arrow(_plain(self._arrow(query))))

    def _arrow(self, query: str) -> pa.Table:
        try:
            with self.connection.cursor() as cursor:
                if self.is_sqlite:  # the driver takes a column's type from its first batch: let that be all rows
                    cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": EVERY_ROW})
                cursor.execute(query)
                return cursor.fetch_arrow_table()
        except adbc_driver_manager.OperationalError as error:  # which is nobody's mistake: trying again may help
            raise NightsiftError(f"dataset {self.dataset.name}: the database in {self.dataset.source.connection_env} "
                                 f"broke off: {one_line(error)}; run again when it answers") from None  # fmt: skip
        except (adbc_driver_manager.Error, OSError, pa.ArrowInvalid) as error:
            # Not chained: the driver's own error may quote the connection string.
            raise ConfigError(f"{self.dataset.file.name}: source.sql: the query failed: {one_line(error)}") from None


@contextmanager
def connect(dataset: Dataset) -> Iterator[Database]:
    """The dataset's database, in a transaction that can only read and is never committed.

    Raises `ConfigError` where the variable is unset or not allowed, `NightsiftError` where no database answers.
    """
    variable = dataset.source.connection_env or ""
    require_connection(variable)
    address = os.environ.get(variable, "")
    if not address:
        raise ConfigError(
            f"{dataset.file.name}: source.connection_env: the environment variable {variable} is not set; "
            "give it the connection string (postgresql://… or sqlite:///…)"
        )
    opener, uri = _driver(variable, address)
    is_sqlite = address.startswith("sqlite")
    try:
        connection = opener(uri)
        if not is_sqlite:  # that one is opened for reading alone
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")  # no query can take it back
    except (adbc_driver_manager.Error, OSError) as error:
        raise NightsiftError(
            f"dataset {dataset.name}: cannot connect to the database in {variable}: {one_line(error)}"
        ) from None
    with connection:
        yield Database(dataset, connection, is_sqlite)


def _plain(table: pa.Table) -> pa.Table:
    """The table without Arrow's extension types: PostgreSQL's numeric comes as a text in a wrapping."""
    columns = [
        column.cast(column.type.storage_type) if isinstance(column.type, pa.BaseExtensionType) else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def quote_name(name: str) -> str:
    """`name` as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _driver(variable: str, address: str) -> tuple[Callable[[str], Any], str]:
    """The driver's connect function, and the address as the driver spells it."""
    scheme, _, rest = address.partition("://")
    kind = scheme.partition("+")[0]  # SQLAlchemy writes postgresql+psycopg2://
    if kind in ("postgresql", "postgres"):
        import adbc_driver_postgresql.dbapi

        os.environ.setdefault("PGCONNECT_TIMEOUT", PATIENCE)  # libpq's own is for ever
        return adbc_driver_postgresql.dbapi.connect, f"postgresql://{rest}"
    if kind == "sqlite":
        import adbc_driver_sqlite.dbapi

        file = Path(rest.removeprefix("/")).absolute()  # sqlite:///relative, sqlite:////absolute
        if not file.is_file():
            raise NightsiftError(f"{variable} names the SQLite file {file}, which does not exist")
        return adbc_driver_sqlite.dbapi.connect, f"{file.as_uri()}?mode=ro"
    raise ConfigError(f"{variable} must hold an address that begins with postgresql:// or sqlite:///")


def _as_text(column: str) -> str:
    exact = f"WHEN 'real' THEN printf('%!.17g', {column}) WHEN 'blob' THEN hex({column})"  # 17 digits keep every bit
    return f"CASE typeof({column}) {exact} ELSE CAST({column} AS TEXT) END AS {column}"
