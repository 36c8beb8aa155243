"""The nightly report: what it says, that it says it safely, and that it says the same twice."""

import base64
import hashlib
import html.parser
import re
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import NightsiftError
from pipeline.incidents import incident_id
from pipeline.rendering import environment
from pipeline.report import (
    MOST_CARDS,
    is_reported,
    join_scores,
    read_entry,
    read_facts,
    render_report,
    summarise,
    surroundings,
    write_report,
)
from pipeline.review import record
from pipeline.score import Scored
from pipeline.state import State, day_states, write_state
from pipeline.tables import drifts_schema, incidents_schema, quarantine_schema, scores_schema
from pipeline.workspace import Workspace
from tests.lake import DAY, at, cards, fill, incident, pumps, readings, silence, table, true_night, workspace

NASTY = "<script>alert(1)</script>"
VOID = {"meta", "br", "rect", "path", "input", "hr", "img", "link"}


VIBRATION = ("vibration", 0.62, 15.1, 3.0)
FLOW = ("flow", 0.38, 100.4, 100.0)


@pytest.fixture
def night(tmp_path: Path) -> Workspace:
    """Two pumps with one incident, one silent pump, and rows in quarantine."""
    ws = workspace(tmp_path, pumps())
    found = [
        incident("pump-1", at("14:00"), at("15:00"), VIBRATION, FLOW, steps=13),
        silence("pump-3", at("06:10"), at("00:00") + timedelta(days=1)),
    ]
    bad = [
        {"day": DAY, "entity": "pump-2", "event_time": at("03:00"), "flow": 812.5 + i, "source": "a.parquet",
         "source_digest": "d", "source_row": i, "problems": [], "reasons": [f"flow: {812.5 + i} is above 400 m3/h"]}
        for i in range(5)
    ]  # fmt: skip
    fill(ws, readings(ws.dataset, ["pump-1", "pump-2"]), found, bad, ["warning: flow: 99.00% of the rows pass"])
    return ws


