"""How the commands print: for a person, what fits the terminal, with colour and bars on one only; for a machine, JSON.

NO_COLOR, FORCE_COLOR and TERM=dumb are heeded. What goes to no terminal is neither shortened nor wrapped.
"""

import contextlib
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.progress import heard_by
from pipeline.redaction import without_secrets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.text import Text

GAP = "  "
MANY = 20  # things from which on their number is told where there is no terminal
_drawn: "Console | None" = None  # on which bars are drawn now; what is printed meanwhile has to go through it
TOLD = {"nights", "epochs"}  # what each line that is printed anyway is about


def out() -> "Console":
    """The standard output as it is now."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def err() -> "Console":
    """The standard error as it is now."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def plain(text: object) -> str:
    """`text` without the control characters, line ends apart, that would change what a terminal shows."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in str(text))


def show(value: Any, as_json: bool, *lines: object) -> None:
    """Print `value` as JSON for a machine, or `lines` for a person."""
    if as_json:
        print(json.dumps(value, default=str, indent=1))
    else:
        for line in lines:
            (_drawn if _drawn and sys.stdout.isatty() else out()).print(plain(line))


def say(line: object, style: str = "dim") -> None:
    """Print on the standard error what long work has to tell."""
    (_drawn or err()).print(plain(line), style=style)


class LogLines(logging.Handler):
    """Prints log records on the standard error, above a bar that is drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, without secrets; the traceback of a driver's error may have one."""
        say(without_secrets(self.format(record)), style="")


def fail(sentence: str) -> None:
    """Print an error on the standard error."""
    from rich.text import Text

    err().print(Text.assemble(("error: ", "bold red"), plain(without_secrets(sentence))))


def width() -> int | None:
    """How many characters fit a line of the standard output; None where it is no terminal."""
    return out().width if sys.stdout.isatty() else None


def wrapped(label: str, text: str, indent: int, room: int | None) -> list[str]:
    """`label`, and beside it at `indent` the `text`, in lines of at most `room` characters (None: one line)."""
    head = f"{label:<{indent}}"
    if room is None:
        return [head + text]
    lines = textwrap.wrap(text, max(room - indent, 20), break_on_hyphens=False) or [""]
    return [head + lines[0], *(" " * indent + line for line in lines[1:])]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    least: width in characters down to which it is shortened where the terminal is narrow; None: never
    right: whether it is aligned to the right
    styles: the style of a cell by what stands in it
    """

    title: str
    cells: Sequence[str]
    least: int | None = None
    right: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)

    @property
    def natural(self) -> int:
        """The width of the longest of title and cells."""
        from rich.cells import cell_len

        return max(cell_len(text) for text in (self.title, *self.cells))


def fit(layouts: Sequence[Sequence[Column]], room: int | None) -> list[tuple[Column, int]]:
    """The first of `layouts` that fits into `room` (None: any), else the last one; each column with its width.

    Columns that may be shortened are, the last one first.
    """
    for columns in layouts:
        sizes = [column.natural for column in columns]
        over = 0 if room is None else sum(sizes) + len(GAP) * (len(sizes) - 1) - room
        for i, column in reversed(list(enumerate(columns))):
            spare = 0 if column.least is None else max(sizes[i] - column.least, 0)
            taken = min(max(over, 0), spare)
            sizes[i], over = sizes[i] - taken, over - taken
        if over <= 0:
            break
    return list(zip(columns, sizes, strict=True))


def print_table(layouts: Sequence[Sequence[Column]]) -> None:
    """Print the layout that fits, a line a row."""
    console, fitted = out(), fit(layouts, width())
    console.print(_line(_cell(column, column.title, size, "bold") for column, size in fitted))
    for row in range(len(fitted[0][0].cells)):
        cells = ((column, column.cells[row], size) for column, size in fitted)
        console.print(_line(_cell(column, text, size, column.styles.get(text, "")) for column, text, size in cells))


def _cell(column: Column, text: str, size: int, style: str) -> "Text":
    from rich.text import Text

    cell = Text(text, style, end="")
    cell.truncate(size, overflow="ellipsis")
    pad = cell.pad_left if column.right else cell.pad_right
    pad(size - cell.cell_len)
    return cell


def _line(cells: Iterable["Text"]) -> "Text":
    from rich.text import Text

    line = Text(GAP).join(cells)
    line.rstrip()
    return line


@contextlib.contextmanager
def working(as_json: bool = False) -> Iterator[None]:
    """Show how far the work in this block is; with `as_json`, what it prints goes to the standard error."""
    kept = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    shown = _bars() if sys.stderr.isatty() and err().is_interactive else contextlib.nullcontext(_tenths())
    with kept, shown as listener, heard_by(listener):
        yield


def _tenths() -> Callable[[str, int, int], None]:
    """A listener that prints a line with each tenth of many things."""

    def listen(what: str, done: int, total: int) -> None:
        step = max(total // 10, 1)
        if total >= MANY and what not in TOLD and 0 < done < total and done % step == 0:
            say(f"{what}: {done:,} of {total:,}")

    return listen


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A listener that draws a bar for each work that goes on, and takes it away when that has ended."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is printed meanwhile has to come out above the bar; what goes into a file or pipe has to go there.
    bars = Progress(*columns, console=err(), transient=True, redirect_stdout=sys.stdout.isatty())
    tasks: dict[str, Any] = {}

    def listen(what: str, done: int, total: int) -> None:
        if done >= total:
            if what in tasks:
                bars.remove_task(tasks.pop(what))
        elif what not in tasks and total > 1:
            tasks[what] = bars.add_task(what, total=total, completed=done)
        elif what in tasks:
            bars.update(tasks[what], completed=done, total=total)
        _draw(bars, on=bool(tasks))

    try:
        yield listen
    finally:
        _draw(bars, on=False)


def _draw(bars: "Progress", *, on: bool) -> None:
    """Begin or cease to draw the bars; they are gone then."""
    global _drawn  # noqa: PLW0603 - as there is one terminal
    if on and _drawn is None:
        bars.start()
        _drawn = bars.console
    elif not on and _drawn is not None:
        bars.stop()
        _drawn = None
