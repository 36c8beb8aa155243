"""Labels that come late, such as a fraud confirmed a week after it: how they land, and the rates that come of them.

A label is known `labels.delay` after its event, and no feature sees a younger one: an event of day d is told the rate
of the days from d - delay - over up to, but not including, d - delay. What is counted are labels by category and day,
over all entities, so that the rate is the same whatever the shards.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl

from pipeline.canonical import parse_number, parse_text
from pipeline.config import Dataset, Labels, SequenceFeature
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError
from pipeline.sources import SourceFile, list_matching, read_rows, resolve_path
from pipeline.tables import clean_schema, key_schema, labels_schema
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.labels")

SEEN = "labels"  # under this name the lake keeps by which version of `landing` labels were placed
DOUBT = 5  # normal events that are counted on top, so that a category with few labels has a low rate
Rates = Mapping[str, pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Labelled:
    """What an ingest of labels brought: files read, labels in them, and how many of those are of unknown events."""

    files: int
    rows: int
    unknown: int


def land_labels(ws: Workspace, touched: set[date]) -> Labelled:
    """Land every file of labels that is new or changed; again, where events landed on `touched` days concern it.

    No file at all is no error: labels come late. A file that cannot be used does not keep the others out: those are
    landed first, then an error names each bad one.
    """
    if ws.dataset.labels is None:
        return Labelled(0, 0, 0)
    seen, version = _seen(ws), ws.lake.version("landing")
    if version == seen:
        return _land_labels(ws, touched)
    found = _land_labels(ws, touched | _changed(ws, seen))
    ws.lake.keep(SEEN, pl.DataFrame({"landing": [version]}))
    return found


def _seen(ws: Workspace) -> int | None:
    """The version of `landing` by which labels were last placed, all of them; None where that is not known."""
    kept = ws.lake.kept(SEEN)
    return None if kept is None else int(kept["landing"].item())


def _changed(ws: Workspace, seen: int | None) -> set[date]:
    """The days that `landing` has otherwise than its version `seen`: an ingest may have ended before the labels.

    None where the version is not known, or cannot be read any more.
    """
    if seen is None:
        return set()
    try:
        then, now = ws.lake.landed(version=seen), ws.lake.landed()
    except NightsiftError as error:
        log.warning("%s: labels may wait for events that have landed: %s", ws.dataset.name, error)
        return set()
    key = ["day", "source", "source_digest"]
    return {*now.join(then, on=key, how="anti")["day"], *then.join(now, on=key, how="anti")["day"]}


def _land_labels(ws: Workspace, touched: set[date]) -> Labelled:
    known = dict(ws.lake.landed("labels").select("source", "source_digest").unique().iter_rows())
    for source in _concerned(ws, touched):
        known.pop(source, None)
    new = [file for file in label_files(ws) if known.get(file.name) != file.digest]
    rows, unknown, refused = 0, 0, []
    for file in new:
        try:
            frame = _with_days(ws, read_label_file(ws.dataset, file))
        except (ConfigError, GateRefusedError) as error:
            refused.append(error)
            continue
        ws.lake.replace_source(_placed(frame, file), file.name, "labels")
        rows, unknown = rows + len(frame), unknown + frame["day"].null_count()
        log.info("%s: landed %d labels of %s, %d of them of unknown events",
                 ws.dataset.name, len(frame), file.name, frame["day"].null_count())  # fmt: skip
    if refused:
        raise type(refused[0])("\n".join(str(error) for error in refused))
    return Labelled(len(new), rows, unknown)


def _concerned(ws: Workspace, touched: set[date]) -> list[str]:
    """The landed files with labels on the `touched` days, or with labels that waited for an event that is there now.

    It is looked for on those days, and on the latest that a label rate counts.
    """
    held = ws.lake.landed("labels")
    found = held.filter(pl.col("day").is_in(sorted(touched)))["source"].unique().to_list()
    latest = ws.lake.landed()["day"].max()
    if held["day"].null_count() and isinstance(latest, date):
        waiting = ws.lake.scan("labels", labels_schema()).filter(pl.col("day").is_null())
        recent = pl.col("day").is_in(sorted(touched)) | (pl.col("day") >= latest - ws.dataset.label_reach)
        events = _events(ws, "landing").filter(recent)
        ready = waiting.join(events, on="event_id", how="semi").select("source").unique()
        found += ready.collect(engine="streaming")["source"].to_list()
    return found


def _events(ws: Workspace, table: str, first: date | None = None, last: date | None = None) -> pl.LazyFrame:
    """The columns of `clean` of the events in `table`."""
    return ws.lake.scan(table, clean_schema(ws.dataset), first, last)


def label_files(ws: Workspace) -> list[SourceFile]:
    """The files of labels, sorted by name; none where nothing has been delivered yet."""
    try:
        return list_label_files(ws)
    except GateRefusedError as error:
        log.info("%s", error)
        return []


def list_label_files(ws: Workspace) -> list[SourceFile]:
    """The files of labels, sorted by name; raises `GateRefusedError` where no file matches."""
    where = resolve_path(_declared(ws.dataset).path, ws.dataset.file.parent, ws.home)
    return list_matching(where, f"dataset {ws.dataset.name}, labels")


def _declared(dataset: Dataset) -> Labels:
    assert dataset.labels is not None
    return dataset.labels


def read_label_file(dataset: Dataset, file: SourceFile) -> pl.DataFrame:
    """The file's labels: event_id, anomalous; of several of one event the last; empty cells are no labels.

    Raises `ConfigError` where a column is missing, `GateRefusedError` where the file or a label cannot be read.
    """
    declared = _declared(dataset)
    columns = {"event_id": declared.event_id, "label": declared.label}
    rows = read_rows(file, declared.guess_format() or "", list(columns.values()))
    for key, column in columns.items():
        if column not in rows.frame.columns:
            raise ConfigError(
                f"{file.uri}: there is no column {column!r} (labels.{key}); the columns are "
                f"{', '.join(rows.frame.columns) or 'none'}. Mend the file, or name the right column in "
                f"{dataset.file.name}"
            )
    names, marks = (rows.frame[column] for column in columns.values())
    event, value = parse_text(names, "event_id").values, parse_number(marks, "label")
    wrong = (value.problems.is_not_null() | ~value.values.is_in([0.0, 1.0]).fill_null(value=True)).arg_true()
    if len(wrong):
        raise GateRefusedError(
            f"{file.uri}: row {wrong[0] + 1} has the label {marks[wrong[0]]!r} in column {declared.label!r}, which is "
            f"neither 0 nor 1 ({len(wrong)} rows like it); mend the file, or labels.label in {dataset.file.name}"
        )
    frame = pl.DataFrame({"event_id": event, "anomalous": value.values == 1})
    return frame.drop_nulls().unique("event_id", keep="last", maintain_order=True)


def _with_days(ws: Workspace, labels: pl.DataFrame) -> pl.DataFrame:
    """`labels` with the day of each event, null where no event of that id has landed."""
    events = _events(ws, "landing").select("event_id", "day").unique()
    known = events.join(labels.lazy(), on="event_id", how="semi").collect(engine="streaming")
    return labels.join(known, on="event_id", how="left")


def _placed(labels: pl.DataFrame, file: SourceFile) -> pl.DataFrame:
    """The rows of the table `labels` for a file's labels with their days."""
    parts = labels.sort("event_id").partition_by("day", maintain_order=True)
    marked = [part.with_columns(content=pl.lit(_digest(part.write_ndjson()))) for part in parts]
    frame = pl.concat(marked) if marked else labels.with_columns(content=pl.lit(""))
    frame = frame.with_columns(source=pl.lit(file.name), source_digest=pl.lit(file.digest))
    return frame.select(pl.col(name).cast(kind) for name, kind in labels_schema().items())


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def contents(landed: pl.DataFrame) -> dict[date, str]:
    """For each day a digest of what its labels say, from `Lake.landed("labels", "content")`.

    It is the contents of the day's files in order; a file that repeats what the one before it says does not count.
    """
    files = landed.drop_nulls("day").select("day", "source", "content").unique().sort("day", "source")
    new = (pl.col("content") != pl.col("content").shift(1)).fill_null(value=True).over("day")
    days = files.filter(new).group_by("day", maintain_order=True).agg(pl.col("content").str.join(" "))
    return {day: _digest(content) for day, content in days.iter_rows()}


