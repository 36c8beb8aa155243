"""Training that is killed and goes on; challenger against champion; what may become champion, and the way back."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.detector import Detector
from pipeline import tracking
from pipeline.errors import ConfigError, NightsiftError
from pipeline.incidents import read_incidents
from pipeline.night import run_night, score_days
from pipeline.promotion import Standing, judge_standings, log_answer, newest_clean, promote, rollback, way_back
from pipeline.review import record
from pipeline.score import load_detector
from pipeline.state import State, write_state
from pipeline.train import Evaluation, Staged, train
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR, START, TRANSACTION, card_day, deliver, sensor_day, tables, workspace_in

HISTORY = 10
FIRST = START.date() + timedelta(days=HISTORY)


def workspace(root: Path, text: str = SENSOR, days: int = HISTORY + 1) -> Workspace:
    """So many days of four machines, of which the eleventh has a fault."""
    ws = workspace_in(root, text)
    for day in range(days):
        deliver(ws, sensor_day(day, fault=("m1", 60, 80) if day == HISTORY else None), f"day-{day:02}")
    return ws


def history(ws: Workspace):
    return ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(FIRST)[0]


def command(ws: Workspace, until: date = FIRST) -> list[str]:
    places = ["--home", str(ws.home.root), "--datasets", str(ws.dataset.file.parent)]
    return [
        sys.executable,
        "-m",
        "pipeline.cli",
        "train",
        "demo",
        "--from",
        str(START.date()),
        "--to",
        str(until),
        *places,
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Workspace:
    """A workspace with two detectors: the champion, and before it one of another seed."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    ws = workspace(tmp_path_factory.mktemp("trained"))
    train(ws, *history(ws))
    model = ws.dataset.model.model_copy(update={"seed": 1})
    train(replace(ws, dataset=ws.dataset.model_copy(update={"model": model})), *history(ws))
    return ws


