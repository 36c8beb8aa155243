"""MLflow: where training runs, detectors and nights are logged, and where the champion comes from.

Experiments `NAME/train` and `NAME/nights`, registered model `NAME` with the aliases `champion` and `challenger`.
"""

import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from uuid import uuid4

import polars as pl
import stamina

from pipeline import logbook
from pipeline.config import Home
from pipeline.errors import ConfigError, NightsiftError, one_line
from pipeline.links import MLFLOW_VIEW, run_link
from pipeline.metrics import gauges, in_airflow
from pipeline.tables import MOMENT, canonical_schema, predicted_schema
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

log = logging.getLogger("nightsift.tracking")

CHAMPION, CHALLENGER = "champion", "challenger"
FILES = "files"  # a tag of a version: the digest of its detector's files, as they were registered
FORMER = "former_champions"  # a tag of the registered model: the numbers of versions, the latest last
REMEMBERED = 100  # of them
# Without this tag MLflow's pages guess, and show an experiment that has no run yet as one of generative AI.
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
NOTE, NOTED = "mlflow.note.content", "mlflow.note.digest"  # a description, and the digest of the one that we wrote
MOST_NOTE = 8000  # characters that MLflow keeps of a tag
MOST_DESCRIPTION = 5000  # and of a registered model's description
TABLES = {"mlflow.loggedArtifacts": json.dumps([{"path": "incidents.json", "type": "table"}])}  # as MLflow names them
SAMPLED = 5  # seconds between two looks at the machine that trains
P = ParamSpec("P")
R = TypeVar("R")
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
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
    """An MLflow client of the workspace's store; the first call makes the SQLite file."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", str(SAMPLED))
    import mlflow

    for noisy in ("mlflow", "mlflow.store.db.utils", "alembic"):  # after the import, which sets levels of its own
        logging.getLogger(noisy).setLevel(logging.ERROR)
    ws.home.root.mkdir(parents=True, exist_ok=True)
    uri, given = ws.home.tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if uri == ws.home.store and not ws.home.store_file.exists():
        _make_store(ws.home)
    if given is None:  # MLflow sets it, and another workspace in this process would take this one's store for its own
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    return mlflow.MlflowClient()


@contextmanager
def _answering(ws: Workspace) -> Iterator[None]:
    """Within the block an error of MLflow's is a `NightsiftError` that says where MLflow should be."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:  # the latter where a file is sent or fetched
        raise NightsiftError(
            f"MLflow at {ws.home.tracking_uri} did not answer: {one_line(error)}; see that it runs: nightsift doctor"
        ) from error