def read_labels(ws: Workspace, first: date | None = None, last: date | None = None) -> pl.DataFrame:
    """The labels of the events of those days (day, event_id, anomalous); of several of an event the latest file's."""
    rows = ws.lake.scan("labels", labels_schema(), first, last).filter(pl.col("day").is_not_null()).collect()
    latest = rows.sort("source").unique(["day", "event_id"], keep="last")
    return latest.select("day", "event_id", "anomalous").sort("day", "event_id")


def last_known(dataset: Dataset, day: date) -> date:
    """The last day whose labels may be used on `day`: all of its events are older than the delay when `day` begins."""
    return day - _declared(dataset).delay - timedelta(days=1)


def first_counted(dataset: Dataset, day: date) -> date:
    """The first day that a label rate of an event of `day` counts."""
    return day - dataset.label_reach


def label_rates(ws: Workspace, first: date, last: date) -> Rates:
    """What `with_label_rates` needs for the events of the days from `first` to `last`."""
    if not ws.dataset.label_rates:
        return {}
    counted = first_counted(ws.dataset, first), last_known(ws.dataset, last)
    return rates_of(_events(ws, "clean", *counted), read_labels(ws, *counted), ws.dataset)


def rates_of(events: pl.LazyFrame, labels: pl.DataFrame, dataset: Dataset) -> Rates:
    """For each label_rate, from which day on which category has which rate: category, day, rate.

    `events` are rows of `clean` with their day. The rate is anomalous / (labelled + 5), over the labelled events of the
    category; nearly the share itself where there are many, and low where there are few.
    """
    return {feature.name: _steps(events, labels, feature, dataset) for feature in dataset.label_rates}


