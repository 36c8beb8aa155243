"""Health checks of the services: `health.py SERVICE` ends with 0 if the service of this container works.

Light on purpose, as they run every half minute: nothing of Airflow or MLflow is imported.
"""

import json
import os
import socket
import sys
import urllib.request

API = "http://api-server:8080/api/v2/monitor/health"
ADDRESSES = {
    "api-server": "http://127.0.0.1:8080/api/v2/version",
    "scheduler": "http://127.0.0.1:8974/health",
    "mlflow": "http://127.0.0.1:5000/health",
}


def healthy(service: str) -> bool:
    """Whether `service` works: it answers itself, or its heartbeat in Airflow's database is fresh."""
    if service in ADDRESSES:
        with urllib.request.urlopen(ADDRESSES[service], timeout=10) as answer:
            return answer.status == 200
    if service == "worker":
        return worker_answers()
    with urllib.request.urlopen(API, timeout=10) as answer:
        return json.load(answer)[service.replace("-", "_")]["status"] == "healthy"


def worker_answers() -> bool:
    """Whether the Celery worker of this container answers a ping through the broker."""
    from celery import Celery
    from kombu.exceptions import KombuError

    control = Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"]).control
    try:
        return bool(control.ping(destination=[f"celery@{socket.gethostname()}"], timeout=10))
    except KombuError as error:
        raise OSError(str(error)) from error


if __name__ == "__main__":
    try:
        sys.exit(0 if healthy(sys.argv[1]) else f"{sys.argv[1]} does not work")
    except (OSError, KeyError) as error:
        sys.exit(f"{sys.argv[1]} does not answer: {error}")