class Outline(html.parser.HTMLParser):
    """Checks that tags close in order; collects tags, attributes and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())


def page_of(ws: Workspace) -> Outline:
    return Outline(write_report(ws, DAY).read_text(encoding="utf-8"))


def test_report_tells_what_happened_why_and_how_sure(night: Workspace) -> None:
    """The page names entity, time with zone, drivers with values and shares, the score and how rare it is."""
    text = page_of(night).text
    for part in (
        "1 incident on 2026-03-25 in pumps: pump-1 from 14:00 to 15:00 UTC, driven by vibration (62 %) and flow (38 %)",
        "13 anomalous readings. At the peak, vibration was 15.1 mm/s where 3 mm/s was expected.",
        "peak score 10 at 14:00 UTC, 2 × the threshold of 5",
        "a score this high comes about once in 50,000 normal steps",
        "pump-3 from 06:10 to 24:00 UTC 17 h 50 min",
        "warning: flow: 99.00% of the rows pass",
        "Detector 7-abc",
    ):
        assert part in text


def test_report_counts_the_night(night: Workspace) -> None:
    """Rows, entities, steps, share and false alarms are those of the tables."""
    blocks = re.findall(r'<dl class="figures">(.*?)</dl>', write_report(night, DAY).read_text(), re.S)
    figures = dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", "".join(blocks)))
    assert figures == {
        "rows in": "585", "clean": "576", "quarantined": "5", "duplicates left out": "4",
        "newest reading of the day, 5 min before its end": "23:55:00", "entities": "2",
        "steps scored": "576", "steps anomalous": "2 %", "false alarms promised per entity-day, at most": "0.05",
        "incidents per entity-day": "0.5", "the same, not confirmed, over 1 night": "0.5",
    }  # fmt: skip


def test_report_says_what_was_promised_and_who_was_not_there_in_training(night: Workspace) -> None:
    """One sentence compares promise and incidents; entities that training did not know are a warning, by name."""
    scored = Scored(str(DAY), 576, 13, 2, "7-abc", 0.05, 2, ["pump-8", NASTY])
    write_state(night, State(DAY, "score", "i", "c", "7-abc", asdict(scored)))
    text = page_of(night).text
    assert "In this night there was 1 incident that nobody confirmed in 2 entity-days, 0.5 per entity and day" in text
    assert "where at most 0.05 are promised: more than promised, but no more than chance explains." in text
    assert f"pump-8 and {NASTY} were not there in training and are judged on the scales of all" in text
    assert NASTY not in write_report(night, DAY).read_text()


def test_quarantine_is_shown_by_kind_of_reason_with_examples(night: Workspace) -> None:
    """Reasons that differ in the value alone are one group, with the first rows as examples."""
    page = page_of(night)
    assert "5 rows : flow: … is above 400 m3/h" in page.text
    assert "a.parquet, row 1: entity=pump-2, event_time=2026-03-25 03:00:00" in page.text
    assert "flow: 812.5 is above 400 m3/h" in page.text
    assert "flow: 815.5 is above" not in page.text  # the fourth example


def test_charts_show_observed_expected_incident_and_threshold(night: Workspace) -> None:
    """One panel a driver and one for the score, each an SVG with a title that is read out."""
    text = write_report(night, DAY).read_text()
    figures = re.findall(r"<figure.*?</figure>", text, re.S)
    assert len(figures) == 1
    assert figures[0].count("<svg") == 3
    assert figures[0].count('class="expected" d="M') == 2
    assert figures[0].count('class="threshold"') == 1
    assert "vibration of pump-1: at the peak 15.1\N{NO-BREAK SPACE}mm/s observed" in figures[0]
    titles = re.findall(r'aria-labelledby="([^"]+)"><title id="([^"]+)"', figures[0])
    assert len(titles) == 3
    assert all(label == title for label, title in titles)


def test_a_second_report_is_the_same_bytes(night: Workspace) -> None:
    """Nothing of the run is in the page: no clock, no run id, and no temporary file is left beside it."""
    page = write_report(night, DAY)
    first = page.read_bytes()
    assert write_report(night, DAY).read_bytes() == first
    assert [file.name for file in page.parent.iterdir()] == ["2026-03-25.html"]
    assert page == night.home.reports / "pumps" / "2026-03-25.html"


def test_the_order_of_rows_changes_nothing(night: Workspace) -> None:
    """The same facts in another order of rows give the same page."""
    facts = read_facts(night, DAY)
    shuffled = replace(facts, incidents=facts.incidents.reverse())
    assert render_report(shuffled) == render_report(facts)


def test_page_loads_nothing_and_runs_its_own_script_alone(night: Workspace) -> None:
    """No address, no source but what stands in the file; the page forbids itself all scripts but the one it has."""
    text = write_report(night, DAY).read_text()
    page = Outline(text)
    assert {"link", "img", "iframe", "object", "base", "form"}.isdisjoint(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "srcset") or name.startswith("on")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
    policy += "form-action 'none'"
    assert ("content", policy) in page.attributes
    assert not re.search(r"\w://|url\(|@import|innerHTML|eval\(|fetch\(", text)


def test_links_that_leave_the_page_lead_to_the_incidents_page_alone(
    night: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is known where Airflow is, an incident, its rows and the list of all are one click away."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.test/")
    page = page_of(night)
    leaving = {value for name, value in page.attributes if name == "href" and not value.startswith("#")}
    listed = "http://airflow.test/nightsift/incidents"
    one = f"{listed}/pumps/2026-03-25/{incident_id('pump-1', at('14:00'), 'anomaly')}"
    assert leaving == {listed, one, f"{one}/rows.csv"}


def test_page_is_sound_html(night: Workspace) -> None:
    """Tags close in order, ids are unique, every link inside the page has its goal, tables have headers."""
    page = page_of(night)
    assert len(set(page.ids)) == len(page.ids)
    assert {value[1:] for name, value in page.attributes if name == "href"} <= set(page.ids)
    assert page.tags.count("table") == page.tags.count("thead")
    assert page.tags.count("h1") == 1


def shop_night(tmp_path: Path, *first: tuple, **changes) -> Workspace:
    """A card with quiet payments over three days and a burst at a nasty shop; everything named by data is nasty.

    `first` are the drivers that come before the usual ones.
    """
    ws = workspace(tmp_path, cards(description=NASTY, **changes))
    times = [at("12:00") - timedelta(hours=7 * i) for i in range(8, 0, -1)]
    times += [at("12:00") + timedelta(minutes=2 * i) for i in range(3)]
    burst = [t >= at("12:00") for t in times]
    rows = pl.DataFrame({
        "day": [t.date() for t in times], "entity": NASTY, "event_time": times,
        "amount": [2000.5 if b else 20.0 for b in burst], "shop": [NASTY if b else "grocer" for b in burst],
        "score": [12.0 if b else 1.0 for b in burst], "p_value": 1e-7, "threshold": 5.0, "is_anomaly": burst,
        "detector_version": "7-abc", "event_id": [str(n) for n in range(len(times))],
        **{f"{what}_{c}": 1.5 for what in ("observed", "expected", "contribution") for c in ws.dataset.channels},
    }).with_columns(pl.col("event_time").dt.cast_time_unit("us"))  # fmt: skip
    drivers = (*first, ("amount", 0.5, 2000.5, 21.0), ("shop", 0.3, 4.605, 1.386), ("since_last", 0.15, 120.0, 25200.0),
               ("count_1h", 0.05, 1.0, 1.2))  # fmt: skip
    found = [incident(NASTY, at("12:00"), at("12:04"), *drivers, p_value=1e-7)]
    bad = [{"day": DAY, "source": NASTY, "source_row": 0, "raw": NASTY, "problems": [NASTY], "reasons": [NASTY]}]
    fill(ws, rows, found, bad, [NASTY])
    return ws


def test_all_that_comes_from_data_is_escaped(tmp_path: Path) -> None:
    """A name that is a script is shown as text: in summary, tables, charts, quarantine and warnings."""
    text = write_report(shop_night(tmp_path), DAY).read_text()
    page = Outline(text)
    assert NASTY not in text
    assert page.tags.count("script") == 1
    assert page.text.count(NASTY) >= 8


def test_events_are_dots_in_order_with_their_categories(tmp_path: Path) -> None:
    """A transaction's chart has a dot for each event, categories on their own heights, and values in words."""
    text = write_report(shop_night(tmp_path), DAY).read_text()
    page = Outline(text).text
    assert "a category of 1 %" in page
    assert "25 %" in page
    assert "2,000" in page
    assert "7 h" in page  # since_last, expected
    assert "1 event" in page
    assert "less than once in a million normal steps" in page
    amount = re.search(r'<path class="observed" d="([^"]+)"', text)
    assert amount is not None
    assert amount[1].count("M") == 11
    assert "L" not in amount[1]
    assert ">grocer</span>" in text


