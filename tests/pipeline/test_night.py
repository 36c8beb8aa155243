"""A night run twice, by two processes at once, in another order, or after a death gives the same tables."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import mlflow
import pandas as pd
import polars as pl
import pytest
from mlflow.exceptions import MlflowException

from pipeline.backfill import Backfill, backfill
from pipeline.cli import main
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError
from pipeline.incidents import find_incidents, read_incidents
from pipeline.ingest import ingest
from pipeline.night import missing_days, renew, report_night, run_night, score_days
from pipeline.promotion import promote
from pipeline.review import record
from pipeline.score import load_detector, prepare, slow_drifts, stale_days
from pipeline.state import day_states
from pipeline.tracking import FILES, champion, client, files_digest
from pipeline.train import draw_entities, train
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import (
    SENSOR,
    START,
    TRANSACTION,
    card_day,
    deliver,
    predicted_by_registry,
    sensor_day,
    tables,
    workspace_in,
)
from tests.pipeline.test_score import publish_by

HISTORY = 12
FIRST = START.date() + timedelta(days=HISTORY)
NIGHTS = [FIRST, FIRST + timedelta(days=1)]
LAST = HISTORY + len(NIGHTS)


@pytest.fixture(scope="module", params=["sensor", "transaction"])
def trained(request, tmp_path_factory) -> Workspace:
    """A workspace with a trained detector and the source files of two nights, the first with a fault."""
    root = tmp_path_factory.mktemp(request.param)
    ws = workspace_in(root, SENSOR if request.param == "sensor" else TRANSACTION)
    for day in range(LAST):
        fault = day == HISTORY
        readings = sensor_day(day, fault=("m1", 60, 80) if fault else None)
        deliver(ws, readings if request.param == "sensor" else card_day(day, fault=fault), f"day-{day:02}")
    start, end = ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(FIRST)[0]
    result = train(ws, start, end)
    assert result.promoted
    return ws


@pytest.fixture
def fresh(trained, tmp_path) -> Workspace:
    """A copy of the trained workspace, so that each test begins from the same state."""
    return copy_of(trained, tmp_path / "copy")


def copy_of(ws: Workspace, place: Path) -> Workspace:
    """The same dataset, detector and source in another home; MLflow's artifacts stay where they were logged."""
    shutil.copytree(ws.home.root, place)
    return open_workspace("demo", place, ws.dataset.file.parent)


def nightsift(ws: Workspace, *arguments: str) -> list[str]:
    places = ["--home", str(ws.home.root), "--datasets", str(ws.dataset.file.parent)]
    return [sys.executable, "-m", "pipeline.cli", *arguments, *places]


def same(one: Workspace, other: Workspace) -> None:
    """The tables of two workspaces are equal, row for row and cell for cell."""
    left, right = tables(one), tables(other)
    assert left.keys() == right.keys()
    for name, frame in left.items():
        assert frame.equals(right[name]), f"{name} differs"


def test_the_fault_is_found_and_said_to_be_in_the_right_feature(fresh):
    """The planted fault is the most severe incident of its night, at its time, and driven by what was changed."""
    score_days(fresh, NIGHTS[:1])
    worst = read_incidents(fresh, FIRST, FIRST).row(0, named=True)
    sensor = fresh.dataset.kind == "sensor"
    assert worst["entity"] == ("m1" if sensor else "c1")
    changed = {"flow"} if sensor else {"amount", "to_history", "since_last", "count_1h"}
    assert worst["drivers"][0]["feature"] in changed
    middle = START + timedelta(days=HISTORY, minutes=610 if sensor else 604)
    assert worst["start"] <= middle <= worst["end"]


