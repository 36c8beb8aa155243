"""Messages to whom a dataset names, and the message that a run of its DAGs has failed.

Targets are Apprise URLs in environment variables. They hold secrets, so that no message, log line or error of ours
shows one: a target is named by its variable. What Airflow calls when a run fails is called in its DAG processor, so
that nothing heavy is imported here.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Dataset, load_dataset
from pipeline.errors import ConfigError, NightsiftError

log = logging.getLogger("nightsift.alerts")
ERROR = "error"  # the key under which a task that failed for good leaves its error
MOST = 2000  # characters of an error that are told


@dataclass(frozen=True, slots=True)
class Target:
    """An Apprise URL, never shown, and the name under which it may be spoken of: its environment variable."""

    name: str
    url: str = field(repr=False)


def read_targets(dataset: Dataset) -> Iterator[Target]:
    """The URLs in the variables that the dataset names; a variable may hold several, separated by spaces or commas.

    Raises `ConfigError` that names the variable, never what it holds, where one is not set.
    """
    from apprise.utils.parse import parse_urls

    for name in dataset.notify.urls_env:
        urls = parse_urls(os.environ.get(name, ""))
        if not urls:
            raise ConfigError(
                f"{dataset.name}.yaml: notify.urls_env names {name}, but this environment variable is not set or holds "
                f"no Apprise URL; set it, or take it out of the YAML"
            )
        yield from (
            Target(name if len(urls) == 1 else f"{name} ({i} of {len(urls)})", url) for i, url in enumerate(urls, 1)
        )


def send(target: Target, title: str, body: str) -> str:
    """Send one message; empty where the target took it, else its name and what went wrong, without its URL."""
    import apprise

    with _apart("apprise") as said, _apart("urllib3"):
        sender = apprise.Apprise()
        if not sender.add(target.url):
            return f"{target.name}: not a URL that Apprise knows"
        if sender.notify(body, title=title, body_format=apprise.NotifyFormat.TEXT):
            return ""
    status = re.search(r"error=(\d{3})", "\n".join(said))
    return f"{target.name}: {f'the server answered {status[1]}' if status else 'it could not be reached, or refused'}"


def complain(what: str, failed: list[str], targets: int) -> None:
    """Raise `NightsiftError` where targets failed."""
    if failed:
        raise NightsiftError(
            f"{what}: {len(failed)} of {targets} notifications failed: {'; '.join(failed)}. "
            f"Mend the address in the variable or the service behind it, then run this step again"
        )


@contextmanager
def _apart(name: str) -> Iterator[list[str]]:
    """What the logger `name` says meanwhile, kept from every log: it may hold parts of a URL."""
    logger, said = logging.getLogger(name), []
    before = logger.handlers, logger.propagate
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign] # a handler of one line
    logger.handlers, logger.propagate = [handler], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = before


# --- a run that failed


def keep_error(context: Mapping[str, Any]) -> None:
    """Leave the error of a task that failed for good where `tell_failure` finds it; called in the task's process.

    A task whose process was killed has no say, and leaves nothing.
    """
    error = context.get("exception")
    if isinstance(error, BaseException):
        kept = {"sentence": without_secrets(_sentence(error)), "told": getattr(error, "told", False)}
        context["ti"].xcom_push(ERROR, kept)


def _sentence(error: BaseException) -> str:
    """The error's message; with its type where it is not one of ours, which are sentences."""
    text = str(error).strip() or "no message"
    return (text if isinstance(error, NightsiftError) else f"{type(error).__name__}: {text}")[:MOST]


def without_secrets(text: str) -> str:
    """`text` without users and passwords of addresses."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", text)


def tell_failure(name: str, datasets: Path, context: Mapping[str, Any]) -> None:
    """Tell the targets of a dataset in one message that a run has failed, and why, as far as is known.

    The dataset is `name`, or where that is empty the one that the form of the run names.

    Airflow calls it once for each run that failed: whatever number of tasks, tries and shards were behind it, and
    also where a worker was killed or the run took too long. Raises `NightsiftError` where a target failed.
    """
    from pipeline.words import failure_message

    name = name or str((context.get("params") or {}).get("dataset", ""))
    if not name:
        return
    dataset, ti = load_dataset(name, datasets), context.get("ti")
    kept = _kept_error(ti)
    if kept.get("told"):
        return
    title, body = failure_message(
        dataset=name,
        dag=context["dag"].dag_id,
        run=str(context.get("run_id", "")),
        task=_task_label(ti),
        reason=str(context.get("reason") or ""),
        error=kept.get("sentence", ""),
        log=str(getattr(ti, "log_url", "") or ""),
    )
    targets = list(read_targets(dataset))
    complain(title, [why for target in targets if (why := send(target, title, body))], len(targets))


def _task_label(ti: Any) -> str:
    if ti is None:
        return ""
    index = getattr(ti, "map_index", -1)
    return str(ti.task_id) if index is None or index < 0 else f"{ti.task_id}[{index}]"


def _kept_error(ti: Any) -> dict[str, Any]:
    """What `keep_error` left of the task; nothing where it could not, or where it cannot be read."""
    if ti is None:
        return {}
    with suppress(Exception):  # a message without the error is better than none
        kept = ti.xcom_pull(task_ids=ti.task_id, key=ERROR, map_indexes=ti.map_index)
        return kept if isinstance(kept, dict) else {}
    return {}
