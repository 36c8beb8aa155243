"""Late labels: how they land, that rates are what they say they are, and that none sees a label before it is known."""

import gzip
import itertools
import shutil
from datetime import UTC, date, datetime, timedelta
from functools import partial

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tracking
from pipeline.config import Dataset
from pipeline.errors import ConfigError, GateRefusedError
from pipeline.ingest import ingest
from pipeline.labels import DOUBT, check_labels, find_leaks, label_rates, rates_of, read_labels, with_label_rates
from pipeline.night import run_night, score_days
from pipeline.onboard import check
from pipeline.score import load_detector, night_digest, stale_days
from pipeline.tables import scores_schema
from pipeline.tracking import champion
from pipeline.train import BEFORE, CALIBRATION, KNOWN, learn, train, with_labels
from pipeline.validate import validate
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import START, TRANSACTION, card_day, deliver, tables, workspace_in

RATE = "  - {name: shop_risk, kind: label_rate, of: shop, over: 3d}\nwindow:"
LABELS = 'labels: {path: "{home}/labels/*", event_id: payment, label: fraud, delay: 2d, format: FORMAT}\n'
FIRST = START.date()


def yaml(form: str = "parquet") -> str:
    return TRANSACTION.replace("window:", RATE) + LABELS.replace("FORMAT", form)


def bring(ws: Workspace, labels: pl.DataFrame, name: str) -> None:
    folder = ws.home.root / "labels"
    folder.mkdir(exist_ok=True)
    labels.write_parquet(folder / f"{name}.parquet")


def of(day: int, *frauds: int) -> pl.DataFrame:
    """The labels of the payments of a day, of which those numbered `frauds` are frauds."""
    payments = card_day(day)["payment"]
    return pl.DataFrame({"payment": payments, "fraud": [int(n in frauds) for n in range(len(payments))]})


# --- landing


def test_labels_land_once_on_the_days_of_their_events_whatever_the_order(make_workspace):
    """All orders of events and labels end the same; a label of an event that comes later waits; a rerun reads none."""
    results = []
    for n, order in enumerate(itertools.permutations(["events-0", "events-1", "labels"])):
        ws = make_workspace(yaml(), home=f"var{n}")
        for what in order:
            if what == "labels":
                bring(ws, pl.concat([of(0, 1), of(1, 2)]), "a")
            else:
                deliver(ws, card_day(int(what[-1])), what)
            if any((ws.home.root / "source").iterdir()):
                ingest(ws)
        results.append(read_labels(ws))
        assert (ingest(ws).labels, len(results[-1])) == (0, 144)
    assert all(result.equals(results[0]) for result in results)
    assert results[0].filter("anomalous")["event_id"].to_list() == ["0-1", "1-2"]
    assert results[0]["day"].unique().to_list() == [FIRST, FIRST + timedelta(days=1)]


def test_a_label_of_an_unknown_event_is_counted_and_changes_nothing(make_workspace):
    """It is told by the ingest; no day has it."""
    ws = make_workspace(yaml())
    deliver(ws, card_day(0), "a")
    bring(ws, pl.concat([of(0), of(7, 1)]), "a")
    landed = ingest(ws)
    assert (landed.labels, landed.labels_unknown) == (144, 72)
    assert len(read_labels(ws)) == 72


def test_a_bad_file_of_events_keeps_no_label_out(make_workspace):
    """Labels are landed before it is named."""
    ws = make_workspace(yaml())
    deliver(ws, card_day(0), "a")
    (ws.home.root / "source" / "b.parquet").write_bytes(b"no parquet")
    bring(ws, of(0), "a")
    with pytest.raises(GateRefusedError, match=r"b\.parquet"):
        ingest(ws)
    assert len(read_labels(ws)) == 72


def test_bad_files_of_events_and_of_labels_are_told_together(make_workspace):
    """The sentence on the one does not hide that on the other."""
    ws = make_workspace(yaml())
    deliver(ws, card_day(0), "day-0")
    deliver(ws, card_day(1).drop("amount"), "bad-events")
    bring(ws, of(0).with_columns(fraud=pl.lit("maybe")), "bad-labels")
    with pytest.raises(GateRefusedError, match=r"bad-events\.parquet(.|\n)*bad-labels\.parquet"):
        ingest(ws)


