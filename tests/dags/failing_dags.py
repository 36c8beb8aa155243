"""DAGs that fail in every way, made as ours are; read by the Airflow that `test_failure` starts."""

import logging
import os
import signal
import time
from datetime import timedelta

from airflow.sdk import DAG, task

from pipeline.errors import DeadlineMissedError, GateRefusedError
from pipeline.wiring import read_datasets, settings, workspace

(dataset,) = read_datasets()[0]
at_once = {"retries": 1, "retry_delay": timedelta(seconds=1)}


@task(**at_once, max_active_tis_per_dag=1)
def shard(number: int) -> None:
    """Fails in every shard and every try, after a driver has said to which address it connects."""
    address = os.environ["PAYMENTS"]
    logging.getLogger("driver").warning("%s connects to %s", workspace(dataset.name).dataset.name, address)
    raise ValueError(f"shard {number} of {address} is lost") from OSError(address)


@task
def refused() -> None:
    """What a person must mend."""
    raise GateRefusedError("demo 2026-03-05: the data gate refused this day")


@task(**at_once)
def killed() -> None:
    """Its process is killed in every try."""
    os.kill(os.getpid(), signal.SIGKILL)


@task(execution_timeout=None)
def endless() -> None:
    """Outlasts its run."""
    time.sleep(300)


@task
def missed() -> None:
    """Those whom it concerns know."""
    raise DeadlineMissedError("demo 2026-03-05 is not done")


@task
def mended() -> None:
    """Fails once, and is well at the next try."""
    from airflow.sdk import get_current_context

    if get_current_context()["ti"].try_number == 1:
        raise ValueError("this time it fails")


def make(kind: str, body: object, hours: float = 1) -> None:
    """A DAG of one task."""
    with DAG(**settings(dataset, kind, hours=hours), schedule=None):  # type: ignore[arg-type] # seconds, in a test
        body()  # type: ignore[operator]


make("shards", lambda: shard.expand(number=[1, 2]))
make("refused", refused)
make("killed", killed)
make("endless", endless, hours=15 / 3600)
make("missed", missed)
make("mended", mended.override(**at_once | {"retries": 3}))
