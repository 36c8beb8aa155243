"""The DAG files: what stands in Airflow for the datasets that are there."""

import ast
import itertools
import re
import shutil
from typing import Any

import pytest

from pipeline.lake import ENDED
from tests.dags.conftest import HERE, SHIPPED, ReadDags

KINDS = ("ingest", "nightly", "train", "rollback")


@pytest.fixture(scope="module")
def shipped(read_dags: ReadDags) -> dict[str, Any]:
    return read_dags(SHIPPED)


@pytest.fixture(scope="module")
def changed(read_dags: ReadDags, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The shipped datasets, one more that has a schedule, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("datasets") / "datasets"
    shutil.copytree(SHIPPED, folder)
    pumps = (folder / "pumps.yaml").read_text().replace("name: pumps", "name: fans", 1)
    zoned = pumps.replace("zone: UTC", "zone: Europe/Berlin", 1).replace("{false_al", "{adapt: true, false_al", 1)
    asking = "training: {schedule: '0 4 * * 0', promotion: human}"
    told = 'deadline: "06:00"\nnotify: {urls_env: [OPS]}'
    (folder / "fans.yaml").write_text(f'{zoned}\nschedule: "30 2 * * *"\n{told}\n{asking}\n')
    (folder / "broken.yaml").write_text(pumps.replace("name: fans", "name: broken", 1).replace("entity:", "entty:", 1))
    return read_dags(folder)


def test_each_dataset_has_its_dags(shipped: dict[str, Any]) -> None:
    """A YAML gives a DAG NAME_KIND for each kind, one DAG backfills all and one keeps them up; none raises an error."""
    assert shipped["errors"] == {}
    names = [path.stem for path in SHIPPED.glob("*.yaml")]
    assert names
    assert set(shipped["dags"]) == {"backfill", "upkeep"} | {f"{name}_{kind}" for name in names for kind in KINDS}


def test_reading_dags_imports_nothing_heavy(shipped: dict[str, Any]) -> None:
    """The DAG processor reads the files without Polars, TensorFlow, MLflow, Great Expectations or Delta Lake."""
    assert shipped["heavy"] == []


def test_every_dag_is_documented_owned_tagged_and_bounded(shipped: dict[str, Any]) -> None:
    """Each DAG says what it does, whose it is and what it belongs to, and ends some time."""
    for dag_id, dag in shipped["dags"].items():
        assert {"nightsift", *dag_id.rsplit("_", 1)} <= set(dag["tags"]), dag_id
        assert dag_id.removesuffix(f"_{dag_id.rsplit('_', 1)[-1]}") in dag["doc"].lower(), dag_id
        assert "{" not in dag["doc"], dag_id
        assert 0 < dag["timeout"] < ENDED.total_seconds(), dag_id
        assert dag["catchup"] is False, dag_id
    assert shipped["dags"]["pumps_nightly"]["owner"] == "reliability"


def test_every_task_is_documented_owned_retried_and_bounded(shipped: dict[str, Any]) -> None:
    """Each task has a text, an owner, retries with growing pauses (but for what only looks), and a time limit."""
    for dag_id, dag in shipped["dags"].items():
        for task_id, task in dag["tasks"].items():
            where = f"{dag_id}.{task_id}"
            assert len(task["doc"]) > 20, where
            assert task["owner"] == dag["owner"], where
            assert task["retries"] == 0 if where == "backfill.check" else task["retries"] >= 1, where
            assert task["backoff"] > 1, where
            assert task["delay"] > 0, where
            assert 0 < task["timeout"] <= dag["timeout"], where


def test_nightly_goes_from_validate_to_notify(shipped: dict[str, Any]) -> None:
    """The graph shows the steps of the night in order; scoring is mapped, in the GPU's queue and pool.

    The message waits for the report, and not for MLflow.
    """
    tasks = shipped["dags"]["pumps_nightly"]["tasks"]
    orders = [["validate", "score", "incidents", "report", told, "drift", "retrain"] for told in ("notify", "log")]
    assert set(tasks) == {name for order in orders for name in order}
    for order in orders:
        assert all(before in tasks[after]["after"] for before, after in itertools.pairwise(order))
    assert tasks["notify"]["after"] == tasks["log"]["after"] == ["incidents", "report"]
    assert tasks["score"]["mapped"]
    assert (tasks["score"]["queue"], tasks["score"]["pool"]) == ("gpu", "gpu")


def test_a_failure_reaches_the_end_of_every_dag(shipped: dict[str, Any]) -> None:
    """No task runs after a failed one, but for the backfill's check, which fails by itself where a day is missing."""
    for dag_id, dag in shipped["dags"].items():
        rules = {task_id: task["trigger_rule"] for task_id, task in dag["tasks"].items()}
        lenient = {task_id for task_id, rule in rules.items() if rule not in ("all_success", "none_failed")}
        assert lenient == ({"check"} if dag_id == "backfill" else set()), dag_id


def test_a_file_that_cannot_be_read_keeps_no_night_from_being_run(shipped: dict[str, Any]) -> None:
    """The task that lands announces the nights, and another fails; what the calendar explains no more is told."""
    tasks = shipped["dags"]["pumps_ingest"]["tasks"]
    after = {"ingest": [], "complain": ["ingest"], "renew": ["ingest"], "notify": ["renew"]}
    assert {name: task["after"] for name, task in tasks.items()} == after
    assert shipped["dags"]["pumps_ingest"]["leaves"] == ["complain", "notify"]


def test_a_yaml_dropped_in_gives_its_dags(changed: dict[str, Any]) -> None:
    """A new YAML needs nothing else: its DAGs stand beside the others, and the form of the backfill offers it."""
    assert {f"fans_{kind}" for kind in KINDS} <= set(changed["dags"])
    assert changed["dags"]["backfill"]["schema"]["dataset"]["enum"] == ["cards", "fans", "pumps"]


def test_a_backfill_runs_as_many_nights_at_once_as_its_form_says(shipped: dict[str, Any]) -> None:
    """For each number that can be chosen there is a task that the scheduler bounds by it, in the GPU's pool."""
    dag = shipped["dags"]["backfill"]
    lanes = {name: task for name, task in dag["tasks"].items() if task["mapped"]}
    assert {name: task["at_once"] for name, task in lanes.items()} == {
        f"nights.at_once_{n}": n for n in dag["schema"]["at_once"]["enum"]
    }
    assert {(task["queue"], task["pool"]) for task in lanes.values()} == {("gpu", "gpu")}
    assert dag["leaves"] == ["check"]


def test_the_schedule_of_the_yaml_runs_the_night(changed: dict[str, Any]) -> None:
    """`schedule` is when the night begins, in the dataset's zone; without it nights run on demand."""
    fans, pumps = changed["dags"]["fans_ingest"], changed["dags"]["pumps_ingest"]
    assert (fans["cron"], fans["zone"]) == ("30 2 * * *", "Europe/Berlin")
    assert fans["timetable"] == "CronPartitionTimetable"
    assert pumps["timetable"] == "PartitionedAtRuntime"


def test_the_training_runs_by_its_own_schedule(changed: dict[str, Any]) -> None:
    """`training.schedule` is the training's cron expression in the dataset's zone; without it somebody triggers it."""
    fans, pumps = changed["dags"]["fans_train"], changed["dags"]["pumps_train"]
    assert (fans["cron"], fans["zone"]) == ("0 4 * * 0", "Europe/Berlin")
    assert fans["timetable"] == "CronTriggerTimetable"
    assert pumps["timetable"] == "NullTimetable"
    assert {"from", "to", "reason"} <= set(fans["params"])


def test_a_person_is_asked_where_the_yaml_says_so(changed: dict[str, Any]) -> None:
    """Between training and promotion stands Airflow's approval, for which the run has time; else training decides."""
    fans, pumps = changed["dags"]["fans_train"], changed["dags"]["pumps_train"]
    order = ["train", "approve", "promote", "answer"]
    assert set(fans["tasks"]) == set(order)
    assert all(before in fans["tasks"][after]["after"] for before, after in itertools.pairwise(order))
    assert fans["tasks"]["answer"]["trigger_rule"] == "none_failed"
    assert fans["timeout"] > 6 * 24 * 3600
    assert set(pumps["tasks"]) == {"train"}


def test_what_an_ingest_lands_is_what_a_night_waits_for(changed: dict[str, Any]) -> None:
    """NAME_ingest announces the days of one asset, for each of which NAME_nightly runs; it announces its incidents."""
    for name in ("fans", "pumps"):
        ingest, nightly = changed["dags"][f"{name}_ingest"], changed["dags"][f"{name}_nightly"]
        assert ingest["tasks"]["ingest"]["announces"] == [f"{name}_landing"]
        assert (nightly["timetable"], nightly["asset"]) == ("PartitionedAssetTimetable", f"{name}_landing")
        assert nightly["tasks"]["incidents"]["announces"] == [f"{name}_incidents"]


def test_a_deadline_has_a_dag_of_its_own_by_its_clock(changed: dict[str, Any]) -> None:
    """It runs at the deadline in the dataset's zone, whether or not a night was started; without one there is none."""
    watch = changed["dags"]["fans_watch"]
    assert (watch["cron"], watch["zone"], watch["timetable"]) == ("0 6 * * *", "Europe/Berlin", "CronTriggerTimetable")
    assert watch["start"] is None  # so that a new YAML is not held to a deadline that has passed
    assert "pumps_watch" not in changed["dags"]


def test_a_failed_run_is_told_where_somebody_is_named(changed: dict[str, Any]) -> None:
    """Every DAG of the dataset calls back when a run has failed; every task leaves its error for it."""
    for dag_id, dag in changed["dags"].items():
        assert dag["tells"] is (dag_id.startswith("fans_") or dag_id == "backfill"), dag_id
        assert all(task["tells"] for task in dag["tasks"].values()), dag_id


def test_adapt_in_the_yaml_follows_the_night(changed: dict[str, Any]) -> None:
    """The thresholds are adapted once all is told, and by nobody who did not ask for it."""
    fans = changed["dags"]["fans_nightly"]
    assert fans["tasks"]["adapt"]["after"] == ["log", "notify"]
    assert "adapt" in fans["tasks"]["drift"]["after"]
    assert "adapt" not in changed["dags"]["pumps_nightly"]["tasks"]


def test_a_broken_yaml_is_shown_and_takes_nothing_down(changed: dict[str, Any], shipped: dict[str, Any]) -> None:
    """A YAML that cannot be read is an import error that names file, key and fix; all other DAGs are there."""
    assert set(changed["errors"]) == {"datasets.py"}
    message = changed["errors"]["datasets.py"]
    assert "broken.yaml: entty: there is no such key; did you mean entity?" in message
    assert set(shipped["dags"]) < set(changed["dags"])
    assert not any(dag_id.startswith("broken_") for dag_id in changed["dags"])


def test_a_dag_that_another_names_is_there(shipped: dict[str, Any]) -> None:
    """In the texts that Airflow shows."""
    for dag_id, dag in shipped["dags"].items():
        kinds = re.findall(r"`((?:cards|pumps)_[a-z]+|backfill)`", dag["doc"])
        assert set(kinds) <= {*shipped["dags"], "cards_landing", "pumps_landing"}, dag_id


def test_dag_files_hold_wiring_only() -> None:
    """No function in a DAG file is longer than 15 lines without its docstring."""
    for file in (HERE.parents[1] / "dags").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1
                assert length <= 15, f"{file.name}: {node.name} has {length} lines"