def test_a_label_that_waits_is_placed_though_its_event_has_landed_before(make_workspace, monkeypatch):
    """As after an ingest of several days that ended between events and labels."""
    ws = make_workspace(yaml())
    deliver(ws, card_day(0), "a")
    bring(ws, pl.concat([of(0), of(1, 2)]), "a")
    ingest(ws)
    deliver(ws, card_day(1), "b")
    deliver(ws, card_day(9), "c")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.land_labels", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest(ws)
    ingest(ws)
    assert len(read_labels(ws)) == 144


def test_a_label_follows_an_event_that_moves_to_another_day_though_it_takes_another_run(make_workspace, monkeypatch):
    """As where a file is corrected, or the clock was slow: an ingest that ends before the labels keeps that in mind."""
    ws = make_workspace(yaml())
    deliver(ws, card_day(0), "a")
    deliver(ws, card_day(1), "b")
    bring(ws, of(0, 1), "a")
    ingest(ws)
    deliver(ws, card_day(0).with_columns(pl.col("time") + timedelta(days=1)), "a")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.land_labels", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest(ws)
    assert read_labels(ws)["day"].unique().to_list() == [FIRST]
    ingest(ws)
    assert read_labels(ws)["day"].unique().to_list() == [FIRST + timedelta(days=1)]
    version = ws.lake.version("labels")
    ingest(ws)
    assert ws.lake.version("labels") == version


def test_of_two_labels_of_one_event_the_latest_files_wins(make_workspace):
    """By the files' names, in whatever order they come; within a file the last row; a changed file replaces its own."""
    for n, order in enumerate([("a", "b"), ("b", "a")]):
        ws = make_workspace(yaml(), home=f"var{n}")
        deliver(ws, card_day(0), "a")
        for name in order:
            bring(ws, of(0, 5) if name == "a" else pl.concat([of(0, 5), of(0)]), name)
            ingest(ws)
        assert read_labels(ws)["anomalous"].sum() == 0
        bring(ws, of(0).head(2), "b")
        ingest(ws)
        assert read_labels(ws)["anomalous"].sum() == 1


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("csv", b"payment,fraud\n0-3,true\n0-4,false\n0-5,\n"),
        ("csv", gzip.compress(b"payment;fraud\n0-3;1\n0-4;0\n", mtime=0)),
        ("ndjson", b'{"payment": "0-3", "fraud": true}\n{"payment": "0-4", "fraud": 0}\n'),
    ],
    ids=["csv", "csv.gz", "ndjson"],
)
def test_labels_are_read_as_sources_are(make_workspace, form, text):
    """CSV, packed or not, and NDJSON; 0, 1, true and false; an empty cell says nothing."""
    ws = make_workspace(yaml(form))
    deliver(ws, card_day(0), "a")
    (ws.home.root / "labels").mkdir()
    (ws.home.root / "labels" / "a").write_bytes(text)
    ingest(ws)
    assert read_labels(ws).select("event_id", "anomalous").rows() == [("0-3", True), ("0-4", False)]


def test_a_bad_file_of_labels_is_named_and_keeps_no_other_out(make_workspace):
    """Without the column: file and column; with another value than 0 or 1: file, row and value."""
    ws = make_workspace(yaml())
    deliver(ws, card_day(0), "a")
    bring(ws, of(0).rename({"fraud": "is_fraud"}), "a")
    bring(ws, of(0), "b")
    with pytest.raises(ConfigError, match=r"a\.parquet: there is no column 'fraud'.*is_fraud.*demo\.yaml"):
        ingest(ws)
    assert len(read_labels(ws)) == 72
    bring(ws, of(0).with_columns(fraud=pl.lit(2)), "a")
    with pytest.raises(GateRefusedError, match=r"a\.parquet: row 1 has the label 2 .*neither 0 nor 1"):
        ingest(ws)


def test_before_the_first_label_there_is_none_and_only_check_says_so(make_workspace):
    """A night needs no label; `check` tells that no file matches, as the path may be wrong."""
    ws = make_workspace(yaml())
    deliver(ws, card_day(0), "a")
    assert ingest(ws).labels == 0
    findings = {found.what: found for found in check(ws.dataset.file.parent, ws.home)}
    assert not findings["labels"].ok
    assert "no source file matches" in findings["labels"].message