def _steps(events: pl.LazyFrame, labels: pl.DataFrame, feature: SequenceFeature, dataset: Dataset) -> pl.DataFrame:
    """The rate after each change: a label begins to count when it is known, and ceases `over` later."""
    assert feature.over is not None
    found = events.select("day", "event_id", category_of(feature, dataset)).join(labels.lazy(), on=["day", "event_id"])
    counts = found.group_by("category", "day").agg(
        pl.len().cast(pl.Int64).alias("labelled"), pl.col("anomalous").cast(pl.Int64).sum()
    )
    known = counts.with_columns(pl.col("day") + _declared(dataset).delay + timedelta(days=1))
    numbers = pl.col("labelled", "anomalous")
    ceased = known.with_columns(-numbers, pl.col("day") + feature.over)
    moves = pl.concat([known, ceased]).group_by("category", "day").agg(numbers.sum()).sort("category", "day")
    totals = moves.with_columns(numbers.cum_sum().over("category"))
    rate = pl.col("anomalous") / (pl.col("labelled") + DOUBT)
    return totals.select("category", "day", rate.alias("rate")).sort("day", "category").collect(engine="streaming")


def category_of(feature: SequenceFeature, dataset: Dataset) -> pl.Expr:
    """The column of `clean` whose rate the feature is."""
    names = [declared.name for declared in dataset.features]
    return pl.col(feature.of if feature.of in names else "entity").alias("category")


