"""The accuracy benchmark's own parts: rivals, seeds, stretches of days, the YAML that it edits, the tables."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import yaml

from benchmarks._budgets import false_alarms
from benchmarks._common import over_seeds, set_model, stretches
from benchmarks._rivals import RIVALS, run
from benchmarks._tables import BEGIN, DOCS, END, between_marks, tables

SKAB = {
    "nightsift": {
        "f1": 0.85, "far": 12.0, "mar": 16.0, "auc_pr_mean_entity": 0.9, "event_recall": 1.0,
        "anomaly_free_rows_in_alarm_percent": 4.8, "range": {
            "f1": [0.84, 0.86], "far": [11.0, 13.0], "mar": [16.0, 16.0], "auc_pr_mean_entity": [0.9, 0.9],
            "event_recall": [1.0, 1.0], "anomaly_free_rows_in_alarm_percent": [4.5, 5.0],
        }, "seeds": 2, "seconds": {"fit": 71.25, "score": 9.5},
    },
}  # fmt: skip
ASD = {"PCA": {"vus_pr_mean": 0.1234, "auc_pr_mean": 0.2, "seconds": {"fit": 0.0123, "score": 0.5}}}


def rows(entity: str, n: int, first: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng([n, first])
    moments = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=first + i) for i in range(n)]
    return pl.DataFrame({"entity": entity, "timestamp": moments, "x": rng.normal(size=n), "y": rng.normal(size=n)})


@pytest.mark.parametrize("rival", RIVALS)
def test_a_rival_finds_what_is_far_off_and_learns_from_training_rows_only(rival):
    """The row far off is among the highest scores of its entity; training rows score the same whatever follows."""
    train = pl.concat([rows("a", 300), rows("b", 200)])
    test = pl.concat([rows("a", 100, 300), rows("b", 50, 200)])
    far_off = pl.when(pl.int_range(pl.len()) == 60).then(30.0)
    odd = test.with_columns(x=far_off.otherwise("x"), y=far_off.otherwise("y"))
    scores, seconds = run(RIVALS[rival], train, odd)
    assert len(scores) == 650
    worst = scores.filter(pl.col("entity") == "a").sort("score").tail(3)["timestamp"]
    assert (abs(worst - odd["timestamp"][60]) <= timedelta(minutes=10)).any()
    assert seconds["fit"] > 0
    assert seconds["score"] > 0
    usual, _ = run(RIVALS[rival], train, test)
    keys = train.select("entity", "timestamp").filter(pl.col("timestamp") < train["timestamp"][180])
    one, other = (each.join(keys, on=["entity", "timestamp"]).sort("entity", "timestamp") for each in (scores, usual))
    np.testing.assert_allclose(one["score"], other["score"], rtol=1e-9)


def test_rows_out_of_time_are_refused():
    """A row to test on before one to learn from would be learned from unseen."""
    with pytest.raises(ValueError, match="before one to learn from"):
        run(RIVALS["PCA"], rows("a", 50, 100), rows("a", 10))


def test_stretches_cover_each_day_once():
    """Days without a gap are one half-open stretch."""
    days = pl.Series([date(2026, 1, 2), date(2026, 1, 1), date(2026, 1, 5), date(2026, 1, 2)])
    assert list(stretches(days)) == [(date(2026, 1, 1), date(2026, 1, 3)), (date(2026, 1, 5), date(2026, 1, 6))]


def test_several_seeds_give_mean_and_range():
    """One run is told as it is, several by mean, least and greatest."""
    runs = [{"f1": f1, "rows": 5, "seconds": {"fit": fit, "score": 1.0}} for f1, fit in ((0.5, 10.0), (0.75, 20.0))]
    assert over_seeds(runs[:1]) == runs[0]
    assert over_seeds(runs) == {
        "f1": 0.625, "rows": 5, "range": {"f1": [0.5, 0.75], "rows": [5, 5]}, "seeds": 2,
        "seconds": {"fit": 15.0, "score": 1.0},
    }  # fmt: skip


def test_the_yaml_that_init_writes_is_edited_only_where_asked_for(tmp_path):
    """Another kind or seed goes into model:, all else stays."""
    file = tmp_path / "demo.yaml"
    file.write_text("name: demo  # as it was\nmodel: {epochs: 3}\n")
    set_model(file, "convlstm1d", 0)
    assert "# as it was" in file.read_text()
    set_model(file, "lstm", 2)
    assert yaml.safe_load(file.read_text()) == {"name": "demo", "model": {"epochs": 3, "kind": "lstm", "seed": 2}}


def test_figures_become_tables():
    """A table a set, a row a contender; several seeds show their range, what was not measured a dash."""
    told = tables({"asd": ASD, "skab": SKAB, "transactions": {}})
    assert told == (
        "**skab**\n\n"
        "| | F1 | FAR % | MAR % | mean AP | events found | anomaly-free run: rows in alarm % | fit, s | score, s |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "| nightsift | 0.850 (0.840–0.860) | 12.0 (11.0–13.0) | 16.0 (16.0–16.0) | 0.900 (0.900–0.900) "
        "| 1.00 (1.00–1.00) | 4.8 (4.5–5.0) | 71.2 | 9.5 |\n\n"
        "**asd**\n\n"
        "| | VUS-PR | AP | ROC | fit, s | score, s |\n"
        "|---|---|---|---|---|---|\n"
        "| PCA | 0.123 | 0.200 | – | 0.0123 | 0.5 |"
    )


def test_tables_go_between_the_marks_of_the_page():
    """Only what stands between the marks is replaced, as often as it is done; a page without them is refused."""
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = between_marks(page, "new")
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert between_marks(once, "new") == once
    for broken in ("nothing", page + page, f"{END}{BEGIN}"):
        with pytest.raises(ValueError, match="needs one line"):
            between_marks(broken, "new")
    assert between_marks(DOCS.read_text(), "x") != DOCS.read_text()


def test_a_false_alarm_is_an_incident_that_touches_nothing_anomalous():
    """Alarms closer than the merging time are one incident; entities have their own."""
    minutes = {"a": [(0, False), (3, False), (20, False), (22, True), (60, False)], "b": [(61, False)]}
    alarms = pl.DataFrame(
        [
            (name, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=m), odd)
            for name in minutes
            for m, odd in minutes[name]
        ],
        schema=["entity", "event_time", "anomalous"],
        orient="row",
    )
    assert false_alarms(alarms, timedelta(minutes=5)) == 3
    assert false_alarms(alarms, timedelta(minutes=1)) == 5
    assert false_alarms(alarms.head(0), timedelta(minutes=5)) == 0
