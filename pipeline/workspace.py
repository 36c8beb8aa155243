"""What every step of the night is given: one dataset, its state folder and its tables."""

import resource
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Dataset, Home, load_dataset
from pipeline.errors import NightsiftError
from pipeline.lake import Lake

MB = 1 << 20
LEAST = 512 * MB  # of address space; with less, libraries that cannot start their threads wait for them without end


@dataclass(frozen=True, slots=True)
class Workspace:
    """A dataset, where its state lives, and its tables."""

    dataset: Dataset
    home: Home
    lake: Lake


def open_workspace(name: str, home: str | Path | None = None, datasets: str | Path | None = None) -> Workspace:
    """The workspace of the dataset `name`; raises `ConfigError` where its YAML is missing or wrong.

    And `NightsiftError` where this process may take too little memory for any work on its tables.
    """
    _require_memory()
    place = Home.at(home)
    return Workspace(load_dataset(name, datasets), place, Lake(place.lake, name))


def _require_memory() -> None:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return
    import psutil  # for few: hardly anybody sets this limit

    left = most - psutil.Process().memory_info().vms
    if left < LEAST:
        raise NightsiftError(
            f"this process may take {max(left, 0) // MB} MB of address space more, and needs {LEAST // MB} MB to begin "
            "with: raise the limit (ulimit -v), or limit the memory by a control group instead"
        )