def with_label_rates(frame: pl.DataFrame, rates: Rates, dataset: Dataset) -> pl.DataFrame:
    """`frame` of clean rows (any order, kept) with a column for each label_rate; 0 where nothing is labelled."""
    if not rates:
        return frame
    day = pl.col("event_time").dt.convert_time_zone(dataset.zone).dt.date().alias("day")
    columns = []
    for feature in dataset.label_rates:
        keys = frame.select(category_of(feature, dataset), day).with_row_index("place").sort("day")
        joined = keys.join_asof(rates[feature.name], on="day", by="category", check_sortedness=False).sort("place")
        known = pl.when(pl.col("category").is_not_null()).then(pl.col("rate").fill_null(0.0))
        columns.append(joined.select(known.alias(feature.name)).to_series())
    return frame.with_columns(columns)


def known_labels(ws: Workspace, frame: pl.DataFrame, day: date) -> pl.Series:
    """For each clean row what is known of it when `day` begins: whether it was anomalous, null where no label says."""
    if ws.dataset.labels is None or frame.is_empty():
        return pl.repeat(None, len(frame), dtype=pl.Boolean, eager=True)
    time = pl.col("event_time").dt.convert_time_zone(ws.dataset.zone).dt.date().alias("day")
    keys = frame.select("event_id", time)
    labels = read_labels(ws, keys["day"].min(), last_known(ws.dataset, day))  # type: ignore[arg-type]
    return keys.join(labels, on=["day", "event_id"], how="left", maintain_order="left")["anomalous"]


# --- the check


def find_leaks(
    features: Callable[[pl.DataFrame], pl.DataFrame],
    events: pl.DataFrame,
    labels: pl.DataFrame,
    dataset: Dataset,
    day: date,
) -> list[str]:
    """The label features of `day` that change with labels which are not known when `day` begins.

    `features` gives the rows of `day` with their label features for any labels (day, event_id, anomalous). It is asked
    with the `labels` as they are, without those of the `events` that are younger than the delay, and with each of these
    made its opposite, or anomalous where it had none.
    """
    last = last_known(dataset, day)
    old = labels.filter(pl.col("day") <= last)
    young = events.filter(pl.col("day") > last).select("day", "event_id")
    young = young.join(labels, on=["day", "event_id"], how="left")
    flipped = young.with_columns(~pl.col("anomalous").fill_null(value=False))
    names = [feature.name for feature in dataset.label_rates]
    told = features(labels).select(names)
    others = [features(changed).select(names) for changed in (old, pl.concat([old, flipped]))]
    return [name for name in names if any(not told[name].equals(other[name]) for other in others)]


def check_labels(ws: Workspace) -> str:
    """That the files of labels can be read and, on the newest day in `clean`, that no feature sees a young label.

    What was found, in words; raises `NightsiftError` otherwise.
    """
    files = list_label_files(ws)
    read = read_label_file(ws.dataset, files[-1])
    said = f"{len(files)} file{'s' if len(files) > 1 else ''}; {files[-1].name} has {len(read):,} labels"
    day = ws.lake.scan("clean", key_schema(ws.dataset)).select(pl.col("day").max()).collect().item()
    if not ws.dataset.label_rates:
        return said
    if day is None:
        return f"{said}; nothing is ingested and validated yet, so that no feature can be checked for a leak"
    events = _events(ws, "clean", first_counted(ws.dataset, day), day).collect()
    rows = events.filter(pl.col("day") == day).drop("day")

    def features(labels: pl.DataFrame) -> pl.DataFrame:
        return with_label_rates(rows, rates_of(events.lazy(), labels, ws.dataset), ws.dataset)

    leaks = find_leaks(features, events, read_labels(ws, first_counted(ws.dataset, day)), ws.dataset, day)
    if leaks:
        raise ConfigError(f"{', '.join(leaks)} of {day} depend on labels that are not known by then: a leak")
    return f"{said}; no feature of {day}, {len(rows):,} events, depends on a label younger than the delay"