@pytest.fixture
def fresh(trained, tmp_path, monkeypatch) -> Workspace:
    """A copy of it, registry included, so that each test begins from the same state."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(trained.home.root, tmp_path / "copy")
    return open_workspace("demo", tmp_path / "copy", trained.dataset.file.parent)


def labels(ws: Workspace) -> dict[str, str]:
    """By number, the label of each registered version."""
    return {str(version.version): version.tags["label"] for version in tracking.client(ws).search_model_versions()}


def test_features_may_have_any_name_that_the_yaml_takes(make_workspace):
    """Also words that frames of ours have as names of columns of their own."""
    names = ["injected", "row", "position", "from", "to", "part", "number", "step"]
    features = "".join(f"  - {{name: {name}}}\n" for name in names)
    text = TRANSACTION.replace("epochs: 4", "epochs: 1").replace("sequence_features:", f"{features}sequence_features:")
    ws = make_workspace(text)
    for day in range(5):
        deliver(ws, card_day(day).with_columns(pl.col("amount").alias(name) for name in names), f"day-{day}")
    start, end = (ws.dataset.day_bounds(START.date() + timedelta(days=n))[0] for n in (0, 4))
    assert train(ws, start, end).injected_recall is not None
    assert run_night(ws, START.date() + timedelta(days=4)).steps > 0


def test_a_training_that_is_killed_goes_on_and_ends_with_the_same_detector(tmp_path, monkeypatch):
    """SIGKILL in the middle of the fit of all, and then in that of a group; all weights are as undisturbed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    text = SENSOR.replace("epochs: 4", "epochs: 5, scope: {left: [m0, m1], right: [m2, m3]}")
    undisturbed, killed = (workspace(tmp_path / name, text, days=4) for name in ("one", "two"))
    until = START.date() + timedelta(days=4)
    whole = train(undisturbed, history(undisturbed)[0], undisturbed.dataset.day_bounds(until)[0])
    kept = Path(killed.lake.root) / "demo" / "_staging" / "training"
    for fits in (1, 2):
        kill_in_the_middle(command(killed, until), fits)
        assert len(list(kept.glob("*.parquet"))) == fits
        assert labels(killed) == {}
    again = subprocess.run(command(killed, until), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("goes on after epoch") == 2
    assert labels(killed) == {"1": whole.version}
    runs = tracking.client(killed).search_runs(["1"])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3 + ["KILLED"] * 3
    assert not kept.exists()


DYING = """
import os, signal, sys
from collections import Counter
from pipeline.cli import main
from pipeline.train import Staged

fits, saved, save = int(sys.argv.pop(1)), Counter(), Staged.save

def save_and_die(self, key, state):
    save(self, key, state)
    saved[key] += 1
    if len(saved) == fits and saved[key] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Staged.save = save_and_die
main()
"""


def kill_in_the_middle(line: list[str], fits: int) -> None:
    """A training that gets SIGKILL after three epochs of its fit number `fits`, however busy the machine is."""
    python, _, _, *arguments = line
    killed = subprocess.run([python, "-c", DYING, str(fits), *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_the_runs_of_a_training_that_was_killed_are_marked_so(make_workspace, monkeypatch):
    """The run and those of its groups; not what has ended, nor what learns from another stretch."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ws = make_workspace()
    api = tracking.client(ws)
    experiment = api.create_experiment("demo/train")
    killed = api.create_run(experiment, run_name="demo 1").info.run_id
    api.create_run(experiment, run_name="left", tags={"mlflow.parentRunId": killed})
    ended = api.create_run(experiment, run_name="right", tags={"mlflow.parentRunId": killed}).info.run_id
    api.set_terminated(ended)
    api.create_run(experiment, run_name="demo 2")
    tracking.end_killed(ws, "train", "demo 1")
    status = {found.info.run_name: found.info.status for found in api.search_runs([experiment])}
    assert status == {"demo 1": "KILLED", "left": "KILLED", "right": "FINISHED", "demo 2": "RUNNING"}


def test_a_torn_checkpoint_is_ignored(tmp_path, make_workspace):
    """What cannot be read is as if it were not there; what can is what was saved; cleared, nothing is left."""
    checkpoints = Staged(make_workspace().lake)
    state = {"epoch": np.array(3), "weight.0": np.arange(6, dtype=np.float32).reshape(2, 3), "stopped": np.array(False)}
    checkpoints.save("a", state)
    loaded = checkpoints.load("a")
    assert loaded is not None
    assert loaded.keys() == state.keys()
    assert all((loaded[name] == array).all() and loaded[name].dtype == array.dtype for name, array in state.items())
    file = next(Path(checkpoints.lake.root).rglob("a.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    assert checkpoints.load("a") is None
    assert checkpoints.load("b") is None
    checkpoints.clear()
    assert not file.exists()


def comparison(ws: Workspace, run: str) -> dict:
    """What a training has logged of challenger and champion."""
    import mlflow

    artifacts = tracking.client(ws).get_run(run).info.artifact_uri
    return mlflow.artifacts.load_dict(f"{artifacts}/comparison.json")


def test_both_are_compared_on_the_same_anomalies_and_shown_side_by_side(trained):
    """The second training's run holds the table, and the numbers of both; the sentence names both."""
    champion = tracking.current(trained)
    version = tracking.client(trained).get_model_version("demo", champion.number)
    import mlflow

    artifacts = tracking.client(trained).get_run(version.run_id).info.artifact_uri
    facts = comparison(trained, version.run_id)
    table = mlflow.artifacts.load_text(f"{artifacts}/comparison.md")
    first = labels(trained)["1"]
    assert facts["champion"]["detector"] == first
    assert facts["challenger"]["detector"] == champion.label
    assert facts["champion_learned_from_holdout"] == 0
    assert set(facts["champion"]["injected_recall_by_kind"]) == set(facts["challenger"]["injected_recall_by_kind"])
    assert facts["champion"]["holdout_entity_days"] == facts["challenger"]["holdout_entity_days"] > 3
    assert f"|  | challenger {champion.label} | champion {first} |" in table
    assert "| injected anomalies found at the same budget | " in table
    assert f"champion {first}" in version.tags["promotion"]


def test_without_a_holdout_no_champion_is_replaced_and_what_is_unknown_is_no_number(tmp_path, monkeypatch):
    """The first detector is promoted, the second refused; both ways of telling it, Airflow's and ours, are JSON."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ws = workspace(tmp_path, SENSOR + "training: {holdout: 0}\n", days=4)
    until = START.date() + timedelta(days=4)
    first = train(ws, history(ws)[0], ws.dataset.day_bounds(until)[0])
    assert first.promoted
    assert json.dumps(asdict(first), allow_nan=False)
    assert "| injected anomalies found at the same budget | unknown |" in first.table
    done = subprocess.run([*command(ws, until), "--json"], capture_output=True, text=True, check=True)
    second = json.loads(done.stdout, parse_constant=pytest.fail)
    assert (second["injected_recall"], second["better"], second["promoted"]) == (None, False, False)
    assert "refused: there is no holdout to compare on: train on a longer stretch" in second["reason"]
    assert tracking.current(ws).label == first.version


@pytest.mark.parametrize("dismissed", [False, True])
def test_a_detector_that_is_trained_again_stands_as_the_champion_does(fresh, dismissed, monkeypatch):
    """Number by number; one that learned from dismissals, with higher thresholds, is not worse for it."""
    champion = load_detector(tracking.find(fresh, tracking.CHAMPION).folder)
    model = fresh.dataset.model.model_copy(update={"seed": 1})
    ws, (start, end) = replace(fresh, dataset=fresh.dataset.model_copy(update={"model": model})), history(fresh)
    if dismissed:
        kinds = {"entity": pl.String, "start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")}
        stretches = pl.DataFrame([(f"m{n}", start, end) for n in range(4)], schema=kinds, orient="row")
        monkeypatch.setattr("pipeline.train.dismissed", lambda ws: stretches)
    result = train(ws, start, end)
    again = load_detector(tracking.find(ws, tracking.CHALLENGER).folder)
    assert again.threshold.value == champion.threshold.value
    assert (again.threshold.factors != champion.threshold.factors) is dismissed
    facts = comparison(ws, result.run)
    one, other = ({**facts[side], "detector": None} for side in ("challenger", "champion"))
    if dismissed:
        assert one.pop("false_alarms_on_holdout") <= other.pop("false_alarms_on_holdout")
    assert one == other
    assert one["injected_recall"] > 0.5
    assert (result.better, result.promoted) == (True, True)


def evaluation(found: list[bool], days: float = 100.0) -> Evaluation:
    return Evaluation(0.05, {"spike": float(np.mean(found))}, 1.0, days, tuple(found))


GOOD = Standing("2-b", 0.05, 5, evaluation([True] * 40), (True,) * 8, (False,) * 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"equal": evaluation([True] * 30 + [False] * 10)}, "finds less of the injected anomalies"),
        ({"alarms": 20}, "breaks its promise"),
        ({"confirmed": (True,) * 2 + (False,) * 6}, "misses incidents that analysts confirmed"),
        ({"dismissed": (True,) * 6 + (False,) * 2}, "calls incidents that analysts dismissed"),
        ({}, None),
        ({"equal": evaluation([True] * 38 + [False] * 2)}, None),
        ({"alarms": 8}, None),
        ({"confirmed": (True,) * 6 + (False,) * 2}, None),
    ],
)
def test_a_worse_challenger_is_refused_and_chance_is_not_called_worse(change, said):
    """By anomalies found, promise and verdicts; the other way round the same challenger is promoted."""
    worse = replace(GOOD, label="3-c", **change)
    better, words = judge_standings(worse, GOOD)
    assert better is (said is None)
    assert said is None or said in words
    assert "champion 2-b" in words
    assert judge_standings(replace(GOOD, label="3-c"), replace(worse, label="2-b"))[0]


def test_who_shows_no_find_is_not_promoted():
    """Promises are kept, and dismissed incidents passed over, by who finds nothing; one confirmed one is enough."""
    blind = Standing("3-c", 0.05, 0, Evaluation(0.0, {}, 1.0, 100.0), (), (False,) * 8)
    better, words = judge_standings(blind, replace(blind, label="2-b"))
    assert not better
    assert words.startswith("nothing tells whether it finds anomalies")
    assert "injected anomalies found unknown, champion 2-b unknown" in words
    seeing = replace(blind, confirmed=(True,))
    assert judge_standings(seeing, replace(seeing, label="2-b"))[0]


def test_a_worse_challenger_is_refused_by_training_and_the_champion_stays(fresh, monkeypatch):
    """One whose threshold nothing reaches finds nothing; it is registered as challenger all the same."""
    import pipeline.train

    champion = tracking.current(fresh)
    measure = pipeline.train.calibrator

    def deaf(detector, dataset, steps, targets):
        at = measure(detector, dataset, steps, targets)
        return lambda score, rule: replace(at(score, rule), value=1e6)

    monkeypatch.setattr(pipeline.train, "calibrator", deaf)
    result = train(fresh, *history(fresh))
    assert (result.promoted, result.better) == (False, False)
    assert "refused: its own threshold finds but 0% of the injected anomalies" in result.reason
    assert tracking.current(fresh) == champion
    assert tracking.find(fresh, tracking.CHALLENGER).label == result.version


def break_weights(folder: Path) -> None:
    detector = Detector.load(folder)
    detector.model.set_weights([np.full_like(weight, np.nan) for weight in detector.model.get_weights()])
    detector.save(folder)


def break_threshold(folder: Path) -> None:
    detector = Detector.load(folder)
    replace(detector, threshold=replace(detector.threshold, value=float("nan"))).save(folder)


def test_the_day_that_a_detector_is_tried_on_is_found_without_its_rows(make_workspace):
    """The newest that has clean rows and begins before the detector's end; where none does, the newest of all."""
    ws = make_workspace()
    noon = START + timedelta(days=1, hours=12)
    assert newest_clean(ws, noon) is None
    for n, rows in enumerate((5, 5, 0, 5)):
        state = State(START.date() + timedelta(days=n), "validate", "i", "c", counts={"rows_clean": rows})
        write_state(ws, state)
    days = [START - timedelta(days=1), START + timedelta(days=1), noon, START + timedelta(days=3)]
    assert [(newest_clean(ws, until) - START.date()).days for until in days] == [3, 0, 1, 1]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda folder: (folder / "arrays.npz").unlink(), "cannot be loaded back from the registry"),
        (lambda folder: (folder / "detector.json").write_text("{"), "cannot be loaded back from the registry"),
        (lambda folder: (folder / "model" / "model.weights.h5").write_bytes(b"torn"), "cannot be loaded back"),
        (break_weights, "its weights have changed"),
        (shutil.rmtree, "cannot be loaded back from the registry"),
    ],
)
def test_a_broken_detector_cannot_take_the_place_of_the_champion(fresh, broken, said, tmp_path, monkeypatch):
    """An upload that was not finished, or that is not what was registered, is refused on promotion and on rollback."""
    champion, folder = tracking.current(fresh), fetched(fresh, tmp_path, monkeypatch)
    broken(folder)
    for move in (lambda: promote(fresh, "1"), lambda: rollback(fresh)):
        with pytest.raises(NightsiftError, match=said):
            move()
        assert tracking.current(fresh) == champion


