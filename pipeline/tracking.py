"""MLflow: where training runs, detectors and nights are logged, and where the champion comes from.

Experiments `NAME/train` and `NAME/nights`, registered model `NAME` with the aliases `champion` and `challenger`.
"""

import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, NightsiftError
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
CODE = Path(__file__).parent
# What a detector needs where it is loaded; named, so that MLflow does not import TensorFlow to find out.
REQUIREMENTS = ["keras", "tensorflow", "numpy", "polars", "pandas", "pyarrow", "scipy", "pydantic", "pyyaml", "tzdata"]


@dataclass(frozen=True, slots=True)
class Version:
    """A registered detector: its number in the registry, the label that `scores` carry, and the local copy."""

    number: str
    label: str
    folder: Path


def client(ws: Workspace) -> "MlflowClient":
    """An MLflow client of the workspace's store; the first call creates the SQLite file."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for noisy in ("mlflow", "mlflow.store.db.utils", "alembic"):  # after the import, which sets levels of its own
        logging.getLogger(noisy).setLevel(logging.ERROR)
    ws.home.root.mkdir(parents=True, exist_ok=True)
    uri, given = ws.home.tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if given is None:  # MLflow sets it, and another workspace in this process would take this one's store for its own
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    return mlflow.MlflowClient()


@contextmanager
def run(ws: Workspace, kind: str, name: str, key: str | None = None) -> Iterator[Any]:
    """An active MLflow run of the experiment `NAME/kind`; the run that was made for `key` before, where there is one.

    So a night that is run again updates its page instead of adding another; a training, which has no key, is always a
    run of its own. A run that fails is marked as failed.
    """
    api = client(ws)
    import mlflow

    experiment = _experiment(ws, api, f"{ws.dataset.name}/{kind}")
    old = api.search_runs([experiment], filter_string=f"tags.key = '{key}'", max_results=1) if key else []
    with mlflow.start_run(
        experiment_id=experiment, run_id=old[0].info.run_id if old else None, run_name=None if old else name
    ) as active:
        mlflow.set_tags(
            {
                **({"key": key} if key else {}),
                "dataset": ws.dataset.name,
                "git_revision": git_revision(),
                **airflow_tags(),
            }
        )
        yield active


@contextmanager
def nested(name: str) -> Iterator[None]:
    """A run of its own under the active one, so that the curves of several trainings do not mix."""
    import mlflow

    above = mlflow.active_run()
    assert above is not None
    with mlflow.start_run(experiment_id=above.info.experiment_id, run_name=name, nested=True):
        yield


def _experiment(ws: Workspace, api: "MlflowClient", name: str) -> str:
    found = api.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = ws.home.tracking_uri.startswith("sqlite")
    place = (ws.home.artifacts / name).as_uri() if local else None
    from mlflow.exceptions import MlflowException

    try:
        return str(api.create_experiment(name, artifact_location=place))
    except MlflowException:  # another process was first
        found = api.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def register(ws: Workspace, folder: Path, digest: str, tags: Mapping[str, str]) -> Version:
    """Log the detector in `folder` to the active run and register it as challenger."""
    api = client(ws)
    import mlflow

    info = mlflow.pyfunc.log_model(
        name="detector",
        python_model=str(CODE / "registered.py"),
        artifacts={"detector": str(folder)},
        code_paths=[str(CODE), str(CODE.parent / "models")],
        pip_requirements=REQUIREMENTS,
        registered_model_name=ws.dataset.name,
    )
    number = str(info.registered_model_version)
    label = f"{number}-{digest[:8]}"
    for key, value in {**tags, "label": label}.items():
        api.set_model_version_tag(ws.dataset.name, number, key, value)
    api.set_registered_model_alias(ws.dataset.name, CHALLENGER, number)
    return Version(number, label, folder)


def promote(ws: Workspace, number: str) -> str:
    """Make version `number` the champion; its label. The version before is remembered for `rollback`.

    Raises `ConfigError` where there is no such version.
    """
    api = client(ws)
    from mlflow.exceptions import MlflowException

    try:
        version = api.get_model_version(ws.dataset.name, number)
    except MlflowException as error:
        raise ConfigError(f"{ws.dataset.name} has no registered version {number!r}") from error
    before = _aliased(ws, CHAMPION)
    if before is not None and str(before.version) != number:
        api.set_model_version_tag(ws.dataset.name, number, "before", str(before.version))
    api.set_registered_model_alias(ws.dataset.name, CHAMPION, number)
    return str(version.tags["label"])


def rollback(ws: Workspace) -> str:
    """Make the version that was champion before the champion again; its label."""
    now = _aliased(ws, CHAMPION)
    if now is None or "before" not in now.tags:
        raise NightsiftError(f"{ws.dataset.name} has no earlier champion to go back to")
    api = client(ws)
    api.set_registered_model_alias(ws.dataset.name, CHAMPION, now.tags["before"])
    return str(api.get_model_version(ws.dataset.name, now.tags["before"]).tags["label"])


def champion(ws: Workspace) -> Version:
    """The champion, copied to the state folder once; raises `ConfigError` where there is none."""
    found = find(ws, CHAMPION)
    if found is None:
        raise ConfigError(_UNTRAINED.format(name=ws.dataset.name))
    return found


_SILENT = "MLflow at {uri} did not answer: {error}"
_UNTRAINED = "{name} has no detector yet; train one: nightsift train {name} --from DAY --to DAY"


def find(ws: Workspace, alias: str) -> Version | None:
    """The detector under `alias`, copied to the state folder once; None where there is none."""
    version = _aliased(ws, alias)
    return None if version is None else _fetch(ws, version)


def version(ws: Workspace, which: str) -> Version:
    """The detector under an alias, a number or a label, copied to the state folder once.

    Raises `ConfigError`, with those that there are, where there is no such version.
    """
    return _fetch(ws, _registered(ws, which))


def label_of(ws: Workspace, which: str) -> str:
    """The label of the detector under an alias, a number or a label; raises as `version` does, and fetches nothing."""
    return str(_registered(ws, which).tags["label"])


def _registered(ws: Workspace, which: str) -> Any:
    """The registry's entry under an alias, a number or a label; raises `ConfigError` where there is none."""
    if which == CHAMPION and (found := _aliased(ws, CHAMPION)) is not None:
        return found
    api = client(ws)
    from mlflow.exceptions import MlflowException

    try:
        entries = [e for e in api.search_model_versions(f"name = '{ws.dataset.name}'") if "label" in e.tags]
    except MlflowException as error:
        raise NightsiftError(_SILENT.format(uri=ws.home.tracking_uri, error=error)) from error
    if not entries or which == CHAMPION:
        raise ConfigError(_UNTRAINED.format(name=ws.dataset.name))
    if which == CHALLENGER and (found := _aliased(ws, CHALLENGER)) is not None:
        return found
    for entry in entries:
        if which in (str(entry.version), entry.tags["label"]):
            return entry
    newest = sorted(entries, key=lambda entry: int(entry.version))[-10:]
    raise ConfigError(
        f"{ws.dataset.name} has no detector {which!r} in the registry; there are champion, challenger or, by number "
        f"or label, {', '.join(entry.tags['label'] for entry in newest)}"
    )