def test_a_sensor_that_sends_nothing_while_others_do_is_found(fresh):
    """From twice the usual gap on; the incident names the sensor, and says that there was no reading."""
    if fresh.dataset.kind == "transaction":
        return
    gone = (pl.col("machine") == "m2") & pl.col("time").dt.hour().is_between(10, 17)
    deliver(fresh, sensor_day(HISTORY).with_columns(flow=pl.when(~gone).then("flow")), f"day-{HISTORY:02}")
    score_days(fresh, NIGHTS[:1])
    found = read_incidents(fresh, *NIGHTS[:1] * 2).filter(entity="m2").row(0, named=True)
    assert found["drivers"][0]["feature"] == "flow"
    assert found["drivers"][0]["observed"] is None
    assert found["start"].hour in range(10, 15)
    assert 17 <= found["end"].hour <= 19


def test_a_night_twice_and_nights_in_another_order_give_the_same_tables(fresh, trained, tmp_path):
    """Running again changes nothing, and neither does running the second night first."""
    other = copy_of(trained, tmp_path / "other")
    score_days(fresh, NIGHTS)
    once = tables(fresh)
    score_days(fresh, NIGHTS[:1])
    again = tables(fresh)
    assert all(once[name].equals(again[name]) for name in once)
    score_days(other, NIGHTS[1:])
    score_days(other, NIGHTS[:1])
    same(fresh, other)


@pytest.mark.parametrize("trained", ["transaction"], indirect=True)  # of readings: tests/faults/test_nights_at_once.py
def test_the_same_night_from_two_processes_at_once_gives_the_same_tables(fresh, trained, tmp_path):
    """Two processes that score one night at the same time both end well, and leave what one alone leaves."""
    other = copy_of(trained, tmp_path / "other")
    score_days(other, NIGHTS[:1])
    command = nightsift(fresh, "score", "demo", "--from", str(FIRST), "--to", str(NIGHTS[1]))
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    for process in running:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    same(fresh, other)


@pytest.mark.parametrize("step", ["validate", "publish", "find_incidents", "report_night"])
def test_a_death_between_two_steps_is_mended_by_the_next_run(fresh, trained, tmp_path, step, monkeypatch):
    """The process ends right before a step; the next run ends with the tables of an undisturbed one."""
    import pipeline.night
    import pipeline.score

    other = copy_of(trained, tmp_path / "other")
    run_night(other, FIRST)
    module = pipeline.score if step == "validate" else pipeline.night
    with monkeypatch.context() as patch:
        patch.setattr(module, step, _die)
        with pytest.raises(KeyboardInterrupt):
            run_night(fresh, FIRST)
    run_night(fresh, FIRST)
    same(fresh, other)


def _die(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_a_late_file_marks_its_own_day_and_is_scored_again(fresh, trained, tmp_path):
    """Rows held back and delivered later lead to the tables of rows that came in time."""
    other = copy_of(trained, tmp_path / "other")
    score_days(other, NIGHTS)
    late = fresh.home.root / "source" / f"day-{HISTORY:02}.parquet"
    rows = pl.read_parquet(late)
    rows.head(len(rows) - 30).write_parquet(late)
    score_days(fresh, NIGHTS[:1])
    rows.write_parquet(late)
    ingest(fresh)
    assert stale_days(fresh, NIGHTS[1]) == NIGHTS
    score_days(fresh, stale_days(fresh, NIGHTS[1]))
    same(fresh, other)


def test_a_night_that_was_not_run_is_made_up_for(fresh):
    """A landed day that nobody scored is scored with the next night of the same week, once nights have begun."""
    ingest(fresh)
    after, later = (NIGHTS[1] + timedelta(days=n) for n in (1, 30))
    assert stale_days(fresh, after) == [after]
    score_days(fresh, NIGHTS[:1])
    assert stale_days(fresh, after) == [NIGHTS[1], after]
    assert stale_days(fresh, later) == [later]


def test_a_refused_day_waits_until_its_file_is_mended(fresh):
    """It is not tried again night after night, but once when its file has changed, however late."""
    score_days(fresh, NIGHTS[:1])
    file = fresh.home.root / "source" / f"day-{HISTORY + 1:02}.parquet"
    rows = pl.read_parquet(file)
    unreadable = pl.when(pl.int_range(pl.len()) > 1).then(pl.lit("")).otherwise(fresh.dataset.entity)
    rows.with_columns(unreadable.alias(fresh.dataset.entity)).write_parquet(file)
    with pytest.raises(GateRefusedError):
        score_days(fresh, NIGHTS[1:])
    later = NIGHTS[1] + timedelta(days=30)
    assert stale_days(fresh, later) == [later]
    rows.write_parquet(file)
    ingest(fresh)
    assert stale_days(fresh, later) == [NIGHTS[1], later]


def test_shards_change_no_score(fresh, trained, tmp_path, monkeypatch):
    """Three shards, each read in many parts, give the scores of one."""
    text = trained.dataset.file.read_text()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "demo.yaml").write_text(text + "\nshards: 3\n")
    score_days(fresh, NIGHTS[:1])
    other = open_workspace("demo", copy_of(trained, tmp_path / "other").home.root, tmp_path / "datasets")
    monkeypatch.setattr("pipeline.score.PART", 20)
    score_days(other, NIGHTS[:1])
    left, right = (tables(ws, "scores")["scores"].sort("entity", "event_time") for ws in (fresh, other))
    assert left.drop("p_value").select(pl.exclude(pl.Float64)).equals(right.select(pl.exclude(pl.Float64)))
    for name in ("score", "p_value"):
        assert (left[name] - right[name]).abs().max() < 1e-4


