"""Source rows to `landing`: every source file once, known by the digest of its content.

A file that was landed before is not read again, unless the clock now says otherwise of a row's being in the future. A
file whose content changed replaces what it brought. Whether a file comes on time, late or twice, by which clock and in
which order, `landing` ends up the same.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

import polars as pl

from pipeline.config import Dataset, days_between
from pipeline.errors import ConfigError, GateRefusedError
from pipeline.labels import land_labels
from pipeline.progress import counted
from pipeline.sources import SourceFile, list_files, read_delta, read_file, read_sql, require_landed
from pipeline.tables import MOMENT, landing_schema
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.ingest")

SLICE = 100_000  # rows that are written as text at once, for their digest
SORTABLE = "%Y-%m-%dT%H:%M:%S.%f"  # a moment of UTC as a text; texts order as the moments do
AHEAD = timedelta(days=1)  # how far an event may be ahead of this machine's clock; what is further is in the future


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one ingest brought: how many files were to be read, how many known, rows landed, days touched.

    And of labels: how many were landed, and how many of them are of no known event. `refused` has a sentence for each
    file that could not be read.
    """

    files: int
    known: int
    rows: int
    days: list[str]
    labels: int = 0
    labels_unknown: int = 0
    refused: list[str] = field(default_factory=list)


def ingest(ws: Workspace, first: date | None = None, last: date | None = None) -> Ingested:
    """As `land`; in the end `GateRefusedError` names each file that could not be read, and what to do."""
    landed = land(ws, first, last)
    if landed.refused:
        raise GateRefusedError("\n".join(landed.refused))
    return landed


def land(ws: Workspace, first: date | None = None, last: date | None = None) -> Ingested:
    """Land every source file that is new or changed; for a table or a query, the days from `first` to `last`.

    Files that cannot be read keep neither the others out nor any labels. Raises as `land_labels` where a file of
    labels cannot be used; the error then names the refused files of events too.
    """
    source = ws.dataset.source
    if source.sql is not None or source.guess_format() == "delta":
        if first is None or last is None:
            raise GateRefusedError(f"{ws.dataset.name}: a query or table is read by day; say which days")
        events = _land_slices(ws, first, last)
    else:
        events = _land_files(ws)
    try:
        labels = land_labels(ws, {date.fromisoformat(day) for day in events.days})
    except (ConfigError, GateRefusedError) as error:
        if not events.refused:
            raise
        raise GateRefusedError("\n".join([*events.refused, str(error)])) from error
    return replace(events, labels=labels.rows, labels_unknown=labels.unknown)


def _land_files(ws: Workspace) -> Ingested:
    files = _files(ws)
    before, limit = ws.lake.landed(), datetime.now(UTC) + AHEAD
    known = _known(before, ws.dataset, limit)
    new = [file for file in files if known.get(file.name) != file.digest]
    landed, days, refused = dict[SourceFile, int](), set[date](), []
    with _required(ws, landed):
        for file in counted("source files", new):
            try:
                frame = place_in_days(read_file(ws.dataset, file), ws.dataset, file.name, limit)
            except GateRefusedError as error:
                refused.append(str(error))
                continue
            dated = replace(file, digest=_dated(file.digest, frame, limit))
            days |= _land(ws, frame, dated, before)
            landed[dated] = len(frame)
            log.info("%s: landed %d rows of %s", ws.dataset.name, len(frame), file.name)
    rows = sum(landed.values())
    return Ingested(len(new), len(files) - len(new), rows, [str(day) for day in sorted(days)], refused=refused)


@contextmanager
def _required(ws: Workspace, landed: dict[SourceFile, int]) -> Iterator[None]:
    """At the end, also where something else has failed, `require_landed` of what has landed."""
    try:
        yield
    finally:
        require_landed(ws.lake, ws.dataset, landed)


def _files(ws: Workspace) -> list[SourceFile]:
    """The source's files; none where a source that has delivered before has no file any more: it is silent."""
    try:
        return list_files(ws.dataset, ws.home)
    except GateRefusedError as error:
        if ws.lake.landed().is_empty():
            raise
        log.warning("%s", error)
        return []


def _dated(digest: str, frame: pl.DataFrame, limit: datetime) -> str:
    """The file's digest, and from when on the first of its rows that are in the future no longer is, if there is one.

    With that the digest tells which rows were taken for future ones: the clock may have been slow, or time passes.
    """
    first = frame.filter(pl.col("event_time") > limit)["event_time"].min()
    return f"{digest}@{first:{SORTABLE}}" if isinstance(first, datetime) else digest


