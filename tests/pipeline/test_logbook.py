"""What MLflow's pages say of a night and of a registered detector, from tables alone."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline import figures, links, logbook
from pipeline.drift import SHIFT
from pipeline.review import record
from pipeline.state import State, write_state
from pipeline.tables import drifts_schema
from pipeline.workspace import Workspace
from tests.lake import cards
from tests.pipeline.test_report import DAY, FLOW, NASTY, VIBRATION, at, fill, incident, pumps, readings, silence, table
from tests.pipeline.test_report import workspace as workspace_of

FOUND = incident("pump-1", at("14:00"), at("15:00"), VIBRATION, FLOW)


@pytest.fixture
def night(tmp_path: Path) -> Workspace:
    """Two pumps, of which one has an incident and the other fell silent, as the calendar knew it would."""
    ws = workspace_of(tmp_path, pumps(zone="Europe/Berlin"))
    planned = silence("pump-2", at("20:00"), at("21:00")) | {"reason": "seal change"}
    fill(ws, readings(ws.dataset, ["pump-1", "pump-2"]), [FOUND, planned])
    return ws


def drifts(ws: Workspace, day: date, *rows: tuple[str, str, float]) -> None:
    moved = [{"day": day, "entity": entity, "feature": name, "deviations": far} for entity, name, far in rows]
    ws.lake.replace("drifts", day, table(moved, drifts_schema()))
    write_state(ws, State(day, "score", "i", "c", "7-abc"))


def told(ws: Workspace) -> pl.DataFrame:
    rows = ws.lake.scan("incidents", logbook.incidents_schema(), DAY, DAY).collect()
    return logbook.incidents_table(ws, DAY, rows)


def test_incidents_stand_in_a_table_in_words(night: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the report's order, in the dataset's zone, with what drove them, how rare they are, and where they are."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow:8080/")
    worst, silent = told(night).iter_rows(named=True)
    assert (worst["entity"], worst["from"], worst["to"]) == (
        "pump-1", "2026-03-25 15:00:00 CET", "2026-03-25 16:00:00 CET"
    )  # fmt: skip
    assert (worst["severity"], worst["drivers"]) == (2.0, "vibration (62 %) and flow (38 %)")
    assert (worst["how rare"], worst["state"]) == ("about once in 50,000 normal steps", "open")
    assert worst["link"] == links.incident_link("pumps", DAY, FOUND["incident_id"])
    assert (silent["drivers"], silent["planned"], silent["severity"]) == ("sent nothing", "seal change", None)


def test_at_most_fifty_incidents_stand_in_the_table_with_their_verdicts(night: Workspace) -> None:
    """The most severe ones; who was judged is told."""
    many = [incident(f"p{n}", at("14:00"), at("15:00"), VIBRATION, severity=float(n)) for n in range(80)]
    night.lake.replace("incidents", DAY, table(many, logbook.incidents_schema()))
    record(night, many[79]["incident_id"], "confirmed", "", "ann")
    found = told(night)
    assert (len(found), found["entity"][0], found["state"][0], found["state"][1]) == (50, "p79", "confirmed", "open")


def test_incidents_are_counted_by_what_is_known_of_them(night: Workspace) -> None:
    """Planned are those that the calendar explains, open those of the others that nobody judged."""
    assert logbook.incident_counts(night, DAY) == {"incidents_planned": 1.0, "incidents_open": 1.0}
    record(night, FOUND["incident_id"], "dismissed", "", "ann")
    assert logbook.incident_counts(night, DAY) == {"incidents_planned": 1.0, "incidents_open": 0.0}


def test_the_share_of_entities_in_which_a_feature_drifts(night: Workspace) -> None:
    """One number for each feature, also where nothing moves, and none where a drift is not told."""
    assert logbook.drift_shares(night, DAY, 4) == {"drift/flow": 0.0, "drift/vibration": 0.0}
    drifts(night, DAY, ("pump-1", "flow", 4.0), ("pump-2", "flow", -3.5), ("pump-2", "vibration", 3.0))
    assert logbook.drift_shares(night, DAY, 4) == {"drift/flow": 0.5, "drift/vibration": 0.25}


def test_drift_over_time_is_of_28_nights(night: Workspace) -> None:
    """Its largest and its median deviation by night and feature, whichever way it went."""
    drifts(night, DAY - timedelta(days=28), ("pump-1", "flow", 99.0))
    drifts(night, DAY - timedelta(days=27), ("pump-1", "flow", 4.0), ("pump-2", "flow", -6.0))
    drifts(night, DAY)
    found = logbook.drifts_by_night(night, DAY)
    assert found.rows() == [(DAY - timedelta(days=27), "flow", 6.0, 5.0)]
    assert logbook.nights_until(night, DAY) == [DAY - timedelta(days=27), DAY]


def texts(figure: Any) -> str:
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
    return " | ".join([axes.get_title("left"), *(text.get_text() for text in axes.texts), *labels])


def test_the_figure_of_drift_says_so_where_there_was_none() -> None:
    """And else names the features that have moved furthest, at most eight of them."""
    none = pl.DataFrame(schema={"day": pl.Date, "feature": pl.String, "largest": pl.Float64, "median": pl.Float64})
    assert "No feature of any entity has drifted" in texts(figures.drift("pumps", none, [DAY]))
    rows = [(DAY, f"f_{n}", 3.0 + n, 3.0) for n in range(10)]
    moved = texts(figures.drift("pumps", pl.DataFrame(rows, schema=none.schema, orient="row"), [DAY]))
    assert "f 9" in moved
    assert "f 2" in moved
    assert "f 1 " not in moved
    assert "No feature" not in moved


def test_scores_are_counted_by_their_ratio_to_the_threshold() -> None:
    """What lies beyond the first and the last bin counts there; what has no score, or none that is finite, does not."""
    frame = pl.LazyFrame({"score": [0.0, 1e-9, 0.5, 2.0, 2.1, 1e9, None, float("nan")], "threshold": 2.0})
    found = logbook.score_histogram(frame)
    middle = figures.BINS // 2
    assert found["steps"].sum() == 6
    assert found["called"].sum() == 2
    assert dict(found.select("place", "steps").iter_rows())[0] == 2
    assert dict(found.select("place", "steps").iter_rows())[middle] == 2
    assert found["place"].max() == figures.BINS - 1
    label = texts(figures.scores("Scores", {"night": found, "nothing": found.clear()}))
    assert "night: 6 steps, 2 above the threshold" in label


def test_figures_take_as_long_for_ten_million_scores(tmp_path: Path) -> None:
    """A curve has no more points than can be seen, and ends at the highest score."""
    from models.threshold import Threshold

    scores = np.random.default_rng(0).exponential(size=1_000_000)
    (line, *_) = figures.calibration(scores, scores[:0], Threshold.blank()).axes[0].lines
    assert len(line.get_xdata()) <= figures.MOST_POINTS
    assert max(line.get_xdata()) == scores.max()


def test_a_training_is_named_by_days_that_are_both_included() -> None:
    """Its days are those of the dataset's zone, and the run is found by its date although names are cut off."""
    dataset = pumps(zone="Europe/Berlin")
    start, end = dataset.day_bounds(date(2026, 3, 2))[0], dataset.day_bounds(date(2026, 3, 23))[0]
    assert logbook.training_name(dataset, start, end) == "2026-03-02 to 2026-03-22, pumps trained"
    assert logbook.night_name(dataset, DAY) == "2026-03-25 Wed, pumps night"


