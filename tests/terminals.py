"""A terminal that a test types into and reads."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

PATIENCE = 120  # seconds; the machine may be busy
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def type_at_terminal(
    arguments: Sequence[str],
    keys: Sequence[tuple[str, str]] = (),
    columns: int = 80,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run `nightsift` at a terminal of so many `columns`; its exit code, and all that it showed, as it came.

    keys: what has to be shown first, and what is typed then, in order
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env={**kept, "TERM": "xterm-256color", **(env or {})}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown, seen, waiting, end = "", 0, list(keys), time.monotonic() + PATIENCE
    try:
        while (text := _read(ours, end)) is not None:
            shown += text
            while waiting and (found := shown.find(waiting[0][0], seen)) >= 0:
                seen = found + len(waiting[0][0])
                time.sleep(0.2)  # a key that comes before it is waited for is thrown away
                os.write(ours, waiting.pop(0)[1].encode())
        return process.wait(PATIENCE), shown.replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read(terminal: int, end: float) -> str | None:
    """What has come; None once the process has closed its side."""
    if not select.select([terminal], [], [], max(end - time.monotonic(), 0))[0]:
        raise TimeoutError("nothing came from the terminal")
    try:
        return os.read(terminal, 65536).decode(errors="replace") or None
    except OSError:
        return None
