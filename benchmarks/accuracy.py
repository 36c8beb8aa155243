"""Accuracy on labelled data that nobody made for this project, through the commands that a user runs.

`python -m benchmarks.accuracy [--sets skab asd …] [--kinds convlstm1d conv1d …] [--seeds 3] --json FILE`. Every
dataset's YAML is the one that `nightsift init` writes, but for model.kind and model.seed where asked for, and the
labels that `transactions-labels` declares. Beside ours stand baselines that cost a line or two (benchmarks/_rivals.py)
and, for card payments, the amount over the customer's mean, or a rule on the same labels.
`python -m benchmarks._tables FILE` puts the figures into docs/benchmarks.md.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from benchmarks import _budgets, _drift, _skab, _transactions
from benchmarks._common import DEFAULT_KIND, Result, compare, main, metrics, real_data
from benchmarks._rivals import RIVALS

SERIES = ("asd", "smd", "nab")  # judged by VUS-PR
OTHERS: dict[str, Callable[..., Result]] = {
    "anomaly-free": _skab.measure_normal,
    "drift": _drift.measure,
    "budgets": _budgets.measure,
    "transactions": _transactions.measure,
    "transactions-labels": partial(_transactions.measure, labelled=True),
}
SETS = ("skab", *SERIES, *OTHERS)
KINDS = (DEFAULT_KIND, "conv1d", "lstm")


def measure(quick: bool, scratch: Path, sets: Sequence[str], kinds: Sequence[str], seeds: int) -> Result:
    """The figures of each of the `sets`; of card payments those of the default network and seed only."""
    found: Result = {}
    for name in sets:
        folder = scratch / name
        folder.mkdir()
        if name in SERIES:
            found[name] = series(name, folder, kinds, seeds, quick=quick)
        elif name == "skab":
            found[name] = _skab.measure(quick, folder, kinds, seeds)
        else:
            found[name] = OTHERS[name](quick, folder)
        print(name, json.dumps(found[name], default=float), file=sys.stderr)  # a later set's failure takes none away
    return found


def series(name: str, scratch: Path, kinds: Sequence[str], seeds: int, *, quick: bool) -> Result:
    """VUS-PR and average precision of ours and of its rivals on the test rows of a set, and wall times."""
    data, labels = (pl.read_parquet(real_data(name) / f"{what}.parquet") for what in ("data", "labels"))
    if quick:
        kept = data["entity"].unique().sort().head(2)
        data, labels = (frame.filter(pl.col("entity").is_in(kept.implode())) for frame in (data, labels))
    keys = ["entity", "timestamp"]
    split = data.join(labels.select(*keys, "split").unique(keys), on=keys, how="left", maintain_order="left")
    train, test = (
        split.filter(which).drop("split") for which in (pl.col("split") == "train", pl.col("split") != "train")
    )
    tested = labels.filter(pl.col("split") == "test")
    return compare(name, scratch, train, test, lambda scores: judge(tested, scores), RIVALS, kinds=kinds, seeds=seeds)


def judge(labels: pl.DataFrame, scores: pl.DataFrame) -> Result:
    """The metrics of the protocol `vus`."""
    found = metrics().protocol_vus(labels, scores)
    chosen = ("vus_pr_mean", "auc_pr_mean", "auc_roc_mean", "missing", "far", "event_recall")
    return {name: found[name] for name in chosen if name in found}


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for beside --quick and --json."""
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="measure these only")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=[DEFAULT_KIND], help="our networks to measure (model.kind)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="train ours with the seeds 0, 1, … so many")


if __name__ == "__main__":
    main(__doc__ or "", measure, options)