def test_numbers_of_a_night_have_a_head() -> None:
    """So that MLflow's charts begin with the incidents; a number with a head of its own keeps it."""
    names = {"incidents_open": "alarms/incidents_open", "rows_in": "data/rows_in", "drift/flow": "drift/flow",
             "drifting": "drift/drifting", "seconds/incidents": "seconds/incidents"}  # fmt: skip
    assert {name: logbook.grouped(name) for name in names} == names


def test_parameters_are_flat() -> None:
    """Dotted names, lists as text."""
    nested = {"model": {"filters": [8, 4], "scope": {"deep": ["w1", "w2*"]}, "seed": 7}, "window": {"rows": 4}}
    assert logbook.flat(nested) == {
        "model.filters": "8, 4", "model.scope.deep": "w1, w2*", "model.seed": 7, "window.rows": 4
    }  # fmt: skip


def test_what_comes_from_data_is_no_markdown() -> None:
    """Neither HTML nor a link nor emphasis of the data's own, and all on one line."""
    said = logbook.markdown(f"{NASTY} [x](http://evil) **a**_b_ `c`\n# d | e")
    assert said == (r"&lt;script&gt;alert(1)&lt;/script&gt; \[x\](http://evil) \*\*a\*\*\_b\_ \`c\` \# d \| e")


def test_an_experiment_says_what_its_runs_are_and_leads_to_them() -> None:
    """Its first line is a way to the runs, for a browser that MLflow shows other pages."""
    for kind in ("nights", "train"):
        first, *rest = logbook.experiment_note(pumps(), kind, "7").split("\n")
        assert f"#/experiments/7/runs?{links.MLFLOW_VIEW}" in first
        assert "**pumps** (Water pumps)" in "".join(rest)


def test_nights_say_what_their_drift_means() -> None:
    """The scores of every kind of dataset, features and the figure where there are such: of sensors."""
    sensors, payments = (logbook.experiment_note(dataset, "nights", "7") for dataset in (pumps(), cards()))
    for note in (sensors, payments):
        assert "`drift/scores`, the population stability index of the night's scores" in note
        assert f"from {SHIFT} on" in note
    assert "`drift/FEATURE`" in sensors
    assert "FEATURE" not in payments
    assert "figure" not in payments.split("To compare")[1]


def test_a_model_says_which_columns_it_takes(make_workspace: Callable[..., Workspace]) -> None:
    """Every column of a frame, with its unit, and how it is called."""
    note = logbook.model_note(pumps())
    assert 'mlflow.pyfunc.load_model("models:/pumps@champion")' in note
    for line in ("| `entity` | the pump |", "| `event_time` | when; without a zone it is UTC |", "| `flow` | m3/h |"):
        assert line in note
    assert "event_id" not in note


def test_a_training_reads_the_same_rows_whatever_was_written_since(night: Workspace) -> None:
    """The digest is that of its own days; the Delta version is the table's."""
    start, end = datetime(2026, 3, 24, tzinfo=UTC), datetime(2026, 3, 26, tzinfo=UTC)
    before = logbook.training_input(night, start, end, 10)
    night.lake.replace("clean", date(2026, 4, 1), night.lake.scan("clean", {}, DAY, DAY).collect().clear())
    write_state(night, State(date(2026, 4, 1), "validate", "other", "c", counts={"rows_clean": 0}))
    after = logbook.training_input(night, start, end, 10)
    assert (before.digest, before.version + 1, before.context) == (after.digest, after.version, "training")
    write_state(night, State(DAY, "validate", "changed", "c", counts={"rows_clean": 1}))
    assert logbook.training_input(night, start, end, 10).digest != before.digest
