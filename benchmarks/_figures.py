"""Where measured figures are kept, for docs/guarantees.md."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def keep(name: str, what: str, figures: Mapping[str, Any], *, command: str, seconds: float) -> None:
    """Print `figures`, and keep them as NAME.json in the folder NIGHTSIFT_FIGURES, where that is set."""
    told = {
        "what": what,
        "figures": figures,
        "command": command,
        "machine": f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "seconds": round(seconds),
    }
    print(f"{name}: {json.dumps(told)}", file=sys.stderr)
    if folder := os.environ.get("NIGHTSIFT_FIGURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")
