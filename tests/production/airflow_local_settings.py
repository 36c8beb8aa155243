"""Airflow's own means to set a site's policy, as the workers of these tests have it."""

import os
from datetime import timedelta
from typing import Any


def task_policy(task: Any) -> None:
    """Airflow calls this with every task that it reads: the DAGs' retries as they are, but after seconds."""
    task.retry_delay = timedelta(seconds=5)


def worker() -> str:
    """The name under which a worker signs for the tasks that it runs (`[core] hostname_callable`)."""
    return os.environ.get("NIGHTSIFT_WORKER", "not a worker")
