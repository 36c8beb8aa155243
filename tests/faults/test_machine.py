"""Too little memory, and no GPU where one is asked for."""

import os
import resource
from datetime import date
from pathlib import Path

import pytest

from pipeline.workspace import LEAST, MB
from tests.faults.harness import command, left, losses, night_command, run, whole_night
from tests.figures import long, recorded

COUNTED = {"memory_limits": 0, "losses": 0}

_figures = recorded(
    "memory",
    "Nights in a process that may take so few megabytes more than its imports that it fails, and the same night "
    "without the limit; a loss is what differs from an undisturbed night's.",
    lambda: COUNTED,
)


def short_of_memory(place: Path, night: date, spare: int) -> None:
    """The command line in a process that may take `spare` bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    command(place, *night_command(night), limits={resource.RLIMIT_AS: pages * resource.getpagesize() + spare})


@pytest.mark.parametrize("spare", [20, 200, 400, 600, 800, 1000, 1200, 1500] if long() else [30, 700])
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
    assert ended.code == 1 or spare * MB >= LEAST, ended.said


def promised_gpu(place: Path, night: date, visible: str) -> object:
    """A night in a task of Airflow whose variables promise GPUs, of which `visible` are none that there are."""
    os.environ |= {
        "AIRFLOW_CTX_DAG_ID": "nightsift_demo", "CUDA_VISIBLE_DEVICES": visible, "NVIDIA_VISIBLE_DEVICES": "all",
        "TF_FORCE_GPU_ALLOW_GROWTH": "nonsense", "TF_GPU_ALLOCATOR": "nonsense",
    }  # fmt: skip
    return whole_night(place, night)


@pytest.mark.parametrize("visible", ["99", "nonsense", ""] if long() else ["99"])
def test_a_worker_that_is_promised_a_gpu_that_is_not_there_scores_on_the_cpu(stage, visible):
    """The night ends well, with the same tables, and a warning says what its networks run on."""
    stage.begin()
    ended = run(promised_gpu, stage.place, stage.night, visible)
    assert ended.code == 0, ended.said
    assert "demo: TensorFlow sees no GPU, networks run on the CPU; nightsift doctor says more" in ended.said
    assert losses(left(stage.workspace, ended.value), stage.expected) == []
