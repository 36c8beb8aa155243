"""Too little memory, and no GPU where one is asked for."""

import os
import resource
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from tests.faults.harness import command, left, losses, night_command, run, whole_night
from tests.figures import long, record

COUNTED = {"memory_limits": 0, "losses": 0}
MB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def _figures() -> Iterator[None]:
    began = time.monotonic()
    yield
    record(
        "memory",
        "Nights in a process that may take so few megabytes more than its imports that it fails, and the same night "
        "without the limit; a loss is what differs from an undisturbed night's.",
        dict(COUNTED),
        time.monotonic() - began,
    )


def short_of_memory(place: Path, night: date, spare: int) -> None:
    """The command line in a process that may take `spare` bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    command(place, *night_command(night), limits={resource.RLIMIT_AS: pages * resource.getpagesize() + spare})


@pytest.mark.parametrize("spare", [20, 200, 400, 600, 800, 1000, 1200, 1500] if long() else [30])
def test_a_night_without_enough_memory_fails_and_the_next_has_all(stage, spare):
    """It is ended by a library that cannot go on, or says so; wherever that was, nothing is lost or half-written."""
    stage.begin()
    ended = run(short_of_memory, stage.place, stage.night, spare * MB)
    said = [line for line in ended.said.splitlines() if line.startswith("Traceback")]
    assert not said, ended.said
    lost = [*stage.torn(), *stage.mended()]
    COUNTED["memory_limits"] += ended.code != 0
    COUNTED["losses"] += len(lost)
    assert not lost, "\n".join(lost)
    assert ended.code != 0 or spare > 30, "that is enough memory"


def without_gpu(place: Path, night: date, visible: str) -> tuple[object, str]:
    """A night in a process to which the variable shows these GPUs, and what it says that networks run on."""
    from models.devices import find_devices

    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    return whole_night(place, night), str(find_devices())


@pytest.mark.parametrize("visible", ["", "nonsense"] if long() else [""])
def test_a_night_without_a_gpu_is_the_same_on_the_cpu(stage, visible):
    """And it is said that networks run on the CPU."""
    stage.begin()
    ended = run(without_gpu, stage.place, stage.night, visible)
    assert ended.code == 0, ended.said
    said, devices = ended.value
    assert devices == "cpu"
    assert losses(left(stage.workspace, said), stage.expected) == []
