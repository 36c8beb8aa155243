"""Whether the detector needs training: what the latest nights say of it, from the tables alone.

The same tables give the same answer, whenever and however often they are asked. A cause is told once: not again before
a new detector was trained, and then not before as many nights have passed as it takes to tell.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl

from pipeline import tracking
from pipeline.review import confirmed, latest_verdicts
from pipeline.score import DRIFTED
from pipeline.state import State, read_state, state_of, states, write_state
from pipeline.tables import drifts_schema, incidents_schema, scores_schema
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.drift")

NIGHTS = 7  # in a row that scores and features are told from; all after the training of the newest detector
LATELY = 28  # nights whose verdicts count, likewise
SHIFT = 0.25  # population stability index, from which a distribution is by custom called another one
BINS = 10
STEPS = 1000  # scored ones, below which a distribution is not told
NIGHT_STEPS = 200  # likewise of one night, whose number starts no training; by chance as many hardly reach 0.15
MOVED = 0.25  # of the entities
DISMISSED = 0.5  # of the incidents that analysts have judged,
JUDGED = 5  # of which there have to be as many


@dataclass(frozen=True, slots=True)
class Drift:
    """What speaks for training on `day`: a sentence by cause; `told` are those causes that were told before.

    trained: label of the newest detector that was trained; None where there is none
    """

    day: str
    trained: str | None
    reasons: Mapping[str, str]
    told: tuple[str, ...] = ()

    @property
    def news(self) -> list[str]:
        """The reasons that were not told before."""
        return [reason for cause, reason in self.reasons.items() if cause not in self.told]


def note_drift(ws: Workspace, day: date) -> list[str]:
    """The reasons to train that `day` is the first to tell, in sentences; they are kept, so that it stays the first.

    What the night has told of the same detector before stays told, also where it would not be told any more.
    """
    drift, scored = find_drift(ws, day), read_state(ws, day, "score")
    if scored is None:
        return []
    known = read_state(ws, day, "drift")
    told = known.counts["causes"] if known is not None and known.detector_version == drift.trained else []
    counts = {"causes": sorted({*told, *drift.reasons})}
    write_state(ws, State(day, "drift", scored.input_digest, scored.config_digest, drift.trained, counts))
    for reason in drift.news:
        log.info("%s: %s", ws.dataset.name, reason)
    return drift.news


def find_drift(ws: Workspace, day: date) -> Drift:
    """What the nights up to `day` say; no reasons where a later night is scored, or too few since the last training."""
    champion, newest = tracking.current(ws), tracking.newest_trained(ws)
    if champion is None or newest is None:
        return Drift(str(day), None, {})
    trained = newest.tags["label"]
    since = ws.dataset.day_of(datetime.fromisoformat(newest.tags["data_window"].split(" to ")[1]))
    recorded = states(ws, "score", since)
    ours = recorded.filter(pl.col("detector_version").is_in(sorted(tracking.siblings(ws, champion.label)[1])))
    nights: list[date] = ours.filter(pl.col("day") <= day)["day"].to_list()[-NIGHTS:]
    if len(nights) < NIGHTS or nights[-1] != day or recorded["day"].max() != day:
        return Drift(str(day), trained, {})
    found = {
        "scores": _scores(ws, nights),
        "features": _features(ws, nights),
        "dismissed": _dismissed(ws, max(since, day - timedelta(days=LATELY - 1)), day),
    }
    reasons = {cause: f"{reason}." for cause, reason in found.items() if reason}
    return Drift(str(day), trained, reasons, _told(ws, since, day, trained))


def _told(ws: Workspace, since: date, day: date, trained: str) -> tuple[str, ...]:
    """The causes that nights from `since`, but before `day`, have told while `trained` was the newest detector."""
    earlier = states(ws, "drift", since, day).filter((pl.col("day") < day) & (pl.col("detector_version") == trained))
    causes = (state_of(row).counts["causes"] for row in earlier.iter_rows(named=True))
    return tuple(sorted({cause for each in causes for cause in each}))


def _scores(ws: Workspace, nights: list[date]) -> str | None:
    """A p-value says where a score lies among those of calibration: while nothing changes, all are equally frequent."""
    rows = ws.lake.scan("scores", scores_schema(ws.dataset), nights[0], nights[-1]).filter(pl.col("day").is_in(nights))
    index = stability(_without(rows, _confirmed(ws, nights)), STEPS)
    if index is None or index < SHIFT:
        return None
    return (
        f"the scores of the {NIGHTS} nights up to {nights[-1]} are distributed otherwise than those of calibration: "
        f"population stability index {index:.2f}, training is due from {SHIFT} on"
    )


def _confirmed(ws: Workspace, nights: list[date]) -> pl.DataFrame:
    """The stretches (entity, start, end) known to be abnormal that touch the time of the nights."""
    begin, end = ws.dataset.day_bounds(nights[0])[0], ws.dataset.day_bounds(nights[-1])[1]
    return confirmed(ws).filter(pl.col("end") >= begin, pl.col("start") < end)


def _without(rows: pl.LazyFrame, stretches: pl.DataFrame) -> pl.LazyFrame:
    """`rows` but for those within the stretches of their entity."""
    met = rows.select("entity", "event_time").join(stretches.lazy(), on="entity")
    inside = met.filter(pl.col("event_time").is_between(pl.col("start"), pl.col("end")))
    key = ["entity", "event_time"]
    # Taken first: as one query all rows would be held in memory for its two branches.
    known = inside.select(key).unique().collect(engine="streaming")
    return rows.join(known.lazy(), on=key, how="anti")


def scores_shift(ws: Workspace, day: date) -> float | None:
    """The population stability index of the night's scores, as `stability` has it; None where they are too few."""
    return stability(ws.lake.scan("scores", scores_schema(ws.dataset), day, day), NIGHT_STEPS)


