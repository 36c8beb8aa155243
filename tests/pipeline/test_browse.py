"""What the incidents page is asked, and what it finds: filters, order, pages, and trouble with one of the datasets."""

from datetime import date, timedelta
from pathlib import Path
from urllib.parse import parse_qsl

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.browse import (
    MOST_NIGHTS,
    PAGE,
    SORTS,
    Found,
    Question,
    find,
    find_incident,
    nights_of,
    read_question,
)
from pipeline.errors import ConfigError
from pipeline.review import KINDS, STATES, record
from pipeline.state import State, newest_day, write_state
from pipeline.tables import incidents_schema
from pipeline.workspace import Workspace
from tests.lake import DAY, at, cards, incident, pumps, silence, table, workspace

VIBRATION = ("vibration", 1.0, 15.1, 3.0)
NIGHT = timedelta(days=1)


def night(ws: Workspace, day: date, *rows: dict) -> None:
    """A day's incidents, and the record that they were looked for."""
    ws.lake.replace("incidents", day, table([{**row, "day": day} for row in rows], incidents_schema()))
    write_state(ws, State(day, "incidents", "i", "c"))


def one(entity: str, severity: float = 2.0, days: int = 0, hour: int = 14, **changes) -> dict:
    start = at(f"{hour:02}:00") + days * NIGHT
    return incident(entity, start, start + timedelta(hours=1), VIBRATION, severity=severity, **changes)


@pytest.fixture
def house(tmp_path: Path) -> dict[str, Workspace]:
    """Pumps and cards with three nights; a silence, a planned one, and one long ago."""
    ws = {"pumps": workspace(tmp_path, pumps()), "cards": workspace(tmp_path, cards())}
    night(ws["pumps"], DAY, one("pump-1", 9.0), one("pump-2", 3.0, hour=8), one("pump-3", 20.0, reason="seal change"),
          silence("pump-4", at("06:00"), at("18:00")))  # fmt: skip
    night(ws["pumps"], DAY - 9 * NIGHT, one("pump-1", 5.0, days=-9))
    night(ws["cards"], DAY - NIGHT, one("c1", 1.5, days=-1), one("c2", 4.0, days=-1))
    return ws


def found(house: dict[str, Workspace], **asked) -> Found:
    return find(read_question({name: str(value) for name, value in asked.items()}), house, house.__getitem__)


def entities(house: dict[str, Workspace], **asked) -> list[str]:
    return found(house, **asked).incidents["entity"].to_list()


def test_without_a_question_the_latest_nights_of_each_dataset_are_shown_open_and_severe_first(house) -> None:
    """Seven nights from the latest on; what was judged comes after what was not, planned after abnormal."""
    assert entities(house) == ["pump-1", "c2", "pump-2", "c1", "pump-4", "pump-3"]
    worst = found(house).incidents.row(0, named=True)
    record(house["pumps"], worst["incident_id"], "confirmed", "", "anna")
    assert entities(house) == ["c2", "pump-2", "c1", "pump-4", "pump-3", "pump-1"]
    assert found(house).nights == (DAY - 7 * NIGHT, DAY)


def test_filters_narrow_and_states_are_counted_all_the_same(house) -> None:
    """By entity, glob, least severity, kind, nights and state; the counts are of all states, whichever is shown."""
    assert entities(house, entity="pump-*") == ["pump-1", "pump-2", "pump-4", "pump-3"]
    assert entities(house, entity="pump-2") == ["pump-2"]
    assert entities(house, least=4) == ["pump-1", "c2", "pump-3"]
    assert entities(house, kind="silent") == ["pump-4"]
    assert entities(house, first=DAY - 20 * NIGHT, last=DAY - 2 * NIGHT) == ["pump-1"]
    record(house["cards"], found(house, entity="c1").incidents["incident_id"][0], "dismissed", "", "anna")
    assert entities(house, state="dismissed") == ["c1"]
    assert found(house, state="dismissed").states == {"open": 5, "dismissed": 1}


def test_by_time_the_latest_comes_first_whatever_was_said(house) -> None:
    """The order of time knows no state and no severity."""
    starts = found(house, sort="time").incidents["start"].to_list()
    assert starts == sorted(starts, reverse=True)


def test_one_dataset_is_asked_alone_where_it_is_named(house) -> None:
    """`find` reads the datasets that it is given; their names stand with their incidents."""
    answer = find(Question(), ["cards"], house.__getitem__)
    assert set(answer.incidents["dataset"]) == {"cards"}


def test_pages_are_cut_in_order_and_the_last_one_stands_for_those_beyond(tmp_path: Path) -> None:
    """Each incident is on exactly one page."""
    ws = workspace(tmp_path, pumps())
    night(ws, DAY, *(one(f"pump-{n:03}", 1 + n / 10) for n in range(2 * PAGE + 7)))
    shown = [found({"pumps": ws}, page=page).shown()["entity"].to_list() for page in (1, 2, 3)]
    assert [len(page) for page in shown] == [PAGE, PAGE, 7]
    assert [name for page in shown for name in page] == entities({"pumps": ws})
    beyond = found({"pumps": ws}, page=99)
    assert (beyond.page, beyond.pages) == (3, 3)
    assert beyond.shown()["entity"].to_list() == shown[2]


