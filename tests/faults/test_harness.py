"""The harness of the faults itself: a process that hangs is ended and told of, and what a process prints is kept."""

import os
import resource
import time
from pathlib import Path

import pytest

from tests.faults.harness import run, start


def hang(told: Path) -> None:
    """Say so, and never end."""
    told.write_text(str(os.getpid()))
    print("waiting for what never comes", flush=True)
    time.sleep(3600)


def test_a_process_that_hangs_is_killed_and_what_it_said_is_told(tmp_path):
    """The number of the process is free again: nothing is left running."""
    running, told = start(hang, tmp_path / "number"), tmp_path / "number"
    while not (told.exists() and told.read_text()):
        time.sleep(0.01)
    with pytest.raises(AssertionError, match=r"nothing was told for 0.5 seconds: waiting for what never comes"):
        running.wait(0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


def print_much() -> None:
    """Print more than a pipe holds where no file may grow, and fail."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    print("x" * 1_000_000)
    raise SystemExit(3)


def test_what_a_process_prints_is_kept_where_no_file_may_grow():
    """With its exit code."""
    ended = run(print_much)
    assert (ended.code, ended.said.strip()) == (3, "x" * 1_000_000)
