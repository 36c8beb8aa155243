"""The registered model: what `mlflow.pyfunc.load_model("models:/NAME@champion")` runs, in any process."""

from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from models.detector import Detector
from pipeline.config import Dataset
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
        """The frame's steps in order of entity and event time, with score, p_value, threshold and is_anomaly."""
        del context, params
        frame = pl.from_pandas(model_input)
        schema = canonical_schema(self.dataset)
        if isinstance(frame.schema["event_time"], pl.Datetime) and frame.schema["event_time"].time_zone is None:
            frame = frame.with_columns(pl.col("event_time").dt.replace_time_zone(self.dataset.zone))
        frame = frame.select(pl.col(name).cast(kind) for name, kind in schema.items())
        return score_frame(self.detector, frame, self.dataset, pl.lit(value=True)).to_pandas()


set_model(RegisteredDetector())
