"""A slow drift put into normal machines, and later a fault on top of it, through the commands that a user runs.

Twenty copies of the training rows of asd's servers, each with a seed of its own. In the last ten days one channel of a
copy drifts by six of its deviations; on the last day another one is off by eight for three hours. The days before are
trained on as they are.
"""

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks._common import Result, detect, real_data

SEEDS, DRIFT_DAYS = 20, 10
DRIFT, FAULT = 6.0, 8.0  # deviations
FAULT_LENGTH = timedelta(hours=3)


def measure(quick: bool, scratch: Path) -> Result:
    """Rows in alarm before the fault in per cent (mean and worst), copies whose drift is told and whose fault found."""
    copies, planted = disturbed(4 if quick else SEEDS)
    split = copies["timestamp"].max() - timedelta(days=DRIFT_DAYS)
    train, test = (copies.filter(rule) for rule in (pl.col("timestamp") <= split, pl.col("timestamp") > split))
    scores, seconds = detect(scratch / "drift", "drift", train, test)
    told = pl.read_delta(str(scratch / "drift" / "var" / "lake" / "drift" / "drifts")).select("entity", "feature")
    alarms = scores.filter(pl.col("timestamp") > split).join(planted, on="entity")
    fault = pl.col("timestamp").is_between("fault_from", "fault_to")
    before = alarms.filter(pl.col("timestamp") < pl.col("fault_from")).group_by("entity")
    share = 100 * before.agg(pl.col("is_anomaly_pred").mean())["is_anomaly_pred"]
    return {
        "copies": len(planted),
        "rows_in_alarm_before_the_fault_percent": float(share.mean()),
        "worst_copy_percent": float(share.max()),
        "drift_told": len(planted.join(told.unique(), on=["entity", "feature"])),
        "fault_found": alarms.filter(fault)
        .group_by("entity")
        .agg(pl.col("is_anomaly_pred").any())["is_anomaly_pred"]
        .sum(),
        "seconds": seconds,
    }


def disturbed(copies: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Copies of normal servers with drift and fault; for each entity the drifting feature and the fault's ends."""
    data, labels = (pl.read_parquet(real_data("asd") / f"{name}.parquet") for name in ("data", "labels"))
    keys = ["entity", "timestamp"]
    normal = data.join(labels.filter(split="train").select(keys), on=keys, how="semi").sort(keys)
    servers = normal.partition_by("entity", maintain_order=True)
    frames, planted = [], []
    for seed in range(copies):
        rng = np.random.default_rng(seed)
        rows = servers[seed % len(servers)]
        features = [name for name in rows.columns if name not in keys and rows[name].std() > 0.01]
        drifting, faulty = rng.choice(features, 2, replace=False)
        moment, last = rows["timestamp"], rows["timestamp"].max()
        begins = last - timedelta(hours=float(rng.uniform(6, 18)))
        ends = begins + FAULT_LENGTH
        aged = ((moment - (last - timedelta(days=DRIFT_DAYS))).dt.total_seconds() / (86400 * DRIFT_DAYS)).clip(0)
        off = moment.is_between(begins, ends).cast(pl.Float64)
        frames.append(
            rows.with_columns(
                pl.lit(f"server-{seed:02}").alias("entity"),
                (rows[drifting] + DRIFT * rows[drifting].std() * aged).cast(pl.Float32),
                (rows[faulty] + FAULT * rows[faulty].std() * off).cast(pl.Float32),
            )
        )
        planted.append({"entity": f"server-{seed:02}", "feature": drifting, "fault_from": begins, "fault_to": ends})
    return pl.concat(frames), pl.DataFrame(planted)
