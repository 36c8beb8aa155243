"""Simulated card payments with labelled fraud, scored for six weeks of nights through the commands that a user runs.

Label-free: trained on the five weeks before, with the YAML that `nightsift init` writes. Beside it the one-line
baseline: amount divided by the customer's mean amount in the training weeks.
"""

from datetime import date, timedelta
from pathlib import Path

import polars as pl

from benchmarks._common import Result, metrics, nightsift, real_data

TRAIN_FROM, FIRST_NIGHT, WEEKS = date(2018, 5, 16), date(2018, 6, 20), 6
CHOSEN = ("auc_roc", "average_precision", "ap_scenarios13", "card_precision@100", "rows", "frauds", "missing")


def measure(quick: bool, scratch: Path) -> Result:
    """Metrics of the bench's `transactions` protocol per week and their mean, for both, and wall time."""
    folder, weeks = real_data("transactions"), 1 if quick else WEEKS
    source = scratch / "source"
    source.mkdir()
    data = pl.concat(pl.read_parquet(file) for file in sorted(folder.glob("data-*.parquet")))
    for (month,), part in data.group_by(pl.col("timestamp").dt.strftime("%Y-%m")):
        part.write_parquet(source / f"{month}.parquet")
    seconds = {"init": nightsift(scratch, "init", "payments", "--source", "source/*.parquet", "--entity", "customer_id",
                                 "--event-time", "timestamp")}  # fmt: skip
    last = FIRST_NIGHT + timedelta(weeks=weeks)
    seconds["train"] = nightsift(scratch, "train", "payments", "--from", str(TRAIN_FROM), "--to", str(FIRST_NIGHT))
    nights = ("--from", str(FIRST_NIGHT), "--to", str(last))
    seconds["score"] = nightsift(scratch, "score", "payments", *nights)
    nightsift(scratch, "scores", "payments", *nights, "--out", "scores.parquet")
    scored = pl.read_parquet(scratch / "scores.parquet")
    ours = scored.select(pl.col("event_id").cast(pl.Int64).alias("tx_id"), "score", is_anomaly_pred="is_anomaly")
    rivals = {"nightsift": ours, "amount / customer mean": ratio(data)}
    result: Result = {name: {} for name in rivals}
    for week in range(weeks):
        begin = FIRST_NIGHT + timedelta(weeks=week)
        labels = pl.read_parquet(folder / f"week-{begin}.labels.parquet")
        for name, scores in rivals.items():
            found = metrics().protocol_transactions(labels, scores)
            result[name][str(begin)] = {metric: found[metric] for metric in CHOSEN}
    for name in rivals:
        by_week = list(result[name].values())
        result[name]["mean"] = {m: sum(w[m] for w in by_week) / len(by_week) for m in CHOSEN[:4]}
    days = weeks * 7 * data["customer_id"].n_unique()
    alarms = {"steps_in_alarm_per_card_day": float(scored["is_anomaly"].sum()) / days}
    return result | {"alarms": alarms, "seconds": seconds}


def ratio(data: pl.DataFrame) -> pl.DataFrame:
    """The one-line baseline: amount ÷ the customer's mean amount before the first night."""
    known = data.filter(pl.col("timestamp").dt.date().is_between(TRAIN_FROM, FIRST_NIGHT, "left"))
    means = known.group_by("customer_id").agg(pl.col("amount").mean().alias("mean"))
    joined = data.join(means, on="customer_id", how="left").with_columns(
        pl.col("mean").fill_null(known["amount"].mean())
    )
    return joined.select("tx_id", score=pl.col("amount") / pl.col("mean"))