# --- rates


def dataset_with(delay: int, over: int) -> Dataset:
    return Dataset(
        name="demo", kind="transaction", source={"path": "x.csv"}, entity="card", event_time="time", event_id="id",
        zone="Europe/Berlin", features=[{"name": "amount"}, {"name": "shop", "type": "categorical"}],
        sequence_features=[{"name": "risk", "kind": "label_rate", "of": "shop", "over": f"{over}d"},
                           {"name": "own", "kind": "label_rate", "of": "card", "over": f"{over}d"}],
        labels={"path": "x.csv", "event_id": "id", "label": "y", "delay": f"{delay}d"},
    )  # fmt: skip


EVENT = st.tuples(
    st.integers(0, 14 * 24 - 1), st.sampled_from(["c", "d"]), st.sampled_from(["a", "b", None]),
    st.sampled_from([True, False, None]),
)  # fmt: skip


def events_of(rows: list[tuple[int, str, str | None, bool | None]]) -> pl.DataFrame:
    times = [datetime(2026, 3, 20, tzinfo=UTC) + timedelta(hours=hour) for hour, *_ in rows]  # clocks change within
    frame = pl.DataFrame(
        {"event_time": times, "event_id": [str(n) for n in range(len(rows))], "entity": [row[1] for row in rows],
         "shop": [row[2] for row in rows], "anomalous": [row[3] for row in rows]},
        schema={"event_time": pl.Datetime("us", "UTC"), "event_id": pl.String, "entity": pl.String,
                "shop": pl.String, "anomalous": pl.Boolean},
    )  # fmt: skip
    return frame.with_columns(day=pl.col("event_time").dt.convert_time_zone("Europe/Berlin").dt.date())


def labels_of(events: pl.DataFrame) -> pl.DataFrame:
    return events.select("day", "event_id", "anomalous").drop_nulls()


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENT, max_size=40), st.integers(1, 4), st.integers(1, 5))
def test_a_label_rate_is_what_its_definition_says(rows, delay, over):
    """For each event: labelled anomalous / (labelled + 5) of the same category on the days that it may see."""
    events, dataset = events_of(rows), dataset_with(delay, over)
    labels = labels_of(events)
    found = with_label_rates(events.drop("anomalous"), rates_of(events.lazy(), labels, dataset), dataset)
    for name, column in (("risk", "shop"), ("own", "entity")):
        for event, value in zip(events.iter_rows(named=True), found[name], strict=True):
            first, last = (event["day"] - timedelta(days=n) for n in (delay + over, delay))
            seen = [
                other["anomalous"]
                for other in events.iter_rows(named=True)
                if other[column] == event[column] and first <= other["day"] < last and other["anomalous"] is not None
            ]
            assert value == (None if event[column] is None else sum(seen) / (len(seen) + DOUBT))


def features_on(day: date, events: pl.DataFrame, dataset: Dataset, labels: pl.DataFrame) -> pl.DataFrame:
    """The rows of `day` with the rates as `dataset` has them."""
    rows = events.filter(pl.col("day") == day)
    return with_label_rates(rows, rates_of(events.lazy(), labels, dataset), dataset)


def test_a_leak_that_is_built_on_purpose_is_found():
    """Rates that look a day too far are told by name, with labels of the last days or without; the true ones pass."""
    rng = np.random.default_rng(0)
    rows = [(int(h), str(rng.choice(["c", "d"])), str(rng.choice(["a", "b"])), bool(rng.random() < 0.3))
            for h in rng.integers(0, 14 * 24, 400)]  # fmt: skip
    events, dataset = events_of(rows), dataset_with(3, 4)
    day, impatient = date(2026, 4, 1), dataset_with(2, 4)
    true, leaking = (partial(features_on, day, events, one) for one in (dataset, impatient))
    known = labels_of(events)
    for labels in (known, known.filter(pl.col("day") < day - timedelta(days=3))):
        assert find_leaks(true, events, labels, dataset, day) == []
        assert find_leaks(leaking, events, labels, dataset, day) == ["risk", "own"]


# --- nights

HISTORY, COMPROMISED = 16, "c"


