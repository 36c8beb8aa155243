"""Delta Lake tables, one set per dataset, partitioned by day: the only module that knows how they are kept.

A day of a table is replaced in one atomic commit: a reader sees all of it or none of it, a re-run replaces its own day
and nothing else. Two writers that collide are told apart by Delta's conflict check; the loser tries again a few times.
Upkeep merges the small files of days that rest and removes what nobody can need any more: it is safe beside all else.
An object store that does not answer is asked again for minutes, and a commit of which nobody heard whether it was made
is looked for before it is made again.
"""

import json
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote
from uuid import uuid4

import polars as pl
import pyarrow as pa
import stamina
from deltalake import CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipeline.errors import NightsiftError, one_line

log = logging.getLogger("nightsift.lake")
Frames = Callable[[], Iterator[pl.DataFrame]]

# Else the writer (seen in deltalake 1.6.6) divides rows among queues, one a core, by their day. Of one day all
# queues but one are empty, and while any is empty it takes rows without end. It looks here once, at the first write.
os.environ.setdefault("DELTARS_MAX_CONCURRENT_WRITERS", "1")

BATCH = 1 << 18  # rows that are handed over to be written at once: the row groups of a file are no larger
TABLES = ("landing", "clean", "quarantine", "scores", "drifts", "incidents", "verdicts", "partitions", "labels")
# Tables that many commits of a few rows make; in the others a commit replaces the day, sorted, or all of a source.
SCATTERED = ("partitions", "verdicts")
KEPT = timedelta(days=30)  # for so long what was replaced stays on disk, and an earlier version can be read
ENDED = timedelta(days=8)  # no run lasts as long: what was not written since is nobody's any more
RETENTION = "delta.deletedFileRetentionDuration"  # of a table, in Delta's own words
# Of each table. To open one its log is read from the last checkpoint on.
PROPERTIES = {RETENTION: f"interval {KEPT.days} days", "delta.checkpointInterval": "10"}
STORE = {"connect_timeout": "5s", "timeout": "60s", "retry_timeout": "60s"}  # of one request, and of all its tries
CHECKPOINT, LAST_CHECKPOINT = ".checkpoint.parquet", "_last_checkpoint"  # how names end, and which is the last
COMMIT = "commit"  # under this key a commit's metadata tells it from all others
OPEN = 1 << 16  # files at once; no more, as a process that starts others may try to close every number up to its limit
LOOKED = 100  # commits back in which a writer looks for its own
# What reading raises where a table is out of reach, or broken: Polars panics at a file that was cut off.
UNREADABLE = (OSError, DeltaError, pl.exceptions.PolarsError, pl.exceptions.PanicException)


def _collided(error: Exception) -> bool:
    """Whether another writer's commit came first, so that trying again can succeed."""
    words = "" if isinstance(error, NightsiftError) else str(error).lower()
    return isinstance(error, CommitFailedError) or "already exists" in words or "concurrent" in words


# A commit is bounded by its tries alone: writing a large day may last longer than any time that would do for others.
_STUBBORN = stamina.RetryingCaller(attempts=10, timeout=None, wait_initial=0.05, wait_max=3).on(_collided)
_PERSISTENT = stamina.RetryingCaller(attempts=3, timeout=None, wait_initial=0.2, wait_max=5)
_PATIENT = stamina.RetryingCaller(attempts=5, timeout=60, wait_initial=0.2, wait_max=5)


