"""Where the rows come from: files in a folder or an object store, a Delta table, or a query.

Everything is read into the columns of `pipeline.canonical`. For files, ingest lists them (`list_files`), skips those
whose digest it knows, and reads the rest (`read_file`). A Delta table and a query have no files: ingest reads a day
at a time (`read_delta`, `read_sql`).

An object store is reached by the environment, as the lake is: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_REGION` and `AWS_ENDPOINT_URL` for s3://; Google's default credentials for gs://; `AZURE_STORAGE_ACCOUNT_NAME` and
`AZURE_STORAGE_ACCOUNT_KEY` for az://.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import quote, unquote

import polars as pl
import pyarrow.fs
from deltalake import DeltaTable

from pipeline.allowed import require_path
from pipeline.canonical import Rows, canonical, require_columns, source_columns
from pipeline.config import Dataset, Home
from pipeline.database import Stretch, connect
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError, one_line
from pipeline.lake import UNREADABLE, Lake, open_table
from pipeline.parsing import parse
from pipeline.tables import landing_schema

CHUNK = 1 << 22  # bytes read at a time while a file's digest is taken
LONGEST_NAME = 255 - len("source=")  # bytes; the lake keeps a file's rows in a folder that is called after the file
MOST_TRIES = 6  # of a request to an S3 store, where AWS_MAX_ATTEMPTS does not say otherwise: some 20 seconds
SILENT = 30  # seconds without a byte after which a request has failed


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: `name` is relative to the glob's fixed part, `digest` that of its `size` bytes."""

    name: str
    uri: str
    digest: str
    size: int


def source_path(dataset: Dataset, home: Home) -> str:
    """The dataset's `source.path` made absolute: `{home}` filled in, a relative path taken from the YAML's folder."""
    return resolve_path(dataset.source.path or "", dataset.file.parent, home)


def resolve_path(path: str, folder: Path, home: Home) -> str:
    """`path` with `{home}` filled in, and where it is local, absolute (a relative one is taken from `folder`).

    Raises `ConfigError` where the operator does not allow to read what is there.
    """
    path = path.replace("{home}", str(home.root))
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    where = path if "://" in path else os.path.normpath(folder.absolute() / path)
    require_path(_fixed_part(where))
    return where


def list_files(dataset: Dataset, home: Home) -> list[SourceFile]:
    """The source's files, sorted by name; every file is read once for its digest.

    Names that begin with a dot are passed over, as they are uploads in progress. Raises `GateRefusedError` where no
    file matches, `NightsiftError` where the folder or store cannot be read.
    """
    return list_matching(source_path(dataset, home), f"dataset {dataset.name}")


def list_matching(where: str, label: str) -> list[SourceFile]:
    """The files that match the absolute glob `where`, as `list_files` gives them; `label` begins the messages."""
    scheme, path = _split_scheme(where)
    folder, pattern = _split_glob(path)
    with _reachable(where):
        system = _filesystem(scheme)
        found = _matching(system, folder, pattern)
        for info in found if scheme == "" else []:
            require_path(info.path)  # it may be a link to another place
        files = [_source_file(system, scheme, info.path, folder) for info in found]
        if not files:
            raise GateRefusedError(f"{label}: no source file matches {where}{_hint(system, path)}")
    return sorted(files, key=lambda file: file.name)


def read_file(dataset: Dataset, file: SourceFile) -> pl.DataFrame:
    """The file's rows: canonical columns, then `source_row` Int64, `problems` List[String], `raw` String.

    A row that cannot be read keeps its place with its problems and its raw text. Raises `GateRefusedError` where the
    file as a whole cannot be used: empty, cut off, not text, without a needed column, changed since it was listed.
    """
    needed = list(source_columns(dataset).values())
    return canonical(read_rows(file, dataset.source.guess_format() or "", needed), dataset)


def read_rows(file: SourceFile, form: str, needed: list[str] | None = None) -> Rows:
    """The file's rows before they are judged; arguments and errors as for `pipeline.parsing.parse`."""
    if len(quote(file.name, safe="", errors="surrogateescape")) > LONGEST_NAME:
        raise GateRefusedError(f"{file.uri}: the name is too long for the lake, where a sign other than a to z, digits "
                               f"and -._~ counts threefold and more; give the file a shorter name")  # fmt: skip
    scheme, path = _split_scheme(file.uri)
    try:
        with _reachable(file.uri), _filesystem(scheme).open_input_stream(path, compression=None) as stream:
            data = stream.read()
    except FileNotFoundError as error:
        raise GateRefusedError(f"{file.uri} is gone since it was listed; run again") from error
    if hashlib.blake2b(data, digest_size=16).hexdigest() != file.digest:
        raise GateRefusedError(f"{file.uri} changed while it was read; run again when its upload is done")
    return parse(data, form, file.uri, needed)


