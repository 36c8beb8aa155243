"""Addresses of the pages that a message, a report or an MLflow run points to, where it is known where Airflow is.

That is Airflow's own `[api] base_url`: from the environment, or as Airflow has it where it is at work in this process.
"""

import os
import sys
from datetime import date
from urllib.parse import quote

PREFIX = "/nightsift"  # where Airflow's API server has the incidents page
# MLflow shows its pages about generative AI to a browser that is new to it, unless an address asks for the others.
MLFLOW_VIEW = "workflowType=machine_learning"


def airflow_url() -> str | None:
    """The address of Airflow's pages, without a slash at its end; None where it is not known."""
    url = os.environ.get("AIRFLOW__API__BASE_URL")
    if url is None and "airflow.configuration" in sys.modules:
        url = sys.modules["airflow.configuration"].conf.get("api", "base_url", fallback=None)
    return url.rstrip("/") if url else None


def incidents_link() -> str | None:
    """The address of the incidents page; None where it is not known where Airflow is."""
    url = airflow_url()
    return None if url is None else f"{url}{PREFIX}/incidents"


def incident_path(dataset: str, day: date, incident: str) -> str:
    """Where the incidents page has one incident, below Airflow's address."""
    return f"{PREFIX}/incidents/{quote(dataset)}/{day}/{quote(incident)}"


def incident_link(dataset: str, day: date, incident: str) -> str | None:
    """The address of one incident on the incidents page; None where it is not known where Airflow is."""
    url = airflow_url()
    return None if url is None else url + incident_path(dataset, day, incident)


def report_link(dataset: str, day: date) -> str | None:
    """The address of a day's report; None where it is not known where Airflow is."""
    url = airflow_url()
    return None if url is None else f"{url}{PREFIX}/reports/{quote(dataset)}/{day}"


def run_link(dag: str, run: str) -> str | None:
    """The address of a DAG run in Airflow; None where it is not known where Airflow is."""
    url = airflow_url()
    return None if url is None else f"{url}/dags/{quote(dag, safe='')}/runs/{quote(run, safe='')}"
