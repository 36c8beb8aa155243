"""MLflow's server is gone, busy, slow, or breaks off: no table is lost, and a night that it missed is made up later."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient

from pipeline.cli import main
from pipeline.errors import NightsiftError
from pipeline.night import is_told, renew, report_night, run_night, score_day
from pipeline.report import report_file
from pipeline.state import day_states
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import deliver, sensor_day, tables
from tests.faults.conftest import DAY, HISTORY, trained
from tests.faults.services import Count, Fault, Proxy, proxied
from tests.figures import long, recorded
from tests.servers import mlflow_server

NEXT = DAY + timedelta(days=1)
FOREVER = 1e9
EVERY = "GET HEAD PUT POST DELETE PATCH"
count = Count("MLflow")
_figures = recorded("services-mlflow", count.what, count.told)


@dataclass
class Base:
    """A workspace whose MLflow is a server behind a proxy, and its tables: before a report, and after it."""

    ws: Workspace
    mlflow: Proxy
    before: Path
    wanted: dict[str, pl.DataFrame]

    def runs(self) -> list[Any]:
        """MLflow's runs of the night."""
        api = MlflowClient(self.mlflow.url)
        experiment = api.get_experiment_by_name("demo/nights")
        return (
            [] if experiment is None else list(api.search_runs([experiment.experiment_id], f"tags.key = 'night {DAY}'"))
        )

    def loses(self, ws: Workspace) -> bool:
        """Whether tables, report or MLflow's page of the night differ from those of an undisturbed one."""
        found = tables(ws)
        assert found.keys() == self.wanted.keys()
        same = all(found[name].equals(frame) for name, frame in self.wanted.items())
        (run,) = self.runs()
        files = {file.path for file in MlflowClient(self.mlflow.url).list_artifacts(run.info.run_id)}
        whole = run.info.status == "FINISHED" and "data/rows_in" in run.data.metrics and "summary" in run.data.tags
        logged = whole and {"report", "figures", "incidents.json"} <= files
        return not (same and logged and is_told(day_states(ws, DAY)) and report_file(ws, DAY).exists())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    root = tmp_path_factory.mktemp("base")
    ws = trained(root)
    with (
        mlflow_server(f"sqlite:///{ws.home.store_file}", root / "artifacts", root / "mlflow.log") as port,
        proxied(port) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        deliver(ws, sensor_day(HISTORY, fault=("m1", 60, 80)), "night")
        ready(ws)
        shutil.copytree(ws.lake.root, root / "before")
        report_night(ws, DAY)
        yield Base(ws, proxy, root / "before", tables(ws))


def ready(ws: Workspace) -> None:
    """Do all of the night but its report."""
    from pipeline.ingest import ingest

    ingest(ws)
    score_day(ws, DAY)


@pytest.fixture
def ws(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Tables of the test's own, of a night that is scored and not reported; MLflow knows nothing of it."""
    shutil.copytree(base.before, tmp_path / "lake")
    monkeypatch.setenv("NIGHTSIFT_LAKE", str(tmp_path / "lake"))
    for run in base.runs():
        MlflowClient(base.mlflow.url).delete_run(run.info.run_id)
    return open_workspace("demo", base.ws.home.root, base.ws.dataset.file.parent)


def command(ws: Workspace, day: date, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and last line on standard error of `nightsift backfill` of one day."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["backfill", "demo", "--from", str(day), "--to", str(day + timedelta(days=1)),
              "--home", str(ws.home.root), "--datasets", str(ws.dataset.file.parent)])  # fmt: skip
    return int(ended.value.code or 0), (capfd.readouterr().err.strip().splitlines() or [""])[-1]


def test_a_night_that_finds_no_mlflow_says_so_and_keeps_what_there_is(
    base: Base, ws: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the start, and while the champion is asked for: exit code 1 and a sentence; earlier nights stay."""
    before = tables(ws, "clean", "scores", "incidents")
    asked = Fault("busy", "registered-models/alias", EVERY, FOREVER)
    with base.mlflow.refusing():
        ended = [command(ws, NEXT, capfd)]
    with base.mlflow.spoiled(asked):
        ended.append(command(ws, NEXT, capfd))
    for code, said in ended:
        assert code == 1
        assert said.startswith(f"error: MLflow at {base.mlflow.url} did not answer: ")
        assert said.endswith("see that it runs: nightsift doctor")
    after = tables(ws, "clean", "scores", "incidents")
    lost = any(not after[name].equals(frame) for name, frame in before.items())
    count.add(asked, struck=1, lost=lost)
    assert not lost


def test_a_night_that_cannot_be_logged_is_done_and_logged_by_the_next(base: Base, ws: Workspace) -> None:
    """Tables and report are there; the next run tells MLflow."""
    with base.mlflow.refusing(), pytest.raises(NightsiftError, match=r"MLflow at http://\S+ did not answer: .*doctor"):
        report_night(ws, DAY)
    assert report_file(ws, DAY).exists()
    assert not is_told(day_states(ws, DAY))
    assert renew(ws) == [DAY]
    lost = base.loses(ws)
    count.add(struck=1, lost=lost)
    assert not lost
    assert renew(ws) == []


FALTERS = {
    "many requests are too much": [Fault("busy", "", EVERY, FOREVER, share=0.2)],
    "what is written is done, and nobody hears of it": [Fault("lost", "", "POST PUT", FOREVER, share=0.3)],
    "many connections are reset": [Fault("reset", "", EVERY, FOREVER, share=0.2)],
}


@pytest.mark.parametrize("name", FALTERS)
def test_a_night_is_logged_once_by_a_server_that_falters(
    base: Base, ws: Workspace, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow has one page of the night, and all of it, though requests were sent twice."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with base.mlflow.spoiled(*FALTERS[name]):
        report_night(ws, DAY)
    lost = base.loses(ws)
    count.add(*FALTERS[name], lost=lost)
    assert not lost
    assert all(fault.struck > 1 for fault in FALTERS[name])


@pytest.mark.parametrize("number", range(30 if long() else 4))
def test_a_log_that_breaks_off_anywhere_is_made_up(
    base: Base, ws: Workspace, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes, is busy or hangs from some request or file on; the next run makes one whole page."""
    kind = ("down", "busy", "slow", "cut")[number % 4]
    fault = Fault(kind, "mlflow-artifacts" if number < 4 else "", EVERY, FOREVER, after=number // 4, seconds=4)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    said = ""
    with base.mlflow.spoiled(fault):
        try:
            report_night(ws, DAY)
        except NightsiftError as error:
            said = str(error)
    assert re.fullmatch(rf"(MLflow at {base.mlflow.url} did not answer: .*)?", said)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    assert report_file(ws, DAY).exists()
    renew(ws)
    lost = base.loses(ws)
    count.add(fault, lost=lost)
    assert not lost
    assert fault.struck


def test_how_long_a_silent_server_is_waited_for_is_bounded(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute and a half for a request, where MLflow's own settings would be many."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    from pipeline.tracking import client

    own = MLFLOW_HTTP_REQUEST_MAX_RETRIES.default * MLFLOW_HTTP_REQUEST_TIMEOUT.default
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "")
        del os.environ[f"MLFLOW_HTTP_REQUEST_{name}"]
    client(ws)
    assert (1 + MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) * MLFLOW_HTTP_REQUEST_TIMEOUT.get() <= 90 < own


def test_a_whole_night_after_the_outage(base: Base, ws: Workspace) -> None:
    """The night as the command line runs it, on the tables of the one that was broken off."""
    run_night(ws, DAY)
    lost = base.loses(ws)
    count.add(lost=lost)
    assert not lost
