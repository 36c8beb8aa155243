"""The last step of the night: one log line always, and a message to whoever the dataset names, if there is an incident.

Targets are Apprise URLs in environment variables. They hold secrets, so that no message, log line or error of ours
shows one: a target is named by its variable.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import polars as pl

from pipeline import words
from pipeline.config import Dataset
from pipeline.errors import ConfigError, NightsiftError
from pipeline.report import report_file
from pipeline.state import State, read_state, write_state
from pipeline.tables import incidents_schema
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.notify")
TOP = 5


@dataclass(frozen=True, slots=True)
class Notified:
    """What was said of `day` (ISO), about how many incidents; how many targets took it, and the names of the others."""

    day: str
    incidents: int
    message: str
    sent: int
    failed: list[str]


@dataclass(frozen=True, slots=True)
class Target:
    """An Apprise URL, never shown, and the name under which it may be spoken of: its environment variable."""

    name: str
    url: str = field(repr=False)


def notify(ws: Workspace, day: date) -> Notified:
    """Log the night in one line; tell every target of its incidents, where there are any and they were not told before.

    Raises `ConfigError` where a variable of `notify.urls_env` is not set, before anything is sent, and `NightsiftError`
    where the incidents were not looked for yet, or where a target failed, after all were tried.
    """
    if read_state(ws, day, "incidents") is None:
        raise NightsiftError(
            f"{ws.dataset.name} {day}: its incidents were not looked for yet, so there is nothing to tell"
        )
    incidents = ws.lake.scan("incidents", incidents_schema(), day, day).collect()
    log.info("%s", words.summary_line(ws.dataset, day, incidents))
    targets = list(read_targets(ws.dataset))
    title, body = build_message(ws.dataset, day, incidents, report_file(ws, day))
    digest = hashlib.blake2b(f"{title}\n{body}".encode(), digest_size=16).hexdigest()
    telling = State(day, "notify", digest, ws.dataset.digest(), counts={"incidents": len(incidents)})
    news = len(incidents) > 0 and not telling.same_work(read_state(ws, day, "notify"))
    failed = [why for t in targets if (why := send(t, title, body))] if news else []
    if failed:
        raise NightsiftError(
            f"{ws.dataset.name} {day}: {len(failed)} of {len(targets)} notifications failed: {'; '.join(failed)}. "
            f"Mend the address in the variable or the service behind it, then run this step again"
        )
    if news and targets:
        write_state(ws, telling)
    return Notified(str(day), len(incidents), f"{title}\n{body}", len(targets) if news else 0, failed)


def build_message(dataset: Dataset, day: date, incidents: pl.DataFrame, report: Path | None = None) -> tuple[str, str]:
    """Title and body in plain text: the most severe incidents, one a line, then where the report is; pure."""
    found = words.ranked(incidents)
    lines = []
    for incident in found.head(TOP).iter_rows(named=True):
        line = f"- {words.incident_line(incident, dataset, day)}"
        if incident["severity"] is not None:
            line += f"; {incident['severity']:,.3g} × the threshold; {words.rarity(incident['p_value'])}"
        lines.append(line)
    if len(found) > TOP:
        lines.append(f"and {len(found) - TOP:,} more")
    if not lines:
        lines.append(words.summary_line(dataset, day, incidents))
    if report is not None:
        lines.append(f"Report: {report}")
    return f"{dataset.name}: {words.count(len(found), 'incident')} on {day}", "\n".join(lines)


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