def test_a_label_rate_is_told_with_its_category_and_what_it_is_the_share_of(tmp_path: Path) -> None:
    """Which shop, how much of what was paid there was anomalous, and when; nothing was expected of it."""
    risk = {"name": "risk", "kind": "label_rate", "of": "shop", "over": "7d"}
    labels = {"path": "y.csv", "event_id": "id", "label": "fraud", "delay": "7d"}
    driver = ("risk", 0.9, 0.4, 0.01)
    page = page_of(shop_night(tmp_path, driver, event_id="id", sequence_features=[risk], labels=labels))
    meaning = "share of events with the same shop that turned out anomalous, over the 7d that ended 7d before"
    assert f"At the peak, risk ({meaning}) was {NASTY}, 40 %." in page.text


def test_drivers_without_weight_are_left_out(night: Workspace) -> None:
    """A feature with less than a hundredth of the score is neither listed nor drawn; the first one always is."""
    facts = read_facts(night, DAY)
    found = [
        incident("pump-1", at("14:00"), at("15:00"), ("vibration", 0.995, 15.1, 3.0), ("flow", 0.005, 100.4, 100.0))
    ]
    page = render_report(replace(facts, incidents=table(found, incidents_schema())))
    assert "flow of pump-1" not in page
    assert page.count('class="expected" d="M') == 1


