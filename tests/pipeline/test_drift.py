"""What speaks for training: scores, features and verdicts, told once, from the tables alone."""

from datetime import date, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from pipeline import tracking
from pipeline.drift import NIGHT_STEPS, NIGHTS, find_drift, note_drift, scores_shift, stability
from pipeline.review import record
from pipeline.state import State, write_state
from pipeline.tables import drifts_schema, incidents_schema, scores_schema
from pipeline.workspace import Workspace
from tests.conftest import START

FIRST = START.date()
LAST = FIRST + timedelta(days=NIGHTS - 1)
MACHINES = ("m0", "m1", "m2", "m3")


@pytest.fixture
def registry(monkeypatch) -> SimpleNamespace:
    """A champion `1-a` that was the last to be trained, on what came before the first night."""
    facts = SimpleNamespace(newest="1-a", until=START.isoformat())
    monkeypatch.setattr(tracking, "current", lambda ws: SimpleNamespace(label="1-a"))
    monkeypatch.setattr(tracking, "siblings", lambda ws, label: ("1-a", {"1-a"}))
    entry = lambda ws: SimpleNamespace(tags={"label": facts.newest, "data_window": f"2026-01-01 to {facts.until}"})  # noqa: E731
    monkeypatch.setattr(tracking, "newest_trained", entry)
    return facts


def night(
    ws: Workspace, day: date, *, shift: float = 1.0, drifting: tuple[str, ...] = (), detector: str = "1-a"
) -> None:
    """A scored night; `shift` is the power that the p-values are raised to."""
    rng = np.random.default_rng(day.toordinal())
    rows = 100
    scores = pl.DataFrame(
        {
            "entity": [name for name in MACHINES for _ in range(rows)],
            "event_time": [ws.dataset.day_bounds(day)[0] + timedelta(minutes=10 * n) for n in range(rows)] * 4,
            "p_value": rng.random(4 * rows) ** shift,
        }
    )
    ws.lake.replace("scores", day, like(scores, scores_schema(ws.dataset)))
    moved = pl.DataFrame(
        {"entity": drifting, "feature": ["flow"] * len(drifting)}, schema_overrides={"entity": pl.String}
    )
    ws.lake.replace("drifts", day, like(moved, drifts_schema()))
    write_state(ws, State(day, "score", "input", "config", detector))


def like(frame: pl.DataFrame, schema: dict) -> pl.DataFrame:
    """`frame` with all columns of a table but the day; null where it has none."""
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in schema.items()
        if name != "day"
    )


def nights(ws: Workspace, count: int = NIGHTS, first: date = FIRST, **facts) -> date:
    for n in range(count):
        night(ws, first + timedelta(days=n), **facts)
    return first + timedelta(days=count - 1)


def test_while_nothing_changes_nothing_speaks_for_training(make_workspace, registry):
    """Seven nights whose scores lie as those of calibration, and one machine of eight that has moved."""
    ws = make_workspace()
    assert find_drift(ws, nights(ws)).reasons == {}
    assert note_drift(ws, LAST) == []


def scored(p_values: NDArray[np.float64]) -> pl.LazyFrame:
    return pl.LazyFrame({"p_value": p_values})


@pytest.mark.parametrize("p_values", [np.linspace(0, 1, 1001)[1:], np.random.default_rng(1).random(5000) ** 3])
def test_an_index_counts_as_a_histogram_does(p_values: NDArray[np.float64]) -> None:
    """Each bin has its lower edge, and the last one its upper too."""
    counts = np.histogram(p_values, bins=np.linspace(0, 1, 11))[0]
    share = np.maximum(counts, 0.5) / len(p_values)
    assert stability(scored(p_values), 1) == pytest.approx(
        float(((share - 0.1) * np.log(share / 0.1)).sum()), rel=1e-12
    )


