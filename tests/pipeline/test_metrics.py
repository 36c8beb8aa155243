"""The night's numbers reach whoever watches Airflow, by the way that Airflow's [metrics] names, and nobody else."""

import inspect
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import metrics, tracking
from pipeline.ingest import ingest
from pipeline.night import freshness, send_metrics
from pipeline.state import State, write_state
from pipeline.workspace import Workspace
from tests.conftest import START, deliver, sensor_day

DAY = date(2024, 5, 1)
# What a task's process does before and after the task, as airflow.sdk.execution_time.task_runner has it.
TASK = """
from airflow.sdk.configuration import conf
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils

stats.initialize(
    factory=stats_utils.get_stats_factory(), export_legacy_names=conf.getboolean("metrics", "legacy_names_on")
)
from pipeline.metrics import gauges, measured

@measured
def score(dataset, shard):
    return shard

assert score("wells", shard=3) == 3
gauges("wells", {"rows_in": 1440.0, "quarantine_share": 0.25})
"""


class Collector:
    """An OpenTelemetry collector on 127.0.0.1 that keeps what it is sent: metric by name, with tags and value."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[dict[str, str], Any]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.keep(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def keep(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = metric.gauge.data_points or metric.exponential_histogram.data_points
                    tags = {pair.key: pair.value.string_value for pair in points[0].attributes}
                    value = points[0].as_double if metric.HasField("gauge") else points[0].count
                    self.found[metric.name] = (tags, value)

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.stop()


def run_task(tmp_path: Path, collector: Collector, **env: str) -> None:
    told = {
        "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]),
        "AIRFLOW__METRICS__OTEL_ON": "True",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.http.server_port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", TASK], env={**os.environ, **told, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


WITH_TAGS_IN_NAMES: dict[str, tuple[dict[str, str], Any]] = {
    "airflow.nightsift.wells.rows_in": ({}, 1440.0),
    "airflow.nightsift.wells.quarantine_share": ({}, 0.25),
    "airflow.nightsift.wells.step.score": ({}, 1),
}


@pytest.mark.parametrize("both", [True, False])
def test_a_task_sends_its_numbers_and_how_long_it_took(tmp_path: Path, collector: Collector, both: bool) -> None:
    """Gauges and the timer of the step arrive under Airflow's prefix, with dataset and step as tags.

    And under names that hold those, for StatsD, which drops tags, unless Airflow is told to leave such names out.
    """
    run_task(tmp_path, collector, AIRFLOW_CTX_DAG_ID="wells_nightly", AIRFLOW__METRICS__LEGACY_NAMES_ON=str(both))
    names = WITH_TAGS_IN_NAMES if both else {}
    sent = {name: told for name, told in collector.found.items() if name.startswith("airflow.nightsift.")}
    assert (
        sent
        == {
            "airflow.nightsift.rows_in": ({"dataset": "wells"}, 1440.0),
            "airflow.nightsift.quarantine_share": ({"dataset": "wells"}, 0.25),
            "airflow.nightsift.step": ({"dataset": "wells", "step": "score"}, 1),
        }
        | names
    )


def test_nothing_is_sent_outside_airflow(tmp_path: Path, collector: Collector) -> None:
    """The command line sends nothing, even where Airflow's metrics are on."""
    run_task(tmp_path, collector)
    assert not any("nightsift" in name for name in collector.found)


def test_a_measured_function_stays_what_it_was() -> None:
    """Airflow sees its name, its text and its arguments."""

    @metrics.measured
    def validate(dataset: str, nights: list[str]) -> int:
        """Judge the days."""
        return len(nights)

    assert (validate.__name__, validate.__doc__) == ("validate", "Judge the days.")
    assert list(inspect.signature(validate).parameters) == ["dataset", "nights"]
    assert validate("wells", ["2024-05-01"]) == 1


@pytest.mark.parametrize("airflow", [True, False])
def test_a_task_that_finds_no_gpu_says_so(
    airflow: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on on the CPU: in Airflow with a warning and the gauge `gpus` at 0, elsewhere in silence."""
    told: list[tuple[str, dict[str, float]]] = []
    monkeypatch.setattr(tracking, "gauges", lambda dataset, numbers: told.append((dataset, dict(numbers))))
    monkeypatch.setattr(tracking, "in_airflow", lambda: airflow)
    with caplog.at_level(logging.WARNING):
        tracking.log_devices("wells")
    assert ("wells: TensorFlow sees no GPU" in caplog.text) is airflow
    assert told == [("wells", {"gpus": 0})]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, float]]]:
    calls: list[tuple[str, dict[str, float]]] = []
    monkeypatch.setattr(metrics, "gauges", lambda dataset, numbers: calls.append((dataset, dict(numbers))))
    return calls


def test_an_earlier_night_sends_no_gauges(
    make_workspace: Callable[..., Workspace], sent: list[tuple[str, dict[str, float]]]
) -> None:
    """Gauges are of the newest night: what is scored again or filled in does not overwrite them."""
    ws, now = make_workspace(), datetime(2024, 5, 3, 2, 30, tzinfo=UTC)
    for n in range(2):
        write_state(ws, State(DAY + timedelta(days=n), "score", "", ""))
    send_metrics(ws, DAY, {"steps": 1.0}, now)
    assert sent == []
    send_metrics(ws, DAY + timedelta(days=1), {"steps": 2.0}, now)
    assert sent == [("demo", {"steps": 2.0, "delay": 2.5 * 3600})]


def test_freshness_is_what_lacks_at_the_end_of_the_day(make_workspace: Callable[..., Workspace]) -> None:
    """Seconds from the newest event to the end of the day; a whole day without an event."""
    ws = make_workspace()
    day = sensor_day(0).filter(pl.col("time") < START + timedelta(hours=20))
    deliver(ws, day, "first")
    ingest(ws)
    assert freshness(ws, START.date()) == 4 * 3600 + 600
    assert freshness(ws, START.date() + timedelta(days=1)) == 86400