def test_backfill_of_what_is_there_changes_nothing_unless_asked_to(fresh):
    """Days that are up to date are skipped; their tables keep their Delta version."""
    asked = Backfill("demo", *NIGHTS)
    assert missing_days(fresh, *NIGHTS) == dict.fromkeys(NIGHTS, "it is not scored")
    assert [night.skipped for night in backfill(fresh, asked)] == [False, False]
    assert missing_days(fresh, *NIGHTS) == {}
    version = fresh.lake.version("scores")
    assert [night.skipped for night in backfill(fresh, asked)] == [True, True]
    assert fresh.lake.version("scores") == version
    assert [night.skipped for night in backfill(fresh, replace(asked, overwrite=True))] == [False, False]


def test_the_registered_model_scores_a_plain_frame_like_the_night(trained, fresh):
    """`mlflow.pyfunc.load_model("models:/demo@champion")` needs nothing else, in a process of its own."""
    score_days(fresh, NIGHTS[:1])
    night = tables(fresh, "scores")["scores"].select("entity", "event_time", "threshold")
    predicted = predicted_by_registry(fresh).select("entity", "event_time", "threshold", "score")
    both = night.join(predicted, on=["entity", "event_time"])
    assert len(both) == len(night)
    assert both["threshold"].equals(both["threshold_right"])
    assert both["score"].null_count() == 0


@pytest.fixture(scope="module")
def model(trained):
    """The champion as a notebook loads it."""
    client(trained)
    return mlflow.pyfunc.load_model("models:/demo@champion")


@pytest.fixture(scope="module")
def rows(trained) -> pd.DataFrame:
    """A day of clean rows, as plain as they come."""
    names = {"machine": "entity", "card": "entity", "payment": "event_id", "time": "event_time"}
    day = sensor_day(1) if trained.dataset.kind == "sensor" else card_day(1)
    return day.rename(names, strict=False).to_pandas()


def scores_of(model, frame: pd.DataFrame) -> list[float]:
    return model.predict(frame)["score"].tolist()


def test_the_registered_model_takes_frames_as_notebooks_have_them(trained, model, rows):
    """Times with a zone, without one and as text; whole numbers, short floats, no category, no id, other columns."""
    number = "flow" if trained.dataset.kind == "sensor" else "amount"
    frame = rows.assign(**{number: rows[number].round() + 3})
    usual = scores_of(model, frame)
    assert len(usual) == len(frame)
    moments = frame["event_time"]
    alike = {
        "without a zone": frame.assign(event_time=moments.dt.tz_localize(None)),
        "of another zone": frame.assign(event_time=moments.dt.tz_convert("America/New_York")),
        "as text": frame.assign(event_time=moments.map(lambda moment: moment.isoformat())),
        "as text without a zone": frame.assign(event_time=moments.dt.tz_localize(None).map(lambda t: t.isoformat())),
        "whole numbers": frame.assign(**{number: frame[number].astype("int64")}),
        "short floats": frame.assign(**{number: frame[number].astype("float32")}),
        "other columns": frame.assign(weather="rain"),
        "no id": frame.drop(columns="event_id", errors="ignore"),
    }
    for name, given in alike.items():
        assert scores_of(model, given) == usual, name
    if trained.dataset.kind == "transaction":
        assert len(scores_of(model, frame.assign(shop=None))) == len(frame)
        assert scores_of(model, frame.assign(shop=frame["shop"].astype("category"))) == usual


