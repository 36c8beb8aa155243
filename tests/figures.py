"""Whether tests run in their long version, and where what they counted is kept for docs/guarantees.md."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from benchmarks._figures import keep


def long() -> bool:
    """Whether the long version is asked for: `make chaos`."""
    return bool(os.environ.get("NIGHTSIFT_CHAOS"))


def record(name: str, what: str, figures: dict[str, float | str], seconds: float) -> None:
    """Print `figures` and keep them as NAME.json in the folder NIGHTSIFT_FIGURES, where that is set."""
    keep(name, what, figures, command="make chaos" if long() else "make test", seconds=seconds)


def recorded(name: str, what: str, figures: Callable[[], Mapping[str, float | str]]) -> Any:
    """A fixture of a module: when its tests have run, what `figures` then gives is recorded, with their seconds."""

    @pytest.fixture(scope="module", autouse=True)
    def at_the_end() -> Iterator[None]:
        began = time.monotonic()
        yield
        record(name, what, dict(figures()), time.monotonic() - began)

    return at_the_end
