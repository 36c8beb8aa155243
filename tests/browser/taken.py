"""Which state of the project each picture in docs/pictures shows, so that a test can say when one is out of date.

`make pictures` takes them and writes, beside them, `taken.json`: for each picture the digest of what draws it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What draws the pages: templates, the modules that choose words and figures, and the facts that the tests make up.
DRAWS = (
    "pipeline/templates/*",
    "pipeline/rendering.py",
    "pipeline/report.py",
    "pipeline/background.py",
    "pipeline/browse.py",
    "pipeline/review.py",
    "pipeline/chart.py",
    "pipeline/pages.py",
    "pipeline/logbook.py",
    "pipeline/figures.py",
    "pipeline/words.py",
    "plugins/incidents.py",
    "tests/lake.py",
)
NOTES = "taken.json"


def digest(root: Path = ROOT) -> str:
    """16 hex digits that change with a line that draws, and neither with a comment nor with an empty line."""
    told = hashlib.sha256()
    for file in sorted(drawing(root)):
        comment = "#" if file.suffix == ".py" else "\n"  # in CSS it begins a rule
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        told.update("\n".join([file.name, *(line for line in lines if line and not line.startswith(comment))]).encode())
    return told.hexdigest()[:16]


def drawing(root: Path = ROOT) -> Iterator[Path]:
    """The files that draw."""
    return (file for pattern in DRAWS for file in root.glob(pattern) if file.is_file())


def times(folder: Path) -> dict[str, int]:
    """When each picture was written, in nanoseconds."""
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.png")}


def note(folder: Path, before: Mapping[str, int]) -> None:
    """Note what the pictures show that were written since `before`, which `times` gave; what is gone goes."""
    now, kept, shown = times(folder), read(folder), digest()
    noted = {name: shown if before.get(name) != when else kept.get(name, "") for name, when in sorted(now.items())}
    (folder / NOTES).write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, str]:
    """What was noted, by picture; empty where nothing was."""
    file = folder / NOTES
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
