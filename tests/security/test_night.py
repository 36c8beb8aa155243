"""A real night with planted secrets, from a database to the messages: who finds one of them anywhere afterwards?

Then the detector that it has registered is tampered with, in the registry and in the local copy.
"""

import io
import json
import os
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import polars as pl
import pytest

from models.detector import Detector
from pipeline import tracking
from pipeline.cli import main
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR
from tests.figures import record
from tests.servers import postgres_server

MARK = "marker-4711"  # the entities' names begin so: what is searched for that is there
SQL = 'source: {sql: "SELECT * FROM readings", connection_env: READINGS}'
YAML = (
    SENSOR.replace("epochs: 4", "epochs: 1").replace('source: {path: "{home}/source/*.parquet"}', SQL)
    + "notify: {urls_env: [ON_CALL]}\n"
)
READINGS = f"""CREATE TABLE readings AS SELECT '{MARK}-' || m AS machine, t AS time,
    sin(extract(epoch FROM t) / 2300 + m) + random() / 5 AS flow, cos(extract(epoch FROM t) / 3100 + m) AS heat
    FROM generate_series('2026-01-05Z'::timestamptz, '2026-01-10 23:50Z', '10 min') AS t, generate_series(0, 2) AS m"""
FAULT = f"""UPDATE readings SET flow = flow + 9
    WHERE machine = '{MARK}-1' AND time BETWEEN '2026-01-10 08:00Z' AND '2026-01-10 11:00Z'"""
TRAIN = ["train", "demo", "--from", "2026-01-05", "--to", "2026-01-10"]
SCORE = ["score", "demo", "--from", "2026-01-10", "--to", "2026-01-11"]
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "AZURE_STORAGE_ACCOUNT_KEY": "planted-azure-key==",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "AIRFLOW__CORE__FERNET_KEY": "planted-fernet-key",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://airflow:planted-airflow@127.0.0.1:9/airflow",
}
PASSWORD, HOOK = "planted-dsn%21", "planted-hook"


class Refusing(BaseHTTPRequestHandler):
    """An object store and a web hook that refuse, and repeat what they were sent."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.refuse
        raise AttributeError(name)

    def refuse(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = f"<Error><Code>AccessDenied</Code><Message>{self.path} {self.headers}</Message></Error>".encode()
        self.rfile.read(length)
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@dataclass
class Night:
    """The workspace after it, what was printed, the secrets that were planted, and the seconds that it took."""

    ws: Workspace
    printed: str
    planted: list[str]
    seconds: float

    def said(self, *words: str) -> str:
        """What the commands printed that begin with these words."""
        parts = re.split(r"(?m)^\$ ", self.printed)
        return "\n".join(part for part in parts if part.startswith(" ".join(words)))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """Trained and scored from a database, with a web hook that refuses; then with all that can fail failing."""
    root = tmp_path_factory.mktemp("secrets")
    (root / "datasets").mkdir()
    (root / "datasets" / "demo.yaml").write_text(YAML)
    stored = SENSOR.replace("{home}/source/*.parquet", "s3://planted/*.parquet")
    (root / "datasets" / "stored.yaml").write_text(stored)
    with (postgres_server() as server, ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing,
          pytest.MonkeyPatch.context() as patch):  # fmt: skip
        threading.Thread(target=refusing.serve_forever, args=(0.02,), daemon=True).start()
        server.run(READINGS, FAULT)
        there = f"127.0.0.1:{refusing.server_port}"
        environment = {
            **SECRETS,
            "READINGS": f"postgresql://{server.user}:{PASSWORD}@127.0.0.1:{server.port}/postgres",
            "ON_CALL": f"json://ops:{HOOK}-password@{there}/{HOOK}-path?token={HOOK}-token",
            "AWS_ACCESS_KEY_ID": "known", "AWS_ENDPOINT_URL": f"http://{there}", "AWS_REGION": "us-east-1",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }  # fmt: skip
        deaf, loud = {"MLFLOW_TRACKING_URI": f"http://ann:{PASSWORD}@127.0.0.1:9"}, {"NIGHTSIFT_LOG": "DEBUG"}
        lost = {"READINGS": f"postgresql://ann:{PASSWORD}@127.0.0.1:9/nothing"}
        broken = {"READINGS": f"postgresql://ann:{PASSWORD}%zz@127.0.0.1:9/nothing"}
        commands: list[tuple[list[str], dict[str, str]]] = [
            (TRAIN, {}), (SCORE, {}), (["report", "demo"], {}), (["notify", "demo"], loud),
            (["ingest", "demo", "--from", "2026-01-11", "--to", "2026-01-12"], lost | loud),
            (["ingest", "demo", "--from", "2026-01-11", "--to", "2026-01-12"], broken | loud),
            (["ingest", "stored"], loud), (["check", "stored"], {}),
            ([*SCORE, "--json"], deaf | loud), (["doctor"], deaf),
        ]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, Path(__file__).parent / "night.py", json.dumps(commands)],
            env={**_bare(), **environment, "NIGHTSIFT_HOME": str(root / "var"),
                 "NIGHTSIFT_DATASETS": str(root / "datasets")},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=900, cwd=root,
        )  # fmt: skip
        seconds = time.monotonic() - began
        refusing.shutdown()
        for name in ("NIGHTSIFT_HOME", "NIGHTSIFT_DATASETS", "NIGHTSIFT_LAKE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("READINGS", environment["READINGS"])
        planted = [*SECRETS.values(), PASSWORD, PASSWORD.replace("%21", "!"), f"{HOOK}-password", f"{HOOK}-path",
                   f"{HOOK}-token", "planted-airflow"]  # fmt: skip
        yield Night(open_workspace("demo", root / "var", root / "datasets"), done.stdout, planted, seconds)


def _bare() -> dict[str, str]:
    """The environment of the tests without what would lead the night elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTSIFT_", "MLFLOW_", "AWS_"))}


