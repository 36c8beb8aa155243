"""SKAB, a water-pump testbed with labelled faults, through the commands that a user runs.

One model for all runs, trained on the first 400 rows of each labelled run and the first 1,500 of the anomaly-free one,
with the YAML that `nightsift init` writes. The rest is scored as it would arrive: in a second file, later. Beside it
MEWMA (exponentially weighted mean of the z-scored rows, then its Mahalanobis distance), with the same rows to learn
from and its threshold at 4/3 of the 0.999 quantile.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from benchmarks._common import Result, compare, detect, metrics, real_data
from benchmarks._rivals import RIVALS

NORMAL, NORMAL_ROWS = "anomaly-free", 1500
FEW_ROWS = 400
CHOSEN = ("f1", "far", "mar", "auc_pr_mean_entity", "event_recall", "false_alarms_per_entity_day", "rows", "missing")


def measure(quick: bool, scratch: Path, kinds: Sequence[str], seeds: int) -> Result:
    """Metrics of the bench's `skab` protocol for ours and for MEWMA, alarms on the anomaly-free run, wall times."""
    data, labels = (pl.read_parquet(real_data("skab") / f"{name}.parquet") for name in ("data", "labels"))
    if quick:
        kept = ["valve1/0", "valve1/1", "valve1/2", "valve1/3", NORMAL]
        data, labels = (frame.filter(pl.col("entity").is_in(kept)) for frame in (data, labels))
    ordinal = pl.int_range(pl.len()).over("entity")
    learned = data.sort("entity", "timestamp").join(labels, on=["entity", "timestamp"]).with_columns(ordinal.alias("n"))
    first = (pl.col("split") == "train") & ((pl.col("entity") != NORMAL) | (pl.col("n") < NORMAL_ROWS))
    train, test = (learned.filter(rule).select(data.columns) for rule in (first, ~first))
    rivals = {"MEWMA": RIVALS["MEWMA"]}
    return compare(
        "skab", scratch, train, test, lambda scores: judge(scores, labels, test), rivals, kinds=kinds, seeds=seeds
    )


def judge(scores: pl.DataFrame, labels: pl.DataFrame, test: pl.DataFrame) -> Result:
    """The protocol's metrics on the labelled runs, and the share of rows in alarm on the anomaly-free one."""
    scores = scores.with_columns(pl.col("score").fill_null(0))
    result = metrics().protocol_skab(labels.filter(pl.col("split") == "test"), scores)
    quiet = test.filter(pl.col("entity") == NORMAL).join(scores, on=["entity", "timestamp"])
    return {name: result[name] for name in CHOSEN} | {
        "anomaly_free_rows_in_alarm_percent": 100 * float(quiet["is_anomaly_pred"].cast(pl.Float64).mean())
    }


def measure_normal(quick: bool, scratch: Path) -> Result:
    """A detector of the anomaly-free run alone, from its first 1,500 and its first 400 rows: what the rest looks like.

    By rows learned from: the share of the others in alarm in per cent, the features told to drift, wall times.
    """
    data = pl.read_parquet(real_data("skab") / "data.parquet").filter(entity=NORMAL).sort("timestamp")
    found: Result = {}
    for rows in (FEW_ROWS,) if quick else (NORMAL_ROWS, FEW_ROWS):
        folder = scratch / str(rows)
        scores, seconds = detect(folder, "skab", data.head(rows), data.tail(-rows))
        rest = scores.join(data.tail(-rows), on=["entity", "timestamp"], how="semi")
        drifts = pl.read_delta(str(folder / "var" / "lake" / "skab" / "drifts"))
        found[str(rows)] = {
            "rows_in_alarm_percent": 100 * float(rest["is_anomaly_pred"].cast(pl.Float64).mean()),
            "drifting": sorted(drifts["feature"].unique()),
            "seconds": seconds,
        }
    return found