def test_a_day_in_another_zone_is_told_in_that_zone(tmp_path: Path) -> None:
    """Times are the dataset's; where clocks change within the incident, each time names its offset."""
    ws = workspace(tmp_path, pumps(zone="Europe/Berlin"))
    day = date(2026, 3, 29)  # 02:00 CET becomes 03:00 CEST
    start, end = datetime(2026, 3, 29, 0, 30, tzinfo=UTC), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    ws.lake.replace("incidents", day, table([incident("pump-1", start, end, VIBRATION)], incidents_schema()))
    counts = {"rows_in": 0, "rows_clean": 0, "rows_quarantined": 0, "rows_duplicate": 0, "warnings": []}
    write_state(ws, State(day, "validate", "i", "c", counts=counts))
    write_state(ws, State(day, "score", "i", "c", "7-abc", asdict(Scored(str(day), 0, 0, 0, "7-abc"))))
    write_state(ws, State(day, "incidents", "i", "c", "7-abc", {}))
    text = Outline(write_report(ws, day).read_text()).text
    assert "pump-1 from 01:30 CET to 03:30 CEST Europe/Berlin (1 h)" in text
    assert "Sunday 2026-03-29" in text


def test_a_quiet_night_says_so_and_a_night_without_data_does_not(tmp_path: Path) -> None:
    """Nothing abnormal is only said of steps that were scored."""
    ws = workspace(tmp_path, pumps())
    rows = readings(ws.dataset, ["pump-2"])
    fill(ws, rows.with_columns(is_anomaly=False), [])
    assert "Nothing abnormal on 2026-03-25 in pumps: 288 steps scored" in page_of(ws).text
    fill(ws, rows.with_columns(is_anomaly=False), [silence("(all)", at("00:00"), at("00:00") + timedelta(days=1))])
    ws.lake.replace("scores", DAY, rows.clear().select(list(scores_schema(ws.dataset))))
    text = page_of(ws).text
    assert "Nothing was scored on 2026-03-25 in pumps" in text
    assert "the whole source sent nothing from 00:00 to 24:00 UTC" in text
    assert "Nothing abnormal" not in text


def test_a_day_that_was_not_done_is_refused(tmp_path: Path) -> None:
    """Without the incidents step there is no report, and the message says what to run."""
    ws = workspace(tmp_path, pumps())
    with pytest.raises(NightsiftError, match=r"nightsift score pumps --from 2026-03-25 --to 2026-03-26"):
        write_report(ws, DAY)
    assert not ws.home.reports.exists()


def test_a_report_that_cannot_be_written_says_why(night: Workspace) -> None:
    """The sentence names the file; nothing half written stays behind."""
    page = night.home.reports / "pumps" / f"{DAY}.html"
    page.mkdir(parents=True)
    with pytest.raises(NightsiftError, match=r"2026-03-25\.html could not be written"):
        write_report(night, DAY)
    assert list(page.parent.iterdir()) == [page]
    page.rmdir()
    page.parent.rmdir()
    page.parent.write_text("a file where the folder should be")
    with pytest.raises(NightsiftError, match=r"2026-03-25\.html could not be written"):
        write_report(night, DAY)


def test_a_busy_night_stays_small(tmp_path: Path) -> None:
    """500 incidents in 5 entities: under 5 MB, each with its picture, all of them in the table."""
    ws = workspace(tmp_path, pumps(cadence="1m"))
    names = [f"pump-{i}" for i in range(5)]
    found = [
        incident(names[i % 5], at("00:00") + timedelta(minutes=2 * i), at("00:00") + timedelta(minutes=2 * i + 300),
                 VIBRATION, FLOW, severity=1 + i / 100)
        for i in range(500)
    ]  # fmt: skip
    fill(ws, readings(ws.dataset, names), found)
    text = write_report(ws, DAY).read_text()
    assert len(text.encode()) < 5_000_000
    figures = re.findall(r"<figure.*?</figure>", text, re.S)
    assert len(figures) == 500
    assert [figures[rank - 1].count("<svg") for rank in (1, 30, 151, 500)] == [3, 3, 2, 2]  # the score among them
    assert len(figures[-1]) < len(figures[0]) / 2
    assert "Pictures from rank 31 on are drawn coarser" in text
    severities = [float(value) for value in re.findall(r'<td class="n">([\d.]+)\N{NO-BREAK SPACE}×</td>', text)]
    assert len(severities) == 500
    assert severities == sorted(severities, reverse=True)


