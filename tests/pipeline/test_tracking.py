"""What MLflow is told: a night has one page, however often and by however many processes it is run."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.drift import NIGHT_STEPS, SHIFT, scores_shift
from pipeline.incidents import Found
from pipeline.night import log_night
from pipeline.report import write_report
from pipeline.state import State, write_state
from pipeline.tables import incidents_schema, scores_schema
from pipeline.workspace import Workspace
from tests.pipeline.test_report import DAY, FLOW, NASTY, VIBRATION, at, cards, fill, incident, readings
from tests.pipeline.test_report import workspace as workspace_of

KEY = "night 2026-01-05"
PUMPS = """
kind: sensor
source: {path: "{home}/source/*.parquet"}
description: "Water pumps"
entity: pump
event_time: time
cadence: 5m
features:
  - {name: flow, unit: m3/h}
  - {name: vibration, unit: mm/s}
"""


def pages(ws: Workspace) -> list[str]:
    """The ids of the nights' runs that are not deleted."""
    api = tracking.client(ws)
    return [run.info.run_id for run in api.search_runs([api.get_experiment_by_name("demo/nights").experiment_id])]


def test_a_night_that_is_logged_again_has_one_page(make_workspace: Callable[..., Workspace]) -> None:
    """With the numbers of the last time; without a key each is a run of its own."""
    ws = make_workspace()
    for number in range(2):
        with tracking.run(ws, "nights", "demo", KEY) as active:
            mlflow.log_metric("steps", number)
    assert pages(ws) == [active.info.run_id]
    found = tracking.client(ws).get_run(active.info.run_id)
    assert (found.data.metrics["steps"], found.info.run_name, found.info.status) == (1, "demo", "FINISHED")
    with tracking.run(ws, "nights", "demo"):
        pass
    assert len(pages(ws)) == 2