def stability(scores: pl.LazyFrame, least: int) -> float | None:
    """The population stability index of `p_value` against equal shares: Σ (a − e) · ln(a / e) over ten bins.

    None of fewer than `least` scores.
    """
    edges = np.linspace(0, 1, BINS + 1)[:-1]
    above = [(pl.col("p_value") >= edge).sum().alias(str(place)) for place, edge in enumerate(edges)]
    counts = np.array(scores.select(above).collect(engine="streaming").row(0))
    if counts[0] < least:
        return None
    seen, expected = np.maximum(-np.diff(counts, append=0), 0.5) / counts[0], 1 / BINS
    return float(((seen - expected) * np.log(seen / expected)).sum())


def _features(ws: Workspace, nights: list[date]) -> str | None:
    """The share of entities of which one feature has moved in every one of the nights (the table `drifts`)."""
    moved = ws.lake.scan("drifts", drifts_schema(), nights[0], nights[-1]).filter(pl.col("day").is_in(nights))
    each = moved.group_by("entity", "feature").agg(pl.col("day").n_unique().alias("nights"))
    lasting = each.filter(pl.col("nights") == len(nights)).collect()
    rows = ws.lake.scan("scores", scores_schema(ws.dataset), nights[-1], nights[-1])
    known = rows.select("entity").unique().select(pl.len()).collect(engine="streaming").item()
    count = lasting["entity"].n_unique()
    if not known or count / known < MOVED:
        return None
    features = ", ".join(lasting["feature"].unique().sort())
    return (
        f"{features}: in {count} of {known} entities a feature has lain {DRIFTED:g} deviations or more from where "
        f"training knew it in each of the {len(nights)} nights up to {nights[-1]}; training is due from {MOVED:.0%} on"
    )


def _dismissed(ws: Workspace, first: date, last: date) -> str | None:
    """The share of those incidents that analysts have judged which they dismissed."""
    incidents = ws.lake.scan("incidents", incidents_schema(), first, last).filter(pl.col("kind") != "silent")
    named = incidents.select("incident_id").unique().collect()
    judged = named.join(latest_verdicts(ws), on="incident_id")
    count = int((judged["verdict"] == "dismissed").sum())
    if len(judged) < JUDGED or count / len(judged) < DISMISSED:
        return None
    return (
        f"analysts dismissed {count} of the {len(judged)} incidents from {first} to {last} that they judged; training "
        f"is due from {DISMISSED:.0%} on"
    )
