"""What each step of the night has done with each day: the `partitions` table. It holds no clock."""

import json
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import polars as pl

from pipeline.lake import quote
from pipeline.tables import partitions_schema
from pipeline.workspace import Workspace

LATELY = timedelta(days=31)  # before the newest record; in these days the newest one of a step is looked for first


@dataclass(frozen=True, slots=True)
class State:
    """What `step` made of `day`, and of what: digests of its input and of the configuration, and what it counted.

    `counts` must be able to stand in JSON. `detector_version` is None for steps that use no detector.
    """

    day: date
    step: str
    input_digest: str
    config_digest: str
    detector_version: str | None = None
    counts: dict[str, Any] = field(default_factory=dict)

    def same_work(self, other: "State | None") -> bool:
        """Whether `other` was made of the same input, configuration and detector."""
        return other is not None and self._made_of() == other._made_of()

    def _made_of(self) -> tuple[str | None, ...]:
        return self.step, str(self.day), self.input_digest, self.config_digest, self.detector_version


def read_state(ws: Workspace, day: date, step: str) -> State | None:
    """What `step` recorded for `day`; None where it never finished."""
    rows = ws.lake.scan("partitions", partitions_schema(), day, day).filter(pl.col("step") == step).collect()
    return state_of(rows.row(0, named=True)) if rows.height else None


def day_states(ws: Workspace, day: date) -> dict[str, State]:
    """What every step recorded for `day`, by step."""
    rows = ws.lake.scan("partitions", partitions_schema(), day, day).collect()
    return {row["step"]: state_of(row) for row in rows.iter_rows(named=True)}


def write_state(ws: Workspace, state: State) -> None:
    """Record `state` in place of what its step recorded for its day before."""
    row = {
        "day": state.day,
        "step": state.step,
        "input_digest": state.input_digest,
        "config_digest": state.config_digest,
        "detector_version": state.detector_version,
        "counts": json.dumps(state.counts, sort_keys=True),
    }
    frame = pl.DataFrame([row], schema=partitions_schema())
    ws.lake.replace("partitions", state.day, frame, where=f"step = {quote(state.step)}", step=state.step)


def states(ws: Workspace, step: str | None = None, first: date | None = None, last: date | None = None) -> pl.DataFrame:
    """The records of the days from `first` to `last`, of one step or of all, sorted by day and step.

    Both ends are included; None: no bound, which reads a file for each day that there ever was.
    """
    rows = ws.lake.scan("partitions", partitions_schema(), first, last)
    if step is not None:
        rows = rows.filter(pl.col("step") == step)
    return rows.sort("day", "step").collect()


def state_of(row: dict[str, Any]) -> State:
    """A record as `states` has it, by name."""
    return State(**{**row, "counts": json.loads(row["counts"])})


def newest_day(ws: Workspace, step: str) -> date | None:
    """The newest day that `step` has done as a whole; None where it never did any."""
    latest = ws.lake.newest("partitions")
    if latest is None:
        return None
    lately = states(ws, step, latest - LATELY)["day"]
    newest = (lately if len(lately) else states(ws, step)["day"]).max()
    return newest if isinstance(newest, date) else None
