"""The geometry of the report's charts."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.chart import (
    MOST_POINTS,
    Heading,
    category_panel,
    clock_axis,
    event_axis,
    feature_panel,
    line,
    score_panel,
)

START = datetime(2026, 3, 25, 12, tzinfo=UTC)
HEADING = Heading("flow", "", "")


def rows(values: list[float | None], minutes: list[int] | None = None, **columns) -> pl.DataFrame:
    times = [START + timedelta(minutes=m) for m in (minutes or range(len(values)))]
    frame = pl.DataFrame({"event_time": times, "observed_flow": values, "expected_flow": 1.0, "score": 1.0,
                          "is_anomaly": False, **columns}, strict=False)  # fmt: skip
    return frame.with_columns(pl.col("event_time").dt.cast_time_unit("us"))


def axis_of(frame: pl.DataFrame, zone: str = "UTC"):
    times = frame["event_time"]
    return clock_axis(frame, times[0], times[-1], ZoneInfo(zone), 60)


def points(path: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in re.findall(r"[ML](-?\d+) (-?\d+)", path)]


def test_line_breaks_where_readings_are_missing() -> None:
    """A gap in time and a missing value each begin a new stroke; neighbours are joined."""
    frame = rows([1.0, 2.0, 3.0, None, 5.0, 6.0], [0, 1, 10, 11, 12, 13])
    panel = feature_panel(frame, axis_of(frame), "flow", HEADING)
    assert re.sub(r"[\d .-]", "", panel.observed) == "MhLMhMhL"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=MOST_POINTS + 1, max_size=2000))
def test_thinning_keeps_the_extremes(values: list[float]) -> None:
    """However long the line, its highest and lowest points are drawn, in order, and never more than `MOST_POINTS`."""
    frame = rows(values)
    drawn = points(line(axis_of(frame), np.array(values)))
    assert len(drawn) <= MOST_POINTS
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    heights = [y for _, y in drawn]
    assert max(heights) == round(max(values))
    assert min(heights) == round(min(values))


def test_every_place_is_within_the_picture() -> None:
    """Paths, ticks, threshold and shade lie within the square, whatever the values."""
    frame = rows([5.0, -1e9, None, 7.0, 1e-9], score=pl.Series([0.1, 9.0, None, 2.0, 1.0]), is_anomaly=True)
    axis = axis_of(frame)
    for panel in (feature_panel(frame, axis, "flow", HEADING), score_panel(frame, axis, 3.0, HEADING)):
        assert all(0 <= v <= 1000 for path in (panel.observed, panel.expected) for p in points(path) for v in p)
        assert 2 <= len(panel.ticks) <= 6
        assert all(0 <= tick.place <= 100 for tick in (*panel.ticks, *axis.ticks))
    assert 0 <= axis.shade[0] <= sum(axis.shade) <= 1000


def test_a_constant_or_empty_feature_can_be_drawn() -> None:
    """No range and no value still make a panel."""
    for values in ([4.0, 4.0], [None, None]):
        frame = rows(values).with_columns(expected_flow=pl.lit(None, pl.Float64))
        panel = feature_panel(frame, axis_of(frame), "flow", HEADING)
        assert len(points(panel.observed)) == 2 - frame["observed_flow"].null_count()
        assert panel.expected == ""


def test_the_threshold_stands_where_its_score_would() -> None:
    """A score equal to the threshold is drawn on the dashed line."""
    frame = rows([1.0, 1.0, 1.0], score=pl.Series([0.0, 3.0, 9.0]))
    panel = score_panel(frame, axis_of(frame), 3.0, HEADING)
    assert points(panel.observed)[1][1] == panel.threshold


def test_the_incident_is_shaded_where_it_is() -> None:
    """The shade reaches from the first to the last anomalous reading, half a cadence beyond on each side."""
    frame = rows([1.0] * 11)
    axis = clock_axis(frame, START + timedelta(minutes=4), START + timedelta(minutes=6), ZoneInfo("UTC"), 60)
    assert axis.shade == (350, 300)


def test_times_on_the_axis_are_round_in_the_zone() -> None:
    """Ticks are full steps of the zone's own clock (half an hour off UTC in India), with the date once."""
    frame = rows([1.0] * 300)
    ticks = axis_of(frame, "Asia/Kolkata").ticks
    assert [tick.text for tick in ticks] == ["18:00", "19:00", "20:00", "21:00", "22:00"]
    assert [tick.below for tick in ticks] == ["25 Mar", "", "", "", ""]
    assert ticks[0].place == pytest.approx(30 / 299 * 100, abs=0.01)


@pytest.mark.parametrize("seconds", [2, 30, 600, 86400, 86400 * 3, 86400 * 400])
def test_an_axis_has_few_ticks_whatever_it_spans(seconds: int) -> None:
    """From seconds to a year: one to seven labels."""
    frame = pl.DataFrame({"event_time": [START, START + timedelta(seconds=seconds)]})
    axis = clock_axis(frame, START, START, ZoneInfo("UTC"), seconds / 10)
    assert 1 <= len(axis.ticks) <= 7


def test_events_stand_apart_however_close_in_time() -> None:
    """Each event has its own place; what was expected is a dash as wide as the place."""
    frame = rows([1.0, 2.0, 9.0, 8.0], [0, 900, 901, 901])
    axis = event_axis(frame, START + timedelta(minutes=901), START + timedelta(minutes=901), ZoneInfo("UTC"))
    panel = feature_panel(frame, axis, "flow", HEADING)
    assert [x for x, _ in points(panel.observed)] == [125, 375, 625, 875]
    assert axis.shade == (500, 500)
    assert panel.observed.count("h0") == 4
    assert panel.expected.count("h175") == 4


def test_categories_have_heights_of_their_own() -> None:
    """The most frequent is lowest, the rare ones share one height, a missing one is not drawn."""
    shops = ["a"] * 5 + list("bcdefghi") + [None]
    frame = rows([1.0] * 14, observed_shop=pl.Series(shops))
    axis = event_axis(frame, START, START, ZoneInfo("UTC"))
    panel = category_panel(frame, axis, "shop", HEADING)
    assert [tick.text for tick in panel.ticks] == ["a", "b", "c", "d", "e", "f", "other"]
    heights = [y for _, y in points(panel.observed)]
    assert len(heights) == 13
    assert len(set(heights)) == 7
    assert heights[0] == max(heights)
    assert heights[-3:] == [min(heights)] * 3


def test_anomalous_readings_are_drawn_over_the_others() -> None:
    """The marks go through the same points, and through those alone that are anomalous."""
    frame = rows([1.0, 5.0, 6.0, 1.0], is_anomaly=pl.Series([False, True, True, None]))
    panel = feature_panel(frame, axis_of(frame), "flow", HEADING)
    assert points(panel.marks) == points(panel.observed)[1:3]
