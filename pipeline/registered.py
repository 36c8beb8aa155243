"""The registered model: what `mlflow.pyfunc.load_model("models:/NAME@champion")` runs, in any process."""

from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from models.detector import Detector
from pipeline.canonical import parse_time
from pipeline.config import Dataset
from pipeline.errors import ConfigError
from pipeline.score import score_frame
from pipeline.tables import canonical_schema


class RegisteredDetector(PythonModel):
    """Scores a plain frame with the columns entity, event_time and the features, threshold included."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the detector that was logged with the model."""
        self.detector = Detector.load(Path(context.artifacts["detector"]))
        about = self.detector.about["dataset"]
        self.dataset = Dataset(**{**about, "source": {"path": "frame.parquet"}})

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """The frame's steps in order of entity and event time, with score, p_value, threshold and is_anomaly.

        Columns that the detector does not know are passed over, and `event_id` may be left out. Raises `ConfigError`
        for a column that is missing or cannot be read.
        """
        del context, params
        frame = read(pl.from_pandas(model_input), self.dataset)
        return score_frame(self.detector, frame, self.dataset, pl.lit(value=True)).to_pandas()


def read(frame: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """The frame's columns in canonical types; a time without a zone is taken for one of the dataset's zone."""
    columns = []
    for name, kind in canonical_schema(dataset).items():
        if name not in frame.columns and name != "event_id":
            raise ConfigError(f"the frame has no column {name!r}; {dataset.name} needs {', '.join(_needed(dataset))}")
        given = frame[name] if name in frame.columns else pl.Series(name, [None] * len(frame), kind)
        try:
            columns.append(_moments(given, dataset.zone) if name == "event_time" else given.cast(kind))
        except pl.exceptions.PolarsError as error:
            wanted = "numbers" if kind == pl.Float64 else "text"
            raise ConfigError(f"the column {name!r} holds {given.dtype}, of which not all are {wanted}") from error
    return pl.DataFrame(columns)


def _needed(dataset: Dataset) -> list[str]:
    return [name for name in canonical_schema(dataset) if name != "event_id"]


def _moments(given: pl.Series, zone: str) -> pl.Series:
    """The times as a night reads them; a local one that happens twice, as clocks change, is the earlier of the two."""
    if given.dtype.is_numeric():
        raise ConfigError(f"the column 'event_time' holds {given.dtype}, which does not say of what unit its numbers "
                          "are; give times, as pandas.to_datetime(numbers, unit='s', utc=True) makes them")  # fmt: skip
    read = parse_time(given, "event_time", zone)
    if read.values.null_count():
        unread = read.problems.filter(read.values.is_null())[0]
        raise ConfigError(f"the column 'event_time' holds {given.dtype}, of which not all are times ({unread})")
    return read.values.alias("event_time")


set_model(RegisteredDetector())