def test_neighbours_are_those_of_the_list(house) -> None:
    """Before and after follow the question's order; the ends, and a stranger, have none."""
    answer = found(house)
    names = answer.incidents.select("dataset", "incident_id").rows()
    for place, name in enumerate(names):
        before, after = answer.beside(*name)
        assert (before and (before["dataset"], before["incident_id"])) == (names[place - 1] if place else None)
        assert (after and (after["dataset"], after["incident_id"])) == (
            names[place + 1] if place + 1 < len(names) else None
        )
    assert answer.beside("pumps", "nobody") == (None, None)


def test_what_cannot_be_read_is_told_and_keeps_nothing_else_from_being_shown(house, tmp_path: Path) -> None:
    """A broken YAML and a broken table each make a sentence; the other dataset is there."""

    def opened(name: str) -> Workspace:
        if name == "wells":
            raise ConfigError("wells.yaml: source: this key is missing")
        return house[name]

    for file in Path(house["cards"].lake.uri("incidents")).rglob("*.parquet"):
        file.write_bytes(b"no parquet")
    answer = find(Question(), ["wells", "cards", "pumps"], opened)
    assert set(answer.incidents["dataset"]) == {"pumps"}
    assert answer.trouble == (
        "wells is not shown: wells.yaml: source: this key is missing",
        "cards is not shown: its tables could not be read; the API server's log says why",
    )


def test_a_lake_without_a_night_has_nothing_to_show(tmp_path: Path) -> None:
    """No table is no trouble: there is no night, and no incident."""
    ws = workspace(tmp_path, pumps())
    answer = found({"pumps": ws})
    assert (len(answer.incidents), answer.nights, answer.trouble, answer.pages) == (0, None, (), 1)
    assert newest_day(ws, "incidents") is None


def test_nights_are_bounded() -> None:
    """At most 400, whether both ends are given or one; the first alone goes on to the latest."""
    assert nights_of(Question(first=DAY - 3 * NIGHT), DAY) == (DAY - 3 * NIGHT, DAY)
    assert nights_of(Question(last=DAY), None) == (DAY - 6 * NIGHT, DAY)
    assert nights_of(Question(first=DAY), DAY - NIGHT) is None
    with pytest.raises(ConfigError, match="at most 400"):
        nights_of(Question(first=DAY - MOST_NIGHTS * NIGHT), DAY)
    with pytest.raises(ConfigError, match="at most 400"):
        read_question({"first": "2020-01-01", "last": "2026-01-01"})


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"first": "soon"}, "first is a day such as 2026-01-31, not 'soon'"),
        ({"first": "2026-03-02", "last": "2026-03-01"}, "is after the last"),
        ({"least": "much"}, "a number such as 2.5, not 'much'"),
        ({"least": "nan"}, "a number such as 2.5, not 'nan'"),
        ({"kind": "loud"}, "kind is one of anomaly, silent, not 'loud'"),
        ({"state": "done"}, "state is one of open, confirmed, dismissed"),
        ({"sort": "name"}, "sort is one of severity, time"),
        ({"page": "0"}, "a page is a number from 1 on"),
        ({"page": "9" * 5000}, "a page is a number from 1 on"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_with_a_sentence(query: dict[str, str], words: str) -> None:
    """What, and what is allowed."""
    with pytest.raises(ConfigError, match=words):
        read_question(query)


@given(
    st.builds(
        Question,
        dataset=st.sampled_from(["", "pumps"]),
        first=st.none() | st.just(DAY - NIGHT),
        last=st.none() | st.just(DAY),
        entity=st.text(st.characters(codec="utf-8")).map(str.strip),
        least=st.none() | st.integers(0, 99).map(float),
        kind=st.sampled_from(["", *KINDS]),
        state=st.sampled_from(["", *STATES]),
        sort=st.sampled_from(SORTS),
        page=st.integers(1, 10**6),
    )
)
def test_an_address_asks_the_question_that_made_it(question: Question) -> None:
    """What is looked at can be kept as an address, and sent on."""
    assert read_question(dict(parse_qsl(question.query()))) == question


def test_an_incident_over_midnight_is_found_on_both_days_as_its_last_tells_it(tmp_path: Path) -> None:
    """Its id is one; a message of the first night leads to what is known now. A verdict on another does not count."""
    ws = workspace(tmp_path, pumps())
    first = incident("pump-1", at("23:00"), at("23:59"), VIBRATION)
    other = incident("pump-1", at("23:30"), at("23:40"), VIBRATION)
    night(ws, DAY, first, other)
    night(ws, DAY + NIGHT, {**first, "end": at("23:59") + NIGHT / 12})
    record(ws, other["incident_id"], "dismissed", "", "anna")
    for day in (DAY, DAY + NIGHT):
        row = find_incident(ws, day, first["incident_id"])
        assert row is not None
        assert (row["day"], row["state"]) == (DAY + NIGHT, "open")
    assert find_incident(ws, DAY + 5 * NIGHT, first["incident_id"]) is None
    assert find_incident(ws, DAY, "nobody") is None


def test_columns_are_the_tables_with_dataset_and_state(house) -> None:
    """Whatever fits, or nothing: the frame is the same."""
    columns = [*incidents_schema(), "state", "note", "reviewer", "reviewed_at", "dataset"]
    assert found(house).incidents.columns == columns
    assert found(house, entity="nobody").incidents.columns == columns
    assert isinstance(found(house).incidents, pl.DataFrame)
