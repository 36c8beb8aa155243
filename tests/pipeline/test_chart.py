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
    HEIGHT,
    MOST_POINTS,
    WIDTH,
    Heading,
    category_panel,
    clock_axis,
    event_axis,
    feature_panel,
    line,
    score_panel,
    strip,
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
    found = []
    for letter, right, down in re.findall(r"([Ml])(-?\d+) ?(-?\d+)", path):
        x, y = found[-1] if letter == "l" else (0, 0)
        found.append((x + int(right), y + int(down)))
    return found


def test_line_breaks_where_readings_are_missing() -> None:
    """A gap in time and a missing value each begin a new stroke; neighbours are joined."""
    frame = rows([1.0, 2.0, 3.0, None, 5.0, 6.0], [0, 1, 10, 11, 12, 13])
    panel = feature_panel(frame, axis_of(frame), "flow", HEADING)
    assert re.sub(r"[\d .-]", "", panel.observed) == "MhlMhMhl"


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
    """Paths, ticks, threshold and shade lie within the box, whatever the values."""
    frame = rows([5.0, -1e9, None, 7.0, 1e-9], score=pl.Series([0.1, 9.0, None, 2.0, 1.0]), is_anomaly=True)
    axis = axis_of(frame)
    for panel in (feature_panel(frame, axis, "flow", HEADING), score_panel(frame, axis, 3.0, HEADING)):
        drawn = points(panel.observed) + points(panel.expected)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)
        assert 2 <= len(panel.ticks) <= 6
        assert all(0 <= tick.place <= 100 for tick in (*panel.ticks, *axis.ticks))
    assert 0 <= axis.shade[0] <= sum(axis.shade) <= WIDTH


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
    assert axis.shade == (3500, 3000)


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
    assert [x for x, _ in points(panel.observed)] == [1250, 3750, 6250, 8750]
    assert axis.shade == (5000, 5000)
    assert panel.observed.count("h0") == 4
    assert panel.expected.count("h1750") == 4


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


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_times_can_be_read_back_from_places(zone: str) -> None:
    """A place between the edges stands for the time that lies as far between those of its neighbours."""
    moments = [0, 900, 901, 905]
    frame, end = rows([1.0] * 4, moments), START + timedelta(minutes=905)
    for axis in (clock_axis(frame, START, end, ZoneInfo(zone), 60), event_axis(frame, START, end, ZoneInfo(zone))):
        places = np.linspace(axis.edge, WIDTH - axis.edge, len(axis.times))
        found = np.interp(axis.x, places, axis.times) + axis.start - START.timestamp()
        assert found == pytest.approx([m * 60 for m in moments], abs=3)


def test_values_can_be_read_back_from_heights() -> None:
    """What lies between `low` and `high` of a panel is where the value is, to a thousandth of the range."""
    values = [3.0, 7.5, -2.25, 11.0]
    frame = rows(values)
    panel = feature_panel(frame, axis_of(frame), "flow", HEADING)
    assert panel.low is not None
    assert panel.high is not None
    found = [panel.high - y / HEIGHT * (panel.high - panel.low) for _, y in points(panel.observed)]
    assert found == pytest.approx(values, abs=(panel.high - panel.low) / HEIGHT)


def test_fewer_points_can_be_asked_for() -> None:
    """A picture of less detail still shows the extremes of all that it draws."""
    frame = rows([float(n % 17) for n in range(400)])
    axis = clock_axis(frame, START, START, ZoneInfo("UTC"), 60, points=20)
    panel = feature_panel(frame, axis, "flow", HEADING)
    heights = [y for _, y in points(panel.observed)]
    assert len(heights) <= 20
    assert panel.low is not None
    assert panel.high is not None
    top, bottom = (round(HEIGHT * (panel.high - value) / (panel.high - panel.low)) for value in (16.0, 0.0))
    assert (min(heights), max(heights)) == (top, bottom)


def test_a_strip_has_a_stroke_for_each_night_that_is_known() -> None:
    """Quiet nights are short strokes, the others tall ones, each where its night is."""
    assert strip(["quiet", "unknown", "open", "quiet"]) == {"quiet": "M5 20V16M35 20V16", "open": "M25 20V0"}
