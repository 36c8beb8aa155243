"""DAG files as Airflow reads them, in a process of its own with a throw-away AIRFLOW_HOME."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Importing airflow.sdk here must not write to the home of whoever runs the tests.
_SCRATCH = tempfile.TemporaryDirectory()
os.environ["AIRFLOW_HOME"] = _SCRATCH.name

HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "datasets"
ReadDags = Callable[[Path], dict[str, Any]]


def airflow_env(home: Path, datasets: Path) -> dict[str, str]:
    """The environment of a throw-away Airflow with its state in `home`."""
    return {
        **os.environ,
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(HERE.parents[1] / "dags"),
        "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACKS": "False",
        "NIGHTSIFT_HOME": str(home),
        "NIGHTSIFT_DATASETS": str(datasets),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
    }


@pytest.fixture(scope="session")
def read_dags(tmp_path_factory: pytest.TempPathFactory) -> ReadDags:
    """What Airflow makes of the DAG files with the given folder of datasets (see read_dags.py)."""

    def read(datasets: Path) -> dict[str, Any]:
        home = tmp_path_factory.mktemp("airflow")
        out = home / "facts.json"
        done = subprocess.run(
            [sys.executable, HERE / "read_dags.py", out],
            env=airflow_env(home, datasets),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        facts: dict[str, Any] = json.loads(out.read_text())
        return facts

    return read