def test_the_registered_model_says_what_it_cannot_read(trained, model, rows):
    """A column that is missing, or holds something else, is named in a sentence."""
    number = "flow" if trained.dataset.kind == "sensor" else "amount"
    with pytest.raises(MlflowException, match=rf"missing inputs \['{number}'\]"):
        model.predict(rows.drop(columns=number))
    with pytest.raises(Exception, match=f"'{number}' holds String, of which not all are numbers"):
        model.predict(rows.assign(**{number: "12,4 bar"}))
    with pytest.raises(Exception, match=r"'event_time' holds String, of which not all are times .*'yesterday'"):
        model.predict(rows.assign(event_time="yesterday"))


def test_the_registered_model_explains_itself(trained, model):
    """What it is, how it is called, what it takes and gives, an example, and which one it is."""
    api = client(trained)
    registered, version = api.get_registered_model("demo"), api.get_model_version_by_alias("demo", "champion")
    assert 'load_model("models:/demo@champion")' in registered.description
    assert registered.tags["kind"] == trained.dataset.kind
    assert {"champion", "challenger"} <= {*registered.aliases}
    assert "Learned from 2026-01-05 00:00 to 2026-01-17 00:00 UTC. Threshold " in version.description
    assert "for 0.2 false alarms per entity and day" in version.description
    taken, given = model.metadata.signature.inputs, model.metadata.signature.outputs
    assert taken.input_names()[:2] == ["entity", "event_time"]
    assert taken.optional_input_names() == (["event_id"] if trained.dataset.event_id else [])
    predicted = model.predict(model.input_example)
    assert given.input_names() == [*predicted.columns]
    assert {kind.name for kind in given.input_types()} == {"string", "datetime", "double", "boolean"}
    assert predicted["score"].notna().all()


def test_a_training_page_tells_the_training(trained):
    """Its days, its settings without nesting, what came of it, the rows that it learned from, and its figures."""
    api = client(trained)
    (run,) = api.search_runs([api.get_experiment_by_name("demo/train").experiment_id])
    assert run.info.run_name == "2026-01-05 to 2026-01-16, demo trained"
    assert (run.data.params["model.filters"], run.data.params["threshold.false_alarms"]) == ("8", "0.2")
    assert run.data.tags["data_window"] == "2026-01-05T00:00:00+00:00 to 2026-01-17T00:00:00+00:00"
    ways, outcome, learned, *_ = run.data.tags["mlflow.note.content"].split("\n\n")
    assert "comparison.md" in ways
    assert outcome == f"Detector **{champion(trained).label}**: promoted: the first detector."
    assert "which promises 0.2 false alarms per entity and day" in learned
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.tags[0].value) == ("demo.clean", "training")
    figures = [file.path for file in api.list_artifacts(run.info.run_id, "figures")]
    assert figures == [f"figures/{name}.png" for name in ("calibration", "learning_curve", "scores")]


