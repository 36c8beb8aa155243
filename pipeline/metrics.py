"""Numbers of the night for whoever watches Airflow: sent with its own metrics, to StatsD or OpenTelemetry.

Where they go is what Airflow's section [metrics] says; outside an Airflow task nothing is sent. Imported whenever
Airflow reads a DAG file, so nothing heavy stands at the top.

| metric | |
|---|---|
| `nightsift.NAME` | gauge of the newest night: each number of `pipeline.night.night_metrics`, and `delay` |
| `nightsift.gpus` | gauge: on how many GPUs the latest task trained or scored; 0 where it fell back to the CPU |
| `nightsift.step` | timer: how long a step of the night took, by the tag `step` |

All have the tag `dataset`. Plain StatsD drops tags, so while `[metrics] legacy_names_on` is set, as it is by default,
everything goes out under a second name as well, as Airflow's own does: `nightsift.DATASET.NAME` and
`nightsift.DATASET.step.STEP`.
"""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

PREFIX = "nightsift"

P = ParamSpec("P")
R = TypeVar("R")


def gauges(dataset: str, numbers: Mapping[str, float]) -> None:
    """Send each number as the gauge `nightsift.NAME`, `/` as a dot, with the dataset as its tag."""
    if not in_airflow():
        return
    from airflow.sdk.observability import stats

    for name, value in ((name.replace("/", "."), value) for name, value in numbers.items()):
        stats.gauge(f"{PREFIX}.{name}", value, tags={"dataset": dataset})
        if names_hold_tags():
            stats.gauge(f"{PREFIX}.{dataset}.{name}", value)


def measured(step: Callable[P, R]) -> Callable[P, R]:
    """The function of a task, which has an argument `dataset`, timed: `nightsift.step` with its name as a tag."""
    signature = inspect.signature(step)

    @functools.wraps(step)
    def timed(*args: P.args, **kwargs: P.kwargs) -> R:
        if not in_airflow():
            return step(*args, **kwargs)
        from airflow.sdk.observability import stats

        dataset, name = signature.bind(*args, **kwargs).arguments["dataset"], step.__name__
        with ExitStack() as stack:
            stack.enter_context(stats.timer(f"{PREFIX}.step", tags={"dataset": dataset, "step": name}))
            if names_hold_tags():
                stack.enter_context(stats.timer(f"{PREFIX}.{dataset}.step.{name}"))
            return step(*args, **kwargs)

    return timed


def names_hold_tags() -> bool:
    """Whether Airflow sends its metrics also under names that hold the tags."""
    from airflow.sdk.configuration import conf

    return bool(conf.getboolean("metrics", "legacy_names_on"))


def in_airflow() -> bool:
    """Whether this process runs a task of Airflow."""
    return "AIRFLOW_CTX_DAG_ID" in os.environ