def test_scores_that_lie_otherwise_are_told_with_their_number(make_workspace, registry):
    """The reason names the nights, the index and what it is compared with."""
    ws = make_workspace()
    found = find_drift(ws, nights(ws, shift=2.0))
    assert list(found.reasons) == ["scores"]
    index = stability(scored(np.random.default_rng(0).random(100_000) ** 2), NIGHT_STEPS)
    assert index is not None
    assert 0.3 < index < 0.4
    assert f"the {NIGHTS} nights up to {LAST}" in found.reasons["scores"]
    assert "training is due from 0.25 on" in found.reasons["scores"]


def test_a_night_tells_how_far_its_scores_lie_from_those_of_calibration(make_workspace):
    """Of that night alone; none where its steps are too few to tell, or have no score."""
    ws, later = make_workspace(), FIRST + timedelta(days=1)
    p_values = np.random.default_rng(0).random(NIGHT_STEPS)
    for day, values in ((FIRST, p_values), (later, p_values**2)):
        ws.lake.replace("scores", day, like(pl.DataFrame({"p_value": values}), scores_schema(ws.dataset)))
    assert scores_shift(ws, FIRST) == stability(scored(p_values), NIGHT_STEPS) < 0.15
    assert scores_shift(ws, later) == stability(scored(p_values**2), NIGHT_STEPS) > 0.25
    few = pl.DataFrame({"p_value": [*p_values[1:], None]})
    ws.lake.replace("scores", FIRST, like(few, scores_schema(ws.dataset)))
    assert scores_shift(ws, FIRST) is None


def test_confirmed_stretches_say_nothing_about_drift(make_workspace, registry):
    """A fault that an analyst knows is no change of what is normal."""
    ws = make_workspace()
    day = nights(ws)
    for n in range(NIGHTS):
        low = pl.read_delta(ws.lake.uri("scores")).filter(day=FIRST + timedelta(days=n)).drop("day")
        ill = low.with_columns(p_value=pl.when(pl.col("entity") == "m1").then(1e-6).otherwise("p_value"))
        ws.lake.replace("scores", FIRST + timedelta(days=n), ill)
    assert list(find_drift(ws, day).reasons) == ["scores"]
    for name, entity, days in (("earlier", "m1", -2), ("other", "m2", NIGHTS), ("part", "m1", 3)):
        incident(ws, name, entity, START + timedelta(days=days))
        record(ws, name, "confirmed", "", "ann")
    assert list(find_drift(ws, day).reasons) == ["scores"]
    incident(ws, "i1", "m1")
    record(ws, "i1", "confirmed", "", "ann")
    assert find_drift(ws, day).reasons == {}


def test_many_confirmed_stretches_make_no_deep_query(make_workspace, registry, monkeypatch):
    """However many there are, the scores are read by a query of the same size."""
    ws, plans = make_workspace(), list[str]()
    day = nights(ws)
    known = pl.DataFrame({"entity": ["m1"] * 5, "start": [START] * 5, "end": [START + timedelta(days=1)] * 5})
    monkeypatch.setattr("pipeline.drift.stability", lambda rows, least: plans.append(rows.explain()))
    for count in (1, 5):
        monkeypatch.setattr("pipeline.drift.confirmed", lambda ws, count=count: known.head(count))
        find_drift(ws, day)
    assert plans[0] == plans[1]


def incident(ws: Workspace, name: str, entity: str, end: datetime = START + timedelta(days=NIGHTS)) -> None:
    facts = {
        "incident_id": name,
        "entity": entity,
        "start": min(START, end),
        "end": end,
        "kind": "anomaly",
    }
    known = pl.DataFrame(schema={name: kind for name, kind in incidents_schema().items() if name != "day"})
    if ws.lake.exists("incidents"):
        known = pl.read_delta(ws.lake.uri("incidents")).drop("day")
    ws.lake.replace("incidents", FIRST, pl.concat([known, like(pl.DataFrame([facts]), incidents_schema())]))


