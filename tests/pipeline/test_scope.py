"""`model.scope`: groups with detectors of their own, kept, registered and used as one with the detector of all."""

import json
import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.detector import Detector, group_of
from pipeline import tracking
from pipeline.night import score_days
from pipeline.score import by_member, score_frame
from pipeline.tables import clean_schema
from pipeline.train import groups_of, together, train
from pipeline.workspace import Workspace
from tests.conftest import SENSOR, START, deliver, predicted_by_registry, tables, workspace_in

HISTORY = 6
FIRST = START.date() + timedelta(days=HISTORY)
GROUPS = {"with": ["a*"], "against": ["b1", "b2"]}


def day(number: int, *, swapped: bool = False) -> pl.DataFrame:
    """Heat goes with the flow in machines a, against it in b; `swapped`: a1 behaves as a b, and z1 is new."""
    frames = []
    for name in ("a1", "a2", "b1", "b2", *(["z1"] if swapped else [])):
        rng = np.random.default_rng([number, *name.encode()])
        flow = np.convolve(rng.normal(size=148), np.ones(5) / 5**0.5, "valid")
        sign = 1 if name.startswith("a") and not (swapped and name == "a1") else -1
        heat = 2 * sign * flow + rng.normal(0, 0.2, 144)
        times = [START + timedelta(days=number, minutes=10 * n) for n in range(144)]
        frames.append(pl.DataFrame({"machine": [name] * 144, "time": times, "flow": flow, "heat": heat}))
    return pl.concat(frames).with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))


def trained(root, scope: Any) -> Workspace:
    """A workspace whose detector was trained with a scope, and whose next night, with a1 swapped, is scored."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it, and it would go before the home's own
    ws = workspace_in(root, SENSOR.replace("epochs: 4", f"epochs: 10, scope: {json.dumps(scope)}"))
    for number in range(HISTORY + 1):
        deliver(ws, day(number, swapped=number == HISTORY), f"day-{number:02}")
    train(ws, ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(FIRST)[0])
    score_days(ws, [FIRST])
    return ws


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> Workspace:
    return trained(tmp_path_factory.mktemp("grouped"), GROUPS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Workspace:
    return trained(tmp_path_factory.mktemp("alone"), "all")


def champion(ws: Workspace) -> tracking.Version:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return tracking.champion(ws)


def scores(ws: Workspace) -> pl.DataFrame:
    return tables(ws, "scores")["scores"]


def in_alarm(ws: Workspace, machine: str) -> float:
    return scores(ws).filter(pl.col("entity") == machine)["is_anomaly"].mean()


def median(ws: Workspace, machine: str) -> float:
    return scores(ws).filter(pl.col("entity") == machine)["score"].median()


def test_an_own_detector_finds_what_the_one_for_all_takes_for_normal(grouped, alone):
    """What is usual in the other group is no anomaly to the detector of all; it is one to the group's own."""
    assert in_alarm(alone, "a1") == 0
    assert in_alarm(grouped, "a1") > 0.01
    assert in_alarm(grouped, "a2") == 0
    assert median(alone, "a1") < 1.5 * median(alone, "a2")
    assert median(grouped, "a1") > 1.5 * median(grouped, "a2")


def test_who_has_no_group_is_scored_by_the_detector_of_all_from_the_first_night(grouped, alone):
    """A machine that nobody has seen before has the scores and threshold of the detector of all, known ones theirs."""
    detector = Detector.load(champion(grouped).folder)
    own = {**detector.members, "": detector}
    assert len({one.threshold.value for one in own.values()}) == 3
    found = dict(scores(grouped).select("entity", "threshold").unique().iter_rows())
    group = {"a1": "with", "a2": "with", "b1": "against", "b2": "against", "z1": ""}
    thresholds = {name: own[group[name]].threshold for name in group}
    assert found == {name: learned.value * learned.factor([name])[0] for name, learned in thresholds.items()}
    new, want = (scores(ws).filter(pl.col("entity") == "z1").drop("detector_version") for ws in (grouped, alone))
    assert new["score"].null_count() == 0
    assert new.equals(want)


def test_trained_and_scored_twice_is_the_same(grouped, tmp_path):
    """The same data give the same detectors, by the digest of all their weights, and the same scores."""
    again = trained(tmp_path, GROUPS)
    assert champion(again).label == champion(grouped).label
    assert scores(again).equals(scores(grouped))