def test_confirmed_incidents_are_kept_out_of_the_next_training(trained, fresh, capsys):
    """A verdict is kept, and the stretch that it confirms is learned from no more."""
    from pipeline.review import confirmed
    from pipeline.train import within

    score_days(fresh, NIGHTS)
    found = read_incidents(fresh, *NIGHTS)
    if len(found) == 0:
        with pytest.raises(ConfigError, match="no incident"):
            record(fresh, "none", "confirmed", "", "ann")
        return
    first = found.row(0, named=True)
    record(fresh, first["incident_id"], "confirmed", "seal was leaking", "ann")
    clean = fresh.lake.scan("clean", {"entity": pl.String, "event_time": pl.Datetime("us", "UTC")}).collect()
    hit = clean.filter(pl.Series(within(clean, confirmed(fresh))))
    assert set(hit["entity"]) <= {first["entity"]}
    record(fresh, first["incident_id"], "dismissed", "it was a test", "ann")
    assert len(confirmed(fresh)) == 0
    with pytest.raises(ConfigError, match="no verdict"):
        record(fresh, first["incident_id"], "maybe", "", "ann")


def test_scores_are_exported_half_open_and_errors_end_in_their_exit_codes(fresh, tmp_path, capsys):
    """`nightsift scores` writes the promised columns; wrong usage, no data and a refusal have their own exit codes."""
    places = ["--home", str(fresh.home.root), "--datasets", str(fresh.dataset.file.parent)]

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            main([*arguments, *places])
        return int(end.value.code or 0)

    stretch = ("--from", str(FIRST), "--to", f"{FIRST}T12:00")
    assert run("scores", "demo", *stretch, "--out", str(tmp_path / "s.parquet")) == 1
    assert run("score", "demo", *stretch) == 0
    assert run("scores", "demo", *stretch, "--out", str(tmp_path / "s.parquet")) == 0
    written = pl.read_parquet(tmp_path / "s.parquet")
    assert {"entity", "event_time", "score", "p_value", "threshold", "is_anomaly"} <= set(written.columns)
    assert written["event_time"].max() < START + timedelta(days=HISTORY, hours=12)
    assert run("score", "demo", "--from", "soon", "--to", "later") == 2
    assert run("score", "nothing", *stretch) == 2
    (fresh.home.root / "source" / "day-99.parquet").write_bytes(b"not a parquet file")
    assert run("score", "demo", *stretch) == 3
    said = capsys.readouterr().err
    assert "day-99.parquet" in said
    assert "Traceback" not in said


def test_a_detector_of_an_earlier_version_is_told_and_replaced(fresh):
    """Scoring with it says what to do in a sentence, and the next training takes its place."""
    folder = champion(fresh).folder
    facts = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps(facts | {"format": 1}))
    client(fresh).set_model_version_tag("demo", "1", FILES, files_digest(folder))  # as it was registered then
    load_detector.cache_clear()
    with pytest.raises(ConfigError, match="train a new one"):
        score_days(fresh, [FIRST])
    start, end = fresh.dataset.day_bounds(START.date())[0], fresh.dataset.day_bounds(FIRST)[0]
    assert "train a new one" in train(fresh, start, end).reason
    score_days(fresh, [FIRST])


def test_training_on_nothing_is_refused_in_a_sentence(fresh):
    """A stretch without data is a gate refusal that says how many rows there were."""
    start, end = (fresh.dataset.day_bounds(date(2020, 1, day))[0] for day in (1, 5))
    with pytest.raises(GateRefusedError, match="too few to train on"):
        train(fresh, start, end)


