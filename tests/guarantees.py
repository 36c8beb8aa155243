"""Write docs/guarantees.md: the promises of docs/guarantees.yaml with the last figures of the tests that break them.

`python -m tests.guarantees var/chaos` takes the figures that the tests left in the folder var/chaos (`make chaos`) into
docs/guarantees.json, where those of tests that did not run this time stay, and writes the page.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROMISES, FIGURES, PAGE = (ROOT / "docs" / f"guarantees.{kind}" for kind in ("yaml", "json", "md"))

TOP = """\
# What is promised

<!-- Made from docs/guarantees.yaml and the figures of `make chaos`: change those. -->

Each promise, how it is kept, the tests that break it on purpose, and what they counted when `make chaos` was last run.
Most of them, with smaller counts, are part of `make test`. Security has a page of its own too:
[SECURITY.md](../SECURITY.md).
"""


def page(promises: list[Mapping[str, Any]], figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown; `figures` are by their name, and of those that are not there the page says so."""
    return "\n".join([TOP, *(line for promise in promises for line in _section(promise, figures))])


def _section(promise: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield f"## {promise['promise']}"
    yield f"{promise['how'].strip()}\n"
    yield "Broken on purpose by:"
    yield from (f"- [{test}](../{test.split('::')[0]})" for test in promise["tests"])
    yield ""
    for name in promise.get("figures", []):
        yield from _table(name, figures[name]) if name in figures else (f"{name}: not counted yet.\n",)


def _table(name: str, told: Mapping[str, Any]) -> Iterator[str]:
    yield f"| {told['what']} | |\n|---|---|"
    yield from (f"| {what} | {_shown(value)} |" for what, value in told["figures"].items())
    yield f"\n`{told['command']}`, {told['machine']}, {told['seconds']:,} s.\n"


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if value == int(value) else f"{value:,.2f}"


def read(folder: Path) -> dict[str, Any]:
    """The figures in the folder, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def write(folder: Path) -> None:
    """Take the figures of `folder` and write the page."""
    promises = yaml.safe_load(PROMISES.read_text())
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    named = {name for promise in promises for name in promise["figures"]}
    figures = {name: told for name, told in sorted({**kept, **read(folder)}.items()) if name in named}
    PAGE.write_text(page(promises, figures))
    FIGURES.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