def fetched(ws: Workspace, tmp_path: Path, monkeypatch) -> Path:
    """The folder that the registry hands out from now on."""
    folder = tracking.fetch(ws, "1", tmp_path)
    monkeypatch.setattr(tracking, "fetch", lambda *_: folder)
    return folder


@pytest.mark.parametrize("ruin", [break_weights, break_threshold])
def test_a_detector_without_finite_scores_is_never_promoted_by_training(fresh, ruin, monkeypatch):
    """Training fails where what was registered, loaded back, gives no finite score or threshold; no alias moves."""
    champion, save = tracking.current(fresh), Detector.save

    def spoiled(self, folder):
        save(self, folder)
        with monkeypatch.context() as patch:
            patch.setattr(Detector, "save", save)
            ruin(folder)

    monkeypatch.setattr(Detector, "save", spoiled)
    monkeypatch.setattr("pipeline.promotion.weights_digest", lambda _: labels(fresh)["3"].partition("-")[2])
    with pytest.raises(NightsiftError, match="no finite score or threshold; the champion stays"):
        train(fresh, *history(fresh))
    assert tracking.current(fresh) == champion
    assert tracking.find(fresh, tracking.CHALLENGER).number == "2"


def test_what_was_never_completely_registered_is_refused(fresh):
    """A version without its label, and a number that is none, are said to be that."""
    api = tracking.client(fresh)
    api.delete_model_version_tag("demo", "1", "label")
    with pytest.raises(ConfigError, match="never completely registered"):
        promote(fresh, "1")
    with pytest.raises(ConfigError, match="no registered version '77'"):
        promote(fresh, "77")


