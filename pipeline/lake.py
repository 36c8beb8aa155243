"""Delta Lake tables, one set per dataset, partitioned by day: the only module that knows how they are kept.

A day of a table is replaced in one atomic commit: a reader sees all of it or none of it, a re-run replaces its own day
and nothing else. Two writers that collide are told apart by Delta's conflict check; the loser tries again a few times.
"""

import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import polars as pl
import pyarrow as pa
import stamina
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipeline.errors import NightsiftError

Frames = Callable[[], Iterator[pl.DataFrame]]

# Else the writer divides rows among queues, one a core, by their day. Of one day all queues but one are empty, and
# while any is empty it takes rows without end. It looks here once, at the first write.
os.environ.setdefault("DELTARS_MAX_CONCURRENT_WRITERS", "1")

BATCH = 1 << 17  # rows that are handed over to be written at once: the table's files have row groups no larger
TABLES = ("landing", "clean", "quarantine", "scores", "drifts", "incidents", "verdicts", "partitions", "labels")
# What reading raises where a table is out of reach, or broken: Polars panics at a file that was cut off.
UNREADABLE = (OSError, DeltaError, pl.exceptions.PolarsError, pl.exceptions.PanicException)


@dataclass(frozen=True, slots=True)
class Lake:
    """The tables of one dataset under `root`, a folder or an object store's address."""

    root: str
    dataset: str

    def uri(self, table: str) -> str:
        """Where `table` stands."""
        assert table in TABLES, table
        return f"{self.root.rstrip('/')}/{self.dataset}/{table}"

    def exists(self, table: str) -> bool:
        """Whether anything was ever written to `table`; raises `NightsiftError` where the lake cannot be reached."""
        try:
            return DeltaTable.is_deltatable(self.uri(table))
        except (OSError, DeltaError) as error:
            why = _one_line(error)
            raise NightsiftError(f"{self.uri(table)} cannot be reached: {why}. Check NIGHTSIFT_LAKE, its credentials "
                                 "and the network; nightsift doctor says more") from error  # fmt: skip

    def version(self, table: str) -> int:
        """The table's newest Delta version; -1 where the table does not exist."""
        return DeltaTable(self.uri(table)).version() if self.exists(table) else -1

    def scan(
        self, table: str, schema: dict[str, Any], first: date | None = None, last: date | None = None
    ) -> pl.LazyFrame:
        """The rows of the days from `first` to `last` (both included; None: no bound), lazily, with `schema`.

        `schema` gives the frame its columns where the table does not exist yet, and where it lacks a column that was
        declared since (filled with nulls).
        """
        full = {"day": pl.Date, **schema}
        if not self.exists(table):
            return pl.LazyFrame(schema=full)
        frame = pl.scan_delta(self.uri(table))
        present = frame.collect_schema().names()
        if first is not None:
            frame = frame.filter(pl.col("day") >= first)
        if last is not None:
            frame = frame.filter(pl.col("day") <= last)
        return frame.select(
            pl.col(name).cast(dtype) if name in present else pl.lit(None, dtype=dtype).alias(name)
            for name, dtype in full.items()
        )

    def replace(
        self, table: str, day: date, frame: pl.DataFrame | Frames, *, where: str | None = None, **note: str
    ) -> None:
        """Make `frame` the whole content of `day` in `table`, atomically; an empty frame empties the day.

        Rows that do not fit into memory come as a function that yields them frame by frame, at least one, all with the
        same columns; it is called again where another writer came first. `where` narrows what is replaced to a SQL
        predicate within the day. `note` goes into the commit's metadata (who wrote and why); rows hold nothing that
        changes from run to run. Raises `NightsiftError` when other writers won every try.
        """
        frames = (lambda: iter([frame])) if isinstance(frame, pl.DataFrame) else frame
        predicate = f"day = '{day}'" + (f" AND {where}" if where else "")
        self._commit(table, lambda: (_of_day(part, day) for part in frames()), predicate, note)

    def replace_source(self, frame: pl.DataFrame, source: str, table: str = "landing", **note: str) -> None:
        """Make `frame` (with its `day` column) all that `table` holds of the file `source`, in one commit."""
        self._commit(table, lambda: iter([frame]), f"source = {quote(source)}", note, partitions=["day", "source"])

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Add rows to an append-only table."""
        self._commit(table, lambda: iter([frame]), None, {})

    def landed(self, table: str = "landing", *more: str) -> pl.DataFrame:
        """What a table of source files holds, from its metadata alone; one line a data file.

        The columns are day, source, source_digest, the columns in `more` that are constant in a data file, and rows.
        """
        told = ("source_digest", *more)
        if not self.exists(table):
            strings = dict.fromkeys(("source", *told), pl.String)
            return pl.DataFrame(schema={"day": pl.Date, **strings, "rows": pl.Int64})
        actions = pl.DataFrame(DeltaTable(self.uri(table)).get_add_actions(flatten=True))
        return actions.select(
            pl.col("partition.day").cast(pl.Date).alias("day"),
            pl.col("partition.source").alias("source"),
            *(pl.col(f"min.{name}").alias(name) for name in told),
            pl.col("num_records").cast(pl.Int64).alias("rows"),
        )

    def stage(self, key: str, frame: pl.DataFrame) -> None:
        """Keep a shard's result under `key`, whole or not at all, until it is committed; seen by `staged` only.

        Raises `NightsiftError` where it cannot be written.
        """
        target = f"{self.root.rstrip('/')}/{self.dataset}/_staging/{key}.parquet"
        if "://" in target:
            frame.write_parquet(target)  # an object appears when its upload is complete
            return
        try:
            # Whoever publishes the same night at this moment removes the folder: then it is made again.
            for attempt in stamina.retry_context(on=FileNotFoundError, attempts=10, wait_initial=0.01, wait_max=1):
                with attempt:
                    _write_whole(Path(target), frame)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise NightsiftError(f"could not write {target}: {_one_line(error)}. Run the step again") from error

    def staged(self, key: str) -> pl.DataFrame | None:
        """What was staged under `key`; None where nothing was."""
        try:
            return pl.read_parquet(f"{self.root.rstrip('/')}/{self.dataset}/_staging/{key}.parquet", glob=False)
        except FileNotFoundError:
            return None

    def hold(self, key: str) -> "Held | None":
        """What was staged under `key`, to be read later, though others unstage it meanwhile; None where nothing was.

        In an object store, where nothing is unstaged, it is not looked whether it is there.
        """
        source = f"{self.root.rstrip('/')}/{self.dataset}/_staging/{key}.parquet"
        if "://" in source:
            return Held(source)
        # A night has up to a thousand shards; by default a process may have about as many files open.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        try:
            return Held(Path(source).open("rb"))
        except FileNotFoundError:
            return None

    def unstage(self, prefix: str) -> None:
        """Remove what was staged under keys that begin with the folder `prefix`, where that is a local folder.

        In an object store it stays for the store's own lifecycle rule: keys name their content, so it does no harm.
        """
        if "://" not in self.root:
            shutil.rmtree(f"{self.root}/{self.dataset}/_staging/{prefix}", ignore_errors=True)

    def _commit(
        self,
        table: str,
        frames: Frames,
        predicate: str | None,
        note: dict[str, str],
        partitions: list[str] | None = None,
    ) -> None:
        uri = self.uri(table)
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
        try:
            for attempt in stamina.retry_context(on=_collided, attempts=10, timeout=120, wait_initial=0.05, wait_max=3):
                with attempt:
                    _write(uri, frames(), predicate, partitions or ["day"], note)
        except (OSError, DeltaError) as error:
            why = _one_line(error)
            raise NightsiftError(f"could not write {uri}: {why}. Nothing was changed; run the step again") from error


@dataclass(frozen=True, slots=True)
class Held:
    """A staged frame that can be read, as often as wanted, until it is closed."""

    source: BinaryIO | str

    def read(self, columns: list[str]) -> pl.DataFrame:
        """These columns of it."""
        if not isinstance(self.source, str):
            self.source.seek(0)
        return pl.read_parquet(self.source, columns=columns)

    def close(self) -> None:
        """Let go of it."""
        if not isinstance(self.source, str):
            self.source.close()


def _collided(error: Exception) -> bool:
    """Whether another writer's commit came first, so that trying again can succeed."""
    words = str(error).lower()
    return isinstance(error, CommitFailedError) or "already exists" in words or "concurrent" in words


