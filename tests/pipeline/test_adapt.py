"""Thresholds that nights and analysts have taught: a version of the detector, the same whatever way it came about."""

import shutil
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from pipeline import tracking
from pipeline.adapt import adapt, read_nights, touched
from pipeline.errors import ConfigError
from pipeline.incidents import read_incidents
from pipeline.night import missing_days, run_night, score_days
from pipeline.promotion import promote, rollback
from pipeline.review import record
from pipeline.score import load_detector, read_scored
from pipeline.train import CALIBRATION, learn, train
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR, START, deliver, sensor_day, tables, workspace_in

HISTORY = 12
FIRST = START.date() + timedelta(days=HISTORY)
NIGHTS = [FIRST + timedelta(days=n) for n in range(2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Workspace:
    """Twelve days of four machines, and two nights: m1 is a little off in the first, m9 joins in the second."""
    root = tmp_path_factory.mktemp("adapt")
    ws = workspace_in(root, SENSOR)
    for day in range(HISTORY + len(NIGHTS)):
        rows = sensor_day(day)
        if day == HISTORY:
            off = (pl.col("machine") == "m1") & pl.int_range(pl.len()).over("machine").is_between(60, 70)
            rows = rows.with_columns(flow=pl.col("flow") + pl.when(off).then(0.7).otherwise(0.0))
        if day == HISTORY + 1:
            rows = pl.concat([rows, sensor_day(day, 1).with_columns(machine=pl.lit("m9"))])
        deliver(ws, rows, f"day-{day:02}")
    start, end = ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(FIRST)[0]
    train(ws, start, end)
    return ws


@pytest.fixture
def fresh(trained, tmp_path) -> Workspace:
    """A copy of the trained workspace, so that each test begins from the same state."""
    shutil.copytree(trained.home.root, tmp_path / "copy")
    return open_workspace("demo", tmp_path / "copy", trained.dataset.file.parent)


def champion(ws):
    return load_detector(tracking.champion(ws).folder).threshold


def dismiss(ws) -> dict:
    """The verdict on the incident of m1 in the first night."""
    found = read_incidents(ws, FIRST, FIRST).filter((pl.col("entity") == "m1") & (pl.col("kind") == "anomaly"))
    return record(ws, found["incident_id"][0], "dismissed", "a test run", "ann") | found.row(0, named=True)


def test_an_entity_that_was_not_there_in_training_is_flagged_and_judged_like_all(fresh):
    """Its threshold is that of factor 1, and the night and its report name it."""
    for night in NIGHTS:
        run_night(fresh, night)
    scores = tables(fresh, "scores")["scores"]
    assert (scores.filter(entity="m9")["threshold"] == champion(fresh).value).all()
    assert (read_scored(fresh, FIRST).unseen, read_scored(fresh, NIGHTS[1]).unseen_names) == (0, ["m9"])
    page = fresh.home.reports / "demo" / f"{NIGHTS[1]}.html"
    assert "m9 was not there in training and is judged on the scales of all" in page.read_text()
    (run,) = tracking.client(fresh).search_runs(
        [tracking.client(fresh).get_experiment_by_name("demo/nights").experiment_id],
        filter_string=f"tags.day = '{NIGHTS[1]}'",
    )
    assert run.data.metrics["data/unseen"] == 1
    assert run.data.metrics["alarms/false_alarms_promised"] == 0.2
    low, high = (run.data.metrics[f"alarms/false_alarms_realised.{end}"] for end in ("low", "high"))
    assert low <= run.data.metrics["alarms/false_alarms_realised"] <= high


def test_a_dismissed_incident_raises_the_threshold_of_its_entity_in_a_version_of_its_own(fresh):
    """The night that is run again is quiet there; the trained detector still gives what it gave; rollback undoes it."""
    score_days(fresh, NIGHTS)
    before, trained = tables(fresh, "scores")["scores"], tracking.champion(fresh).label
    verdict = dismiss(fresh)
    result = adapt(fresh)
    assert result.changed
    assert tracking.champion(fresh).label == result.version != trained
    after = champion(fresh)
    assert missing_days(fresh, *NIGHTS) == {}  # an adapted threshold is for the nights to come
    severity = verdict["peak_score"] / verdict["threshold"]
    assert 1 < severity < 1.98
    assert after.adapted["m1"] == pytest.approx(1.01 * severity)
    assert all(factor <= 1 for name, factor in after.adapted.items() if name != "m1")
    score_days(fresh, NIGHTS)
    again = tables(fresh, "scores")["scores"]
    assert again["score"].equals(before["score"])
    assert not again.filter(entity="m1", day=FIRST)["is_anomaly"].any()
    assert (again.filter(entity="m1")["threshold"] > before.filter(entity="m1")["threshold"]).all()
    assert adapt(fresh).version == result.version
    rollback(fresh)
    score_days(fresh, NIGHTS)
    assert tables(fresh, "scores")["scores"].equals(before)


def test_adaptation_is_the_same_in_whatever_order_nights_and_it_were_run(fresh, tmp_path):
    """Once after all nights, or after each of them and in the other order: the same thresholds."""
    shutil.copytree(fresh.home.root, tmp_path / "other")
    other = open_workspace("demo", tmp_path / "other", fresh.dataset.file.parent)
    score_days(fresh, NIGHTS)
    dismiss(fresh)
    adapt(fresh)
    for night in reversed(NIGHTS):
        score_days(other, [night])
        adapt(other)
    dismiss(other)
    adapt(other)
    assert champion(other).adapted == champion(fresh).adapted


def test_nights_are_read_as_peaks_over_the_learned_thresholds(fresh):
    """By night and entity; an entity that was not there has no peak, and a verdict excuses the night it concerns."""
    score_days(fresh, NIGHTS)
    dismiss(fresh)
    label = tracking.champion(fresh).label
    nights = read_nights(fresh, load_detector(tracking.champion(fresh).folder), {label})
    scores = tables(fresh, "scores")["scores"]
    assert (nights.days, nights.names) == (NIGHTS, ["m0", "m1", "m2", "m3", "m9"])
    relative = scores.with_columns(pl.col("score") / pl.col("threshold"))
    for place, name in enumerate(nights.names):
        for row, day in enumerate(NIGHTS):
            highest = relative.filter(entity=name, day=day)["score"].max()
            assert nights.peak[row, place] == pytest.approx(np.nan if highest is None else highest, nan_ok=True)
    assert nights.covered[1, 4] == 1
    assert nights.excused.nonzero()[1].tolist() == [1]
    assert (nights.dismissed > 1).tolist() == [False, True, False, False, False]
    assert read_nights(fresh, load_detector(tracking.champion(fresh).folder), {"another"}).days == []


def test_a_fixed_score_is_not_adapted(fresh, tmp_path):
    """It is told in a sentence that names the file and the key."""
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "demo.yaml").write_text(SENSOR.replace("false_alarms: 0.2", "score: 3"))
    with pytest.raises(ConfigError, match=r"demo\.yaml asks for a fixed threshold\.score"):
        adapt(open_workspace("demo", fresh.home.root, tmp_path / "sets"))


def test_a_stretch_touches_the_days_from_its_start_to_its_end(fresh):
    """Over midnight it touches two."""
    when = fresh.dataset.day_bounds(FIRST)[1]
    stretch = pl.DataFrame({"entity": ["m1"], "start": [when - timedelta(hours=1)], "end": [when]})
    assert touched(stretch, fresh.dataset).rows() == [(FIRST, "m1"), (NIGHTS[1], "m1")]


def test_training_raises_the_thresholds_of_entities_whose_incidents_were_dismissed(fresh):
    """What was dismissed is no incident, or hardly one, to the detector that is trained after it."""
    score_days(fresh, NIGHTS)
    dismiss(fresh)
    said: list[str] = []
    start, end = fresh.dataset.day_bounds(START.date())[0], fresh.dataset.day_bounds(NIGHTS[1])[1]
    promote(fresh, train(fresh, start, end, said.append).version.split("-")[0])
    assert "dismissed incidents inform the thresholds of 1 entities" in said
    factors = champion(fresh).factors
    assert factors["m1"] > 1.1 * max(factors.get(name, 1.0) for name in ("m0", "m2", "m3", "m9"))
    score_days(fresh, [FIRST])
    m1 = tables(fresh, "scores")["scores"].filter(entity="m1", day=FIRST)
    assert m1["score"].max() <= 1.05 * m1["threshold"][0]


def test_a_calibration_with_confirmed_incidents_leaves_them_out(fresh):
    """The threshold does not stand on what an analyst called a fault: it stays where it is without the fault."""
    clean = pl.concat([sensor_day(day) for day in range(HISTORY)])
    clean = clean.rename({"machine": "entity", "time": "event_time"}).sort("entity", "event_time")
    begin = START + timedelta(days=8)
    inside = (pl.col("entity") == "m1") & pl.col("event_time").is_between(begin, begin + timedelta(hours=4))
    broken = clean.with_columns(flow=pl.col("flow") + pl.when(inside).then(8.0).otherwise(0.0))
    stretch = pl.DataFrame({"entity": ["m1"], "start": [begin], "end": [begin + timedelta(hours=12)]})
    found = []
    with tracking.run(fresh, "train", "test"):
        for rows, known in ((clean, stretch.clear()), (broken, stretch), (broken, stretch.clear())):
            found.append(learn(fresh.dataset, rows, START, {}, known, stretch.clear(), lambda _: None))
    fine, left_out, spoilt = found
    assert (spoilt.part[(broken.select(inside).to_series()).to_numpy()] == CALIBRATION).all()
    assert np.isnan(left_out.calibrated[broken.select(inside).to_series().to_numpy()]).all()
    assert left_out.detector.threshold.value == pytest.approx(fine.detector.threshold.value, rel=0.2)
    assert spoilt.detector.threshold.value > 1.5 * left_out.detector.threshold.value


def test_nothing_scored_adapts_nothing(fresh):
    """Without a night there is nothing to adapt to, and that is said."""
    result = adapt(fresh)
    assert not result.changed
    assert "stay as they are after 0 nights" in result.reason
