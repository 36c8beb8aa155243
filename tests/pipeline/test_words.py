"""Numbers, times and incidents in words."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import words
from pipeline.config import Dataset
from pipeline.tables import incidents_schema

DAY = date(2026, 3, 25)
DATASET = Dataset(name="pumps", kind="sensor", source={"path": "x.parquet"}, entity="pump", event_time="time",
                  cadence="1m", features=[{"name": "flow"}])  # fmt: skip


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{DAY}T{text}").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (float("inf"), "–"), (0.0, "0"), (18.0, "18"), (18.234567, "18.23"),
     (0.00123456, "0.001235"), (12345.678, "12,350"), (999.96, "1,000"), (-3.14159, "-3.142"), (2e-7, "2.000e-07"),
     (5e12, "5.000e+12")],
)  # fmt: skip
def test_number(value: float | None, text: str) -> None:
    """Four significant digits, thousands apart, no exponent where a person would write none."""
    assert words.number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
def test_number_is_near(value: float) -> None:
    """What is shown is the value to four significant digits."""
    assert float(words.number(value).replace(",", "")) == pytest.approx(value, rel=5.1e-4, abs=1e-300)


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0.0, "0 %"), (1.0, "100 %"), (0.625, "62 %"), (0.0123, "1 %"), (0.00123, "0.12 %"),
     (1e-7, "under 0.001 %")],
)  # fmt: skip
def test_percent(share: float | None, text: str) -> None:
    """Whole per cents, and two digits of small ones."""
    assert words.percent(share) == text


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(1e-7, "less than once in a million normal steps"), (2e-5, "about once in 50,000 normal steps"),
     (0.013, "about once in 77 normal steps"), (0.3, "about 30 in 100 normal steps"), (None, "not known")],
)  # fmt: skip
def test_rarity(p_value: float | None, text: str) -> None:
    """A p-value is how often a normal step would score as high."""
    assert words.rarity(p_value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (40, "40 s"), (60, "1 min"), (5880, "1 h 38 min"), (86400, "1 d"), (183600, "2 d 3 h"),
     (86399.6, "1 d")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    """The two largest units."""
    assert words.duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("start", "end", "zone", "text"),
    [
        (at("14:02"), at("15:40"), "UTC", "from 14:02 to 15:40 UTC"),
        (at("14:02"), at("14:02"), "UTC", "at 14:02 UTC"),
        (at("14:02:05"), at("14:03:07"), "UTC", "from 14:02:05 to 14:03:07 UTC"),
        (at("14:02"), at("15:40"), "Europe/Berlin", "from 15:02 to 16:40 Europe/Berlin"),
        (at("00:00") - timedelta(minutes=20), at("01:00"), "UTC", "from 2026-03-24 23:40 to 01:00 UTC"),
        (at("06:10"), at("00:00") + timedelta(days=1), "UTC", "from 06:10 to 24:00 UTC"),
    ],
)
def test_stretch(start: datetime, end: datetime, zone: str, text: str) -> None:
    """Times of the dataset's zone, written out, with the date where it is another day's."""
    assert words.stretch(start, end, ZoneInfo(zone), DAY) == text


def test_stretch_over_an_hour_that_comes_twice() -> None:
    """In the night when clocks go back, 02:30 and 02:30 are told apart."""
    start = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    text = words.stretch(start, start + timedelta(hours=1), ZoneInfo("Europe/Berlin"), date(2026, 10, 25))
    assert text == "from 02:30 CEST to 02:30 CET Europe/Berlin"


@pytest.mark.parametrize(
    ("start", "minutes", "text"),
    [
        ("00:10", 30, "from 02:10 CEST to 02:40 CEST Europe/Berlin"),
        ("01:10", 30, "from 02:10 CET to 02:40 CET Europe/Berlin"),
        ("01:10", 0, "at 02:10 CET Europe/Berlin"),
        ("01:50", 30, "from 02:50 CET to 03:20 Europe/Berlin"),
        ("00:50", 90, "from 02:50 CEST to 03:20 CET Europe/Berlin"),
    ],
)
def test_a_time_within_an_hour_that_comes_twice_names_its_offset(start: str, minutes: int, text: str) -> None:
    """Also where both ends lie in the same of the two hours; a time that comes once does where the offset changes."""
    begin = datetime.fromisoformat(f"2026-10-25T{start}Z")
    zone, day = ZoneInfo("Europe/Berlin"), date(2026, 10, 25)
    assert words.stretch(begin, begin + timedelta(minutes=minutes), zone, day) == text


def frame(*rows: dict) -> pl.DataFrame:
    schema = incidents_schema()
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def anomaly(entity: str, severity: float, *drivers: tuple[str, float]) -> dict:
    listed = [{"feature": name, "share": share, "observed": 1.0, "expected": 2.0} for name, share in drivers]
    return {"entity": entity, "start": at("14:02"), "end": at("15:40"), "kind": "anomaly", "severity": severity,
            "drivers": listed}  # fmt: skip


def silence(entity: str) -> dict:
    return {"entity": entity, "start": at("06:10"), "end": at("07:00"), "kind": "silent"}


CARDS = Dataset(
    name="cards", kind="transaction", source={"path": "x.csv"}, entity="card", event_time="time",
    features=[{"name": "amount", "unit": "EUR", "min": 0, "log": True}, {"name": "shop", "type": "categorical"}],
    sequence_features=[
        {"name": "since_last", "kind": "time_since_last"},
        {"name": "ratio", "kind": "ratio_to_history", "of": "amount", "over": "30d"},
        {"name": "often", "kind": "rolling_count", "over": "1h"},
        {"name": "spent", "kind": "rolling_sum", "of": "amount", "over": "1d"},
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "text", "meaning"),
    [("amount", 20.5, "20.5 EUR", ""), ("shop", 4.605, "a category of 1 %", ""),
     ("since_last", 5880.0, "1 h 38 min", "time since the card's previous event"),
     ("ratio", 3.2, "3.2 × the usual", "amount against its mean over the last 30d"),
     ("often", 1.0, "1 event", "events in the last 1h"), ("often", 2.5, "2.5 events", "events in the last 1h"),
     ("spent", 1234.5, "1,234 EUR", "amount summed over the last 1d"), ("gone", 1.0, "1", ""),
     ("amount", None, "–", "")],
)  # fmt: skip
def test_a_channel_in_words(name: str, value: float | None, text: str, meaning: str) -> None:
    """Each kind of channel has its unit and, where it is computed, what it stands for."""
    assert words.in_words(CARDS, name, value).replace("\N{NO-BREAK SPACE}", " ") == text
    assert words.meaning(CARDS, name) == meaning


def test_summary_names_the_most_severe() -> None:
    """The count, then the worst one with its time and its leading drivers."""
    found = frame(
        anomaly("pump-1", 1.5), anomaly("pump-07", 4.0, ("vibration", 0.62), ("flow", 0.2), ("current", 0.18))
    )
    assert words.summary_line(DATASET, DAY, found) == (
        "2 incidents on 2026-03-25 in pumps: the most severe, pump-07 from 14:02 to 15:40 UTC, driven by "
        "vibration (62 %) and flow (20 %)."
    )


def test_summary_of_silence() -> None:
    """Silence alone is no anomaly, but it is not passed over; several are named together."""
    assert words.summary_line(DATASET, DAY, frame(silence("pump-3")), 100) == (
        "No anomaly on 2026-03-25 in pumps: 100 steps scored, and none of them led to an incident; "
        "pump-3 sent nothing from 06:10 to 07:00 UTC."
    )
    many = words.summary_line(DATASET, DAY, frame(*(silence(f"pump-{i}") for i in range(5))))
    assert many.endswith("; pump-0, pump-1, pump-2 and 2 others sent nothing for a while.")


def test_summary_of_nothing() -> None:
    """Nothing abnormal is not said of a day without a scored step."""
    assert words.summary_line(DATASET, DAY, frame()) == "Nothing abnormal on 2026-03-25 in pumps."
    assert words.summary_line(DATASET, DAY, frame(), 0).startswith("Nothing was scored on 2026-03-25 in pumps")


def test_ranked_puts_the_severe_first_and_silence_last() -> None:
    """Rank is by severity, ties by start and entity; silence has no severity and comes after."""
    found = frame(silence("s"), anomaly("b", 2.0), anomaly("a", 2.0), anomaly("c", 9.0))
    assert words.ranked(found)["entity"].to_list() == ["c", "a", "b", "s"]


def test_names_cannot_break_a_line() -> None:
    """A name with line breaks and control characters stays on its line."""
    assert words.who({"entity": "a\n2026 ERROR forged\x1b[31m\u202eb"}) == "a 2026 ERROR forged [31m b"
    assert words.who({"entity": "(all)"}) == "the whole source"


def test_a_label_rate_is_told_in_per_cent_with_what_it_is_the_share_of() -> None:
    """And with how old the labels are."""
    cards = Dataset(
        name="cards", kind="transaction", source={"path": "x.csv"}, entity="card", event_time="time", event_id="id",
        features=[{"name": "terminal_id", "type": "categorical"}],
        sequence_features=[{"name": "risk", "kind": "label_rate", "of": "terminal_id", "over": "7d"}],
        labels={"path": "y.csv", "event_id": "id", "label": "fraud", "delay": "6d"},
    )  # fmt: skip
    assert words.in_words(cards, "risk", 0.4) == "40 %"
    assert words.unit_of(cards, "risk") == "share"
    assert words.meaning(cards, "risk") == (
        "share of events with the same terminal id that turned out anomalous, over the 7d that ended 6d before"
    )


def test_drivers_at_the_peak_are_told_against_what_was_expected() -> None:
    """The first and what made a tenth of the score; a reading that is missing is said to be."""
    names = ("feature", "share", "observed", "expected")
    drivers = [("flow", 0.8, None, 98.5), ("amount", 0.15, 1200.0, 20.0), ("shop", 0.05, 9.0, 1.0)]
    incident = {"drivers": [dict(zip(names, driver, strict=True)) for driver in drivers]}
    told = [line.replace("\N{NO-BREAK SPACE}", " ") for line in words.peak_lines(incident, DATASET)]
    assert told[0] == "flow was missing where 98.5 was expected (80 % of the score)"
    assert told[1] == "amount was 1,200 where 20 was expected (15 % of the score)"
    assert len(told) == 2
    assert words.peak_lines({"drivers": None}, DATASET) == []