def _fetch(ws: Workspace, entry: Any) -> Version:
    number, label = str(entry.version), str(entry.tags["label"])
    return Version(number, label, _local_copy(ws, number, label))


def siblings(ws: Workspace, label: str) -> tuple[str, set[str]]:
    """The label of the trained detector that `label` is or was adapted from, and those of all that share its scores."""
    found = client(ws).search_model_versions(f"name = '{ws.dataset.name}'")
    tags = [version.tags for version in found if "label" in version.tags]
    origin = {each["label"]: each.get("trained", each["label"]) for each in tags}
    return origin[label], {name for name, trained in origin.items() if trained == origin[label]}


def _aliased(ws: Workspace, alias: str) -> Any | None:
    """The registry's entry under `alias`; None where there is none."""
    api = client(ws)
    from mlflow.exceptions import MlflowException

    try:
        return api.get_model_version_by_alias(ws.dataset.name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise NightsiftError(_SILENT.format(uri=ws.home.tracking_uri, error=error)) from error


def _local_copy(ws: Workspace, number: str, label: str) -> Path:
    """The detector's folder under the state folder; fetched whole or not at all."""
    target = ws.home.root / "detectors" / ws.dataset.name / label
    if not target.is_dir():
        import mlflow

        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            uri = f"models:/{ws.dataset.name}/{number}"
            fetched = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
            inner = min((path.parent for path in fetched.rglob("detector.json")), key=lambda path: len(path.parts))
            try:
                inner.rename(target)
            except OSError:  # another process fetched the same version meanwhile
                if not target.is_dir():
                    raise
    return target


def log_figure(figure: "Figure", name: str) -> None:
    """Log a matplotlib figure to the active run under `figures/NAME.png`."""
    import matplotlib.pyplot as plt
    import mlflow

    mlflow.log_figure(figure, f"figures/{name}.png")
    plt.close(figure)


def log_night(ws: Workspace, day: date, metrics: Mapping[str, float], tags: Mapping[str, str], report: Path) -> None:
    """One run a night in `NAME/nights`: counts and rates that compare from night to night, and the report."""
    with run(ws, "nights", f"{ws.dataset.name} {day}", key=f"night {day}"):
        import mlflow

        mlflow.set_tags({"day": str(day), **tags})
        mlflow.log_metrics(dict(metrics))
        mlflow.log_artifact(str(report), "report")


def git_revision() -> str:
    """The commit that runs, with `+` where files differ from it; `unknown` outside a checkout."""
    if os.environ.get("NIGHTSIFT_REVISION"):
        return os.environ["NIGHTSIFT_REVISION"]
    try:
        return subprocess.run(
            ["git", "-C", str(CODE), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def airflow_tags() -> dict[str, str]:
    """Which DAG run this is, where Airflow runs us."""
    names = {"AIRFLOW_CTX_DAG_ID": "airflow_dag", "AIRFLOW_CTX_DAG_RUN_ID": "airflow_run"}
    return {tag: os.environ[name] for name, tag in names.items() if name in os.environ}