def _known(landed: pl.DataFrame, dataset: Dataset, limit: datetime) -> dict[str, str]:
    """By name, the digest of each file that has landed and that would land today as it did, by the clock of then.

    Not among them is a file with a row that was in the future and no longer is, or stands on a day that now is.
    """
    names = landed.group_by("source", "source_digest").agg(pl.col("day").max())
    digest, first = (names["source_digest"].str.split_exact("@", 1).struct.field(f"field_{n}") for n in (0, 1))
    passed = (first <= f"{limit:{SORTABLE}}").fill_null(False)
    same = ~passed & (names["day"] <= limit.astimezone(dataset.tz).date())
    return dict(zip(names["source"].filter(same), digest.filter(same), strict=True))


def _land(ws: Workspace, frame: pl.DataFrame, file: SourceFile, before: pl.DataFrame) -> set[date]:
    """Replace what `landing` holds of the file; the days that the file touches, or did when `before` had landed."""
    frame = frame.with_columns(source=pl.lit(file.name), source_digest=pl.lit(file.digest))
    schema = {"day": pl.Date, **landing_schema(ws.dataset)}
    ws.lake.replace_source(frame.select(pl.col(name).cast(kind) for name, kind in schema.items()), file.name)
    left = before.filter(pl.col("source") == file.name)
    return {*left["day"].to_list(), *frame["day"].unique().to_list()}


def _land_slices(ws: Workspace, first: date, last: date) -> Ingested:
    """Land a table's or query's rows, a day at a time; a day whose rows did not change is left alone."""
    source = "delta" if ws.dataset.source.sql is None else "sql"
    before, limit = ws.lake.landed(), datetime.now(UTC) + AHEAD
    known = _known(before, ws.dataset, limit)
    landed, days, unchanged, refused = dict[SourceFile, int](), set[date](), 0, []
    with _required(ws, landed):
        for day in days_between(first, last):
            read = read_delta(ws.dataset, ws.home, day, day) if source == "delta" else read_sql(ws.dataset, day, day)
            if read.is_empty():
                continue
            try:
                frame = place_in_days(read, ws.dataset, f"{source}-{day}", limit)
            except GateRefusedError as error:
                refused.append(str(error))
                continue
            slice_ = SourceFile(name=f"{source}-{day}", uri=source, digest=_content_digest(frame), size=len(frame))
            if known.get(slice_.name) == slice_.digest:
                unchanged += 1
                continue
            days |= _land(ws, frame, slice_, before)
            landed[slice_] = len(frame)
    rows = sum(landed.values())
    return Ingested(len(landed), unchanged, rows, [str(day) for day in sorted(days)], refused=refused)


def _content_digest(frame: pl.DataFrame) -> str:
    """32 hex digits of what the rows say."""
    digest = hashlib.blake2b(digest_size=16)
    for part in frame.iter_slices(SLICE):
        digest.update(part.write_ndjson().encode())
    return digest.hexdigest()


def newest_event(ws: Workspace, day: date) -> datetime | None:
    """The newest event of `day` that has landed; None where none has."""
    end = ws.dataset.day_bounds(day)[1]
    events = ws.lake.scan("landing", {"event_time": MOMENT}, day, day).filter(pl.col("event_time") < end)
    newest: datetime | None = events.select(pl.col("event_time").max()).collect(engine="streaming").item()
    return newest


def place_in_days(frame: pl.DataFrame, dataset: Dataset, name: str, limit: datetime) -> pl.DataFrame:
    """`frame` with its `day`; a row whose time is unreadable or after `limit` lands on the file's last good day.

    Raises `GateRefusedError` where no row has a usable event time. What such a file brought by another clock stays.
    """
    future = pl.col("event_time") > limit
    reason = pl.format("event_time: {} is in the future", pl.col("event_time").dt.to_string("%Y-%m-%d %H:%M:%S"))
    frame = frame.with_columns(
        problems=pl.when(future).then(pl.concat_list("problems", reason)).otherwise("problems"),
        day=pl.when(~future).then(pl.col("event_time").dt.convert_time_zone(dataset.zone).dt.date()),
    )
    if len(frame) and (frame["event_time"] > limit).fill_null(False).all():
        raise GateRefusedError(
            f"{name}: every event is later than {limit:%Y-%m-%d %H:%M} UTC, a day ahead of this machine's clock; see "
            "that the clock is right, or mend the file"
        )
    if len(frame) and frame["day"].null_count() == len(frame):
        examples = frame["raw"].drop_nulls().head(1).to_list()
        raise GateRefusedError(
            f"{name}: no row has a usable event time in column {dataset.event_time!r}"
            f"{' (first row: ' + examples[0] + ')' if examples else ''}; "
            f"mend the file or event_time in {dataset.name}.yaml"
        )
    return frame.with_columns(pl.col("day").fill_null(pl.col("day").max()))
