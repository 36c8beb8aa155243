"""The tables of docs/benchmarks.md from the figures of `benchmarks.accuracy`: `python -m benchmarks._tables FILE`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, Result

DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"
# For each set its metrics: heading, digits.
VUS = {"vus_pr_mean": ("VUS-PR", 3), "auc_pr_mean": ("AP", 3), "auc_roc_mean": ("ROC", 3)}
METRICS = {
    "skab": {
        "f1": ("F1", 3),
        "far": ("FAR %", 1),
        "mar": ("MAR %", 1),
        "auc_pr_mean_entity": ("mean AP", 3),
        "event_recall": ("events found", 2),
        "anomaly_free_rows_in_alarm_percent": ("anomaly-free run: rows in alarm %", 1),
    },
    "asd": VUS,
    "smd": VUS,
    "nab": VUS,
}


def tables(found: Result) -> str:
    """A Markdown table for each set that is known here: a row for each contender, its figures and seconds.

    With several seeds a figure is the mean, with the least and the greatest in brackets.
    """
    return "\n\n".join(f"**{name}**\n\n{_table(METRICS[name], found[name])}" for name in METRICS if name in found)


def _table(metrics: Mapping[str, tuple[str, int]], contenders: Result) -> str:
    heads = ["", *(heading for heading, _ in metrics.values()), "fit, s", "score, s"]
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for contender, figures in contenders.items():
        cells = [_figure(figures, name, digits) for name, (_, digits) in metrics.items()]
        seconds = [f"{figures['seconds'][part]:.3g}" for part in ("fit", "score")]
        lines.append(_line([contender, *cells, *seconds]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _figure(figures: Mapping[str, Any], name: str, digits: int) -> str:
    if name not in figures:
        return "–"
    mean = f"{figures[name]:.{digits}f}"
    if "range" not in figures:
        return mean
    least, most = figures["range"][name]
    return f"{mean} ({least:.{digits}f}–{most:.{digits}f})"


def between_marks(text: str, new: str) -> str:
    """`text` with `new` between its two marks; raises `ValueError` where they are not there once each, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page needs one line {BEGIN} and one line {END} after it")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    figures = json.loads(Path(sys.argv[1]).read_text())
    DOCS.write_text(between_marks(DOCS.read_text(), tables(figures)))