def test_context_comes_from_clean_where_a_day_was_never_scored(tmp_path: Path) -> None:
    """The day before was not scored: its readings are in the chart's rows, without expectation or score."""
    ws = workspace(tmp_path, pumps())
    fill(
        ws,
        readings(ws.dataset, ["pump-1", "pump-2"]),
        [incident("pump-1", at("01:00"), at("02:00"), VIBRATION, steps=13)],
    )
    rows = read_facts(ws, DAY).around
    before = rows.filter(pl.col("event_time") < at("00:00"))
    assert before.height > 0
    assert before["observed_flow"].null_count() == 0
    assert before["score"].null_count() == before.height
    assert rows.filter(pl.col("event_time") >= at("00:00"))["score"].null_count() == 0
    assert rows["entity"].unique().to_list() == ["pump-1"]


def test_events_at_one_moment_keep_their_own_scores() -> None:
    """Two payments of a card in the same second are matched to their scores one to one, in scoring's order."""
    dataset = cards()
    clean = pl.DataFrame({"entity": ["a"] * 3, "event_time": [at("01:00"), at("01:00"), at("02:00")],
                          "amount": [7.0, 3.0, 5.0], "shop": ["x", "y", "z"]})  # fmt: skip
    clean = clean.with_columns(pl.col("event_time").dt.cast_time_unit("us"))
    ordered = clean.sort("entity", "event_time", "amount")
    expected = {f"expected_{name}": pl.lit(0.0) for name in dataset.channels}
    scores = ordered.select("entity", "event_time", score="amount", is_anomaly=pl.lit(False), **expected)
    joined = join_scores(clean, scores, dataset)
    assert joined["observed_amount"].to_list() == joined["score"].to_list() == [3.0, 7.0, 5.0]
    assert joined["observed_since_last"].to_list() == pytest.approx([None, 0.0, 3600.0])
    assert joined["observed_count_1h"].to_list() == pytest.approx([1.0, 2.0, 1.0])


def test_surroundings_reach_as_far_as_the_incident_is_long() -> None:
    """A sensor's chart shows at least 45 readings on each side, and no more than 6 hours."""
    rows = readings(pumps(), ["pump-1"]).select("event_time")
    for hours, margin in ((0, 3.75), (5, 5), (12, 6)):
        end = at("10:00") + timedelta(hours=hours)
        shown = surroundings(rows, at("10:00"), end, pumps())["event_time"]
        assert at("10:00") - shown.min() == timedelta(hours=margin)
        assert shown.max() - end == min(timedelta(hours=margin), at("23:55") - end)


def test_reasons_are_grouped_by_kind_and_counted_by_row() -> None:
    """A row with two reasons counts under each; one with the same kind twice counts once there."""
    rows = [
        {"source": "a", "source_row": 0, "reasons": ["flow: -3 is below 0 m3/h", "time: 'x is y' is not a time"]},
        {"source": "a", "source_row": 1, "reasons": ["flow: -4 is below 0 m3/h", "flow: -4 is below 0 m3/h"]},
        {"source": "a", "source_row": 2, "reasons": ["flow: is missing"], "raw": "x" * 1000},
    ]
    found = summarise(table(rows, quarantine_schema(pumps())).lazy(), pumps())
    assert found.select("reason", "rows").rows() == [
        ("flow: … is below 0 m3/h", 2), ("flow: is missing", 1), ("time: … is not a time", 1),
    ]  # fmt: skip
    assert max(len(example) for example in found["examples"].explode()) < 400