def test_more_rows_than_are_learned_from_leave_whole_entities_out(fresh, monkeypatch):
    """The same entities are drawn whatever order they come in; who was left out is scored all the same."""
    counts = pl.DataFrame({"entity": [f"m{n}" for n in range(50)], "len": [10] * 50})
    drawn = draw_entities(counts, 205)
    assert drawn.equals(draw_entities(counts.reverse(), 205))
    assert drawn["len"].sum() == 200
    assert len(draw_entities(counts, 3)) == 1
    said: list[str] = []
    start, end = fresh.dataset.day_bounds(START.date())[0], fresh.dataset.day_bounds(FIRST)[0]
    rows = fresh.lake.scan("clean", {"entity": pl.String}).collect()
    monkeypatch.setattr("pipeline.train.MOST_ROWS", len(rows) // 2)
    promote(fresh, train(fresh, start, end, said.append).version.split("-")[0])
    score_days(fresh, [FIRST])
    scored = tables(fresh, "scores")["scores"]
    found = re.search(r"learning from (\d+) of (\d+) entities", "\n".join(said))
    assert found
    assert int(found[1]) < int(found[2]) == scored["entity"].n_unique()
    assert scored["score"].null_count() == 0


def test_a_fleet_of_machines_with_three_readings_each_is_trained_on_and_scored(make_workspace):
    """So little of each machine that no half of its calibration has a step is no crash; what it is worth is said."""
    ws = make_workspace()
    for day in range(2):
        rows = sensor_day(day, machines=40)
        deliver(ws, rows.group_by("machine", maintain_order=True).head(3), f"day-{day}")
    said: list[str] = []
    day = START.date() + timedelta(days=1)
    train(ws, ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(day)[0], said.append)
    assert any("so little time can vouch for" in line for line in said)
    (scored,) = score_days(ws, [day])
    assert scored.steps == 120
    assert tables(ws, "scores")["scores"]["score"].null_count() == 0


def test_payments_of_which_only_the_amount_is_known_are_trained_on_and_scored(make_workspace):
    """No category and no habit to inject anything into: the amount is judged by itself."""
    plain = re.sub(r"sequence_features:\n(  - .*\n)+", "", TRANSACTION).replace(
        "  - {name: shop, type: categorical}\n", ""
    )
    assert "shop" not in plain
    ws = make_workspace(plain)
    for day in range(6):
        deliver(ws, card_day(day, fault=day == 5), f"day-{day}")
    day = START.date() + timedelta(days=5)
    assert train(ws, ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(day)[0]).promoted
    score_days(ws, [day])
    scores = tables(ws, "scores")["scores"].sort("score", descending=True)
    assert scores["score"].null_count() == 0
    assert (scores["observed_amount"].head(5) > 4000).all()


def test_odd_entities_and_features_are_trained_on_and_scored(make_workspace):
    """A machine with one reading, a constant feature and one that is never observed do not stop a night.

    Neither does a machine whose sensors are read apart: both of its rows have the score of their step. A feature that
    was constant in training and moves is an incident of its own, and so is a night without any reading.
    """
    ws = make_workspace(SENSOR.replace("window:", "  - {name: still}\n  - {name: gone}\nwindow:"))
    for day in range(6):
        lonely = sensor_day(day, machines=1).head(1 if day == 5 else 0).with_columns(machine=pl.lit("lonely"))
        apart = sensor_day(day, machines=1).with_columns(machine=pl.lit("apart"))
        none, later = pl.lit(None, dtype=pl.Float64), pl.col("time") + pl.duration(minutes=1)
        apart = [apart.with_columns(heat=none), apart.with_columns(flow=none, time=later)]
        rows = pl.concat([sensor_day(day), lonely, *apart])
        moves = (pl.col("machine") == "m2") & pl.col("time").dt.hour().is_between(10, 12) & (day == 5)
        still = pl.when(moves).then(3.5).otherwise(3.0)
        deliver(ws, rows.with_columns(still=still, gone=pl.lit(None, dtype=pl.Float64)), f"day-{day}")
    day = START.date() + timedelta(days=5)
    assert train(ws, ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(day)[0]).promoted
    (scored,) = score_days(ws, [day])
    assert (scored.steps, scored.entities) == (577 + 288, 6)
    scores = tables(ws, "scores")["scores"]
    assert scores["score"].null_count() == 0
    pairs = scores.filter(pl.col("entity") == "apart").sort("event_time")
    assert pairs["score"].gather_every(2).equals(pairs["score"].gather_every(2, 1))
    assert pairs["observed_flow"].null_count() == pairs["observed_heat"].null_count() == 0
    assert scores["contribution_gone"].null_count() == len(scores)
    moved = read_incidents(ws, day, day).filter(entity="m2").row(0, named=True)
    assert (moved["drivers"][0]["feature"], moved["start"].hour) == ("still", 10)
    (nothing,) = score_days(ws, [day + timedelta(days=1)])
    assert (nothing.steps, nothing.anomalous, nothing.drifting) == (0, 0, 0)
    whole = read_incidents(ws, day + timedelta(days=1), day + timedelta(days=1))
    assert whole.select("entity", "kind", "steps").rows() == [("(all)", "silent", 0)]


def test_a_source_that_delivers_nothing_is_an_incident_and_an_alert(fresh, monkeypatch, caplog):
    """No file at all: the night goes to its end, with one incident of the whole source that is told, over two nights.

    Where the calendar suppresses that, the incident goes, without scoring.
    """
    from pipeline.incidents import renew_incidents
    from pipeline.notify import notify
    from tests.pipeline.test_notify import Server

    score_days(fresh, NIGHTS)
    (fresh.home.root / "source").rename(fresh.home.root / "gone")
    quiet = [NIGHTS[1] + timedelta(days=n) for n in (1, 2)]
    text = fresh.dataset.file.read_text() + "notify: {urls_env: [OPS]}\n"
    (fresh.home.root / "datasets").mkdir()
    (fresh.home.root / "datasets" / "demo.yaml").write_text(text)
    ws, server = open_workspace("demo", fresh.home.root, fresh.home.root / "datasets"), Server()
    monkeypatch.setenv("OPS", server.url)
    nights = [run_night(ws, day) for day in quiet]
    sent = [notify(ws, day).sent for day in quiet]
    server.stop()
    assert [(night.steps, night.incidents, night.silent) for night in nights] == [(0, 1, 1), (0, 1, 1)]
    assert "no source file matches" in caplog.text
    whole = read_incidents(ws, *quiet)
    last = ws.lake.scan("clean", {"event_time": pl.Datetime("us", "UTC")}).collect()["event_time"].max()
    assert whole.select("entity", "kind", "start").rows() == [("(all)", "silent", last)]
    assert sent == [1, 0]
    assert "the whole source: sent nothing" in server.received[0]["message"]
    entry = f"{{start: {quiet[0]}, end: {quiet[1]}, reason: holidays, action: suppress}}"
    ws.dataset.file.write_text(f"{text}calendar: {{entries: [{entry}]}}\n")
    ws = open_workspace("demo", ws.home.root, ws.dataset.file.parent)
    version = ws.lake.version("scores")
    assert [*missing_days(ws, *quiet)] == quiet
    assert renew_incidents(ws) == quiet
    assert len(read_incidents(ws, *quiet)) == 0
    assert missing_days(ws, *quiet) == {}
    ws.dataset.file.write_text(text)
    ws = open_workspace("demo", ws.home.root, ws.dataset.file.parent)
    monkeypatch.setattr("pipeline.ingest.list_files", lambda *_: [])
    assert [run_night(ws, day, overwrite=False).silent for day in quiet] == [1, 1]
    assert ws.lake.version("scores") == version


def test_a_feature_that_moved_slowly_is_a_drift_and_no_incident(trained):
    """The median of what is not anomalous against the training's, of known entities, of a window at least."""
    detector = load_detector(champion(trained).folder)
    if trained.dataset.kind == "transaction":
        frame = pl.DataFrame({"entity": ["c1"], "score": [0.1], "is_anomaly": [False], "observed_amount": [1e6]})
        assert slow_drifts(detector, frame, trained.dataset).is_empty()
        return
    rows = trained.dataset.window_length
    (m0, m1), flow = (detector.scaler.entities[name] for name in ("m0", "m1")), detector.channels.index("flow")
    center, scale = detector.scaler.center[:, flow], detector.scaler.scale[:, flow]
    usual = {"score": 0.1, "is_anomaly": False, "observed_heat": float(detector.scaler.center[m1, 1])}
    quiet = [{**usual, "entity": "m1", "observed_flow": center[m1] + 5 * scale[m1]}] * rows
    quiet += [{**usual, "entity": "new", "observed_flow": 1e3}] * rows
    loud = [{**usual, "entity": "m0", "observed_flow": 1e3, "is_anomaly": True}] * rows
    calm = [{**usual, "entity": "m0", "observed_flow": center[m0] + 2.9 * scale[m0]}] * rows
    found = slow_drifts(detector, pl.DataFrame([*quiet, *loud, *calm]), trained.dataset)
    assert found.select("entity", "feature").rows() == [("m1", "flow")]
    assert found["deviations"][0] == pytest.approx(5)
    assert found["usual"][0] == pytest.approx(center[m1])
    assert slow_drifts(detector, pl.DataFrame(quiet[1:]), trained.dataset)["entity"].to_list() == []


@pytest.fixture
def found(make_workspace, monkeypatch) -> Workspace:
    """A day whose incidents were found, of scores that no network has made, and that was not reported yet."""
    ws = make_workspace()
    deliver(ws, sensor_day(0), "day-00")
    ingest(ws)
    prepare(ws, START.date())
    publish_by(ws, "1-abc")
    find_incidents(ws, START.date())
    monkeypatch.setattr("pipeline.night.accepted", lambda *_: {"1-abc"})
    return ws


class Logging:
    """MLflow, which counts the nights that are logged, and does not answer the first time."""

    def __init__(self) -> None:
        self.nights = 0

    def __call__(self, *_args: object) -> None:
        self.nights += 1
        if self.nights == 1:
            raise NightsiftError("MLflow did not answer")


def test_a_day_whose_incidents_were_not_made_of_its_scores_is_run_again(found):
    """As where a night of late rows was killed in between; whatever night comes next sees to it."""
    later = START.date() + timedelta(days=3)
    assert stale_days(found, later) == [later]
    deliver(found, sensor_day(0, fault=("m1", 60, 80)), "day-00")
    ingest(found)
    prepare(found, START.date())
    publish_by(found, "1-abc")
    assert stale_days(found, later) == [START.date(), later]
    find_incidents(found, START.date())
    assert stale_days(found, later) == [later]


def test_a_night_that_could_not_be_logged_is_logged_by_the_next_run(found, monkeypatch):
    """Though its page is there and its scores are up to date; once that is done, it is left as it is."""
    monkeypatch.setattr("pipeline.tracking.log_night", logging := Logging())
    with pytest.raises(NightsiftError, match="did not answer"):
        run_night(found, START.date(), overwrite=False)
    assert Path(run_night(found, START.date(), overwrite=False).report).is_file()
    assert run_night(found, START.date(), overwrite=False).skipped
    assert logging.nights == 2


def test_a_report_that_a_changed_calendar_calls_for_is_not_forgotten(found, make_workspace, monkeypatch):
    """Where it could not be made after the incidents, the next look at the calendar makes it."""
    monkeypatch.setattr("pipeline.tracking.log_night", logging := Logging())
    logging.nights = 1
    report_night(found, START.date())
    assert renew(found) == []
    changed = make_workspace(f"{SENSOR}calendar: {{entries: [{{start: {START.date()}, reason: seals}}]}}\n")
    logging.nights = 0
    with pytest.raises(NightsiftError, match="did not answer"):
        renew(changed)
    assert renew(changed) == [START.date()]
    assert renew(changed) == []


def test_a_night_tells_how_long_its_steps_took(found):
    """Those that were taken, by the names of the tasks, and the report."""
    seconds = {"score": 2.5}
    report_night(found, START.date(), seconds)
    api = client(found)
    (run,) = api.search_runs([api.get_experiment_by_name("demo/nights").experiment_id])
    took = {name: value for name, value in run.data.metrics.items() if name.startswith("seconds/")}
    assert took == {"seconds/score": 2.5, "seconds/report": seconds["report"]}
    assert 0 < took["seconds/report"] < 60


def test_a_report_judges_no_rows(found, monkeypatch):
    """Rows that the gate would refuse have landed since: the report tells of the night that was."""
    monkeypatch.setattr("pipeline.tracking.log_night", lambda *_: None)
    deliver(found, sensor_day(0).with_columns(flow=pl.lit(-999.0)), "day-00")
    ingest(found)
    before = day_states(found, START.date())
    report_night(found, START.date())
    assert {step: state for step, state in day_states(found, START.date()).items() if step in before} == before
