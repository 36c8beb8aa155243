"""The detector: autoencoder, scaler, residual scale and threshold, kept, registered and rolled back as one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from models.autoencoder import AutoencoderConfig, load_model, save_model
from models.scaler import RobustScaler
from models.scores import Odds, Signals, View
from models.threshold import Rarity, Tail, Threshold

FORMAT = 4
VIEW = ("inputs", "alpha", "alone", "tau")
THRESHOLD = ("value", "budget", "aimed", "expected", "entity_days", "factors", "adapted")
Scope = str | Mapping[str, Sequence[str]]


def group_of(entity: str, scope: Scope) -> str | None:
    """The group that an entity shares a detector with; None where it has no other than the one for all.

    The scope is "all", "entity" (each is a group of its own), or names and globs of entities by group, of which the
    first that fits counts.
    """
    if isinstance(scope, str):
        return entity if scope == "entity" else None
    return next((group for group, names in scope.items() if any(_fits(entity, name) for name in names)), None)


def _fits(entity: str, name: str) -> bool:
    return entity == name or fnmatchcase(entity, name)


@dataclass(frozen=True, slots=True)
class Detector:
    """Everything that scoring needs.

    about: the dataset, what it was trained on and when in event time, as plain values
    channels: the channels' names, in the order of the tensors' last axis
    encodings: for each categorical feature, category to value
    scaler: of the channels
    views: how errors become a score, of a sensor; signals: the same, of transactions; learned on calibration data
    usual: `(2, channels)` int64, the longest run of equal readings that is normal, and of steps without a reading;
        empty: runs do not matter
    groups: in how many groups of channels the scored segment is hidden in turn, to be predicted; 0: it is never hidden
    scope: who shares a detector, as `group_of` has it
    members: by group the detectors of those that do not use this one, which was learned from all
    """

    config: AutoencoderConfig
    model: keras.Model
    about: Mapping[str, Any]
    channels: tuple[str, ...]
    encodings: Mapping[str, Mapping[str, float]]
    scaler: RobustScaler
    views: tuple[View, ...]
    signals: Signals
    usual: NDArray[np.int64]
    groups: int
    threshold: Threshold
    scope: Scope = "all"
    members: Mapping[str, "Detector"] = field(default_factory=dict)

    def member(self, entity: str) -> str | None:
        """The group whose member scores the entity; None where this detector itself does."""
        group = group_of(entity, self.scope)
        return group if group in self.members else None

    def save(self, folder: Path) -> None:
        """Write the detector into `folder` (made where missing): JSON, arrays and weights, no pickle."""
        folder.mkdir(parents=True, exist_ok=True)
        odds = self.signals.odds
        save_model(self.model, self.config, folder / "model")
        facts = {
            "format": FORMAT,
            "about": dict(self.about),
            "channels": list(self.channels),
            "encodings": {name: dict(codes) for name, codes in self.encodings.items()},
            "groups": self.groups,
            "scaler": list(self.scaler.entities),
            "views": [
                {name: getattr(view, name) for name in VIEW} | {"scaler": list(view.scaler.entities)}
                for view in self.views
            ],
            "amounts": [list(amount) for amount in self.signals.amounts],
            "minor": list(self.signals.minor),
            "rates": list(self.signals.rates),
            "odds": odds and [odds.score.tolist(), odds.share.tolist()],
            "threshold": {name: getattr(self.threshold, name) for name in THRESHOLD},
            "rarities": [{"tail": asdict(rarity.tail), "steps": rarity.steps} for rarity in self._rarities],
            "scope": self.scope if isinstance(self.scope, str) else [[*group] for group in self.scope.items()],
            "members": list(self.members),
        }
        for number, member in enumerate(self.members.values()):
            member.save(folder / "members" / str(number))
        text = json.dumps(facts, indent=1, ensure_ascii=False, sort_keys=True)
        (folder / "detector.json").write_text(text, encoding="utf-8")
        arrays: dict[str, Any] = {
            "quantiles": np.stack([rarity.quantiles for rarity in self._rarities]),
            "usual": self.usual,
            **{f"{n}_center": scaler.center for n, scaler in enumerate(self._scalers)},
            **{f"{n}_scale": scaler.scale for n, scaler in enumerate(self._scalers)},
            **{f"{n}_form": view.form for n, view in enumerate(self.views)},
        }
        np.savez_compressed(folder / "arrays.npz", **arrays)

    @property
    def _rarities(self) -> tuple[Rarity, ...]:
        return (self.threshold.rarity, *self.signals.rarities)

    @property
    def _scalers(self) -> tuple[RobustScaler, ...]:
        return (self.scaler, *(view.scaler for view in self.views))

    @classmethod
    def load(cls, folder: Path) -> "Detector":
        """The detector in `folder`; raises `ValueError` where it was written by another format."""
        facts = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"the detector in {folder} has format {facts['format']}, this version reads {FORMAT}")
        model, config = load_model(folder / "model")
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            names = [facts["scaler"], *(view["scaler"] for view in facts["views"])]
            scaler, *scalers = (
                _scaler(name, arrays[f"{n}_center"], arrays[f"{n}_scale"]) for n, name in enumerate(names)
            )
            rarity, *rarities = (
                Rarity(quantiles, Tail(**fact["tail"]), fact["steps"])
                for quantiles, fact in zip(arrays["quantiles"], facts["rarities"], strict=True)
            )
            return cls(
                config=config,
                model=model,
                about=facts["about"],
                channels=tuple(facts["channels"]),
                encodings=facts["encodings"],
                scaler=scaler,
                views=tuple(
                    View(**{**view, "scaler": scalers[n]}, form=arrays[f"{n}_form"])
                    for n, view in enumerate(facts["views"])
                ),
                signals=Signals(
                    tuple((a, r, logged) for a, r, logged in facts["amounts"]),
                    tuple(facts["minor"]),
                    tuple(rarities),
                    tuple(facts["rates"]),
                    _odds(facts["odds"]),
                ),
                usual=arrays["usual"],
                groups=facts["groups"],
                threshold=Threshold(**facts["threshold"], rarity=rarity),
                scope=facts["scope"] if isinstance(facts["scope"], str) else dict(facts["scope"]),
                members={
                    group: cls.load(folder / "members" / str(number)) for number, group in enumerate(facts["members"])
                },
            )


def _odds(facts: list[list[float]] | None) -> Odds | None:
    return None if facts is None else Odds(*(np.array(fact) for fact in facts))


def _scaler(names: list[str], center: NDArray[np.float64], scale: NDArray[np.float64]) -> RobustScaler:
    return RobustScaler({name: row + 1 for row, name in enumerate(names)}, center, scale)
