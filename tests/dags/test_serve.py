"""A real local Airflow and MLflow, as `nightsift serve` runs them: started once, looked at, stopped."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.airflow_rest import AirflowRest
from pipeline.errors import NightsiftError
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
    wait_for_dags(airflow, {"pumps_ingest", "pumps_nightly", "pumps_train", "pumps_backfill", "cards_nightly"})
    pumps = (served.datasets / "pumps.yaml").read_text()
    (served.datasets / "fans.yaml").write_text(pumps.replace("name: pumps", "name: fans", 1))
    (served.datasets / "broken.yaml").write_text("kind: sensor\n")
    wait_for_dags(airflow, {"fans_nightly", "fans_train", "fans_backfill"})
    end = time.monotonic() + 90
    while not airflow.import_errors():
        assert time.monotonic() < end, "the broken YAML is not shown"
        time.sleep(1)
    assert "broken.yaml: source: this key is missing" in airflow.import_errors()[0]


def test_the_form_is_checked_before_anything_runs(airflow: AirflowRest) -> None:
    """Airflow refuses a run whose params are not what the form asks for, in words."""
    with pytest.raises(NightsiftError, match="is not a 'date'"):
        airflow.trigger("pumps_backfill", {"first": "soon", "last": "2026-03-02"})


def test_what_a_person_must_mend_fails_at_once_with_its_message(airflow: AirflowRest) -> None:
    """A wrong argument fails the run at the first try, and `explain` gives the sentence that says what is wrong."""
    wait_for_dags(airflow, {"pumps_backfill"})
    run = airflow.trigger("pumps_backfill", {"first": "2026-03-04", "last": "2026-03-02"})
    (status,) = airflow.wait_all([run], timeout=120)
    assert status.state == "failed"
    tries = {task.task_id: task.tries for task in status.tasks if task.state == "failed"}
    assert tries == {"plan": 1, "check": 1}
    assert "from 2026-03-04 to 2026-03-02 are 0 days; a backfill takes 1 to 1000" in airflow.explain(status)


def test_serve_leaves_no_process_behind(served: Served) -> None:
    """SIGTERM ends serve, and with it every process that it or its children started."""
    family = served.family()
    assert len(family) >= 8
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    assert psutil.wait_procs(family, timeout=10)[1] == []