def _asks(question: Callable[Concatenate[Workspace, P], R]) -> Callable[Concatenate[Workspace, P], R]:
    """The function, which asks the workspace's MLflow; raises `NightsiftError` where MLflow does not answer."""

    @functools.wraps(question)
    def asked(ws: Workspace, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with _answering(ws):
            return question(ws, *args, **kwargs)

    return asked


def _make_store(home: Home) -> None:
    """Make MLflow's SQLite file, whole or not at all.

    MLflow itself makes it in many steps, in which two processes disturb one another and a kill leaves half of it.
    """
    place = home.store_file
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        partial = place.with_suffix(".part")
        partial.unlink(missing_ok=True)
        SqlAlchemyStore(f"sqlite:///{partial}", home.artifacts.as_uri()).engine.dispose()
        partial.replace(place)


@contextmanager
def run(ws: Workspace, kind: str, name: str, key: str | None = None) -> Iterator[Any]:
    """An active MLflow run of the experiment `NAME/kind`; the run that was made for `key` before, where there is one.

    So a night that is run again updates its page instead of adding another, also where two processes begin it at once;
    a training, which has no key, is always a run of its own, and looks at its machine meanwhile (`system/…`). A run
    that fails is marked as failed. Raises `NightsiftError` where MLflow does not answer.
    """
    api = client(ws)
    import mlflow

    with _answering(ws):
        experiment = _experiment(ws, api, f"{ws.dataset.name}/{kind}")
        known = _run_of(api, experiment, name, key) if key else None
        with mlflow.start_run(known, experiment, name, log_system_metrics=kind == "train") as active:
            here = airflow_tags()
            for left in {*AIRFLOW_TAGS} & {*active.data.tags} - {*here}:  # it was run by Airflow, and now is not
                mlflow.delete_tag(left)
            mlflow.set_tags({"dataset": ws.dataset.name, "git_revision": git_revision(), **here})
            yield active


@_asks
def end_killed(ws: Workspace, kind: str, name: str) -> None:
    """Mark as killed the runs `name` of the experiment `NAME/kind`, and those nested in them, that never ended."""
    api = client(ws)
    experiment = _experiment(ws, api, f"{ws.dataset.name}/{kind}")
    running = "attributes.status = 'RUNNING' and"
    for left in api.search_runs([experiment], f"{running} attributes.run_name = '{name}'"):
        within = api.search_runs([experiment], f"{running} tags.mlflow.parentRunId = '{left.info.run_id}'")
        for each in (*within, left):
            api.set_terminated(each.info.run_id, "KILLED")


def _run_of(api: "MlflowClient", experiment: str, name: str, key: str) -> str:
    """The id of the first run that was made for `key`, made now where there is none."""

    def made() -> list[Any]:
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        return list(api.search_runs([experiment], f"tags.key = '{key}'", order_by=order))

    if known := made():
        return str(known[0].info.run_id)
    maker = uuid4().hex
    mine = api.create_run(experiment, tags={"key": key, "maker": maker}, run_name=name)
    first, *others = made() or [mine]
    for other in others:  # the first is of another process, or an answer was lost, and MLflow asked a second time
        if other.data.tags.get("maker") == maker:
            api.delete_run(other.info.run_id)
    return str(first.info.run_id)


@contextmanager
def nested(name: str) -> Iterator[None]:
    """A run of its own under the active one, so that the curves of several trainings do not mix."""
    import mlflow

    above = mlflow.active_run()
    assert above is not None
    with mlflow.start_run(experiment_id=above.info.experiment_id, run_name=name, nested=True):
        yield


def _experiment(ws: Workspace, api: "MlflowClient", name: str) -> str:
    found = api.get_experiment_by_name(name) or _new_experiment(ws, api, name)
    about = {KIND: TRAINING, NOTE: logbook.experiment_note(ws.dataset, name.rpartition("/")[2], found.experiment_id)}
    for tag in about.keys() - found.tags.keys():
        api.set_experiment_tag(found.experiment_id, tag, about[tag])
    return str(found.experiment_id)


def _new_experiment(ws: Workspace, api: "MlflowClient", name: str) -> Any:
    """The experiment `name`, made by this process or, at the same moment, by another one."""
    local = ws.home.tracking_uri.startswith("sqlite")
    place = (ws.home.artifacts / name).as_uri() if local else None
    from mlflow.exceptions import MlflowException

    try:
        return api.get_experiment(api.create_experiment(name, artifact_location=place))
    except MlflowException:
        found = api.get_experiment_by_name(name)
        if found is None:
            raise
        return found


@_asks
def register(
    ws: Workspace, folder: Path, digest: str, tags: Mapping[str, str], note: str, example: pl.DataFrame
) -> Version:
    """Log the detector in `folder` to the active run and register it; it has no alias yet.

    `note` describes this version, in Markdown; `example` holds a few rows to call it with.
    """
    api = client(ws)
    import mlflow

    info = mlflow.pyfunc.log_model(
        name="detector",
        python_model=str(CODE / "registered.py"),
        artifacts={"detector": str(folder)},
        code_paths=[str(CODE), str(CODE.parent / "models")],
        pip_requirements=REQUIREMENTS,
        registered_model_name=ws.dataset.name,
        signature=_signature(ws),
        input_example=example.to_pandas(),
    )
    number = str(info.registered_model_version)
    label = f"{number}-{digest[:8]}"
    for key, value in {**tags, FILES: files_digest(folder), "label": label}.items():
        api.set_model_version_tag(ws.dataset.name, number, key, value)
    api.update_model_version(ws.dataset.name, number, note)
    describe_model(ws)
    return Version(number, label, folder)


@_asks
def describe_model(ws: Workspace) -> None:
    """Say what the registered model is, and which columns it takes now; where a person wrote that, it stays."""
    api, name = client(ws), ws.dataset.name
    known = api.get_registered_model(name)
    if _by_a_person(known.description, known.tags):
        return
    note = logbook.model_note(ws.dataset)[:MOST_DESCRIPTION]
    api.update_registered_model(name, note)
    for tag, value in {"dataset": name, "kind": ws.dataset.kind, NOTED: _digest(note)}.items():
        api.set_registered_model_tag(name, tag, value)


def _signature(ws: Workspace) -> "ModelSignature":
    """Which columns the registered model takes and gives.

    It names no types of what goes in: MLflow would refuse whole numbers, and times with a zone. The model takes them,
    and says itself what it cannot read.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

    given = (ColSpec(AnyType(), name, required=name != "event_id") for name in canonical_schema(ws.dataset))
    kinds = {pl.String: DataType.string, MOMENT: DataType.datetime, pl.Boolean: DataType.boolean}
    told = (ColSpec(kinds.get(kind, DataType.double), name) for name, kind in predicted_schema(ws.dataset).items())
    return ModelSignature(Schema([*given]), Schema([*told]))


@_asks
def registered(ws: Workspace, number: str) -> Version:
    """The version `number`, without a local copy; raises `ConfigError` where there is none, or only a part of one."""
    api = client(ws)
    from mlflow.exceptions import MlflowException

    try:
        version = api.get_model_version(ws.dataset.name, number)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise ConfigError(
            f"{ws.dataset.name} has no registered version {number!r}; MLflow lists those that there are"
        ) from error
    if "label" not in version.tags:
        raise ConfigError(f"version {number} of {ws.dataset.name} was never completely registered; train again")
    return _version(ws, version)


@_asks
def challenge(ws: Workspace, version: Version) -> None:
    """Make a registered version the challenger."""
    client(ws).set_registered_model_alias(ws.dataset.name, CHALLENGER, version.number)


@_asks
def current(ws: Workspace) -> Version | None:
    """The champion, without a local copy; None where there is none."""
    found = _aliased(ws, CHAMPION)
    return None if found is None else _version(ws, found)


@_asks
def crown(ws: Workspace, version: Version) -> None:
    """Make a version the champion; the one before is remembered for the way back."""
    api, now = client(ws), current(ws)
    if now is not None and now.number != version.number:
        _remember(ws, [*former(ws), now.number])  # first, so that a kill in between forgets nobody
    api.set_registered_model_alias(ws.dataset.name, CHAMPION, version.number)


@_asks
def uncrown(ws: Workspace, version: Version) -> None:
    """Make a former champion the champion again, and forget those that came after it."""
    before = former(ws)
    client(ws).set_registered_model_alias(ws.dataset.name, CHAMPION, version.number)
    _remember(ws, before[: len(before) - before[::-1].index(version.number) - 1])


@_asks
def former(ws: Workspace) -> list[str]:
    """The numbers of the champions before the present one, the latest last."""
    api = client(ws)
    from mlflow.exceptions import MlflowException

    try:
        told = api.get_registered_model(ws.dataset.name).tags.get(FORMER, "")
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        return []
    now = current(ws)
    numbers = told.split()
    while numbers and now is not None and numbers[-1] == now.number:  # the alias was not, or just, moved
        numbers.pop()
    return numbers


def _remember(ws: Workspace, numbers: list[str]) -> None:
    client(ws).set_registered_model_tag(ws.dataset.name, FORMER, " ".join(numbers[-REMEMBERED:]))


@_asks
def newest_trained(ws: Workspace) -> Any | None:
    """The registry's entry of the version that was trained last (not adapted); None where there is none."""
    trained = [version for version in _complete(ws) if "trained" not in version.tags]
    return max(trained, key=lambda version: int(version.version), default=None)


@_asks
def log_decision(ws: Workspace, run: str, version: Version, tags: Mapping[str, str]) -> None:
    """Tag a training's MLflow run, and the version that it registered, with what was decided, and by whom."""
    api = client(ws)
    for key, value in tags.items():
        api.set_tag(run, key, value)
        api.set_model_version_tag(ws.dataset.name, version.number, key, value)


@_asks
def champion(ws: Workspace) -> Version:
    """The champion, copied to the state folder once; raises `ConfigError` where there is none."""
    found = find(ws, CHAMPION)
    if found is None:
        raise ConfigError(_UNTRAINED.format(name=ws.dataset.name))
    return found


_UNTRAINED = "{name} has no detector yet; train one: nightsift train {name} --from DAY --to DAY"


@_asks
def find(ws: Workspace, alias: str) -> Version | None:
    """The detector under `alias`, copied to the state folder once; None where there is none."""
    version = _aliased(ws, alias)
    return None if version is None else _fetch(ws, version)


@_asks
def version(ws: Workspace, which: str) -> Version:
    """The detector under an alias, a number or a label, copied to the state folder once.

    Raises `ConfigError`, with those that there are, where there is no such version.
    """
    return _fetch(ws, _registered(ws, which))


@_asks
def label_of(ws: Workspace, which: str) -> str:
    """The label of the detector under an alias, a number or a label; raises as `version` does, and fetches nothing."""
    return _label(ws, _registered(ws, which))


def _registered(ws: Workspace, which: str) -> Any:
    """The registry's entry under an alias, a number or a label; raises `ConfigError` where there is none."""
    if which == CHAMPION and (found := _aliased(ws, CHAMPION)) is not None:
        return found
    entries = _complete(ws)
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
    version = _version(ws, entry)
    _require_copy(ws, entry, version.folder)
    return version


def _version(ws: Workspace, entry: Any) -> Version:
    """What the registry's entry describes, without a local copy; raises `NightsiftError` where its label is none."""
    label = _label(ws, entry)
    return Version(str(entry.version), label, detector_folder(ws, label))


def _complete(ws: Workspace) -> list[Any]:
    """The registry's entries of all versions that were completely registered; raises where a label is none."""
    found = client(ws).search_model_versions(f"name = '{ws.dataset.name}'")
    return [entry for entry in found if "label" in entry.tags and _label(ws, entry)]


LABEL = re.compile(r"[0-9]+-[0-9a-f]{8}")


def _label(ws: Workspace, entry: Any, tag: str = "label") -> str:
    """The label in a tag of the registry's entry; raises `NightsiftError` where it is none: it becomes a path."""
    label = str(entry.tags.get(tag, ""))
    if not LABEL.fullmatch(label):
        raise NightsiftError(
            f"version {entry.version} of {ws.dataset.name} has the tag {tag} = {label!r} in the registry, which is no "
            f"label of a detector (NUMBER-8 HEX DIGITS). Find out who changed it, then set it right or train a new one"
        )
    return label


@_asks
def siblings(ws: Workspace, label: str) -> tuple[str, set[str]]:
    """The label of the trained detector that `label` is or was adapted from, and those of all that share its scores."""
    origin = {
        entry.tags["label"]: _label(ws, entry, "trained" if "trained" in entry.tags else "label")
        for entry in _complete(ws)
    }
    return origin[label], {name for name, trained in origin.items() if trained == origin[label]}


def _aliased(ws: Workspace, alias: str) -> Any | None:
    """The registry's entry under `alias`; None where there is none."""
    api = client(ws)
    from mlflow.exceptions import MlflowException

    try:
        return api.get_model_version_by_alias(ws.dataset.name, alias)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        return None


def detector_folder(ws: Workspace, label: str) -> Path:
    """Where the local copy of a detector stands."""
    return ws.home.root / "detectors" / ws.dataset.name / label


def _require_copy(ws: Workspace, entry: Any, target: Path) -> None:
    """Have the detector in `target`, fetched whole or not at all; whoever put it there, it is judged at each use."""
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            fetched = fetch(ws, str(entry.version), Path(scratch))
            try:
                fetched.rename(target)
            except OSError:  # another process fetched the same version meanwhile
                if not target.is_dir():
                    raise
    _require_registered(ws, entry, target, f"remove {target}, and it is fetched anew")


@_asks
def fetch(ws: Workspace, number: str, into: Path) -> Path:
    """The folder of the detector that the registry holds as version `number`, copied under the folder `into`.

    Raises `NightsiftError` where it is not what was registered.
    """
    entry = client(ws).get_model_version(ws.dataset.name, number)
    import mlflow

    uri = f"models:/{ws.dataset.name}/{number}"
    found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into))).rglob("detector.json")
    folder = min((path.parent for path in found), key=lambda path: len(path.parts), default=into)
    _require_registered(ws, entry, folder, "go back to an earlier one with nightsift rollback, or train a new one")
    return folder