def frauds(day: int) -> pl.DataFrame:
    """A day's labels: half of what is paid in one shop is fraud, and what is paid with 2,000 and more."""
    payments = paid(day)
    odd = pl.int_range(pl.len()) % 2 == 0
    return payments.select("payment", fraud=((pl.col("shop") == COMPROMISED) & odd) | (pl.col("amount") >= 2000))


def paid(day: int) -> pl.DataFrame:
    """A day of 60 cards' payments, one in forty of 2,000."""
    nth = pl.int_range(pl.len())
    return card_day(day, cards=60).with_columns(
        amount=pl.when(nth % 40 == 7).then(2000.0 + nth).otherwise("amount"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Workspace:
    """A detector that learned with labels, and two nights of source files; labels of all days, the last ones too."""
    root = tmp_path_factory.mktemp("labels")
    ws = workspace_in(root, yaml())
    for day in range(HISTORY + 2):
        deliver(ws, paid(day), f"day-{day:02}")
        bring(ws, frauds(day), f"day-{day:02}")
    train(ws, *(ws.dataset.day_bounds(FIRST + timedelta(days=n))[0] for n in (3, HISTORY)))
    return ws


NIGHT = FIRST + timedelta(days=HISTORY)


def test_what_is_known_to_be_anomalous_is_not_learned_from(trained):
    """No such event is fitted, calibrated or held out; what is too young to be known at the end stays in."""
    start, end = (trained.dataset.day_bounds(FIRST + timedelta(days=n))[0] for n in (3, HISTORY))
    rows = pl.concat([paid(day).with_columns(day=pl.lit(FIRST + timedelta(days=day))) for day in range(HISTORY)])
    clean = trained.lake.scan("clean", {"entity": pl.String, "event_time": pl.Datetime("us", "UTC"),
                                        "event_id": pl.String, "amount": pl.Float64, "shop": pl.String})  # fmt: skip
    clean = with_labels(trained, clean.filter(pl.col("event_time") < end).drop("day").collect(), end, lambda _: None)
    fraud = pl.concat([frauds(day) for day in range(HISTORY)]).select(event_id="payment", fraud="fraud")
    told = clean.join(fraud, on="event_id", how="left", maintain_order="left")
    limit = trained.dataset.day_bounds(NIGHT - timedelta(days=2))[0]
    old = told["event_time"] < limit
    assert told.filter(old)["_label"].equals(told.filter(old)["fraud"].alias("_label"))
    assert told.filter(~old)["_label"].null_count() == (~old).sum() > 0
    assert len(rows) == len(clean)
    no_incidents = pl.DataFrame(schema={"entity": pl.String, "start": pl.Datetime("us", "UTC"),
                                        "end": pl.Datetime("us", "UTC")})  # fmt: skip
    with tracking.run(trained, "train", "once more"):
        learned = learn(trained.dataset, clean, start, {}, no_incidents, no_incidents, lambda _: None)
    anomalous = learned.clean["_label"].fill_null(value=False).to_numpy()
    assert anomalous.sum() > 100
    assert set(learned.part[anomalous]) == {BEFORE, KNOWN}
    assert (learned.part[~anomalous] == KNOWN).sum() == 0
    assert np.isnan(learned.calibrated[learned.part != CALIBRATION]).all()


def test_a_payment_where_much_was_fraud_outranks_what_is_merely_odd(trained):
    """The shop's payments have the highest scores but for the frauds that show themselves, and are told by the rate."""
    score_days(trained, [NIGHT])
    scores = trained.lake.scan("scores", scores_schema(trained.dataset), NIGHT, NIGHT).collect()
    scores = scores.join(paid(HISTORY).select("shop", event_id="payment"), on="event_id")
    detector = load_detector(champion(trained).folder)
    assert detector.signals.odds is not None
    risky, loud = pl.col("shop") == COMPROMISED, pl.col("observed_amount") >= 2000
    rest = scores.filter(~risky & ~loud)["score"]
    assert scores.filter(risky)["score"].min() > rest.quantile(0.95)
    assert scores.filter(risky & ~loud)["contribution_shop_risk"].median() > 0.5
    risk = scores.filter(risky)["observed_shop_risk"]
    assert 0.3 < risk.min() <= risk.max() < 0.6
    shares = scores.select(pl.sum_horizontal(f"contribution_{c}" for c in trained.dataset.channels))
    assert np.allclose(shares, 1)


def test_shards_and_repetition_change_no_score(trained, tmp_path):
    """Rates are counted over all entities, so three shards give the scores of one; a night twice is the same."""
    score_days(trained, [NIGHT])
    once = tables(trained, "scores")["scores"].filter(pl.col("day") == NIGHT)
    (tmp_path / "demo.yaml").write_text(yaml() + "shards: 3\n")
    other = open_workspace("demo", trained.home.root, tmp_path)
    score_days(other, [NIGHT])
    again = tables(other, "scores")["scores"].filter(pl.col("day") == NIGHT)
    assert once["observed_shop_risk"].equals(again["observed_shop_risk"])
    assert (once["score"] - again["score"]).abs().max() < 1e-4


def test_a_label_that_comes_late_marks_the_nights_that_may_use_it(make_workspace):
    """Not those for which it is too young, and neither does a file that repeats what is known."""
    ws = make_workspace(yaml())
    for day in range(12):
        deliver(ws, card_day(day), f"day-{day:02}")
        bring(ws, of(day, 1), f"day-{day:02}")
    ingest(ws)
    night = FIRST + timedelta(days=11)
    before = night_digest(ws, night)
    bring(ws, of(8, 1), "repeated")
    bring(ws, of(9, 1, 2), "too-young")
    ingest(ws)
    assert night_digest(ws, night) == before
    bring(ws, of(8, 1, 2), "zz-late")
    ingest(ws)
    assert night_digest(ws, night) != before


def test_a_night_that_a_late_label_marked_is_scored_again(trained, tmp_path):
    """It then has the rate that the label makes."""
    shutil.copytree(trained.home.root, tmp_path / "var")
    ws = open_workspace("demo", tmp_path / "var", trained.dataset.file.parent)
    for night in (NIGHT, NIGHT + timedelta(days=1)):
        score_days(ws, [night])
    assert stale_days(ws, NIGHT + timedelta(days=1)) == [NIGHT + timedelta(days=1)]
    known = HISTORY - 3
    bring(ws, frauds(known).with_columns(fraud=pl.lit(value=False)), f"day-{known:02}")
    ingest(ws)
    assert stale_days(ws, NIGHT + timedelta(days=1)) == [NIGHT, NIGHT + timedelta(days=1)]
    risky = pl.col("observed_shop_risk") > 0.3
    before = tables(ws, "scores")["scores"].filter((pl.col("day") == NIGHT) & risky)["observed_shop_risk"].max()
    run_night(ws, NIGHT)
    after = tables(ws, "scores")["scores"].filter(pl.col("day") == NIGHT)["observed_shop_risk"].max()
    assert after < before


def test_check_looks_for_leaks_on_real_rows(trained, monkeypatch):
    """On the newest clean day; rates without their delay are told as a leak, by name."""
    for day in range(3, HISTORY + 2):
        validate(trained, FIRST + timedelta(days=day))
    assert "no feature of 2026-01-22" in check_labels(trained)
    impatient = trained.dataset.model_copy(
        update={"labels": trained.dataset.labels.model_copy(update={"delay": timedelta(days=1)})}
    )
    monkeypatch.setattr("pipeline.labels.rates_of", lambda events, labels, _: rates_of(events, labels, impatient))
    with pytest.raises(
        ConfigError, match="shop_risk of 2026-01-22 depend on labels that are not known by then: a leak"
    ):
        check_labels(trained)


def test_rates_of_the_night_are_those_of_all_entities(trained):
    """What a night reads from the tables is what the plain definition gives."""
    rates = label_rates(trained, NIGHT, NIGHT)
    rows = paid(HISTORY).select(entity="card", event_time="time", event_id="payment", shop="shop")
    found = with_label_rates(rows, rates, trained.dataset)
    counted = pl.concat(
        [paid(n).join(frauds(n), on="payment") for n in range(HISTORY - 5, HISTORY - 2)]
    ).group_by("shop").agg(pl.len(), pl.col("fraud").sum())  # fmt: skip
    shop, total, bad = counted.filter(pl.col("shop") == "a").row(0)
    assert found.filter(pl.col("shop") == shop)["shop_risk"].unique().to_list() == [bad / (total + DOUBT)]
