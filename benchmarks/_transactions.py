"""Simulated card payments with labelled fraud, scored for six weeks of nights through the commands that a user runs.

Trained on the five weeks before, with the YAML that `nightsift init` writes. Label-free, beside the one-line baseline:
amount divided by the customer's mean amount in the training weeks. With labels that are known seven days later, which
two lines more in that YAML declare, beside a rule of one line on the same labels.
"""

from datetime import date, timedelta
from pathlib import Path

import polars as pl

from benchmarks._common import Result, metrics, nightsift, real_data

TRAIN_FROM, FIRST_NIGHT, WEEKS = date(2018, 5, 16), date(2018, 6, 20), 6
CHOSEN = ("auc_roc", "average_precision", "ap_scenarios13", "card_precision@100", "rows", "frauds", "missing")


DELAY = timedelta(days=7)
RISK = "  - {name: terminal_risk, kind: label_rate, of: terminal_id, over: 7d}\n"
LABELS = "labels: {path: ../labels/*.parquet, event_id: tx_id, label: is_anomaly, delay: 7d}\n"


def measure(quick: bool, scratch: Path, *, labelled: bool = False) -> Result:
    """Metrics of the bench's `transactions` protocol per week and their mean, for ours and its rival, and wall time."""
    folder, weeks = real_data("transactions"), 1 if quick else WEEKS
    source = scratch / "source"
    source.mkdir()
    data = pl.concat(pl.read_parquet(file) for file in sorted(folder.glob("data-*.parquet")))
    for (month,), part in data.group_by(pl.col("timestamp").dt.strftime("%Y-%m")):
        part.write_parquet(source / f"{month}.parquet")
    seconds = {"init": nightsift(scratch, "init", "payments", "--source", "source/*.parquet", "--entity", "customer_id",
                                 "--event-time", "timestamp")}  # fmt: skip
    if labelled:
        declare_labels(folder, scratch)
    last = FIRST_NIGHT + timedelta(weeks=weeks)
    seconds["train"] = nightsift(scratch, "train", "payments", "--from", str(TRAIN_FROM), "--to", str(FIRST_NIGHT))
    nights = ("--from", str(FIRST_NIGHT), "--to", str(last))
    seconds["score"] = nightsift(scratch, "score", "payments", *nights)
    nightsift(scratch, "check", "payments")
    nightsift(scratch, "scores", "payments", *nights, "--out", "scores.parquet")
    scored = pl.read_parquet(scratch / "scores.parquet")
    ours = scored.select(pl.col("event_id").cast(pl.Int64).alias("tx_id"), "score", is_anomaly_pred="is_anomaly")
    rival = (
        {"amount and risk of 7 and 30 days": rule(data, read_labels(folder))}
        if labelled
        else {"amount / customer mean": ratio(data)}
    )
    rivals = {"nightsift": ours, **rival}
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


def read_labels(folder: Path) -> pl.DataFrame:
    """Every payment's label: tx_id, is_anomaly."""
    files = sorted(folder.glob("labels-*.parquet"))
    return pl.concat(pl.read_parquet(file, columns=["tx_id", "is_anomaly"]) for file in files)


def declare_labels(folder: Path, scratch: Path) -> None:
    """Put the labels beside the source, and what uses them into the YAML."""
    (scratch / "labels").mkdir()
    read_labels(folder).write_parquet(scratch / "labels" / "all.parquet")
    file = scratch / "datasets" / "payments.yaml"
    before, after = file.read_text().split("suite:")
    file.write_text(f"{before}{RISK}{LABELS}suite:{after}")


def rule(data: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """max(z / 4, 3 · risk7 + 0.1 · risk30): the amount's z-score by customer, the terminal's shares of frauds.

    Those are of 7 and 30 days, and end seven days before the payment's day.
    """
    known = data.filter(pl.col("timestamp").dt.date().is_between(TRAIN_FROM, FIRST_NIGHT, "left"))
    amount = pl.col("amount")
    usual = known.group_by("customer_id").agg(amount.mean().alias("mean"), amount.std().alias("spread"))
    rows = data.join(usual, on="customer_id", how="left").with_columns(day=pl.col("timestamp").dt.date())
    paid = data.join(labels, on="tx_id").group_by("terminal_id", pl.col("timestamp").dt.date().alias("paid"))
    counts = paid.agg(pl.len().alias("payments"), pl.col("is_anomaly").cast(pl.Int64).sum().alias("frauds"))
    wanted = rows.select("terminal_id", "day").unique().join(counts, on="terminal_id")
    age = pl.col("day") - pl.col("paid") - DELAY
    for days in (7, 30):
        window = wanted.filter(age.is_between(timedelta(days=1), timedelta(days=days)))
        risk = pl.col("frauds").sum() / pl.col("payments").sum()
        shares = window.group_by("terminal_id", "day").agg(risk.alias(f"risk{days}"))
        rows = rows.join(shares, on=["terminal_id", "day"], how="left").with_columns(pl.col(f"risk{days}").fill_null(0))
    mean, spread = pl.col("mean").fill_null(known["amount"].mean()), pl.col("spread").fill_null(known["amount"].std())
    risky = 3 * pl.col("risk7") + 0.1 * pl.col("risk30")
    return rows.select("tx_id", score=pl.max_horizontal((amount - mean) / spread / 4, risky))


def ratio(data: pl.DataFrame) -> pl.DataFrame:
    """The one-line baseline: amount ÷ the customer's mean amount before the first night."""
    known = data.filter(pl.col("timestamp").dt.date().is_between(TRAIN_FROM, FIRST_NIGHT, "left"))
    means = known.group_by("customer_id").agg(pl.col("amount").mean().alias("mean"))
    joined = data.join(means, on="customer_id", how="left").with_columns(
        pl.col("mean").fill_null(known["amount"].mean())
    )
    return joined.select("tx_id", score=pl.col("amount") / pl.col("mean"))
