"""Promised against realised: what the threshold of a night allows, and how many incidents there were in fact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl
from scipy.stats import chi2

from pipeline.calendar import Planned, read_calendar, touching, with_plan
from pipeline.review import confirmed
from pipeline.score import PART, Scored, read_scored
from pipeline.sequences import entity_parts
from pipeline.state import state_of, states
from pipeline.tables import incidents_schema, key_schema
from pipeline.workspace import Workspace

NIGHTS = 28  # up to and with the night itself
CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True)
class Tally:
    """Incidents that nobody confirmed, over the entity-days of some nights."""

    nights: int
    incidents: int
    entity_days: float

    @property
    def rate(self) -> float | None:
        """Incidents per entity and day; None where nothing was scored."""
        return self.incidents / self.entity_days if self.entity_days else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Between which the true rate lies, nine times out of ten: the exact Poisson interval (Garwood 1936)."""
        if not self.entity_days:
            return None
        out = (1 - CONFIDENCE) / 2
        low = chi2.ppf(out, 2 * self.incidents) / 2 if self.incidents else 0.0
        high = chi2.ppf(1 - out, 2 * self.incidents + 2) / 2
        return float(low) / self.entity_days, float(high) / self.entity_days


@dataclass(frozen=True, slots=True)
class Promise:
    """What a night's threshold promised, and what came of it: in this night, and in those of the same promise.

    promised: false alarms per entity and day, at most; None where nothing was scored
    """

    promised: float | None
    tonight: Tally
    lately: Tally


def read_promise(ws: Workspace, day: date) -> Promise:
    """What the tables say of `day` and the 27 days before it; raises `NightsiftError` where `day` is not scored.

    A night whose threshold promised something else does not count. Silences are no false alarms of a threshold, and
    what the calendar explains counts neither as incident nor as time.
    """
    tonight = read_scored(ws, day)
    first = day - timedelta(days=NIGHTS - 1)
    recorded = states(ws, "score", first, day)
    scored = [Scored(**state_of(row).counts) for row in recorded.iter_rows(named=True)]
    same = [night for night in scored if night.promised == tonight.promised]
    unexplained = (pl.col("kind") != "silent") & pl.col("reason").is_null()
    incidents = ws.lake.scan("incidents", incidents_schema(), first, day).filter(unexplained).collect()
    open_ones, calendar = unconfirmed(incidents, confirmed(ws)), read_calendar(ws)
    days = {night.day: _entity_days(ws, night, calendar) for night in (*same, tonight)}
    return Promise(tonight.promised, _tally([tonight], open_ones, days), _tally(same, open_ones, days))


def unconfirmed(incidents: pl.DataFrame, stretches: pl.DataFrame) -> pl.DataFrame:
    """The incidents that overlap none of their entity's `stretches` (entity, start, end)."""
    pairs = incidents.select("incident_id", "entity", "start", "end").join(stretches, on="entity", suffix="_real")
    real = pairs.filter((pl.col("start") <= pl.col("end_real")) & (pl.col("end") >= pl.col("start_real")))
    return incidents.join(real.select("incident_id").unique(), on="incident_id", how="anti")


def _tally(nights: list[Scored], incidents: pl.DataFrame, entity_days: Mapping[str, float]) -> Tally:
    """An incident over several nights counts once."""
    inside = incidents.filter(pl.col("day").cast(pl.String).is_in([night.day for night in nights]))
    return Tally(len(nights), inside["incident_id"].n_unique(), sum(entity_days[night.day] for night in nights))


def _entity_days(ws: Workspace, night: Scored, calendar: Sequence[Planned]) -> float:
    """As `pipeline.incidents.entity_days` counts them, without the time that the calendar explains."""
    day, steps, entities = date.fromisoformat(night.day), night.steps, night.entities
    if mine := touching(calendar, *ws.dataset.day_bounds(day)):
        scored = ws.lake.scan("scores", key_schema(ws.dataset), day, day).select("entity", "event_time")
        parts = (with_plan(part, mine).filter(pl.col("reason").is_null()) for part in entity_parts(scored, PART))
        counts = [(len(part), part["entity"].n_unique()) for part in parts]
        steps, entities = (sum(count) for count in zip(*counts, strict=True))
    return float(entities) if ws.dataset.cadence is None else steps * (ws.dataset.cadence / timedelta(days=1))