def texts(file: Path) -> Iterator[str]:
    """All that a file holds, as text: also what is compressed in it, or stands in rows."""
    if file.suffix == ".parquet":
        yield str(pl.read_parquet(file, glob=False).to_dicts())
    elif file.suffix == ".db":
        with closing(sqlite3.connect(file)) as database:
            yield from database.iterdump()
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield from (archive.read(name).decode("latin-1") for name in archive.namelist())
    yield file.read_bytes().decode("latin-1")


def holding(root: Path, *wanted: str) -> dict[str, list[str]]:
    """By wanted text the files below `root` that hold it, or a name of which does."""
    found: dict[str, list[str]] = {each: [] for each in wanted}
    for file in (path for path in sorted(root.rglob("*")) if path.is_file()):
        text = "\n".join([str(file), *texts(file)])
        for each in wanted:
            if each in text:
                found[each].append(str(file.relative_to(root)))
    return found


def test_the_night_did_what_it_should(night: Night) -> None:
    """The database was read, the fault found, and each command that was to fail has failed with its sentence."""
    assert re.search(r"432 steps of 3 entities scored by detector 1-\w+, \d+ anomalous", night.said("score")), night
    assert "1 of 1 notifications failed: ON_CALL: " in night.said("notify")
    assert night.said("ingest demo").count("cannot connect to the database in READINGS") == 2
    assert "cannot read s3://planted" in night.said("ingest stored")
    assert "MLflow at http://***@127.0.0.1:9 did not answer" in night.said("score")


def test_no_secret_is_printed(night: Night) -> None:
    """Neither in sentences nor in the log, at its most talkative, nor by the drivers' own errors."""
    assert [secret for secret in night.planted if secret in night.printed] == []


def test_no_secret_is_written_anywhere(night: Night) -> None:
    """Not to the lake, MLflow and its artifacts, the report or the validation pages; a name from the data is found."""
    began, files = time.monotonic(), [path for path in night.ws.home.root.rglob("*") if path.is_file()]
    found = holding(night.ws.home.root, MARK, *night.planted)
    places = {path.split("/")[0] for path in found.pop(MARK)}
    assert {"lake", "mlartifacts", "reports", "detectors"} <= places
    assert found == {secret: [] for secret in night.planted}
    record("security-secrets", "Secrets planted in a night that succeeds and in all that can fail of it, and found.",
           {"secrets planted": len(night.planted), "files searched": len(files), "secrets found": 0},
           night.seconds + time.monotonic() - began)  # fmt: skip


# --- the detector


@pytest.fixture
def house(night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the night's state, with a champion, and no scores of the day that is asked for."""
    shutil.copytree(night.ws.home.root.parent / "datasets", tmp_path / "datasets")
    shutil.copytree(night.ws.home.root, tmp_path / "var")
    for file in (tmp_path / "var").glob("mlflow.db"):
        with closing(sqlite3.connect(file)) as database, database:
            for table, column in (("model_versions", "source"), ("model_versions", "storage_location"),
                                  ("logged_models", "artifact_location"), ("runs", "artifact_uri"),
                                  ("experiments", "artifact_location")):  # fmt: skip
                change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                database.execute(change, (str(night.ws.home.root), str(tmp_path / "var")))
    monkeypatch.setenv("NIGHTSIFT_HOME", str(tmp_path / "var"))
    monkeypatch.setenv("NIGHTSIFT_DATASETS", str(tmp_path / "datasets"))
    ws = open_workspace("demo", tmp_path / "var", tmp_path / "datasets")
    shutil.rmtree(ws.lake.uri("scores"))
    return ws


def registered_folder(ws: Workspace) -> Path:
    """Where the registry keeps the champion's files."""
    (file,) = ws.home.artifacts.rglob("detector.json")
    return file.parent


def local_folder(ws: Workspace) -> Path:
    return tracking.champion(ws).folder


def flip_a_bit(folder: Path) -> None:
    (weights,) = folder.rglob("*.h5")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)