def files_digest(folder: Path) -> str:
    """64 hex digits of the names and bytes of all files below `folder`; a link is not followed."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or path.is_file():
            held = b"link" if path.is_symlink() else hashlib.sha256(path.read_bytes()).digest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + held)
    return digest.hexdigest()


def _require_registered(ws: Workspace, entry: Any, folder: Path, remedy: str) -> None:
    """Raise `NightsiftError` where the files in `folder` are not those that were registered, before any is read."""
    which = f"detector {entry.tags.get('label', entry.version)} of {ws.dataset.name}"
    if FILES not in entry.tags:
        raise NightsiftError(f"{which} was registered without a digest of its files; train a new one: nightsift train")
    if files_digest(folder) != entry.tags[FILES]:
        raise NightsiftError(
            f"{which} is not what was registered: files were changed, added or removed; nothing was scored with it. "
            f"Find out who did that, then {remedy}"
        )


def log_figure(figure: "Figure", name: str) -> None:
    """Log a matplotlib figure to the active run under `figures/NAME.png`."""
    import mlflow

    mlflow.log_figure(figure, f"figures/{name}.png")


@_asks
def log_used(ws: Workspace, run: str, used: Sequence["logbook.Used"]) -> None:
    """Log what a run has read as MLflow datasets: table, Delta version and digest; no row is read for it."""
    api = client(ws)
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    inputs = [
        DatasetInput(
            Dataset(
                name=f"{ws.dataset.name}.{each.table}", digest=each.digest, source_type="delta_table",
                source=json.dumps({"path": ws.lake.uri(each.table), "delta_table_version": each.version}),
                profile=json.dumps({"num_rows": each.rows}),
            ),
            [InputTag("mlflow.data.context", each.context)],
        )
        for each in used
    ]  # fmt: skip
    for attempt in stamina.retry_context(on=MlflowException, attempts=3, wait_initial=0.1):
        with attempt:  # another process that logs the same night may add the same dataset
            api.log_inputs(run, inputs)


def note_tags(active: Any, note: Sequence[str], artifacts: Mapping[str, str]) -> dict[str, str]:
    """The tags that make the paragraphs `note` the description of the active run; none where a person wrote another.

    Above them stand the ways to its `artifacts`, by what they are called, and to its DAG run: MLflow folds the rest.
    """
    before, here = active.data.tags, f"#/experiments/{active.info.experiment_id}/runs/{active.info.run_id}/artifacts"
    if _by_a_person(before.get(NOTE), before):
        return {}
    ways = [f"[{name}]({here}/{path}?{MLFLOW_VIEW})" for name, path in artifacts.items()]
    ways += [f"[DAG run]({link})" for tag, link in airflow_tags().items() if tag == "airflow_link"]
    text = "\n\n".join([" · ".join(ways), *note])[:MOST_NOTE]
    return {NOTE: text, NOTED: _digest(text)}


def _by_a_person(note: str | None, tags: Mapping[str, str]) -> bool:
    """Whether a description is another one than we wrote, of which the tags hold the digest."""
    return bool(note) and tags.get(NOTED) != _digest(note or "")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def log_night(ws: Workspace, day: date, page: "logbook.Page", report: Path) -> None:
    """One run a night in `NAME/nights`: counts and rates that compare from night to night, and the report.

    A server is asked as little as can be: it may be far away, and check a password each time.
    """
    with run(ws, "nights", page.name, key=f"night {day}") as active, TemporaryDirectory() as scratch:
        import mlflow
        from mlflow.entities import Metric, Param, RunTag

        ways = {"Report": f"report/{report.name}", "Incidents": "incidents.json", "Scores": "figures/scores.png"}
        told = {**page.tags, **TABLES, **note_tags(active, page.note, ways)}
        now = int(time.time() * 1000)
        mlflow.MlflowClient().log_batch(
            active.info.run_id,
            [Metric(name, value, now, 0) for name, value in page.metrics.items()],
            [Param(name, value) for name, value in page.params.items()],
            [RunTag(name, value[:MOST_NOTE]) for name, value in told.items()],
        )
        _write_artifacts(Path(scratch), page, report)
        mlflow.log_artifacts(scratch)
        log_used(ws, active.info.run_id, page.used)


def _write_artifacts(folder: Path, page: "logbook.Page", report: Path) -> None:
    """The files of a night's page; MLflow's own way to log a table would append to the one that is there."""
    for name in ("figures", "report"):
        (folder / name).mkdir()
    for name, figure in page.figures.items():
        figure.savefig(folder / "figures" / f"{name}.png")
    shutil.copyfile(report, folder / "report" / report.name)
    rows = {"columns": page.incidents.columns, "data": [list(row) for row in page.incidents.iter_rows()]}
    (folder / "incidents.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def log_devices(dataset: str) -> None:
    """Say in the log, and to whoever watches Airflow (`nightsift.gpus`), what this process' networks run on.

    And in the active MLflow run, if there is one: the tag `devices` names them, the metric `gpus` counts them. A task
    of Airflow without a GPU warns, for such tasks go to the queue gpu.
    """
    from models.devices import find_devices

    devices = find_devices()
    if devices.gpus or not in_airflow():
        log.info("%s: networks run on %s", dataset, devices)
    else:
        log.warning("%s: TensorFlow sees no GPU, networks run on the CPU; nightsift doctor says more", dataset)
    gauges(dataset, {"gpus": len(devices.gpus)})
    import mlflow

    if mlflow.active_run():
        mlflow.set_tag("devices", str(devices))
        mlflow.log_metric("gpus", len(devices.gpus))


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


AIRFLOW_TAGS = ("airflow_dag", "airflow_run", "airflow_link")


def airflow_tags() -> dict[str, str]:
    """Which DAG run this is, where Airflow runs us, and its address where that is known."""
    dag, run = (os.environ.get(f"AIRFLOW_CTX_DAG_{name}") for name in ("ID", "RUN_ID"))
    if not dag or not run:
        return {}
    return {tag: value for tag, value in zip(AIRFLOW_TAGS, (dag, run, run_link(dag, run)), strict=True) if value}