def test_after_a_rollback_a_night_is_scored_as_before_the_promotion(fresh):
    """Cell for cell, in a process that has the later detector loaded; another process did the rollback."""
    rollback(fresh)
    score_days(fresh, [FIRST])
    before = tables(fresh, "scores", "incidents", "drifts")
    promote(fresh, "2")
    score_days(fresh, [FIRST])
    assert not tables(fresh, "scores")["scores"].equals(before["scores"])
    line = [sys.executable, "-m", "pipeline.cli", "rollback", "demo", "--home", str(fresh.home.root)]
    done = subprocess.run(
        [*line, "--datasets", str(fresh.dataset.file.parent)], capture_output=True, text=True, check=True
    )
    told = labels(fresh)
    assert f"back from detector {told['2']} to {told['1']}" in done.stdout
    score_days(fresh, [FIRST])
    after = tables(fresh, "scores", "incidents", "drifts")
    assert all(frame.equals(after[name]) for name, frame in before.items())


def test_rollbacks_go_back_one_step_each_and_end_at_the_first(fresh):
    """Also where a detector was champion twice; a step that is told twice is taken once."""
    promote(fresh, "1")
    one, two = (labels(fresh)[number] for number in ("1", "2"))
    assert tracking.former(fresh) == ["1", "2"]
    step = rollback(fresh)
    assert (step.before, step.after) == (one, two)
    assert rollback(fresh, step) == step
    assert tracking.current(fresh).label == two
    assert rollback(fresh).after == one
    with pytest.raises(NightsiftError, match="no earlier champion"):
        way_back(fresh)
    with pytest.raises(NightsiftError, match="no earlier champion"):
        rollback(fresh)
    promote(fresh, "2")
    promote(fresh, "2")
    assert tracking.former(fresh) == ["1"]


