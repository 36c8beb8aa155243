"""A real local Airflow and MLflow, as `nightsift serve` runs them: started once, looked at, stopped."""

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from pipeline import tracking
from pipeline.airflow_rest import AirflowRest, Run
from pipeline.config import Home
from pipeline.errors import NightsiftError
from pipeline.ingest import ingest
from pipeline.local import prepare as prepare_local
from pipeline.simulate import simulate
from pipeline.workspace import open_workspace
from tests.dags.conftest import SHIPPED

SERVE = "import sys; from pathlib import Path; from pipeline.config import Home; from pipeline.local import serve; "
SERVE += "serve(Home.at(sys.argv[1]), Path(sys.argv[2]), say=lambda line: print(line, flush=True))"


@dataclass
class Served:
    process: subprocess.Popen[str]
    lines: list[str]
    home: Path
    datasets: Path

    @property
    def urls(self) -> list[str]:
        return re.findall(r"http://\S+", "\n".join(self.lines))

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`serve` with a home and a datasets folder of its own, once its addresses are printed."""
    home = tmp_path_factory.mktemp("home")
    datasets = home / "datasets"
    shutil.copytree(SHIPPED, datasets)
    shutil.copytree(SHIPPED.parent / "expectations", home / "expectations")
    command = [sys.executable, "-c", SERVE, str(home / "var"), str(datasets)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if "Ctrl-C" in line:
                break
        try:
            yield Served(process, lines, home / "var", datasets)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def airflow(served: Served) -> AirflowRest:
    passwords = json.loads((served.home / "airflow" / "passwords.json").read_text())
    return AirflowRest(served.urls[0], "admin", passwords["admin"])


def wait_for_dags(airflow: AirflowRest, wanted: set[str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not wanted <= airflow.dag_ids():
        assert time.monotonic() < end, f"{wanted - airflow.dag_ids()} are not there; {airflow.import_errors()}"
        time.sleep(1)


def test_serve_says_where_its_pages_and_its_password_are(served: Served) -> None:
    """Both addresses answer, and the password is in a file that only its owner can read."""
    assert len(served.urls) == 2, served.lines
    for url in served.urls:
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.status == 200
    file = served.home / "airflow" / "passwords.json"
    assert any(str(file) in line for line in served.lines)
    assert file.stat().st_mode & 0o077 == 0


def test_serve_listens_on_this_machine_only(served: Served) -> None:
    """No process of Airflow or MLflow accepts a connection from elsewhere."""
    addresses = {
        connection.laddr.ip
        for process in served.family()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_a_second_serve_from_the_same_home_is_refused(served: Served) -> None:
    """Two schedulers never work on one database."""
    second = subprocess.run(
        [sys.executable, "-c", SERVE, served.home, served.datasets], capture_output=True, text=True, check=False
    )
    assert second.returncode != 0
    assert "already runs from" in second.stderr


def test_a_yaml_dropped_in_appears_in_the_running_airflow(served: Served, airflow: AirflowRest) -> None:
    """The DAGs of the datasets are there, those of a new YAML soon after, and a broken YAML is an import error."""
    wait_for_dags(airflow, {"pumps_ingest", "pumps_nightly", "pumps_train", "backfill", "cards_nightly"})
    pumps = (served.datasets / "pumps.yaml").read_text()
    (served.datasets / "fans.yaml").write_text(pumps.replace("name: pumps", "name: fans", 1))
    (served.datasets / "broken.yaml").write_text("kind: sensor\n")
    wait_for_dags(airflow, {"fans_nightly", "fans_train"})
    end = time.monotonic() + 90
    while not airflow.import_errors():
        assert time.monotonic() < end, "the broken YAML is not shown"
        time.sleep(1)
    assert "broken.yaml: source: this key is missing" in airflow.import_errors()[0]


@pytest.fixture(scope="module")
def broken_week(served: Served, airflow: AirflowRest) -> list[str]:
    """Days of pumps that the gate refuses, so that no night loads a network; a version in the registry; free slots."""
    ws = open_workspace("pumps", served.home, served.datasets)
    source = served.home / "source" / "pumps"
    simulate("pumps", days=5, entities=2, seed=1, folder=source, anomalies=0)
    for file in source.glob("*.parquet"):
        pl.read_parquet(file).with_columns(flow=pl.lit(-999.0)).write_parquet(file)
    api = tracking.client(ws)
    api.create_registered_model("pumps")
    api.create_model_version("pumps", source=served.home.as_uri(), tags={"label": "1-0a1b2c3d"})
    api.set_registered_model_alias("pumps", "champion", "1")
    ingest(ws)
    pool = {"pool": "gpu", "slots": 5, "include_deferred": False}
    airflow.call("PATCH", "/api/v2/pools/gpu?update_mask=slots", pool)
    wait_for_dags(airflow, {"backfill"})
    return sorted(file.stem.removeprefix("pumps-") for file in source.glob("*.parquet"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a word for a day": ({"first": "soon"}, "422 .*days such as 2026-01-31.*soon"),
    "last before first": ({"first": "2026-03-04", "last": "2026-03-02"}, "422 .*are 0 days; a backfill takes 1 to"),
    "too many days": ({"first": "2020-01-01"}, "422 .*a backfill takes 1 to 1000"),
    "a day to come": ({"first": "2999-01-01", "last": "2999-01-02"}, "422 2999-01-02 has not ended"),
    "an unknown dataset": ({"dataset": "wells"}, "422 there is no dataset 'wells'"),
    "an unknown version": ({"detector": "7"}, "422 pumps has no detector '7' in the registry; .*1-0a1b2c3d"),
    "an untrained dataset": ({"dataset": "cards"}, "422 cards has no detector yet; train one"),
    "an alias that is not given": ({"detector": "challenger"}, "422 pumps has no detector 'challenger'"),
    "no such entity": ({"entities": ["pump-0001", "well-*"]}, "422 no entity of pumps .* fits 'well-\\*'"),
    "a misspelt field": ({"entites": ["pump-0001"]}, "422 a backfill has no 'entites'; did you mean entities"),
    "a field's own schema": ({"overwrite": "perhaps"}, "400 .*overwrite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_form_is_refused_before_there_is_a_run(airflow: AirflowRest, broken_week: list[str], name: str) -> None:
    """A backfill that cannot be run ends with the request: its sentence says why, and no run was created."""
    changes, words = REFUSED[name]
    form = {"dataset": "pumps", "first": broken_week[0], "last": broken_week[-1], **changes}
    with pytest.raises(NightsiftError, match=words):
        airflow.trigger("backfill", form)
    assert airflow.call("GET", "/api/v2/dags/backfill/dagRuns")["total_entries"] == 0


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Cookie": "_token=x"}])
def test_the_form_tells_nothing_to_whom_airflow_does_not_know(
    served: Served, broken_week: list[str], headers: dict[str, str]
) -> None:
    """Without a valid token the answer is Airflow's own, whatever the form says."""
    answers = []
    for detector in ("champion", "7"):
        form = {"dataset": "pumps", "first": broken_week[0], "last": broken_week[-1], "detector": detector}
        request = urllib.request.Request(
            f"{served.urls[0]}/api/v2/dags/backfill/dagRuns", json.dumps({"logical_date": None, "conf": form}).encode(),
            {**headers, "Content-Type": "application/json"}, method="POST",
        )  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        answers.append((refused.value.code, refused.value.read()))
    assert answers[0] == answers[1]
    assert answers[0][0] in (401, 403)


