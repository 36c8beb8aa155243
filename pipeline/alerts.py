"""Messages to whom a dataset names, and the message that a run of its DAGs has failed.

Targets are Apprise URLs in environment variables. They hold secrets, so that no message, log line or error of ours
shows one: a target is named by its variable. What Airflow calls when a run fails is called in its DAG processor, so
that nothing heavy is imported here.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Dataset, Route, load_dataset
from pipeline.errors import ConfigError, NightsiftError
from pipeline.message import Form, Message, fit, render
from pipeline.redaction import without_secrets

if TYPE_CHECKING:
    from apprise import Apprise
    from apprise.plugins import NotifyBase

log = logging.getLogger("nightsift.alerts")
ERROR = "error"  # the key under which a task that failed for good leaves its error
MOST = 2000  # characters of an error that are told
TITLE = 20  # characters that a service may add to a title
UNKNOWN = "not a URL that Apprise knows"
MARKDOWN_ANYWAY = {"Mattermost", "Zulip"}  # services that show text as Markdown, which Apprise does not know


@dataclass(frozen=True, slots=True)
class Target:
    """An Apprise URL, never shown; the name under which it may be spoken of, its environment variable; what it is told.

    The URL is empty where the variable is not set.
    """

    name: str
    url: str = field(repr=False)
    route: Route


def list_targets(routes: Sequence[Route]) -> Iterator[Target]:
    """Whom the routes name; a variable may hold several URLs, separated by spaces or commas.

    The first has the variable's name, however many follow: what a target was told is remembered by its name.
    """
    from apprise.utils.parse import parse_urls

    for route in routes:
        for name in route.urls_env:
            urls = parse_urls(os.environ.get(name, "")) or [""]
            for i, url in enumerate(urls, 1):
                yield Target(name if i == 1 else f"{name} ({i})", url, route)


def read_targets(dataset: Dataset, routes: Sequence[Route]) -> list[Target]:
    """Whom the routes of the dataset name.

    Raises `ConfigError` that names the variable, never what it holds, where one is not set.
    """
    targets = list(list_targets(routes))
    for target in targets:
        if not target.url:
            raise ConfigError(f"{missing_variable(dataset, target)}; set it, or take it out of the YAML")
    return targets


def missing_variable(dataset: Dataset, target: Target) -> str:
    """What is amiss with a target that has no URL."""
    where = "notify.urls_env" if target.name in dataset.notify.urls_env else "notify.routes"
    return (
        f"{dataset.name}.yaml: {where} names {target.name}, but this environment variable is not set or holds no "
        f"Apprise URL"
    )


def send(target: Target, message: Message) -> str:
    """Send one message; empty where the target took it, else its name and what went wrong, without its URL."""
    with _apart("apprise") as said, _apart("urllib3"):
        opened = _open(target)
        if opened is None:
            return f"{target.name}: {UNKNOWN}"
        sender, service = opened
        form, body = _compose(service, message)
        if sender.notify(body, title=message.title, body_format=form):
            return ""
    status = re.search(r"error=(\d{3})", "\n".join(said))
    return f"{target.name}: {f'the server answered {status[1]}' if status else 'it could not be reached, or refused'}"


def compose(target: Target, message: Message) -> tuple[Form, str, str]:
    """In which form the target takes `message`, its body, and what is amiss: then it is as plain text."""
    with _apart("apprise"):
        opened = _open(target)
        return ("text", render(message), UNKNOWN) if opened is None else (*_compose(opened[1], message), "")


def _open(target: Target) -> "tuple[Apprise, NotifyBase] | None":
    import apprise

    sender = apprise.Apprise()
    service = next(sender.find(), None) if target.url and sender.add(target.url) else None
    if service is None:
        return None
    if service.overflow_mode is apprise.OverflowMode.UPSTREAM:  # of a body that is too long after all nothing is lost
        service.overflow_mode = apprise.OverflowMode.SPLIT
    return sender, service


def _compose(service: "NotifyBase", message: Message) -> tuple[Form, str]:
    """The message in the form that the service shows best, and no longer than it takes."""
    room = service.body_maxlen - len(message.title) - TITLE  # some put the title into the body
    lines = service.body_max_line_count or room
    form = _form(service)
    return form, fit(message, form, lambda body: len(body) <= room and body.count("\n") < lines)


def _form(service: "NotifyBase") -> Form:
    """Markdown for chats, HTML for mail, and plain text for the rest, which includes what passes on any of them.

    A `?format=` in the URL decides before that.
    """
    from apprise import NotifyFormat

    takes = {form for form in NotifyFormat if service.resolve_format(form) is form}
    if takes == set(NotifyFormat):
        return service.resolve_format().value
    if NotifyFormat.MARKDOWN in takes or service.service_name in MARKDOWN_ANYWAY:
        return "markdown"
    return "html" if NotifyFormat.HTML in takes else "text"


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
        kept = {"sentence": _sentence(error), "told": getattr(error, "told", False)}
        context["ti"].xcom_push(ERROR, kept)


def _sentence(error: BaseException) -> str:
    """The error's message, without secrets; with its type where it is not one of ours, which are sentences."""
    text = without_secrets(str(error)).strip() or "no message"
    return (text if isinstance(error, NightsiftError) else f"{type(error).__name__}: {text}")[:MOST]


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
    message = failure_message(
        dataset=name,
        dag=context["dag"].dag_id,
        run=str(context.get("run_id", "")),
        task=_task_label(ti),
        reason=str(context.get("reason") or ""),
        error=kept.get("sentence", ""),
        log=str(getattr(ti, "log_url", "") or ""),
    )
    targets = read_targets(dataset, dataset.notify.operators)
    complain(message.title, [why for target in targets if (why := send(target, message))], len(targets))


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