def replace_the_arrays(folder: Path) -> None:
    np.savez(folder / "arrays.npz", quantiles=np.zeros(3))


def add_a_file(folder: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps("more"))


def remove_a_file(folder: Path) -> None:
    (folder / "arrays.npz").unlink()


def lead_elsewhere(folder: Path) -> None:
    (folder / "detector.json").rename(folder.parent / "elsewhere.json")
    (folder / "detector.json").symlink_to(folder.parent / "elsewhere.json")


CHANGES = [flip_a_bit, replace_the_arrays, add_a_file, remove_a_file]


@pytest.mark.parametrize(
    ("place", "tamper"),
    [*((place, change) for place in (registered_folder, local_folder) for change in CHANGES),
     (local_folder, lead_elsewhere)],  # what a link leads to in the registry, MLflow copies
)  # fmt: skip
def test_a_detector_that_was_tampered_with_scores_nothing(
    house: Workspace, tamper: Callable[[Path], None], place: Callable[[Workspace], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Neither from the registry nor from the copy that a night before has fetched: a sentence, and exit code 1."""
    tamper(place(house))
    if place is registered_folder:
        shutil.rmtree(house.home.root / "detectors")
    with pytest.raises(SystemExit) as ended:
        main(SCORE)
    told = capsys.readouterr().err
    assert ended.value.code == 1, told
    assert re.search(r"error: detector 1-\w+ of demo is not what was registered: .* nothing was scored with it", told)
    assert not house.lake.exists("scores")


def test_a_detector_without_a_digest_is_not_used(house: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Who can take the tag away has not thereby switched the check off."""
    tracking.client(house).delete_model_version_tag("demo", "1", tracking.FILES)
    with pytest.raises(SystemExit) as ended:
        main(SCORE)
    assert ended.value.code == 1
    assert "was registered without a digest of its files" in capsys.readouterr().err
    assert not house.lake.exists("scores")


class Bomb:
    """What leaves a file behind where a pickle of it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def test_what_is_registered_holds_no_pickle(house: Workspace) -> None:
    """The model is code and weights: no file of the registered version is a pickle, or ends as one."""
    (root,) = {file.parent for file in house.home.artifacts.rglob("MLmodel")}
    names = [file.name for file in root.rglob("*") if file.is_file()]
    assert "registered.py" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".joblib", ".pt", ".keras"))]
    assert re.search(r"model_code_path: .*registered\.py", (root / "MLmodel").read_text())


@pytest.mark.parametrize("outside", [False, True], ids=["a night", "mlflow.pyfunc"])
def test_a_planted_pickle_is_never_loaded(house: Workspace, tmp_path: Path, outside: bool) -> None:
    """Even by who can register it with a digest that fits: nothing of it runs where the detector is loaded."""
    fired, folder = tmp_path / "fired", registered_folder(house)
    pickle.loads(pickle.dumps(Bomb(fired)))
    assert fired.exists(), "the bomb itself must work"
    fired.unlink()
    held = dict(np.load(folder / "arrays.npz"))
    np.savez(folder / "arrays.npz", **{**held, "more": np.array([Bomb(fired)], dtype=object)})
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Bomb(fired)))
    (folder.parents[1] / "python_model.pkl").write_bytes(pickle.dumps(Bomb(fired)))
    trap = keras.Sequential([keras.Input((1,)), keras.layers.Lambda(lambda x: x)])
    trap.save(folder / "model" / "model.keras")
    tracking.client(house).set_model_version_tag("demo", "1", tracking.FILES, tracking.files_digest(folder))
    shutil.rmtree(house.home.root / "detectors")
    if outside:
        mlflow.set_tracking_uri(house.home.tracking_uri)
        assert mlflow.pyfunc.load_model("models:/demo@champion").unwrap_python_model().detector
    else:
        assert Detector.load(tracking.champion(house).folder).channels == ("flow", "heat")
    assert not fired.exists()


def test_arrays_of_objects_are_refused(house: Workspace, tmp_path: Path) -> None:
    """Where an array that is needed is itself a pickle, loading fails before it runs."""
    folder = tmp_path / "detector"
    shutil.copytree(registered_folder(house), folder)
    held = dict(np.load(folder / "arrays.npz"))
    np.savez(folder / "arrays.npz", **{**held, "usual": np.array([Bomb(tmp_path / "fired")], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Detector.load(folder)
    assert not (tmp_path / "fired").exists()


def test_a_checkpoint_that_is_a_pickle_is_passed_over(house: Workspace, tmp_path: Path) -> None:
    """Training begins anew, and nothing of it runs."""
    from pipeline.train import CHECKPOINTS, Staged

    data = io.BytesIO()
    np.save(data, np.array([Bomb(tmp_path / "fired")], dtype=object))
    house.lake.stage(f"{CHECKPOINTS}/key", pl.DataFrame({"name": ["weight.0"], "data": [data.getvalue()]}))
    assert Staged(house.lake).load("key") is None
    assert not (tmp_path / "fired").exists()
