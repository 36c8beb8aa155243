"""What state an installation is in."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import Home, dataset_names
from pipeline.errors import NightsiftError
from pipeline.lake import TABLES, Lake

PACKAGES = ("apache-airflow", "polars", "deltalake", "great-expectations", "keras", "tensorflow", "mlflow")


def examine(home: Home, datasets: Path) -> dict[str, Any]:
    """Versions, folders, free disk, GPUs, and for each dataset its tables' Delta versions; plain values."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "home": str(home.root),
        "free disk": f"{shutil.disk_usage(_existing(home.root)).free / 1e9:.1f} GB",
        "lake": home.lake,
        "mlflow": home.tracking_uri.split("@")[-1],  # without user and password
        "gpus": _gpus(),
        "datasets": {name: _tables(Lake(home.lake, name)) for name in dataset_names(datasets)},
    }


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _gpus() -> int:
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def _tables(lake: Lake) -> dict[str, str]:
    found = {}
    for table in TABLES:
        try:
            number = lake.version(table)
        except NightsiftError as error:
            found[table] = str(error)
        else:
            found[table] = "not there yet" if number < 0 else f"Delta version {number}"
    return found
