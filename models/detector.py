"""The detector: autoencoder, scaler, residual scale and threshold, kept, registered and rolled back as one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from models.autoencoder import AutoencoderConfig, load_model, save_model
from models.scaler import RobustScaler
from models.threshold import Tail, Threshold

FORMAT = 1
SCALERS = ("scaler", "error", "residual")


@dataclass(frozen=True, slots=True)
class Detector:
    """Everything that scoring needs.

    about: the dataset, what it was trained on and when in event time, as plain values
    channels: the channels' names, in the order of the tensors' last axis
    encodings: for each categorical feature, category to value
    scaler: of the channels; error: of the reconstruction errors; residual: of the errors less their slow baseline and
        smoothed; the latter two learned on calibration data
    usual: `(channels,)` int64, the longest run of equal readings that is normal; empty: runs do not matter
    tau: steps in which the slow baseline follows an error (0: there is none)
    alpha: weight of the newest error in the smoothing (1: none)
    groups: in how many groups of channels the scored segment is hidden in turn, to be predicted; 0: it is never hidden
    """

    config: AutoencoderConfig
    model: keras.Model
    about: Mapping[str, Any]
    channels: tuple[str, ...]
    encodings: Mapping[str, Mapping[str, float]]
    scaler: RobustScaler
    error: RobustScaler
    residual: RobustScaler
    usual: NDArray[np.int64]
    tau: float
    alpha: float
    groups: int
    threshold: Threshold

    def save(self, folder: Path) -> None:
        """Write the detector into `folder` (made where missing): JSON, arrays and weights, no pickle."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, self.config, folder / "model")
        facts = {
            "format": FORMAT,
            "about": dict(self.about),
            "channels": list(self.channels),
            "encodings": {name: dict(codes) for name, codes in self.encodings.items()},
            "tau": self.tau,
            "alpha": self.alpha,
            "groups": self.groups,
            **{name: list(getattr(self, name).entities) for name in SCALERS},
            "threshold": {name: value for name, value in asdict(self.threshold).items() if name != "quantiles"},
        }
        text = json.dumps(facts, indent=1, ensure_ascii=False, sort_keys=True)
        (folder / "detector.json").write_text(text, encoding="utf-8")
        np.savez_compressed(
            folder / "arrays.npz",
            quantiles=self.threshold.quantiles,
            usual=self.usual,
            **{f"{name}_center": getattr(self, name).center for name in SCALERS},
            **{f"{name}_scale": getattr(self, name).scale for name in SCALERS},
        )

    @classmethod
    def load(cls, folder: Path) -> "Detector":
        """The detector in `folder`; raises `ValueError` where it was written by another format."""
        facts = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"the detector in {folder} has format {facts['format']}, this version reads {FORMAT}")
        model, config = load_model(folder / "model")
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            threshold = {**facts["threshold"], "tail": Tail(**facts["threshold"]["tail"])}
            return cls(
                config=config,
                model=model,
                about=facts["about"],
                channels=tuple(facts["channels"]),
                encodings=facts["encodings"],
                **{name: _scaler(facts[name], arrays[f"{name}_center"], arrays[f"{name}_scale"]) for name in SCALERS},
                usual=arrays["usual"],
                tau=facts["tau"],
                alpha=facts["alpha"],
                groups=facts["groups"],
                threshold=Threshold(**threshold, quantiles=arrays["quantiles"]),
            )


def _scaler(names: list[str], center: NDArray[np.float64], scale: NDArray[np.float64]) -> RobustScaler:
    return RobustScaler({name: row + 1 for row, name in enumerate(names)}, center, scale)
