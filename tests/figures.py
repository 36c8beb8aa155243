"""Whether tests run in their long version, and where what they counted is kept for docs/guarantees.md."""

import os

from benchmarks._figures import keep


def long() -> bool:
    """Whether the long version is asked for: `make chaos`."""
    return bool(os.environ.get("NIGHTSIFT_CHAOS"))


def record(name: str, what: str, figures: dict[str, float | str], seconds: float) -> None:
    """Print `figures` and keep them as NAME.json in the folder NIGHTSIFT_FIGURES, where that is set."""
    keep(name, what, figures, command="make chaos" if long() else "make test", seconds=seconds)