def test_a_feature_that_lies_elsewhere_night_after_night_is_told(make_workspace, registry):
    """In a quarter of the entities, on each of the nights; one night without it, and it is not told."""
    ws = make_workspace()
    found = find_drift(ws, nights(ws, drifting=("m2",)))
    assert list(found.reasons) == ["features"]
    assert "flow: in 1 of 4 entities" in found.reasons["features"]
    night(ws, FIRST + timedelta(days=3))
    assert find_drift(ws, LAST).reasons == {}


def test_incidents_that_analysts_dismiss_are_told(make_workspace, registry):
    """Half of those that they judged, of five at least; what nobody judged does not count."""
    ws = make_workspace()
    nights(ws)
    for n in range(9):
        incident(ws, f"i{n}", "m1")
    for n in range(4):
        record(ws, f"i{n}", "dismissed", "", "ann")
    assert find_drift(ws, LAST).reasons == {}
    record(ws, "i4", "confirmed", "", "ann")
    found = find_drift(ws, LAST)
    assert list(found.reasons) == ["dismissed"]
    assert "analysts dismissed 4 of the 5 incidents" in found.reasons["dismissed"]


def test_a_cause_is_told_once_for_a_detector(make_workspace, registry):
    """The night that told it tells it again when it is run again; later ones do not, but for another cause."""
    ws = make_workspace()
    nights(ws, shift=2.0)
    assert len(note_drift(ws, LAST)) == 1
    assert len(note_drift(ws, LAST)) == 1
    later = nights(ws, 1, LAST + timedelta(days=1), shift=2.0)
    assert note_drift(ws, later) == []
    assert list(find_drift(ws, later).reasons) == ["scores"]
    more = nights(ws, NIGHTS, later + timedelta(days=1), shift=2.0, drifting=MACHINES)
    (reason,) = note_drift(ws, more)
    assert reason.startswith("flow: in 4 of 4 entities")


def test_a_day_that_is_run_again_has_told_what_it_told(make_workspace, registry):
    """By then a later night is scored and it tells nothing; the later ones do not tell its causes once more."""
    ws = make_workspace()
    nights(ws, shift=2.0)
    assert len(note_drift(ws, LAST)) == 1
    later = nights(ws, 1, LAST + timedelta(days=1), shift=2.0)
    assert note_drift(ws, LAST) == []
    assert note_drift(ws, later) == []


def test_after_a_training_a_week_of_nights_has_to_tell_it_anew(make_workspace, registry):
    """Promoted or not: nights before the newest detector's training do not count, and then it is told again."""
    ws = make_workspace()
    nights(ws, shift=2.0)
    assert note_drift(ws, LAST)
    registry.newest, registry.until = "2-b", ws.dataset.day_bounds(LAST)[0].isoformat()
    for n in range(1, NIGHTS - 1):
        assert note_drift(ws, nights(ws, 1, LAST + timedelta(days=n), shift=2.0)) == []
    assert len(note_drift(ws, nights(ws, 1, LAST + timedelta(days=NIGHTS - 1), shift=2.0))) == 1


def test_only_the_newest_night_of_the_champion_speaks(make_workspace, registry):
    """A night of the past that is run again, too few nights, and nights of another detector tell nothing."""
    ws = make_workspace()
    nights(ws, NIGHTS + 1, shift=2.0)
    assert find_drift(ws, LAST).reasons == {}
    assert find_drift(ws, LAST + timedelta(days=1)).reasons
    night(ws, FIRST + timedelta(days=4), shift=2.0, detector="0-z")
    night(ws, FIRST + timedelta(days=5), shift=2.0, detector="0-z")
    assert find_drift(ws, LAST + timedelta(days=1)).reasons == {}


def test_without_a_champion_nothing_is_told(make_workspace, monkeypatch):
    """A dataset that was never trained is asked all the same."""
    assert note_drift(make_workspace(), FIRST) == []
    assert find_drift(make_workspace(), FIRST).trained is None