@dataclass(frozen=True, slots=True)
class Lake:
    """The tables of one dataset under `root`, a folder or an object store's address."""

    root: str
    dataset: str

    def uri(self, table: str) -> str:
        """Where `table` stands."""
        assert table in TABLES, table
        return f"{self.root.rstrip('/')}/{self.dataset}/{table}"

    def staging(self, key: str = "") -> str:
        """Where things stand that are no table's yet, under names that begin with `key`."""
        return f"{self.root.rstrip('/')}/{self.dataset}/_staging/{key}"

    def exists(self, table: str) -> bool:
        """Whether anything was ever written to `table`; raises `NightsiftError` where the lake cannot be reached."""
        return self._open(table) is not None

    def version(self, table: str) -> int:
        """The table's newest Delta version; -1 where the table does not exist."""
        found = self._open(table)
        return -1 if found is None else found.version()

    def scan(
        self,
        table: str,
        schema: dict[str, Any],
        first: date | None = None,
        last: date | None = None,
        version: int | None = None,
    ) -> pl.LazyFrame:
        """The rows of the days from `first` to `last` (both included; None: no bound), lazily, with `schema`.

        `schema` gives the frame its columns where the table does not exist yet, and where it lacks a column that was
        declared since (filled with nulls). `version` is that of the table to be read, its newest by default; -1 is one
        without rows.
        """
        full = {"day": pl.Date, **schema}
        found = None if version == -1 else self._open(table, version)
        if found is None:
            return pl.LazyFrame(schema=full)
        frame = pl.scan_delta(found)
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
    ) -> int:
        """Make `frame` the whole content of `day` in `table`, atomically; how many rows the commit says there are then.

        An empty frame empties the day. Rows that do not fit into memory come as a function that yields them frame by
        frame, at least one, all with the same columns; it is called again where another writer came first. `where`
        narrows what is replaced to a SQL predicate within the day. `note` goes into the commit's metadata (who wrote
        and why); rows hold nothing that changes from run to run. Raises `NightsiftError` when other writers won every
        try.
        """
        frames = (lambda: iter([frame])) if isinstance(frame, pl.DataFrame) else frame
        predicate = f"day = '{day}'" + (f" AND {where}" if where else "")
        written = self._commit(table, lambda: (_of_day(part, day) for part in frames()), predicate, note)
        files = _files(written)
        return int(files.filter(pl.col("partition.day") == day)["num_records"].sum())

    def replace_source(self, frame: pl.DataFrame, source: str, table: str = "landing") -> None:
        """Make `frame` (with its `day` column) all that `table` holds of the file `source`, in one commit."""
        self._commit(table, lambda: iter([frame]), f"source = {quote(source)}", {}, partitions=["day", "source"])

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Add rows to an append-only table."""
        self._commit(table, lambda: iter([frame]), None, {})

    def landed(self, table: str = "landing", *more: str, version: int | None = None) -> pl.DataFrame:
        """What a table of source files holds, from its metadata alone; one line a data file.

        The columns are day, source, source_digest, the columns in `more` that are constant in a data file, and rows.
        `version` is as in `scan`.
        """
        told = ("source_digest", *more)
        found = None if version == -1 else self._open(table, version)
        if found is None:
            strings = dict.fromkeys(("source", *told), pl.String)
            return pl.DataFrame(schema={"day": pl.Date, **strings, "rows": pl.Int64})
        return _files(found).select(
            pl.col("partition.day").cast(pl.Date).alias("day"),
            pl.col("partition.source").alias("source"),
            *(pl.col(f"min.{name}").alias(name) for name in told),
            pl.col("num_records").cast(pl.Int64).alias("rows"),
        )

    def newest(self, table: str) -> date | None:
        """The newest day of which `table` holds anything, from its metadata alone; None where there is none."""
        found = self._open(table)
        if found is None:
            return None
        newest = _files(found)["partition.day"].cast(pl.Date).max()
        return newest if isinstance(newest, date) else None

    def require_whole(self, first: date, last: date) -> None:
        """Raise `NightsiftError` where a commit, or a data file of the days from `first` to `last`, is cut off.

        So files may be after a power failure or on a broken disk, and Delta takes an empty commit for one that changes
        nothing. An object store has whole objects alone.
        """
        if "://" in self.root:
            return
        for table in TABLES:
            if cut := _cut_commit(self.uri(table)):
                raise NightsiftError(self._cut(table, cut))
            if (found := self._open(table)) is None:
                continue
            files = _files(found).filter(pl.col("partition.day").cast(pl.Date).is_between(first, last))
            for path, size in files.select("path", "size_bytes").iter_rows():
                file = Path(self.uri(table)) / unquote(path)
                if not file.is_file() or file.stat().st_size != size:
                    raise NightsiftError(self._cut(table, file))

    def _cut_log(self, table: str) -> str:
        """What to do about the log of a local table, if its end is cut off; empty where it is whole."""
        uri = self.uri(table)
        cut = None if "://" in uri else _cut_commit(uri) or _cut_checkpoint(uri)
        return self._cut(table, cut) if cut else ""

    def _cut(self, table: str, file: Path) -> str:
        """What to do about a file of the table that is cut off or gone; a commit after which there is none can go.

        So can a checkpoint, where all commits up to it are there, or an earlier one: it says what these say.
        """
        log, checkpoint = file.parent, file.name.endswith(CHECKPOINT)
        if checkpoint and ((log / f"{0:020}.json").exists() or {*log.glob(f"*{CHECKPOINT}")} - {file}):
            return (f"{file} is cut off, as after a power failure: delete that file and {LAST_CHECKPOINT} beside it; "
                    "no row is lost")  # fmt: skip
        newest = file.suffix == ".json"
        remedy = "delete that file" if newest else f"move {self.uri(table)} away"
        if table == "verdicts" and not newest:
            remedy = f"bring {self.uri(table)} back from a backup"
        return (f"{file} is gone or cut off, as after a power failure: {remedy}, move {self.uri('partitions')} away, "
                "so that every step is done again, and run: "
                f"nightsift backfill {self.dataset} --from DAY --to DAY --overwrite")  # fmt: skip

    def stage(self, key: str, frame: pl.DataFrame) -> None:
        """Keep a shard's result under `key`, whole or not at all, until it is committed; seen by `staged` only.

        Raises `NightsiftError` where it cannot be written.
        """
        self._put(self.staging(f"{key}.parquet"), frame)

    def keep(self, name: str, frame: pl.DataFrame) -> None:
        """Keep a frame of a few rows that is no table's under `name`, in place of the one before; raises as `stage`."""
        self._put(self._keeping(name), frame)

    def kept(self, name: str) -> pl.DataFrame | None:
        """What was last kept under `name`; None where nothing was. Raises `NightsiftError` where it cannot be read."""
        target = self._keeping(name)
        return _read_staged(target, target)

    def _keeping(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{self.dataset}/_kept/{name}.parquet"

    def _put(self, target: str, frame: pl.DataFrame) -> None:
        try:
            if "://" in target:
                frame.write_parquet(target)  # an object appears when its upload is complete
                return
            # Whoever publishes the same night at this moment removes the folder: then it is made again.
            for attempt in stamina.retry_context(on=FileNotFoundError, attempts=10, wait_initial=0.01, wait_max=1):
                with attempt:
                    _write_whole(Path(target), frame)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise NightsiftError(f"could not write {target}: {one_line(error)}. Run the step again") from error

    def staged(self, key: str) -> pl.DataFrame | None:
        """What was staged under `key`; None where nothing was. Raises `NightsiftError` where it cannot be read."""
        target = self.staging(f"{key}.parquet")
        return _read_staged(target, target)

    def hold(self, key: str) -> "Held | None":
        """What was staged under `key`, to be read later, though others unstage it meanwhile; None where nothing was.

        In an object store, where nothing is unstaged, it is not looked whether it is there. Raises `NightsiftError`
        where it cannot be opened.
        """
        source = self.staging(f"{key}.parquet")
        if "://" in source:
            return Held(source, source)
        try:
            return Held(source, Path(source).open("rb"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NightsiftError(unreachable(source, error)) from error

    def unstage(self, prefix: str) -> None:
        """Remove what was staged under keys that begin with the folder `prefix`, where that is a local folder.

        In an object store it stays for the store's own lifecycle rule: keys name their content, so it does no harm.
        """
        if "://" not in self.root:
            shutil.rmtree(self.staging(prefix), ignore_errors=True)

    def merge_files(self, table: str, now: datetime, *, dry_run: bool = False) -> int:
        """Merge the files of each day that nobody has written for a while into one; how many files there were to merge.

        A writer of such a day that commits first wins: then nothing is merged, until the next time. Raises
        `NightsiftError` where the table cannot be read or written.
        """
        delta = self._open(table) if table in SCATTERED else None
        if delta is None:
            return 0
        with self._keeping_up(table):
            files = _files(delta).rename({"partition.day": "day"})
            written = pl.col("modification_time").max().cast(pl.Datetime("ms", "UTC"))
            days = files.drop_nulls("day").group_by("day").agg(pl.len().alias("files"), written.alias("written"))
            resting = days.filter(pl.col("files") > 1, pl.col("written") < now - ENDED)
            if len(resting) and not dry_run:
                try:
                    delta.optimize.compact([("day", "in", [str(day) for day in resting["day"]])])
                except CommitFailedError:
                    return 0
            return int(resting["files"].sum())

    def remove_unused(self, table: str, *, dry_run: bool = False) -> int:
        """Remove the files that no version of the last `KEPT` has: replaced ones, and those of killed writers.

        Returns how many there are. The log gets a checkpoint, and loses what is older than a month and stands in it.
        Raises `NightsiftError` where the table cannot be read or written.
        """
        delta = self._open(table)
        if delta is None:
            return 0
        with self._keeping_up(table):
            missing = PROPERTIES.keys() - delta.metadata().configuration.keys()
            if missing and not dry_run:
                delta.alter.set_table_properties({name: PROPERTIES[name] for name in sorted(missing)})
            hours = None if RETENTION in delta.metadata().configuration else KEPT // timedelta(hours=1)
            unused = delta.vacuum(hours, full=True)
            if not dry_run:
                if unused:
                    delta.vacuum(hours, full=True, dry_run=False)
                delta.create_checkpoint()
                delta.cleanup_metadata()
            return len(unused)

    @contextmanager
    def _keeping_up(self, table: str) -> Iterator[None]:
        try:
            yield
        except (OSError, DeltaError) as error:
            raise NightsiftError(f"could not keep up {self.uri(table)}: {one_line(error)}. No row was changed; run "
                                 "nightsift upkeep again") from error  # fmt: skip

    def leftovers(self) -> Iterator[Path]:
        """What killed processes may have left in a local lake and no table knows: staged days, and torn files."""
        folder = Path(self.root, self.dataset)
        if "://" not in self.root:
            yield from Path(self.staging()).glob("*")
            yield from folder.glob("*/**/*.parquet#*")  # as Delta names a file while it is written
            yield from folder.glob("*/_delta_log/*#*")

    def _commit(
        self,
        table: str,
        frames: Frames,
        predicate: str | None,
        note: dict[str, str],
        partitions: list[str] | None = None,
    ) -> DeltaTable:
        """Commit the frames; the table as this commit has left it."""
        uri = self.uri(table)
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
        mark, tried, unmade = uuid4().hex, False, list[NightsiftError]()

        def made_frames() -> Iterator[pl.DataFrame]:
            try:
                yield from frames()
            except NightsiftError as error:
                unmade.append(error)
                raise

        def write() -> DeltaTable:
            nonlocal tried
            if tried and (made := _with_commit(uri, mark)):
                return made
            tried = True
            try:
                return _write(uri, made_frames(), predicate, partitions or ["day"], {**note, COMMIT: mark})
            except DeltaError as error:
                if unmade:  # the library buries it in an error of its own
                    raise unmade[0] from error
                raise

        try:
            return _PERSISTENT.on(partial(_unanswered, uri))(_STUBBORN, write)
        except (OSError, DeltaError) as error:
            raise NightsiftError(
                self._cut_log(table)
                or f"could not write {uri}: {one_line(error)}. It holds all of this or nothing; run the step again"
            ) from error

    def _open(self, table: str, version: int | None = None) -> DeltaTable | None:
        uri = self.uri(table)
        try:
            return _PATIENT.on(partial(_unanswered, uri))(open_table, uri, version)
        except (OSError, DeltaError) as error:
            raise NightsiftError(self._cut_log(table) or unreachable(uri, error)) from error


@dataclass(frozen=True, slots=True)
class Held:
    """A staged frame that can be read, as often as wanted, until it is closed."""

    name: str
    source: BinaryIO | str

    def read(self, columns: list[str]) -> pl.DataFrame:
        """These columns of it; raises `NightsiftError` where they cannot be read."""
        if not isinstance(self.source, str):
            self.source.seek(0)
        found = _read_staged(self.source, self.name, columns)
        if found is None:
            raise NightsiftError(f"{self.name} is gone since it was staged; run the night again")
        return found

    def close(self) -> None:
        """Let go of it."""
        if not isinstance(self.source, str):
            self.source.close()


def _read_staged(source: BinaryIO | str, name: str, columns: list[str] | None = None) -> pl.DataFrame | None:
    """The columns (None: all) of the staged frame called `name`; None where there is none."""
    try:
        return pl.read_parquet(source, columns=columns, glob=False)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise NightsiftError(unreachable(name, error)) from error


def allow_open_files() -> None:
    """Let this process have as many files open as a night of a thousand shards needs, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN if hard == resource.RLIM_INFINITY else min(hard, OPEN)
    if resource.RLIM_INFINITY != soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_table(uri: str, version: int | None = None) -> DeltaTable | None:
    """The Delta table at a folder or an object store's address, as of a version or now; None where there is none.

    Raises `OSError` or `DeltaError` where it cannot be read.
    """
    local = "://" not in uri
    if local and not Path(uri, "_delta_log").is_dir():
        return None
    try:  # is_deltatable would list the whole log, and halt all threads until a store answers
        return DeltaTable(uri, version, storage_options=None if local else STORE)
    except TableNotFoundError:
        return None


def unreachable(where: str, error: BaseException) -> str:
    """What to say where a table or an object cannot be read."""
    return (f"{where} cannot be reached: {one_line(error)}. Check NIGHTSIFT_LAKE, its credentials and the network; "
            "nightsift doctor says more")  # fmt: skip


def _unanswered(uri: str, error: Exception) -> bool:
    """Whether an object store broke off: what the library does not ask again by itself, or has asked in vain."""
    return "://" in uri and (isinstance(error, OSError) or type(error) is DeltaError)


def _with_commit(uri: str, mark: str) -> DeltaTable | None:
    """The table as the commit of this mark left it; None where it was not made.

    Its answer may have been lost, or met as another's by its own retry.
    """
    table = open_table(uri)
    made = [one["version"] for one in table.history(LOOKED) if one.get(COMMIT) == mark] if table is not None else []
    return open_table(uri, made[0]) if made else None


def _say(details: stamina.instrumentation.RetryDetails) -> None:
    """Tell of a try that failed; stamina by itself would print it among the results."""
    level = logging.INFO if _collided(details.caused_by) else logging.WARNING
    log.log(level, "%s; trying again in %.1f seconds", one_line(details.caused_by), details.wait_for)


stamina.instrumentation.set_on_retry_hooks([_say])


def _files(table: DeltaTable) -> pl.DataFrame:
    """What the table's metadata tell of its data files."""
    return pl.DataFrame(table.get_add_actions(flatten=True))


def _cut_commit(uri: str) -> Path | None:
    """The last commit in the log of a local table, if it is no JSON to its end; None where it is whole."""
    newest = max((Path(uri) / "_delta_log").glob("*.json"), default=None)
    try:
        # str.splitlines would also divide at signs that may stand in a name.
        for line in newest.read_bytes().removesuffix(b"\n").split(b"\n") if newest else ():
            json.loads(line)
    except ValueError:
        return newest
    except OSError:  # which is another matter than a file that is cut off
        return None
    return None


def _cut_checkpoint(uri: str) -> Path | None:
    """The last checkpoint in the log of a local table, if it is no Parquet file to its end; None where it is whole."""
    newest = max((Path(uri) / "_delta_log").glob(f"*{CHECKPOINT}"), default=None)
    try:
        if newest is not None:
            pl.read_parquet_schema(newest)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return newest
    except OSError:
        return None
    return None


def _write_whole(target: Path, frame: pl.DataFrame) -> None:
    """Write a Parquet file under another name first; nothing of it is left where that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(f"{target}.{uuid4().hex}.part")
    try:
        frame.write_parquet(half)
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)


def _of_day(frame: pl.DataFrame, day: date) -> pl.DataFrame:
    return frame.select(pl.lit(day, dtype=pl.Date).alias("day"), pl.exclude("day"))


def _write(
    uri: str, frames: Iterator[pl.DataFrame], predicate: str | None, partitions: list[str], note: dict[str, str]
) -> DeltaTable:
    first = next(frames).to_arrow()
    batches = (
        batch
        for part in chain([first], (frame.to_arrow() for frame in frames))
        for batch in part.to_batches(max_chunksize=BATCH)
    )
    arrow = pa.RecordBatchReader.from_batches(first.schema, batches)
    table = open_table(uri)
    if table is None:
        # Creating is a commit of its own: losing it to another creator loses no rows.
        table = DeltaTable.create(
            uri, first.schema, partition_by=partitions, mode="ignore", configuration=PROPERTIES,
            storage_options=STORE if "://" in uri else None,
        )  # fmt: skip
    how: dict[str, Any] = {
        "commit_properties": CommitProperties(custom_metadata=note),
        "writer_properties": WriterProperties(compression="SNAPPY", max_row_group_size=BATCH),
    }
    if predicate is None:
        write_deltalake(table, arrow, mode="append", **how)
    else:
        write_deltalake(table, arrow, mode="overwrite", predicate=predicate, schema_mode="merge", **how)
    return table


def quote(text: str) -> str:
    """`text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