def require_landed(lake: Lake, dataset: Dataset, rows: Mapping[SourceFile, int]) -> None:
    """Ask the table `landing` itself whether it holds all `rows` that were read of each file, now that it is written.

    Of a file that it does not hold whole nothing is kept, so that the next ingest reads it again. A file that another
    ingest has replaced since by a newer one is passed over. Raises `NightsiftError` that names each file.
    """
    held = lake.landed().group_by("source", "source_digest").agg(pl.col("rows").sum())
    found = {(name, digest): count for name, digest, count in held.iter_rows()}
    newer = {name for name, _ in found} - {file.name for file in rows if (file.name, file.digest) in found}
    wrong = [
        (file, count, found.get((file.name, file.digest), 0))
        for file, count in rows.items()
        if file.name not in newer and found.get((file.name, file.digest), 0) != count
    ]
    for file, _, _ in wrong:
        lake.replace_source(pl.DataFrame(schema={"day": pl.Date, **landing_schema(dataset)}), file.name)
    if wrong:
        raise NightsiftError("\n".join(
            f"{file.name} has {count:,} rows, but {landed:,} of them have landed in {lake.uri('landing')}; nothing of "
            "the file was kept: ingest again" for file, count, landed in wrong
        ))  # fmt: skip


def read_delta(dataset: Dataset, home: Home, first: date, last: date) -> pl.DataFrame:
    """The Delta table's rows of the days `first` to `last` (both included), as `read_file` gives them.

    Only the files and rows that can belong to those days are read. A row whose event time is missing or unreadable
    belongs to no day and is not among them. `source_row` numbers the rows of each day in canonical order. Raises
    `GateRefusedError` where the table or a column is missing.
    """
    where = source_path(dataset, home)
    with _reachable(where):
        table = scan_delta(where)
        schema = table.collect_schema()
        require_columns(where, schema.names(), dataset)
        within = Stretch(dataset, first, last).expression(schema[dataset.event_time])
        rows = Rows.whole(where, table.filter(within).collect())
    return _settle(rows, dataset, first, last)


def read_sql(dataset: Dataset, first: date, last: date) -> pl.DataFrame:
    """The query's rows of the days `first` to `last` (both included), as `read_file` gives them.

    The database does the selecting: the query runs as a subselect with the stretch of time as its condition. A row
    whose event time is missing or unreadable belongs to no day and is not among them. `source_row` numbers the rows of
    each day in canonical order. Raises `ConfigError` where the variable or the query is wrong, `NightsiftError` where
    the database is not reached, `GateRefusedError` where a column is missing.
    """
    label = f"dataset {dataset.name}: source.sql"
    with connect(dataset) as database:
        schema = database.schema()
        require_columns(label, schema.names, dataset)
        rows = Rows.whole(label, database.rows(schema, Stretch(dataset, first, last)))
    return _settle(rows, dataset, first, last)


def is_delta(where: str) -> bool:
    """Whether a Delta table stands at `where`; a file is none."""
    return _delta(where) is not None


def _delta(where: str) -> DeltaTable | None:
    return None if Path(where).is_file() else open_table(where)


def scan_delta(where: str) -> pl.LazyFrame:
    """The Delta table at `where`, lazily; raises `GateRefusedError` where there is none.

    A sign of a glob is here a part of the name: so a link that is called `t[1]` is judged as what it leads to.
    """
    require_path(where)
    table = _delta(where)
    if table is None:
        raise GateRefusedError(f"there is no Delta table at {where}; correct source.path, or write the table first")
    return pl.scan_delta(table)


def _settle(rows: Rows, dataset: Dataset, first: date, last: date) -> pl.DataFrame:
    """Rows of exactly the days asked for, in an order that depends neither on how they came nor on the other days."""
    start, end = Stretch(dataset, first, last).instants
    frame = canonical(rows, dataset).filter((pl.col("event_time") >= start) & (pl.col("event_time") < end))
    order = [name for name in frame.columns if name not in ("source_row", "problems")]
    day = pl.col("event_time").dt.convert_time_zone(dataset.zone).dt.date()
    return frame.sort(order, nulls_last=True).with_columns(source_row=pl.int_range(pl.len(), dtype=pl.Int64).over(day))


