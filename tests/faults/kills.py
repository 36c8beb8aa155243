"""SIGKILL at a chosen place of a night: at a point that it passes, or some time after a step began."""

import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tests.faults.harness import Running, tell

STEPS = ("ingest", "plan_shards", "score_shard", "publish", "find_incidents", "write_report", "log_night")


@dataclass(frozen=True, slots=True)
class Kill:
    """Where a process dies: at the point number `point`, or `seconds` after the step `step` began."""

    point: int = 0
    step: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.step}+{self.seconds:.3f}" if self.step else f"{self.point}"

    @classmethod
    def read(cls, text: str) -> "Kill":
        """What `str` gave."""
        step, plus, seconds = text.partition("+")
        return cls(step=step, seconds=float(seconds)) if plus else cls(point=int(text))

    def watch(self, running: Running) -> None:
        """Kill the process in time, where it does not do so itself."""
        while self.step and (heard := running.heard()) is not None:
            if heard == self.step:
                time.sleep(self.seconds)
                running.kill()
                return


@dataclass(frozen=True, slots=True)
class Walked:
    """What an undisturbed process passed: the names of all points in order, and how long each step took in all."""

    value: Any
    points: list[str]
    seconds: dict[str, float]


class Points:
    """The points that this process passes, at one of which, `last`, it dies."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.passed: list[str] = []
        self.seconds: dict[str, float] = {}

    def reach(self, name: str) -> None:
        """Pass a point, or die there."""
        self.passed.append(name)
        if len(self.passed) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        """Make the beginning and the end of a function points, named by it and the first text that it is given."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def hooked(*arguments: Any, **options: Any) -> Any:
            of = next((f" {given}" for given in arguments if isinstance(given, str)), "")
            if name in STEPS:
                tell(name)
            began = time.monotonic()
            self.reach(f"before {name}{of}")
            result = inner(*arguments, **options)
            self.reach(f"after {name}{of}")
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            return result

        setattr(owner, name, hooked)


def walk(work: Callable[[Path, date], Any], place: Path, night: date, last: int = 0) -> Walked:
    """Run `work`, and die at the point number `last`; 0: nowhere."""
    import mlflow
    from sqlalchemy import Engine, event

    import pipeline.ingest
    import pipeline.lake
    import pipeline.night
    import tests.faults.harness
    from pipeline.lake import Lake

    points = Points(last)
    for name in STEPS:
        points.around(pipeline.night, name)
    for caller in (tests.faults.harness, pipeline.ingest):
        points.around(caller, "ingest")
    for name in ("_commit", "stage", "unstage"):
        points.around(Lake, name)
    points.around(pipeline.lake, "write_deltalake")
    for name in ("replace", "rename"):
        points.around(Path, name)
    for name in ("create_run", "log_batch", "log_inputs", "set_terminated"):
        points.around(mlflow.MlflowClient, name)
    points.around(mlflow, "log_artifacts")
    event.listen(Engine, "commit", lambda _: points.reach("before SQL commit"))
    value = work(place, night)
    return Walked(value, points.passed, points.seconds)