def _write_whole(target: Path, frame: pl.DataFrame) -> None:
    """Write a Parquet file under another name first; nothing of it is left where that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{target}.{uuid4().hex}.part")
    try:
        frame.write_parquet(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _one_line(error: Exception) -> str:
    """What the libraries say, without their colours, on one line."""
    plain = re.sub(r"\x1b\[\d*m|↳", "", str(error))
    return ": ".join(line.strip() for line in plain.splitlines() if line.strip())


def _of_day(frame: pl.DataFrame, day: date) -> pl.DataFrame:
    return frame.select(pl.lit(day, dtype=pl.Date).alias("day"), pl.exclude("day"))


def _write(
    uri: str, frames: Iterator[pl.DataFrame], predicate: str | None, partitions: list[str], note: dict[str, str]
) -> None:
    first = next(frames).to_arrow()
    batches = (
        batch
        for part in chain([first], (frame.to_arrow() for frame in frames))
        for batch in part.to_batches(max_chunksize=BATCH)
    )
    arrow = pa.RecordBatchReader.from_batches(first.schema, batches)
    try:
        table = DeltaTable(uri)
    except TableNotFoundError:
        # Creating is a commit of its own: losing it to another creator loses no rows.
        table = DeltaTable.create(uri, first.schema, partition_by=partitions, mode="ignore")
    properties = CommitProperties(custom_metadata=note) if note else None
    if predicate is None:
        write_deltalake(table, arrow, mode="append", commit_properties=properties)
    else:
        write_deltalake(
            table, arrow, mode="overwrite", predicate=predicate, schema_mode="merge", commit_properties=properties
        )


def quote(text: str) -> str:
    """`text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