def test_two_processes_that_begin_a_page_at_once_end_with_one(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both take the one that was begun first; the other is deleted."""
    ws, create, others = make_workspace(), MlflowClient.create_run, []

    def create_after_another(self: MlflowClient, experiment: str, **facts: Any) -> Any:
        others.append(create(self, experiment, start_time=1, **facts).info.run_id)
        return create(self, experiment, **facts)

    monkeypatch.setattr(MlflowClient, "create_run", create_after_another)
    with tracking.run(ws, "nights", "demo", KEY) as active:
        pass
    assert others == [active.info.run_id] == pages(ws)


@pytest.fixture
def night(make_workspace: Callable[..., Workspace]) -> Workspace:
    """A night of two pumps with a report, of tables that no network has made; one pump has an evil name."""
    ws = make_workspace(PUMPS, "pumps")
    found = [incident(name, at("14:00"), at("15:00"), VIBRATION, FLOW) for name in (NASTY, "pump-2")]
    fill(ws, readings(ws.dataset, [NASTY, "pump-2"]), found)
    count_incidents(ws, 2)
    write_report(ws, DAY)
    return ws


def count_incidents(ws: Workspace, count: int) -> None:
    """Record that the night has so many."""
    write_state(ws, State(DAY, "incidents", "i", "c", "7-abc", asdict(Found(str(DAY), count, 0))))


def page(ws: Workspace) -> Any:
    """The only run of the nights."""
    api = tracking.client(ws)
    (found,) = api.search_runs([api.get_experiment_by_name("pumps/nights").experiment_id])
    return found


def artifacts(ws: Workspace, run: Any, folder: str | None = None) -> list[str]:
    return [file.path for file in tracking.client(ws).list_artifacts(run.info.run_id, folder)]


def incidents_of(ws: Workspace, run: Any, into: Path) -> dict[str, Any]:
    place = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="incidents.json", dst_path=str(into)
    )
    told: dict[str, Any] = json.loads(Path(place).read_text())
    return told


def test_experiments_are_of_the_training_kind_and_say_what_they_hold(make_workspace: Callable[..., Workspace]) -> None:
    """Also one that an earlier version has made; what a person has written there stays."""
    ws = make_workspace()
    api = tracking.client(ws)
    made = api.create_experiment("demo/train", tags={tracking.NOTE: "ours"})
    for kind in ("train", "nights"):
        with tracking.run(ws, kind, "any"):
            pass
    tags = {kind: api.get_experiment_by_name(f"demo/{kind}").tags for kind in ("train", "nights")}
    assert api.get_experiment_by_name("demo/train").experiment_id == made
    assert {each["mlflow.experimentKind"] for each in tags.values()} == {"custom_model_development"}
    assert tags["train"][tracking.NOTE] == "ours"
    assert "one night of **demo**" in tags["nights"][tracking.NOTE]


def test_a_night_page_tells_the_night(night: Workspace, tmp_path: Path) -> None:
    """Its name, numbers, parameters and tags, the night in words with ways to what it holds, and the rows it read."""
    log_night(night, DAY, {"score": 1.5})
    run = page(night)
    assert run.info.run_name == "2026-03-25 Wed, pumps night"
    told = {
        name: run.data.metrics[name] for name in ("alarms/incidents", "data/entities", "drift/flow", "seconds/score")
    }
    assert told == {"alarms/incidents": 2, "data/entities": 2, "drift/flow": 0, "seconds/score": 1.5}
    assert run.data.params == {"day": "2026-03-25", "weekday": "Wednesday"}
    tags = run.data.tags
    assert (tags["detector"], tags["day"]) == ("7-abc", "2026-03-25")
    assert tags["data_window"] == "2026-03-25T00:00:00+00:00 to 2026-03-26T00:00:00+00:00"
    assert tags["summary"].startswith("2 incidents on 2026-03-25 in pumps: the most severe, ")
    ways, words, promise = tags[tracking.NOTE].split("\n\n")
    assert f"/runs/{run.info.run_id}/artifacts/report/2026-03-25.html" in ways
    assert words.startswith("2 incidents on 2026-03-25 in pumps: the most severe, &lt;script&gt;alert")
    assert "promised" in promise
    assert artifacts(night, run) == ["figures", "incidents.json", "report"]
    assert artifacts(night, run, "figures") == ["figures/drift.png", "figures/scores.png"]
    assert incidents_of(night, run, tmp_path)["data"][0][0] == NASTY
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "incidents.json", "type": "table"}]


def test_a_registered_model_is_described_by_the_yaml_of_its_last_training(
    make_workspace: Callable[..., Workspace],
) -> None:
    """Its columns are those of now; what a person has written there stays."""
    ws = make_workspace()
    api = tracking.client(ws)
    api.create_registered_model("demo")
    tracking.describe_model(ws)
    assert "| `flow` |" in api.get_registered_model("demo").description
    renamed = ws.dataset.features[0].model_copy(update={"name": "inflow"})
    later = replace(ws, dataset=ws.dataset.model_copy(update={"features": [renamed]}))
    tracking.describe_model(later)
    assert "| `inflow` |" in api.get_registered_model("demo").description
    api.update_registered_model("demo", "ours")
    tracking.describe_model(ws)
    assert api.get_registered_model("demo").description == "ours"


def test_a_night_of_transactions_tells_how_its_scores_lie(tmp_path: Path) -> None:
    """Its features move too fast to be told, its scores are."""
    ws = workspace_of(tmp_path, cards())
    frame = pl.DataFrame(
        {"entity": "c1", "event_time": at("12:00"), "amount": 1.0, "shop": "s", "score": 1.0, "threshold": 5.0,
         "p_value": np.linspace(0, 1, NIGHT_STEPS) ** 3, "is_anomaly": False, "detector_version": "7-abc", "day": DAY}
    )  # fmt: skip
    empty = {name: kind for name, kind in scores_schema(ws.dataset).items() if name not in frame.columns}
    fill(ws, frame.with_columns(pl.lit(None, kind).alias(name) for name, kind in empty.items()), [])
    count_incidents(ws, 0)
    write_report(ws, DAY)
    log_night(ws, DAY)
    api = tracking.client(ws)
    (run,) = api.search_runs([api.get_experiment_by_name("cards/nights").experiment_id])
    told = {name: value for name, value in run.data.metrics.items() if name.startswith("drift/")}
    assert told == {"drift/drifting": 0, "drift/scores": pytest.approx(scores_shift(ws, DAY))}
    assert told["drift/scores"] > SHIFT


def test_a_night_names_the_rows_that_it_read(night: Workspace) -> None:
    """With table, Delta version, digest and how many; MLflow knows where they stand."""
    log_night(night, DAY)
    inputs = {each.tags[0].value: each for each in page(night).inputs.dataset_inputs}
    assert {context: each.dataset.name for context, each in inputs.items()} == {
        "scoring": "pumps.clean", "scored": "pumps.scores"
    }  # fmt: skip
    source = mlflow.data.get_source(inputs["scored"])
    assert (source.path, source.delta_table_version) == (night.lake.uri("scores"), night.lake.version("scores"))
    assert json.loads(inputs["scored"].dataset.profile) == {"num_rows": 576}
    assert len({each.dataset.digest for each in inputs.values()}) == 2


def test_a_night_that_is_logged_twice_has_the_same_page(night: Workspace, tmp_path: Path) -> None:
    """Nothing is appended: one run with the same numbers, words, rows and table; incidents that are gone are gone."""
    log_night(night, DAY)
    first, table = page(night), incidents_of(night, page(night), tmp_path / "1")
    log_night(night, DAY)
    second = page(night)
    assert second.info.run_id == first.info.run_id
    assert second.data.to_dictionary() == first.data.to_dictionary()
    assert second.inputs.to_dictionary() == first.inputs.to_dictionary()
    assert incidents_of(night, second, tmp_path / "2") == table
    night.lake.replace("incidents", DAY, night.lake.scan("incidents", incidents_schema(), DAY, DAY).collect().clear())
    count_incidents(night, 0)
    log_night(night, DAY)
    assert incidents_of(night, page(night), tmp_path / "3")["data"] == []
    assert page(night).data.metrics["alarms/incidents"] == 0


def test_what_a_person_has_written_of_a_night_stays(night: Workspace) -> None:
    """Until it is taken away again; what we wrote is renewed."""
    log_night(night, DAY)
    api, ours = tracking.client(night), page(night).data.tags[tracking.NOTE]
    run = page(night).info.run_id
    api.set_tag(run, tracking.NOTE, "the seal was leaking")
    log_night(night, DAY)
    assert page(night).data.tags[tracking.NOTE] == "the seal was leaking"
    api.set_tag(run, tracking.NOTE, "")
    log_night(night, DAY)
    assert page(night).data.tags[tracking.NOTE] == ours


def test_a_page_leads_to_the_dag_run_that_made_it(night: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the night is run again without Airflow."""
    with monkeypatch.context() as airflow:
        airflow.setenv("AIRFLOW_CTX_DAG_ID", "pumps_nightly")
        airflow.setenv("AIRFLOW_CTX_DAG_RUN_ID", "manual__1")
        airflow.setenv("AIRFLOW__API__BASE_URL", "http://airflow:8080")
        airflow.setattr("pipeline.metrics.in_airflow", lambda: False)
        log_night(night, DAY)
    tags = page(night).data.tags
    assert (tags["airflow_dag"], tags["airflow_run"]) == ("pumps_nightly", "manual__1")
    assert tags["airflow_link"] == "http://airflow:8080/dags/pumps_nightly/runs/manual__1"
    assert f"[DAG run]({tags['airflow_link']})" in tags[tracking.NOTE]
    log_night(night, DAY)
    tags = page(night).data.tags
    assert not {*tracking.AIRFLOW_TAGS} & {*tags}
    assert "DAG run" not in tags[tracking.NOTE]


def test_two_processes_that_log_a_night_at_once_leave_one_page(night: Workspace, tmp_path: Path) -> None:
    """Both end well, and the page is what one alone makes."""
    code = (
        "import sys\nfrom datetime import date\nfrom pipeline.night import log_night\n"
        "from pipeline.workspace import open_workspace\n"
        "log_night(open_workspace('pumps', *sys.argv[1:3]), date.fromisoformat(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", code, str(night.home.root), str(night.dataset.file.parent), str(DAY)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    both = page(night)
    log_night(night, DAY)
    assert both.info.status == "FINISHED"
    assert both.data.to_dictionary() == page(night).data.to_dictionary()
    assert both.inputs.to_dictionary() == page(night).inputs.to_dictionary()
    assert len(incidents_of(night, both, tmp_path)["data"]) == 2


def test_a_training_looks_at_its_machine_and_a_night_does_not(
    make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers arrive while it runs, and nobody goes on looking afterwards, also where it failed."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    ws = make_workspace()
    seen = {}
    for kind in ("train", "nights"):
        with contextlib.suppress(ZeroDivisionError), tracking.run(ws, kind, "any") as active:
            time.sleep(0.8)
            _ = 1 / 0
        found = tracking.client(ws).get_run(active.info.run_id)
        assert found.info.status == "FAILED"
        seen[kind] = [name for name in found.data.metrics if name.startswith("system/")]
    assert "system/cpu_utilization_percentage" in seen["train"]
    assert seen["nights"] == []
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
