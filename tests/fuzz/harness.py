"""One case of the fuzzer: files in a folder of its own, the commands that read them, and how each of them may end.

A command runs in this process, as `nightsift` would, under a watchdog. It ends in its result, or in a sentence that
names a file; in nothing else.
"""

import contextlib
import faulthandler
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.cli import main
from pipeline.workspace import Workspace, open_workspace

NAME = "demo"
CPU_SECONDS = 30  # of one command; what takes longer on a few rows hangs
STUCK_SECONDS = 300  # by the clock: what waits for ever, or loops outside of Python, ends the process with its stack
# How an exception shows that nobody has put into words.
UNSPOKEN = re.compile(r"Traceback|this should not happen|panicked at|\b[A-Z]\w*(Error|Exception)\b|<class ")


class HangError(BaseException):
    """A command that uses the processor for ever; no handler of the product may swallow it."""


@dataclass(frozen=True, slots=True)
class End:
    """How a command ended: its exit code, and all that it has printed."""

    command: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """What a person reads."""
        return self.out + self.err


@dataclass(slots=True)
class Place:
    """Where a case happens: `datasets/demo.yaml`, and the state folder `var` with the source files."""

    root: Path
    ends: Counter[str] = field(default_factory=Counter)

    @property
    def home(self) -> Path:
        """The state folder."""
        return self.root / "var"

    @property
    def yaml(self) -> Path:
        """The dataset's YAML."""
        return self.root / "datasets" / f"{NAME}.yaml"

    def put(self, name: str, content: bytes | str) -> Path:
        """Write a file below the place's folder."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def workspace(self) -> Workspace:
        """The dataset as the product opens it."""
        return open_workspace(NAME, self.home, self.root / "datasets")

    def run(self, *command: str, names: tuple[str, ...], codes: tuple[int, ...]) -> End:
        """Run a command; `codes` are those with which it may end, `names` those of which an error names one."""
        end = run(*command, "--home", str(self.home), "--datasets", str(self.root / "datasets"))
        told = f"{end}\nnames: {names}"
        assert not UNSPOKEN.search(end.said), f"an exception without words: {told}"
        assert end.code in codes, f"an exit code that does not fit, not among {codes}: {told}"
        if end.code:
            assert any(shown(name) in shown(end.said) for name in names), f"an error that names no file: {told}"
        return end

    def json(self, *command: str, names: tuple[str, ...], codes: tuple[int, ...]) -> Any:
        """As `run`, and what the command has printed for a machine; None where it ended in an error."""
        end = self.run(*command, "--json", names=names, codes=codes)
        return json.loads(end.out) if end.code == 0 else None

    def landed(self) -> dict[str, int]:
        """The rows that `landing` holds of each source file, counted in its rows."""
        return dict(self.table("landing").group_by("source").len().iter_rows())

    def rows(self, table: str, day: str) -> int:
        """The rows that a table holds of a day, counted in its rows."""
        return self.table(table).filter(pl.col("day").cast(pl.String) == day).height

    def table(self, table: str) -> pl.DataFrame:
        """The whole of a table; no rows where it does not exist."""
        path = self.home / "lake" / NAME / table
        if not (path / "_delta_log").is_dir():
            return pl.DataFrame(schema={"day": pl.Date, "source": pl.String})
        return pl.read_delta(str(path))


@contextlib.contextmanager
def place(template: Path | None = None) -> Iterator[Place]:
    """A place of its own, a copy of `template` where one is given, that is gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        if template is not None:
            shutil.copytree(template, root, dirs_exist_ok=True)
        for name in ("datasets", "var/source"):
            (root / name).mkdir(parents=True, exist_ok=True)
        yield Place(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(*command: str) -> End:
    """Run a command in this process; raises `HangError` where it does not end, whatever it raises itself otherwise."""
    out, err = io.StringIO(), io.StringIO()
    with _watched(), _descriptor(2) as deep, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(command))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        else:
            code = 0
    return End(command, code, out.getvalue(), err.getvalue() + deep())


def shown(text: str) -> str:
    """`text` as a terminal shows it, in whatever way the bytes of a file name and line breaks are written."""
    printable = "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else " " for c in text)
    return " ".join(printable.split())


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise HangError(f"more than {CPU_SECONDS} seconds of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _descriptor(number: int) -> Iterator[Any]:
    """What is written to a descriptor past Python, as a panic of a library is: a function that gives it afterwards."""
    kept = os.dup(number)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), number)
        text: list[str] = []
        try:
            yield lambda: "".join(text)
        finally:
            os.dup2(kept, number)
            os.close(kept)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))