def test_a_detector_is_one_artefact_with_its_members(grouped):
    """What was registered holds all members; loaded, it scores as the night did, in order, and each as if alone."""
    folder = champion(grouped).folder
    detector = Detector.load(folder)
    assert set(detector.members) == set(GROUPS)
    assert len(list(folder.rglob("model.weights.h5"))) == 3
    clean = grouped.lake.scan("clean", clean_schema(grouped.dataset)).drop("day").collect()
    result = score_frame(detector, clean, grouped.dataset, pl.col("event_time") >= START + timedelta(days=HISTORY))
    order = ["entity", "event_time"]
    assert result.select(order).equals(result.select(order).sort(order))
    night = scores(grouped).sort(order)
    assert result["threshold"].equals(night["threshold"])
    np.testing.assert_allclose(result["score"], night["score"], rtol=1e-4)
    assert [(group, rows["entity"].unique().sort().to_list()) for group, _, rows in by_member(detector, clean)] == [
        ("", ["z1"]), ("against", ["b1", "b2"]), ("with", ["a1", "a2"]),
    ]  # fmt: skip
    assert score_frame(detector, clean.clear(), grouped.dataset, pl.lit(value=True)).is_empty()


def test_the_registered_model_judges_each_machine_by_its_own_group(grouped):
    """As the night does: the same thresholds, and scores that are as good as equal after more context."""
    night = scores(grouped).select("entity", "event_time", "threshold", "score")
    both = night.join(predicted_by_registry(grouped), on=["entity", "event_time"], suffix="_registry")
    assert len(both) == len(night)
    assert both["threshold"].equals(both["threshold_registry"])
    assert both["entity"].n_unique() == 5
    np.testing.assert_allclose(both["score"], both["score_registry"], rtol=0.05, atol=0.05)


def test_what_the_groups_came_to_is_logged(grouped):
    """The training's run has the worst of all detectors beside the mean, a table of them, and runs with curves."""
    champion(grouped)
    api = tracking.client(grouped)
    experiment = api.get_experiment_by_name("demo/train").experiment_id
    runs = {run.info.run_name: run for run in api.search_runs([experiment])}
    assert set(GROUPS) < set(runs)
    assert all(runs[group].data.metrics["loss"] > 0 for group in GROUPS)
    (whole,) = (run for name, run in runs.items() if name not in GROUPS)
    figures = whole.data.metrics
    assert figures["members"] == 2
    assert figures["injected_recall.worst"] <= figures["injected_recall.spike"] + 1
    table = json.loads(api_text(whole, "members.json"))
    assert set(table) == set(GROUPS)
    rates = [row["false_alarms_on_holdout"] for row in table.values()]
    assert figures["false_alarms_on_holdout.worst"] == max(rates)
    assert min(rates) <= figures["false_alarms_on_holdout"] <= max(rates)


def api_text(run, name: str) -> str:
    import mlflow

    return mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}")


def test_a_group_with_too_little_is_left_to_the_detector_of_all(make_workspace):
    """Each entity for itself: who has too few steps has no detector, and that is said; training goes on."""
    ws = make_workspace(SENSOR.replace("epochs: 4", "epochs: 1, scope: entity"))
    for number in range(3):
        rows = day(number).filter(pl.col("machine").is_in(["a1", "b1"]))
        deliver(ws, pl.concat([rows.filter(pl.col("machine") == "a1"), rows.tail(20)]), f"day-{number}")
    said: list[str] = []
    start, end = (ws.dataset.day_bounds(START.date() + timedelta(days=n))[0] for n in (0, 3))
    assert train(ws, start, end, said.append).promoted
    assert set(Detector.load(champion(ws).folder).members) == {"a1"}
    assert "b1: 60 steps are too few for a detector of its own (at least 256)" in said


def test_groups_are_names_and_globs_of_which_the_first_fits():
    """Whole names before patterns are compared with case; who fits nothing has no group."""
    scope = {"deep": ["well-1", "well-2*"], "old": ["well-*", "x[1]"]}
    names = ["well-1", "well-10", "well-23", "Well-1", "x[1]", "x1", "y"]
    assert [group_of(name, scope) for name in names] == ["deep", "old", "deep", None, "old", "old", None]
    assert groups_of(["y", "well-23", "well-1"], scope) == {"deep": ["well-1", "well-23"], "old": []}
    assert groups_of(["b", "a"], "entity") == {"a": ["a"], "b": ["b"]}
    assert groups_of(["b", "a"], "all") == {}


def test_evaluations_come_together_by_the_time_that_they_cover(grouped):
    """False alarms are counted over all entity-days; shares that nobody knows stay unknown."""
    from pipeline.train import Evaluation

    one = Evaluation(1.0, {"spike": 0.5, "stuck": 1.0}, float("nan"), 1.0)
    both = together([one, replace(one, realised=0.0, recall={"spike": 1.0}, entity_days=3.0)])
    assert (both.realised, both.entity_days) == (0.25, 4.0)
    assert both.recall == {"spike": 0.75, "stuck": 1.0}
    assert np.isnan(both.explained)
