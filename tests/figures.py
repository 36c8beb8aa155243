"""Whether tests run in their long version, and where what they counted is kept for docs/guarantees.md."""

import json
import os
import sys
from pathlib import Path

import psutil


def long() -> bool:
    """Whether the long version is asked for: `make chaos`."""
    return bool(os.environ.get("NIGHTSIFT_CHAOS"))


def record(name: str, what: str, figures: dict[str, float | str], seconds: float) -> None:
    """Print `figures` and keep them as NAME.json in the folder NIGHTSIFT_FIGURES, where that is set."""
    told = {
        "what": what,
        "figures": figures,
        "command": "make chaos" if long() else "make test",
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "seconds": round(seconds),
    }
    print(f"{name}: {json.dumps(told)}", file=sys.stderr)
    if folder := os.environ.get("NIGHTSIFT_FIGURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")
