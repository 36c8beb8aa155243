"""How far long work is: who does it tells, who shows it listens; where nobody does, as in Airflow, nothing happens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int], None]
"""Hears what is counted, how many are done, and of how many; work has ended when both are equal."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within the block, `listener` hears how far the work of this thread is."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Say that `done` of `total` things are done, such as 3 of 12 `epochs`."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def counted(what: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items one by one, told as done when the next one is asked for; told as ended however the loop ends."""
    try:
        for done, item in enumerate(items):
            tell(what, done, len(items))
            yield item
    finally:
        tell(what, len(items), len(items))
