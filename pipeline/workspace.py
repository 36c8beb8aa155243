"""What every step of the night is given: one dataset, its state folder and its tables."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Dataset, Home, load_dataset
from pipeline.lake import Lake


@dataclass(frozen=True, slots=True)
class Workspace:
    """A dataset, where its state lives, and its tables."""

    dataset: Dataset
    home: Home
    lake: Lake


def open_workspace(name: str, home: str | Path | None = None, datasets: str | Path | None = None) -> Workspace:
    """The workspace of the dataset `name`; raises `ConfigError` where its YAML is missing or wrong."""
    place = Home.at(home)
    return Workspace(load_dataset(name, datasets), place, Lake(place.lake, name))