@contextmanager
def _reachable(where: str) -> Iterator[None]:
    """What a folder or a store answers when it cannot be read, as a sentence; a file that is gone is another matter."""
    try:
        yield
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise NightsiftError(f"cannot read {where}: a file there has a name that is not UTF-8; rename it") from error
    except UNREADABLE as error:
        raise NightsiftError(f"cannot read {where}: {one_line(error)}") from error


def _split_scheme(where: str) -> tuple[str, str]:
    scheme, mark, path = where.partition("://")
    return (scheme, path) if mark else ("", where)


def _filesystem(scheme: str) -> pyarrow.fs.FileSystem:
    env = os.environ.get
    if scheme == "":
        return pyarrow.fs.LocalFileSystem()
    if scheme == "s3":
        region = env("AWS_REGION") or env("AWS_DEFAULT_REGION")
        tries = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_most_tries(env("AWS_MAX_ATTEMPTS")))
        return pyarrow.fs.S3FileSystem(
            region=region, endpoint_override=env("AWS_ENDPOINT_URL"), retry_strategy=tries,
            connect_timeout=5, request_timeout=SILENT,
        )  # fmt: skip
    if scheme == "gs":
        return pyarrow.fs.GcsFileSystem()
    if scheme == "az":
        account, key = env("AZURE_STORAGE_ACCOUNT_NAME"), env("AZURE_STORAGE_ACCOUNT_KEY")
        if not account:
            raise ConfigError("a source at az:// needs the environment variable AZURE_STORAGE_ACCOUNT_NAME")
        return pyarrow.fs.AzureFileSystem(account_name=account, account_key=key)
    raise ConfigError(f"a source cannot be at {scheme}://; use a local path, s3://, gs:// or az://")


def _most_tries(text: str | None) -> int:
    """What `AWS_MAX_ATTEMPTS` asks for; raises `ConfigError` where it is no number from 1 on."""
    if not text:
        return MOST_TRIES
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise ConfigError(f"the environment variable AWS_MAX_ATTEMPTS must be a number from 1 on, not {text!r}")
    return int(text)


def _split_glob(path: str) -> tuple[str, str]:
    """The folder that holds every match, and the pattern below it."""
    parts = path.split("/")
    fixed = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
    return "/".join(parts[:fixed]) or "/", "/".join(parts[fixed:])


def _fixed_part(where: str) -> str:
    """The folder below which all matches of a glob lie; what is no glob, as it is."""
    scheme, path = _split_scheme(where)
    folder = _split_glob(path)[0] if re.search(r"[*?\[]", path) else path
    return f"{scheme}://{folder}" if scheme else folder


def _glob_regex(pattern: str) -> str:
    """A regular expression for a glob in which `*` stays within a folder, and `**/` is any depth."""
    signs = {"**/": "(?:[^/.][^/]*/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(signs.get(token) or (token if token.startswith("[") else re.escape(token)) for token in tokens)


def _matching(system: pyarrow.fs.FileSystem, folder: str, pattern: str) -> list[pyarrow.fs.FileInfo]:
    selector = pyarrow.fs.FileSelector(folder, allow_not_found=True, recursive="/" in pattern or "**" in pattern)
    wanted = re.compile(_glob_regex(pattern))
    return [
        info
        for info in system.get_file_info(selector)
        if info.is_file and not info.base_name.startswith(".") and wanted.fullmatch(_below(folder, info.path))
    ]


def _below(folder: str, path: str) -> str:
    return path.removeprefix(folder.rstrip("/") + "/")


def _source_file(system: pyarrow.fs.FileSystem, scheme: str, path: str, folder: str) -> SourceFile:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with system.open_input_stream(path, compression=None) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return SourceFile(_below(folder, path), f"{scheme}://{path}" if scheme else path, digest.hexdigest(), size)


def _hint(system: pyarrow.fs.FileSystem, path: str) -> str:
    if "*" not in path and system.get_file_info(path).type == pyarrow.fs.FileType.Directory:
        return "; that is a folder: add the files' pattern to source.path, such as /*.parquet"
    return "; correct source.path, or wait until the source has delivered"
