"""Accuracy on labelled data that nobody made for this project, through the commands that a user runs.

`python -m benchmarks.accuracy [--sets skab asd …] --json FILE`. Every dataset's YAML is the one that `nightsift init`
writes, but for the labels that `transactions-labels` declares. Beside ours stand baselines that cost a line or two
(benchmarks/_rivals.py) and, for card payments, the amount over the customer's mean, or a rule on the same labels.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import polars as pl

from benchmarks import _rivals, _skab, _transactions
from benchmarks._common import Result, main, metrics, nightsift, real_data

SERIES = ("asd", "smd", "nab")  # judged by VUS-PR
RIVALS = {
    "MEWMA": _rivals.mewma,
    "KMeansAD": _rivals.kmeans,
    "IsolationForest": _rivals.isolation_forest,
    "PCA": _rivals.principal_components,
}
OTHERS: dict[str, Callable[..., Result]] = {
    "skab": _skab.measure,
    "transactions": _transactions.measure,
    "transactions-labels": partial(_transactions.measure, labelled=True),
}
SETS = ("skab", *SERIES, "transactions", "transactions-labels")
DAY = timedelta(days=1)


def measure(quick: bool, scratch: Path, sets: Sequence[str]) -> Result:
    """The figures of each of the `sets`."""
    found: Result = {}
    for name in sets:
        folder = scratch / name
        folder.mkdir()
        if name in SERIES:
            found[name] = series(name, folder, quick=quick)
        else:
            found[name] = OTHERS[name](quick, folder)
        print(name, json.dumps(found[name], default=float), file=sys.stderr)  # a later set's failure takes none away
    return found


def series(name: str, scratch: Path, *, quick: bool) -> Result:
    """VUS-PR and average precision of ours and of its rivals on the test rows of a set, and wall time."""
    data, labels = (pl.read_parquet(real_data(name) / f"{what}.parquet") for what in ("data", "labels"))
    if quick:
        kept = data["entity"].unique().sort().head(2)
        data, labels = (frame.filter(pl.col("entity").is_in(kept.implode())) for frame in (data, labels))
    keys = ["entity", "timestamp"]
    split = data.join(labels.select(*keys, "split").unique(keys), on=keys, how="left", maintain_order="left")
    train, test = (
        split.filter(which).drop("split") for which in (pl.col("split") == "train", pl.col("split") != "train")
    )
    source = scratch / "source"
    source.mkdir()
    train.write_parquet(source / "1-train.parquet")
    seconds = {"init": nightsift(scratch, "init", name, "--source", "source/*.parquet", "--entity", "entity",
                                 "--event-time", "timestamp")}  # fmt: skip
    first, last = (moment.date() for moment in (data["timestamp"].min(), data["timestamp"].max()))
    until = train["timestamp"].max().date() + DAY
    seconds["train"] = nightsift(scratch, "train", name, "--from", str(first), "--to", str(until))
    test.write_parquet(source / "2-test.parquet")
    seconds["score"] = 0.0
    for begin, end in stretches(test["timestamp"].dt.date()):
        seconds["score"] += nightsift(scratch, "score", name, "--from", str(begin), "--to", str(end))
    nightsift(scratch, "scores", name, "--from", str(first), "--to", str(last + DAY), "--out", "scores.parquet")
    scored = pl.read_parquet(scratch / "scores.parquet").rename({"event_time": "timestamp"})
    rivals = {
        "nightsift": scored.select(*keys, "score", is_anomaly_pred="is_anomaly"),
        **{rival: score(train, data) for rival, score in RIVALS.items()},
    }
    tested = labels.filter(pl.col("split") == "test")
    result: Result = {rival: judge(tested, scores) for rival, scores in rivals.items()}
    return result | {"seconds": seconds}


def stretches(days: pl.Series) -> Iterator[tuple[date, date]]:
    """The days as half-open stretches without a gap."""
    ordered = days.unique().sort()
    new = (ordered.diff() != DAY).fill_null(value=True).cum_sum()
    for part in ordered.to_frame("day").with_columns(new.alias("run")).partition_by("run", maintain_order=True):
        yield part["day"][0], part["day"][-1] + DAY


def judge(labels: pl.DataFrame, scores: pl.DataFrame) -> Result:
    """The metrics of the protocol `vus`."""
    found = metrics().protocol_vus(labels, scores)
    chosen = ("vus_pr_mean", "auc_pr_mean", "auc_roc_mean", "missing", "far", "event_recall")
    return {name: found[name] for name in chosen if name in found}


if __name__ == "__main__":
    main(__doc__ or "", measure, SETS)