@pytest.mark.parametrize("rule", ["human", "never"])
def test_where_no_rule_promotes_the_challenger_waits(trained, fresh, rule):
    """Better or not, the champion stays until somebody says so; what a person answers is logged with the name."""
    training = fresh.dataset.training.model_copy(update={"promotion": rule})
    ws, champion = (
        replace(fresh, dataset=fresh.dataset.model_copy(update={"training": training})),
        tracking.current(fresh),
    )
    result = train(ws, *history(ws))
    assert not result.promoted
    assert tracking.current(ws) == champion
    assert tracking.find(ws, tracking.CHALLENGER).label == result.version
    for choice, said in (("Reject", "rejected by Ann"), ("Approve", "approved by Ann")):
        answer = {"chosen_options": [choice], "responded_by_user": {"id": "7", "name": "Ann"}}
        assert log_answer(ws, result.run, result.version, answer) == f"detector {result.version}: {said}"
        tags = tracking.client(ws).get_run(result.run).data.tags
        assert (tags["promotion"], tags["decided_by"]) == (said, "Ann")
    timed_out = {"chosen_options": ["Reject"], "responded_by_user": None}
    assert "rejected by nobody in time" in log_answer(ws, result.run, result.version, timed_out)


def test_what_analysts_judged_is_counted_for_both(fresh):
    """A confirmed fault is found by the next challenger too, and the table says so."""
    score_days(fresh, [FIRST])
    worst = read_incidents(fresh, FIRST, FIRST).row(0, named=True)
    record(fresh, worst["incident_id"], "confirmed", "", "ann")
    end = fresh.dataset.day_bounds(FIRST + timedelta(days=1))[0]
    result = train(fresh, history(fresh)[0], end)
    assert "| confirmed incidents found | 1 of 1 | 1 of 1 |" in result.table
    assert "| dismissed incidents called again | 0 of 0 | 0 of 0 |" in result.table
    assert load_detector(tracking.find(fresh, tracking.CHALLENGER).folder).about["learned_to"] < end.isoformat()
