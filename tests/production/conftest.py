"""A distributed Airflow with a trained champion, and what one process makes of the same days."""

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.airflow_rest import Run, RunStatus
from pipeline.config import Home
from pipeline.simulate import simulate
from pipeline.workspace import Workspace, open_workspace
from tests.production.cluster import Cluster, cluster

SHIPPED = Path(__file__).parents[2] / "datasets"
SMALL = """
window: {steps: 4, rows: 4}
model: {filters: [8], latent: 4, epochs: 2, windows: 256}
shards: 2
notify: {urls_env: [NIGHT_TARGET], most: 1000}
"""
DAYS = 16
LEARNED = {"from": "2026-03-02", "to": "2026-03-05"}
LAST = "2026-03-17"


class Messages(list[str]):
    """The titles of the notifications that came, one for each message."""

    def of(self, day: str) -> int:
        """How many came about the night of `day`."""
        return sum(f"on {day}" in title for title in self)


@pytest.fixture(scope="module")
def messages() -> Iterator[tuple[Messages, str]]:
    """What an Apprise target is sent, and the target's address."""
    received = Messages()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["title"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield received, f"json://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two pumps over some days in two homes; the lake of `var` has a small file system of its own."""
    root = tmp_path_factory.mktemp("production")
    (root / "datasets").mkdir()
    shutil.copytree(SHIPPED.parent / "expectations", root / "expectations")
    pumps = (SHIPPED / "pumps.yaml").read_text().replace("window: {steps: 8, rows: 8}", SMALL, 1)
    (root / "datasets" / "pumps.yaml").write_text(pumps)
    for home in ("var", "alone"):
        source = root / home / "source" / "pumps"
        simulate("pumps", days=DAYS, entities=2, seed=1, folder=source, anomalies=0.5, anomalies_from=3)
    with file_system(root / "var" / "lake"):
        yield root


@contextlib.contextmanager
def file_system(folder: Path) -> Iterator[None]:
    """A small file system at `folder`, where we may make one: the test that fills it fails where there is none."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "nightsift", folder], check=False)
    try:
        yield
    finally:
        if folder.is_mount():
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def airflow(root: Path, messages: tuple[Messages, str]) -> Iterator[Cluster]:
    """The running Airflow. A single process works through the same days meanwhile."""
    with cluster(Home.at(root / "var"), root / "datasets", root, NIGHT_TARGET=messages[1]) as started:
        started.start(
            "alone", [str(root / "alone"), str(root / "datasets"), *LEARNED.values(), LAST],
            module="tests.production.single_process",
        )  # fmt: skip
        started.wait_for("reading the DAGs", lambda: len(started.rest.dag_ids()) >= 5)
        yield started


@pytest.fixture(scope="module")
def alone(root: Path, airflow: Cluster) -> Workspace:
    """What one process makes of all the days, trained on the same days."""
    airflow.wait_for("the single process", (root / "alone" / "done").exists)
    return open_workspace("pumps", root / "alone", root / "datasets")


@pytest.fixture(scope="module")
def ws(root: Path) -> Workspace:
    """The tables that the runs in Airflow write."""
    return open_workspace("pumps", root / "var", root / "datasets")


@pytest.fixture(scope="module")
def training(airflow: Cluster) -> tuple[Run, RunStatus]:
    """The training whose worker was killed in the middle of it, and how it ended; no other one follows."""
    run = airflow.rest.trigger("pumps_train", LEARNED)
    airflow.wait_for("fitting", lambda: "fitting on" in airflow.log(run, "train"))
    airflow.kill_worker("gpu")
    airflow.start_worker("gpu-2", "gpu")
    status = airflow.finish(run)[0]
    # What the nights tell of drift may call for another one: it would wait, so that all nights have one champion.
    airflow.rest.call("PATCH", "/api/v2/dags/pumps_train?update_mask=is_paused", {"is_paused": True})
    return run, status
