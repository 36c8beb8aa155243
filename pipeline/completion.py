"""What the shell offers while a command is typed; nothing where that cannot be found out, as no error may show then."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from pipeline.config import NAME, dataset_names

if TYPE_CHECKING:
    from pipeline.workspace import Workspace

Offer = list[tuple[str, str]]
"""Each word that can stand here, with a few words of help."""
MOST = 200  # incidents that are offered
_UNSAFE = re.compile(r"[^\w .-]")  # zsh evaluates what it is offered, and entities are called as the data pleases


def _quietly(offer: Callable[[typer.Context], Offer]) -> Callable[[typer.Context, str], Offer]:
    def complete(ctx: typer.Context, incomplete: str) -> Offer:
        try:
            return [(word, _UNSAFE.sub("?", told)) for word, told in offer(ctx) if word.startswith(incomplete)]
        except Exception:  # noqa: BLE001 - whatever is wrong, the command itself will say it
            return []

    complete.__doc__ = offer.__doc__  # not all that `functools.wraps` takes over: typer reads the signature
    return complete


def _place(ctx: typer.Context, option: str) -> Any:
    """The folder that `option` names, if it was typed already."""
    given = ctx.params.get(option)
    return given.expanduser() if given else None


def _opened(ctx: typer.Context) -> "Workspace":
    from pipeline.workspace import open_workspace

    # Where the word to complete is an option's value, what stands before it is not parsed into arguments.
    name = ctx.params.get("name") or ctx.args[0]
    return open_workspace(name, _place(ctx, "home"), _place(ctx, "datasets"))


@_quietly
def datasets(ctx: typer.Context) -> Offer:
    """The names of the datasets, from the folder alone."""
    return [(name, "") for name in dataset_names(_place(ctx, "datasets")) if re.match(NAME, name)]


@_quietly
def days(ctx: typer.Context) -> Offer:
    """The days whose night is done, the latest first, with how many incidents each has."""
    import json

    from pipeline.state import states

    done = states(_opened(ctx), "incidents").sort("day", descending=True).select("day", "counts")
    return [(str(day), f"{json.loads(counts).get('incidents', 0)} incidents") for day, counts in done.iter_rows()]


@_quietly
def incidents(ctx: typer.Context) -> Offer:
    """The latest incidents, with entity and beginning."""
    from pipeline.tables import incidents_schema
    from pipeline.words import who

    ws = _opened(ctx)
    rows = ws.lake.scan("incidents", incidents_schema()).select("day", "incident_id", "entity", "start")
    latest = rows.sort("day", "start", descending=True).head(MOST).collect().unique("incident_id", maintain_order=True)
    return [
        (row["incident_id"], f"{who(row)} {row['start'].astimezone(ws.dataset.tz):%Y-%m-%d %H.%M}")
        for row in latest.iter_rows(named=True)
    ]


@_quietly
def verdicts(_: typer.Context) -> Offer:
    """What can be said of an incident."""
    return [("confirmed", "it was real"), ("dismissed", "it was nothing"), ("withdrawn", "open again")]


@_quietly
def detectors(_: typer.Context) -> Offer:
    """The names under which MLflow knows detectors; their numbers would take too long to ask for."""
    return [("champion", "the one that scores"), ("challenger", "the latest that was trained")]


@_quietly
def simulators(_: typer.Context) -> Offer:
    """What can be simulated."""
    return [("pumps", "readings, one a minute"), ("cards", "payments")]
