"""The deadline: whether a night is done by its hour, by the tables alone, and what is missing where it is not."""

import logging
from datetime import date

from pipeline import words
from pipeline.alerts import complain, read_targets, send
from pipeline.errors import DeadlineMissedError
from pipeline.message import render
from pipeline.report import is_reported, report_file
from pipeline.score import night_digest
from pipeline.state import State, day_states, read_state, write_state
from pipeline.validate import REFUSED, input_digest
from pipeline.validate import STEP as VALIDATE
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.watch")
STEP = "deadline"


def watch(ws: Workspace, day: date) -> str:
    """That the night of `day` is done, in words.

    Where it is not, the dataset's targets are told what is missing, each once for the day, and `DeadlineMissedError`
    is raised. Raises `NightsiftError` where a target failed, after all were tried.
    """
    missing = find_missing(ws, day)
    if not missing:
        return f"{ws.dataset.name} {day} is done"
    message = words.deadline_message(ws.dataset, day, missing)
    log.warning("%s: %s", message.title, render(message))
    targets, failed = read_targets(ws.dataset, ws.dataset.notify.operators), []
    for target in targets:
        done = read_state(ws, day, STEP)
        told = done.counts["told"] if done else []
        if target.name in told:
            continue
        if why := send(target, message):
            failed.append(why)
        else:
            write_state(ws, State(day, STEP, "", "", counts={"told": sorted([*told, target.name])}))
    complain(message.title, failed, len(targets))
    raise DeadlineMissedError(f"{message.title}. {render(message)}")


def find_missing(ws: Workspace, day: date) -> str:
    """The first step of the night that is missing, in words; empty where the night is done."""
    digest, landed = night_digest(ws, day), ws.lake.landed()
    scored, found, refused, valid = (read_state(ws, day, step) for step in ("score", "incidents", REFUSED, VALIDATE))
    if found is not None and found.input_digest == digest:
        return "" if report_file(ws, day).is_file() and is_reported(day_states(ws, day)) else words.MISSING["report"]
    own = input_digest(ws, day, landed)
    if refused is not None and refused.input_digest == own:
        return words.MISSING["refused"] + "; ".join(refused.counts["reasons"])
    if scored is not None:
        return words.MISSING["incidents" if scored.input_digest == digest else "changed"]
    if valid is not None and valid.input_digest == own:
        return words.MISSING["score"]
    return words.MISSING["validate" if day in landed["day"].to_list() else "landing"]
