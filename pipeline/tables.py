"""The columns of every table in the lake; each function gives names and Polars types, in order."""

from typing import Any

import polars as pl

from pipeline.config import Dataset

Schema = dict[str, Any]
MOMENT = pl.Datetime("us", "UTC")
DAY = {"day": pl.Date}
EVERYONE = "(all)"  # the entity of an incident that concerns the whole source


def key_schema(dataset: Dataset) -> Schema:
    """What names a step: entity, event_time, and event_id where the dataset has one."""
    return {"entity": pl.String, "event_time": MOMENT, **({"event_id": pl.String} if dataset.event_id else {})}


def canonical_schema(dataset: Dataset) -> Schema:
    """A step: its key, then each feature (Float64, or String where categorical)."""
    types = {"numeric": pl.Float64, "categorical": pl.String}
    return key_schema(dataset) | {feature.name: types[feature.type] for feature in dataset.features}


def landing_schema(dataset: Dataset) -> Schema:
    """A source row: the step as far as it could be read, where it came from, and what could not be read.

    Where it came from stands before the features: Delta keeps statistics of a table's first 32 columns only, and the
    digests of the sources are read from them.
    """
    origin = {"source": pl.String, "source_digest": pl.String, "source_row": pl.Int64}
    key = key_schema(dataset) | origin
    return DAY | key | canonical_schema(dataset) | {"problems": pl.List(pl.String), "raw": pl.String}


def labels_schema() -> Schema:
    """A label of an event, on the event's day (none where the event is not known), and where it came from.

    `content` is a digest of all that the file says of the day, so that what has changed is known from metadata alone.
    """
    origin = {"source": pl.String, "source_digest": pl.String, "content": pl.String}
    return DAY | origin | {"event_id": pl.String, "anomalous": pl.Boolean}


def clean_schema(dataset: Dataset) -> Schema:
    """A valid step."""
    return DAY | canonical_schema(dataset)


def quarantine_schema(dataset: Dataset) -> Schema:
    """An invalid source row, whole, with the reasons."""
    return landing_schema(dataset) | {"reasons": pl.List(pl.String)}


def predicted_schema(dataset: Dataset) -> Schema:
    """What `pipeline.score.score_frame` gives of a step, in its order: `scores` but for the day and the version."""
    verdict = {"score": pl.Float64, "p_value": pl.Float64, "threshold": pl.Float64, "is_anomaly": pl.Boolean}
    cells = (f"{what}_{name}" for name in dataset.channels for what in ("observed", "expected", "contribution"))
    return key_schema(dataset) | verdict | dict.fromkeys(cells, pl.Float64)


def scores_schema(dataset: Dataset) -> Schema:
    """A scored step; the contributions of its channels add up to 1.

    Null where a cell is not observed, unless it is that which contributes: a sensor that sends nothing for too long.
    """
    verdict = {"score": pl.Float64, "p_value": pl.Float64, "threshold": pl.Float64, "is_anomaly": pl.Boolean}
    cells = {
        f"{what}_{channel}": pl.Float64
        for what in ("observed", "expected", "contribution")
        for channel in dataset.channels
    }
    return DAY | key_schema(dataset) | verdict | cells | {"detector_version": pl.String}


def drifts_schema() -> Schema:
    """A sensor's feature that has moved without being abnormal: medians in its own unit, and how far they are apart.

    `deviations` are those of the training data.
    """
    moved = dict.fromkeys(("observed", "usual", "deviations"), pl.Float64)
    return DAY | {"entity": pl.String, "feature": pl.String, **moved, "detector_version": pl.String}


def incidents_schema() -> Schema:
    """An incident; `drivers` are the features that drove it, the largest share first, as they stood at its peak.

    `reason` is why it was to be expected, where the calendar says so.
    """
    driver = pl.Struct({"feature": pl.String, "share": pl.Float64, "observed": pl.Float64, "expected": pl.Float64})
    return DAY | {
        "incident_id": pl.String, "entity": pl.String, "start": MOMENT, "end": MOMENT, "peak_time": MOMENT,
        "peak_score": pl.Float64, "threshold": pl.Float64, "p_value": pl.Float64, "severity": pl.Float64,
        "steps": pl.Int64, "drivers": pl.List(driver), "kind": pl.String, "detector_version": pl.String,
        "reason": pl.String,
    }  # fmt: skip


def stretches_schema() -> Schema:
    """A stretch of an entity's time, both ends included; in no table."""
    return {"entity": pl.String, "start": MOMENT, "end": MOMENT}


def verdicts_schema() -> Schema:
    """An analyst's verdict on an incident, `confirmed` or `dismissed`, with who gave it and when."""
    return DAY | {
        "incident_id": pl.String, "entity": pl.String, "start": MOMENT, "end": MOMENT,
        "verdict": pl.String, "note": pl.String, "reviewer": pl.String, "reviewed_at": MOMENT,
    }  # fmt: skip


def partitions_schema() -> Schema:
    """What a step of the night made of a day, and of which inputs; `counts` is a JSON object."""
    return DAY | {
        "step": pl.String, "input_digest": pl.String, "config_digest": pl.String, "detector_version": pl.String,
        "counts": pl.String,
    }  # fmt: skip