def test_a_backfill_runs_no_more_nights_at_once_than_asked_and_names_each_that_failed(
    airflow: AirflowRest, broken_week: list[str]
) -> None:
    """With room for five, two nights run at a time; each refusal of the gate is told by the last task, at one try."""
    form = {"dataset": "pumps", "first": broken_week[0], "last": broken_week[-1], "at_once": 2}
    run = airflow.trigger("backfill", form)
    (status,) = airflow.wait_all([run], timeout=400)
    tasks = airflow.call("GET", f"/api/v2/dags/backfill/dagRuns/{run.run_id}/taskInstances")["task_instances"]
    nights = [task for task in tasks if task["task_id"] == "nights.at_once_2"]
    assert [night["rendered_map_index"] for night in nights] == broken_week, airflow.explain(status)
    assert {night["state"] for night in nights} == {"failed"}
    others = [task for task in tasks if task["task_id"].startswith("nights.") and task not in nights]
    assert {task["state"] for task in others} == {"skipped"}
    moments = sorted([(night["start_date"], 1) for night in nights] + [(night["end_date"], -1) for night in nights])
    assert max(itertools.accumulate(step for _, step in moments)) == 2
    assert status.state == "failed"
    tries = {task.task_id: task.tries for task in status.tasks if task.state == "failed"}
    assert tries == {"nights.at_once_2": 1, "check": 1}
    told = airflow.explain(status)
    assert all(f"{day}: its night failed" in told for day in broken_week)


def test_what_goes_round_the_form_is_refused_by_the_first_task(
    served: Served, airflow: AirflowRest, broken_week: list[str]
) -> None:
    """`airflow dags trigger` asks no API server: the run fails at once, with the same sentence."""
    setup = prepare_local(Home.at(served.home), served.datasets)
    form = {"dataset": "pumps", "first": broken_week[0], "last": broken_week[-1], "detector": "7"}
    command = [sys.executable, "-m", "airflow", "dags", "trigger", "backfill", "-r", "round", "-c", json.dumps(form)]
    subprocess.run(command, env=setup.env, check=True, capture_output=True, timeout=300)
    (status,) = airflow.wait_all([Run("backfill", "round")], timeout=300)
    tries = {task.task_id: task.tries for task in status.tasks if task.state == "failed"}
    assert tries == {"plan": 1, "check": 1}
    assert "pumps has no detector '7' in the registry" in airflow.explain(status)


def test_serve_leaves_no_process_behind(served: Served) -> None:
    """SIGTERM ends serve, and with it every process that it or its children started."""
    family = served.family()
    assert len(family) >= 8
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    assert psutil.wait_procs(family, timeout=10)[1] == []
