"""Step 2 of the night: judge a day's landing rows; the valid ones go to `clean`, the others to `quarantine`.

In this order: rows that could not be read go to quarantine, repeated rows are left out (the last one stays), and the
rest is judged by the dataset's Great Expectations suite. Every row of `landing` is counted exactly once, as clean,
quarantined or duplicate, and the order in which rows arrived changes nothing.

A day of more than `PART` rows is judged in parts of neighbouring entities, which are held on a local disk: what is kept
and said of it is the same.
"""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import polars as pl

from pipeline.data_docs import Summary, page_file, page_outcome, write_docs
from pipeline.errors import GateRefusedError, NightsiftError
from pipeline.judge import Judged, judge, sort_out
from pipeline.judge_parts import judge_in_parts
from pipeline.parts import scratch
from pipeline.state import State, read_state, write_state
from pipeline.suites import load_suite, suite_digest
from pipeline.tables import landing_schema
from pipeline.workspace import Workspace

STEP = "validate"
REFUSED = "refused"
PART = 1 << 20  # rows that are judged at once


@dataclass(frozen=True, slots=True)
class Validated:
    """What became of a day's rows: rows_in = rows_clean + rows_quarantined + rows_duplicate.

    `day` is an ISO date, `docs` the path of the page that shows how the day was judged ("" where nothing was judged),
    `skipped` tells that nothing had changed since the last time, so that nothing was done.
    """

    day: str
    rows_in: int
    rows_clean: int
    rows_quarantined: int
    rows_duplicate: int
    warnings: list[str]
    docs: str
    skipped: bool


def validate(ws: Workspace, day: date, *, force: bool = False) -> Validated:
    """Judge `day` and replace its rows in `clean` and `quarantine`; where nothing changed, only by `force`.

    Raises `GateRefusedError` where a critical expectation is not met: the day's tables then stay as they were. Raises
    `ConfigError` where the suite cannot be read or applied.
    """
    suite = load_suite(ws.dataset)
    # All is read of one version: rows that land in between make the next run judge the day again.
    version = ws.lake.version("landing")
    landed = ws.lake.landed(version=version)
    state = State(day, STEP, input_digest(ws, day, landed), ws.dataset.digest())
    done = read_state(ws, day, STEP)
    if done is not None and state.same_work(done) and not force and _page_outcome(ws, day) != REFUSED:
        return _validated(ws, day, done.counts, skipped=True)
    landing = ws.lake.scan("landing", landing_schema(ws.dataset), day, day, version)
    files = landed.filter(pl.col("day") == day)
    with ExitStack() as until_kept:
        if files["rows"].sum() <= PART:
            judged = judge(sort_out(landing.collect(), ws.dataset), suite, ws.dataset)
        else:
            folder = until_kept.enter_context(scratch(ws, f"{STEP}-{day}"))
            judged = judge_in_parts(landing, files, suite, ws.dataset, folder, PART)
        return _keep(ws, state, int(files["rows"].sum()), judged)


def input_digest(ws: Workspace, day: date, landed: pl.DataFrame | None = None) -> str:
    """32 hex digits of what `day` is made from: its source files' digests and the suite; no row is read.

    `landed` is `ws.lake.landed()`, for callers that ask for many days.
    """
    landed = ws.lake.landed() if landed is None else landed
    files = landed.filter(pl.col("day") == day).select("source", "source_digest").unique()
    text = json.dumps([sorted(files.rows()), suite_digest(ws.dataset)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _refusal(ws: Workspace, day: date, refusals: tuple[str, ...]) -> str:
    page = page_file(ws.home.data_docs, ws.dataset.name, day)
    listed = "\n".join(f"  - {refusal}" for refusal in refusals)
    return (f"{ws.dataset.name} {day}: the data gate refused this day, and its tables stay as they were:\n{listed}\n"
            f"Mend the source and ingest it again, or change the suite. Details: {page}")  # fmt: skip


# --- what is kept


def _keep(ws: Workspace, state: State, rows_in: int, judged: Judged) -> Validated:
    """Write the page, the tables and the record of a day; raises what `validate` does."""
    day = state.day
    counts = _counts(rows_in, judged)
    _write_docs(ws, day, counts, judged)
    if judged.refusals:
        write_state(ws, replace(state, step=REFUSED, counts={"reasons": list(judged.refusals)}))
        raise GateRefusedError(_refusal(ws, day, judged.refusals))
    suite = suite_digest(ws.dataset)
    held = {
        "rows_quarantined": ws.lake.replace("quarantine", day, judged.quarantine, step=STEP, suite=suite),
        "rows_clean": ws.lake.replace("clean", day, judged.clean, step=STEP, suite=suite),
    }
    if any(counts[name] != rows for name, rows in held.items()):
        raise NightsiftError(
            f"{ws.dataset.name} {day}: the tables do not hold what was validated ({held} of {counts}); run it again"
        )
    write_state(ws, replace(state, counts=counts))
    return _validated(ws, day, counts, skipped=False)


def _counts(rows_in: int, judged: Judged) -> dict[str, Any]:
    """The counts of `Validated`; raises `NightsiftError` where a row was lost or made."""
    if rows_in != sum(judged.counts.values()):
        counts = {"rows_in": rows_in} | judged.counts
        raise NightsiftError(f"validation lost or made rows, so that nothing was written: {counts}")
    return {"rows_in": rows_in} | judged.counts | {"warnings": list(judged.warnings)}


def _write_docs(ws: Workspace, day: date, counts: dict[str, Any], judged: Judged) -> None:
    rows = {"rows": "rows_in", "clean": "rows_clean", "quarantined": "rows_quarantined", "duplicate": "rows_duplicate"}
    shown = {name: counts[key] for name, key in rows.items()}
    outcome = REFUSED if judged.refusals else "passed" if counts["rows_in"] else "no rows"
    summary = Summary(ws.dataset.name, day, outcome, shown, judged.refusals, judged.warnings)
    write_docs(ws.home.data_docs, summary, judged.result)


def _page_outcome(ws: Workspace, day: date) -> str:
    """What the day's page says: a page that says refused, of input that has since been put back, is out of date."""
    return page_outcome(page_file(ws.home.data_docs, ws.dataset.name, day))


def _validated(ws: Workspace, day: date, counts: dict[str, Any], *, skipped: bool) -> Validated:
    page = page_file(ws.home.data_docs, ws.dataset.name, day)
    return Validated(day=str(day), docs=str(page) if page.is_file() else "", skipped=skipped, **counts)