def test_slow_drifts_are_told_apart_from_incidents(night):
    """What lay where and where it lies now, the furthest first; a night without drifts has no word of them."""
    assert "Slow drifts" not in render_report(read_facts(night, DAY))
    rows = [
        {"entity": f"pump-{n}", "feature": "vibration", "observed": 3.0 + n, "usual": 3.0, "deviations": -4.04 * n}
        for n in range(1, 24)
    ]
    night.lake.replace("drifts", DAY, table(rows, drifts_schema()))
    page = render_report(read_facts(night, DAY))
    text = Outline(page).text
    line = "pump-23: vibration lies around 26 mm/s, in training it lay around 3 mm/s, 93 deviations away"
    assert line in text
    assert text.index("pump-23:") < text.index("pump-5:")
    assert "pump-3:" not in text
    assert "and 3 more, in the table drifts" in text


def test_a_sensor_that_sent_nothing_is_said_to(tmp_path):
    """Nothing was observed, and that is what the incident is about."""
    ws = workspace(tmp_path, pumps())
    fill(
        ws, readings(ws.dataset, ["pump-1"]), [incident("pump-1", at("14:00"), at("15:00"), ("flow", 1.0, None, 100.0))]
    )
    assert "At the peak, flow sent nothing where 100 m3/h was expected." in page_of(ws).text


def test_a_night_beyond_what_can_be_drawn_says_so(tmp_path: Path) -> None:
    """Incidents with a rank above the most that have a picture stand in the table, and the page says so."""
    ws = workspace(tmp_path, pumps())
    starts = [at("00:00") + timedelta(minutes=n) for n in range(MOST_CARDS + 3)]
    found = [incident("pump-1", start, start, VIBRATION) for start in starts]
    fill(ws, readings(ws.dataset, ["pump-1"]), found)
    text = render_report(read_facts(ws, DAY))
    assert text.count("<figure") == MOST_CARDS
    assert text.count('<td class="n">2\N{NO-BREAK SPACE}×</td>') == MOST_CARDS + 3
    assert "Incidents from rank 1,001 on are in the table above alone." in text


def test_a_report_made_after_a_verdict_shows_it(night: Workspace) -> None:
    """State, reviewer and note stand at the incident, and what waits is counted; the report was not stale before."""
    name = incident_id("pump-1", at("14:00"), "anomaly")
    assert "1 incident and 1 silence wait for a verdict" in page_of(night).text
    record(night, name, "confirmed", f"bearing {NASTY}", "ana")
    assert is_reported(day_states(night, DAY))
    text = page_of(night).text
    assert "1 silence waits for a verdict" in text
    assert f"confirmed by ana on {datetime.now(UTC).date()}: bearing {NASTY}" in text
    assert NASTY not in write_report(night, DAY).read_text()
    record(night, incident_id("pump-3", at("06:10"), "silent"), "dismissed", "", "ana")
    assert "Nothing: every incident has its verdict." in page_of(night).text


def test_an_incident_names_its_raw_rows(night: Workspace) -> None:
    """The file and the numbers of the rows that the pump sent while it lasted, counted from 1."""
    assert "pumps-2026-03-25.parquet, rows 169 to 181" in page_of(night).text
    assert read_entry(night, read_facts(night, DAY).incidents.row(0, named=True)).raw == (
        "pumps-2026-03-25.parquet, rows 169 to 181",
    )


def test_one_incident_is_told_as_in_the_report(tmp_path: Path) -> None:
    """`read_entry` gives the incidents page what the report says: words, picture, history and raw rows."""
    ws = true_night(tmp_path)
    found = read_facts(ws, DAY).incidents.sort("severity", descending=True, nulls_last=True)
    entry = read_entry(ws, found.row(0, named=True))
    page = write_report(ws, DAY).read_text()
    body = environment().from_string('{% from "incident.html.jinja" import body with context %}{{ body(entry) }}')
    assert body.render(entry=entry, dataset=ws.dataset) in page
    assert "incidents in the 28 nights before" in page
    assert "since 2026-03-17" in page
