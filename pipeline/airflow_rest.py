"""A small client of Airflow's REST API: what it takes to start runs, follow them, and say why one failed."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import NightsiftError

FINISHED = frozenset({"success", "failed"})


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one DAG."""

    dag_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a run; `map_index` is -1 for a task that is not mapped, `seconds` how long its last try took."""

    task_id: str
    map_index: int
    label: str
    state: str
    tries: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands: its state (`queued`, `running`, `success` or `failed`) and its tasks."""

    run: Run
    state: str
    tasks: tuple[Task, ...] = field(default=())

    @property
    def finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.state in FINISHED


class AirflowRest:
    """The API of the Airflow at `url`, as `user`; every call raises `NightsiftError` with the server's own words."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url.rstrip("/")
        self._login = {"username": user, "password": password}
        self._token = ""

    def healthy(self, parts: Sequence[str] = ("metadatabase", "scheduler", "dag_processor")) -> bool:
        """Whether the server answers and says that all `parts` are healthy."""
        try:
            health = self._send("GET", "/api/v2/monitor/health", None, {})
        except (OSError, ValueError):
            return False
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    def dag_ids(self) -> set[str]:
        """The ids of the DAGs that Airflow has read and that are not stale."""
        return {dag["dag_id"] for dag in self.call("GET", "/api/v2/dags?limit=1000")["dags"]}

    def import_errors(self) -> list[str]:
        """What Airflow says about DAG files that it could not read."""
        return [error["stack_trace"] for error in self.call("GET", "/api/v2/importErrors")["import_errors"]]

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Make a pool of `slots`; one that exists stays as it is, for an operator may have changed it."""
        if name not in {pool["name"] for pool in self.call("GET", "/api/v2/pools?limit=1000")["pools"]}:
            body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
            self.call("POST", "/api/v2/pools", body)

    def unpause(self, dag_id: str) -> None:
        """Let the DAG run."""
        self.call("PATCH", f"/api/v2/dags/{_quote(dag_id)}?update_mask=is_paused", {"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> Run:
        """Start a run with `conf` as its params (Airflow checks them against the DAG's own schema)."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return Run(dag_id, self.call("POST", f"/api/v2/dags/{_quote(dag_id)}/dagRuns", body)["dag_run_id"])

    def nights_after(self, ingest: Run, patience: float = 120) -> list[Run]:
        """The nightly runs of the days that `ingest`, a run of NAME_ingest that has ended well, announced.

        Raises `NightsiftError` where they have not begun after `patience` seconds.
        """
        nightly = f"{ingest.dag_id.removesuffix('_ingest')}_nightly"
        days = self.call("GET", f"{_path(ingest)}/taskInstances/ingest/xcomEntries/return_value")["value"]["nights"]
        since = urllib.parse.urlencode({"run_after_gte": self.call("GET", _path(ingest))["start_date"], "limit": 1000})
        end = time.monotonic() + patience
        while True:
            begun = self.call("GET", f"/api/v2/dags/{_quote(nightly)}/dagRuns?{since}")["dag_runs"]
            runs = {run["partition_key"]: Run(nightly, run["dag_run_id"]) for run in begun}
            if set(days) <= set(runs):
                return [runs[day] for day in days]
            if time.monotonic() > end:
                missing = ", ".join(sorted(set(days) - set(runs)))
                raise NightsiftError(f"{nightly} has not begun for {missing}; is it paused? {self.url}")
            time.sleep(1)

    def status(self, run: Run) -> RunStatus:
        """Where `run` stands now."""
        state = self.call("GET", _path(run))["state"]
        tasks = self.call("GET", f"{_path(run)}/taskInstances?limit=1000")["task_instances"]
        return RunStatus(run, state, tuple(map(_task, tasks)))

    def wait_all(
        self,
        runs: Sequence[Run],
        on_change: Callable[[RunStatus], None] = lambda _: None,
        timeout: float = 3600,
        poll: float = 1.0,
    ) -> list[RunStatus]:
        """Wait until all `runs` have ended; how each ended, in their order.

        `on_change` is called whenever a run or one of its tasks changes state. Raises `NightsiftError` when `timeout`
        seconds pass first; a run that failed does not raise, see `explain`.
        """
        known: dict[Run, RunStatus] = {}
        end = time.monotonic() + timeout
        while True:
            for run in runs:
                if run not in known or not known[run].finished:
                    status = self.status(run)
                    if _states(known.get(run)) != _states(status):
                        on_change(status)
                    known[run] = status
            if all(status.finished for status in known.values()):
                return [known[run] for run in runs]
            if time.monotonic() > end:
                raise NightsiftError(f"{_names(known)} did not end within {timeout:.0f} s; see {self.url}")
            time.sleep(poll)

    def explain(self, status: RunStatus, lines: int = 15) -> str:
        """Why a run failed: each failed task, with its error, or the end of its log."""
        failed = [task for task in status.tasks if task.state == "failed"]
        texts = [f"{_label(task)}: {self.log_error(status.run, task, lines)}" for task in failed]
        return "\n".join(texts) or f"no task failed; see {self.url}"

    def log_error(self, run: Run, task: Task, lines: int = 15) -> str:
        """The error message of a task's last try, or the last `lines` of its log where no error stands there."""
        path = f"{_path(run)}/taskInstances/{_quote(task.task_id)}/logs/{task.tries}"
        content = self.call("GET", f"{path}?map_index={task.map_index}&full_content=true")["content"]
        raised = [line["error_detail"] for line in content if isinstance(line, dict) and line.get("error_detail")]
        if raised:
            return str(raised[-1][0]["exc_value"])  # what was raised stands first, then what caused it
        return "\n".join(_text(line) for line in content[-lines:])

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to one call, decoded from JSON; raises `NightsiftError` with the server's own words."""
        try:
            if not self._token:
                self._token = self._send("POST", "/auth/token", self._login, {})["access_token"]
            return self._send(method, path, body, {"Authorization": f"Bearer {self._token}"})
        except urllib.error.HTTPError as error:
            raise NightsiftError(f"Airflow refused {method} {path}: {_detail(error)}") from error
        except OSError as error:
            raise NightsiftError(f"Airflow at {self.url} does not answer: {error}") from error

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, headers: dict[str, str]) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {**headers, "Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _path(run: Run) -> str:
    return f"/api/v2/dags/{_quote(run.dag_id)}/dagRuns/{_quote(run.run_id)}"


def _task(data: Mapping[str, Any]) -> Task:
    label = data.get("rendered_map_index") or ""
    return Task(
        data["task_id"], data["map_index"], label, data["state"] or "waiting", data["try_number"], data["duration"]
    )


def _label(task: Task) -> str:
    return task.task_id if task.map_index < 0 else f"{task.task_id}[{task.label or task.map_index}]"


def _states(status: RunStatus | None) -> object:
    return status and (status.state, [(task.task_id, task.map_index, task.state) for task in status.tasks])


def _names(known: Mapping[Run, RunStatus]) -> str:
    return ", ".join(f"{run.dag_id} ({run.run_id})" for run, status in known.items() if not status.finished)


def _text(line: object) -> str:
    return str(line.get("event", "")) if isinstance(line, dict) else str(line)


def _detail(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong, in one line."""
    text = error.read().decode(errors="replace")
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = text
    return f"{error.code} {detail if isinstance(detail, str) else json.dumps(detail)}"
