"""The incidents page as a web app: who gets in, what each address answers, what is refused, and that all is escaped."""

import csv
import io
import json
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import polars as pl
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount
from starlette.testclient import TestClient

from pipeline.pages import SCRIPTS, harmless_csv, policy
from pipeline.rendering import inline
from pipeline.review import LONGEST_NOTE, history, latest_verdicts, read_reviewed
from pipeline.web import MOST_BODY, make_app
from pipeline.workspace import Workspace, open_workspace
from tests.lake import DAY, at, fill, incident, readings, silence
from tests.pipeline.test_report import Outline

NASTY = "<script>alert(1)</script>"
YAML = """
kind: sensor
description: "{nasty}"
zone: Asia/Tokyo
source: {{path: "*.parquet"}}
entity: pump
event_time: time
cadence: 5m
features: [{{name: flow, unit: m3/h}}, {{name: vibration, unit: mm/s}}]
"""
VIBRATION, FLOW = ("vibration", 0.62, 15.1, 3.0), ("flow", 0.38, 100.4, 100.0)
OURS = {"Origin": "http://testserver"}


@dataclass
class Someone:
    """Who may read and run what is named; everything, by default."""

    name: str = "anna"
    ambient: bool = True
    hidden: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    def may(self, dag: str, *, run: bool = False) -> bool:
        return dag not in self.hidden and not (run and dag in self.fixed)


@dataclass
class House:
    """The app as it is mounted, asked by `someone`, and the tables behind it."""

    ws: Workspace
    someone: Someone | HTTPException

    def client(self, **options) -> TestClient:
        async def guard(request: Request) -> Someone:
            if isinstance(self.someone, HTTPException):
                raise self.someone
            return self.someone

        app = make_app(guard, self.ws.home.root, self.ws.home.root / "datasets")
        mounted = Starlette(routes=[Mount("/nightsift", app)])
        return TestClient(mounted, follow_redirects=False, raise_server_exceptions=False, **options)

    def get(self, path: str, **options):
        return self.client().get(f"/nightsift{path}", **options)

    def post(self, path: str, headers=OURS, **options):
        return self.client().post(f"/nightsift{path}", headers=headers, **options)


def ids(ws: Workspace) -> dict[str, str]:
    return dict(read_reviewed(ws, DAY, DAY).select("entity", "incident_id").rows())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return house_in(tmp_path)


def house_in(root: Path) -> House:
    """A night of pumps: two anomalies, one of them of a nasty name and with a nasty reason, and a silence."""
    (root / "datasets").mkdir()
    (root / "datasets" / "pumps.yaml").write_text(YAML.format(nasty=NASTY))
    ws = open_workspace("pumps", root, root / "datasets")
    found = [
        incident("pump-1", at("02:00"), at("03:00"), VIBRATION, FLOW, severity=4.0, steps=13),
        incident(NASTY, at("02:00"), at("03:00"), VIBRATION, reason=NASTY),
        silence("pump-3", at("01:10"), at("14:00")),
    ]
    fill(ws, readings(ws.dataset, ["pump-1", NASTY, "=1+1"]), found)
    return House(ws, Someone())


def address(house: House, entity: str, rest: str = "") -> str:
    return f"/incidents/pumps/{DAY}/{ids(house.ws)[entity]}{rest}"


def test_the_list_shows_who_when_how_severe_and_why(house: House) -> None:
    """Each incident links to its page; times are in the dataset's zone, which is written out."""
    answer = house.get("/incidents")
    text = Outline(answer.text).text
    assert answer.status_code == 200
    assert "3 incidents in the nights 2026-03-19 to 2026-03-25: 3 open." in text
    assert "from 11:00 to 12:00 Asia/Tokyo 4 × vibration (62 %) and flow (38 %)" in text
    assert "from 10:10 to 23:00 Asia/Tokyo – sent nothing" in text
    assert f'href="/nightsift{address(house, "pump-1")}"' in answer.text


def test_the_filter_keeps_what_was_asked(house: House) -> None:
    """The form comes back as it was sent, rows lead to pages that lead back to it, states are one click away."""
    answer = house.get("/incidents?entity=pump-*&sort=time&kind=anomaly&least=1.5&state=open")
    page = Outline(answer.text)
    assert ("value", "pump-*") in page.attributes
    assert ("value", "1.5") in page.attributes
    assert "<option selected>anomaly</option>" in answer.text
    query = "entity=pump-%2A&least=1.5&kind=anomaly&state=open&sort=time"
    assert ("href", f"/nightsift{address(house, 'pump-1')}?{query}") in page.attributes
    assert ("href", f"/nightsift/incidents?{query.replace('open', 'confirmed')}") in page.attributes
    back = house.get(f"{address(house, 'pump-1')}?{query}")
    assert ("href", f"/nightsift/incidents?{query}") in Outline(back.text).attributes


def test_a_wrong_question_is_a_sentence_with_the_form(house: House) -> None:
    """400, what is wrong, and the way on; for a script the same as JSON."""
    answer = house.get("/incidents?first=soon")
    assert answer.status_code == 400
    assert "first is a day such as 2026-01-31, not 'soon'." in Outline(answer.text).text
    assert 'name="first"' in answer.text
    assert house.get("/api/incidents?first=soon").json() == {"detail": "first is a day such as 2026-01-31, not 'soon'."}


def test_an_incident_is_told_with_its_picture_and_what_to_do_next(house: House) -> None:
    """Words and charts are the report's; the links lead to report, rows, a filled-in backfill and the training."""
    answer = house.get(address(house, "pump-1"))
    page = Outline(answer.text)
    assert "13 anomalous readings. At the peak, vibration was 15.1 mm/s where 3 mm/s was expected." in page.text
    assert page.tags.count("svg") >= 3
    links = [value for name, value in page.attributes if name == "href"]
    assert f"/nightsift/reports/pumps/{DAY}" in links
    assert f"/nightsift{address(house, 'pump-1')}/rows.csv" in links
    assert "/dags/pumps_train" in links
    (form,) = (link for link in links if link.startswith("/nightsift/backfill"))
    asked = {"dataset": "pumps", "first": str(DAY), "last": str(DAY), "entities": "pump-1", "overwrite": "on"}
    assert dict(parse_qsl(urlsplit(form).query)) == asked
    filled = house.get(form.removeprefix("/nightsift")).text
    assert f'value="{DAY}"' in filled
    assert ">pump-1</textarea>" in filled


def test_a_silence_is_told_in_words(house: House) -> None:
    """It has no picture, nothing came; and no threshold that a verdict would raise."""
    page = Outline(house.get(address(house, "pump-3")).text)
    assert "Nothing came from pump-3 from 10:10 to 23:00 Asia/Tokyo (12 h 50 min)" in page.text
    assert "figure" not in page.tags
    assert "raises the threshold" not in page.text
    assert "A silence has nothing that a training could learn from" in page.text
    assert (
        "raises the threshold of pump-1 for what is nothing" in Outline(house.get(address(house, "pump-1")).text).text
    )


def test_a_verdict_is_recorded_under_the_visitors_name_and_shown_again(house: House) -> None:
    """With note and time in the dataset's zone; the way back is the list that it was given in."""
    back = "entity=pump-1&page=1&evil=//evil.example"
    answer = house.post(
        address(house, "pump-1", "/verdict"), data={"verdict": "confirmed", "note": NASTY, "back": back}
    )
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/nightsift/incidents?entity=pump-1&said=pumps.{ids(house.ws)['pump-1']}"
    assert (
        "pump-1, 2026-03-25 from 11:00 to 12:00 Asia/Tokyo: confirmed."
        in Outline(house.get(answer.headers["location"].removeprefix("/nightsift")).text).text
    )
    said = history(house.ws, ids(house.ws)["pump-1"]).row(0, named=True)
    assert (said["verdict"], said["note"], said["reviewer"]) == ("confirmed", NASTY, "anna")
    text = Outline(house.get(address(house, "pump-1")).text).text
    assert f"It is confirmed , says anna: {NASTY}." in text
    assert f"{said['reviewed_at'] + timedelta(hours=9):%Y-%m-%d %H:%M} Asia/Tokyo" in text


def test_a_verdict_that_ends_the_state_that_is_shown_is_told_and_can_be_undone(house: House) -> None:
    """The incident is in the list of open ones no more; an id of another dataset, or of nothing, is none."""
    answer = house.post(address(house, "pump-1", "/verdict"), data={"verdict": "confirmed", "back": "state=open"})
    shown = Outline(house.get(answer.headers["location"].removeprefix("/nightsift")).text)
    assert "pump-1, 2026-03-25 from 11:00 to 12:00 Asia/Tokyo: confirmed. undo" in shown.text
    for said in ("cards." + ids(house.ws)["pump-1"], "x"):
        assert 'class="just"' not in house.get(f"/incidents?said={said}").text


def test_a_moved_incident_is_judged_and_undone_as_any_other(house: House) -> None:
    """Its page tells what was said of it before late data came, and takes it back."""
    house.post(address(house, "pump-1", "/verdict"), data={"verdict": "confirmed", "note": "bearing"})
    fill(house.ws, readings(house.ws.dataset, ["pump-1"]), [incident("pump-1", at("01:00"), at("03:00"), VIBRATION)])
    told = Outline(house.get(address(house, "pump-1")).text).text
    assert "It is confirmed , says anna: bearing." in told
    assert "confirmed by anna" in told
    assert house.post(address(house, "pump-1", "/verdict"), data={"verdict": "withdrawn"}).status_code == 303
    assert read_reviewed(house.ws, DAY, DAY)["state"].to_list() == ["open"]
    assert latest_verdicts(house.ws).is_empty()


@pytest.mark.parametrize("day", ["0001-01-01", "1899-12-31", "2201-01-01", "9999-12-31"])
def test_a_day_at_the_edge_of_the_calendar_is_refused_with_a_sentence(house: House, day: str) -> None:
    """Wherever an address may name one."""
    why = f"{day} is no day between 1900-01-01 and 2200-12-31"
    places = {f"/incidents?last={day}": 400, f"/incidents?first={day}": 400, f"/api/incidents?last={day}": 400,
              f"/incidents/pumps/{day}/x": 404, f"/reports/pumps/{day}": 404}  # fmt: skip
    for place, status in places.items():
        answer = house.get(place)
        assert (answer.status_code, why in answer.text) == (status, True)
    assert house.get("/incidents?last=1900-01-01").status_code == 200
    assert house.get("/incidents/pumps/2200-12-31/x").status_code == 404


def test_a_verdict_given_on_the_page_stays_there_and_can_be_withdrawn(house: House) -> None:
    """Both are told afterwards; the incident is open again."""
    for verdict in ("dismissed", "withdrawn"):
        answer = house.post(address(house, "pump-1", "/verdict"), data={"verdict": verdict, "stay": "1"})
        assert answer.headers["location"] == f"/nightsift{address(house, 'pump-1')}"
    text = Outline(house.get(address(house, "pump-1")).text).text
    assert "This incident is open ." in text
    assert text.index("withdrawn by anna") < text.index("dismissed by anna")
    assert latest_verdicts(house.ws).is_empty()


def test_after_a_verdict_the_next_open_incident_is_a_click_away(house: House) -> None:
    """One leads to the other until all are judged."""
    here, seen = address(house, "pump-1"), []
    while here not in seen:
        seen.append(here)
        house.post(f"{here}/verdict", data={"verdict": "confirmed", "stay": "1"})
        onward = re.search(r'rel="next" href="/nightsift([^"]+)">the next open one<', house.get(here).text)
        here = onward[1] if onward else here
    assert sorted(seen) == sorted(address(house, entity) for entity in ids(house.ws))
    assert len(latest_verdicts(house.ws)) == 3


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"verdict": "perhaps"}, "is no verdict; say confirmed, dismissed or withdrawn."),
        ({}, "is no verdict"),
        ({"verdict": "withdrawn"}, "there is no verdict on incident"),
        ({"verdict": "confirmed", "note": "x" * (LONGEST_NOTE + 1)}, "at most 2,000 are kept."),
    ],
)
def test_a_verdict_that_cannot_be_recorded_is_refused_with_a_sentence(
    house: House, form: dict[str, str], words: str
) -> None:
    """400, and nothing was written."""
    answer = house.post(address(house, "pump-1", "/verdict"), data=form)
    assert answer.status_code == 400
    assert words in Outline(answer.text).text
    assert latest_verdicts(house.ws).is_empty()


def test_a_body_is_bounded(house: House) -> None:
    """413 before it is read to its end."""
    answer = house.post(address(house, "pump-1", "/verdict"), data={"note": "x" * MOST_BODY})
    assert answer.status_code == 413


def test_who_may_not_judge_sees_no_button_and_is_refused(house: House) -> None:
    """The permission is that of starting runs of NAME_nightly."""
    house.someone = Someone(fixed=("pumps_nightly", "backfill"))
    for place in ("/incidents", address(house, "pump-1")):
        page = Outline(house.get(place).text)
        assert ("name", "verdict") not in page.attributes
        assert not [value for name, value in page.attributes if name == "href" and "/backfill" in value]
    answer = house.post(address(house, "pump-1", "/verdict"), data={"verdict": "confirmed"})
    assert answer.status_code == 403
    assert "Only who may start runs of the DAG pumps_nightly can record a verdict." in answer.text
    sent = {"dataset": "pumps", "verdicts": [{"incident": ids(house.ws)["pump-1"], "verdict": "confirmed"}]}
    assert house.post("/api/verdicts", json=sent).status_code == 403
    assert house.get("/backfill").status_code == 403
    assert latest_verdicts(house.ws).is_empty()


def test_who_may_not_read_the_dag_sees_nothing_of_the_dataset(house: House) -> None:
    """Neither in the list, nor by any address; no more is told of a dataset that is there than of one that is not."""
    place, sent = address(house, "pump-1"), {"dataset": "pumps", "verdicts": []}
    house.someone = Someone(hidden=("pumps_nightly", "wells_nightly"))
    assert "pump-1" not in house.get("/incidents").text
    assert house.get("/api/incidents").json()["incidents"] == []
    for path in (place, f"{place}/rows.csv", f"/reports/pumps/{DAY}", place.replace("pumps", "wells")):
        assert house.get(path).status_code == 403
    for path in ("/incidents?dataset=pumps", "/incidents?dataset=wells", "/api/incidents?dataset=pumps"):
        assert house.get(path).status_code == 403
    assert house.post(f"{place}/verdict", data={"verdict": "confirmed"}).status_code == 403
    assert house.post("/api/verdicts", json=sent).status_code == 403


def test_whom_the_guard_does_not_know_gets_a_sentence_and_the_way_to_the_login(house: House) -> None:
    """It comes first, for every address, and leads back to what was asked for."""
    house.someone = HTTPException(401, "You are not logged in to Airflow.")
    answer = house.get("/incidents?entity=a%26b")
    assert answer.status_code == 401
    (login,) = (value for name, value in Outline(answer.text).attributes if name == "href" and "login" in value)
    assert login == "/api/v2/auth/login?next=%2Fnightsift%2Fincidents%3Fentity%3Da%2526b"
    assert house.get("/api/incidents").json() == {"detail": "You are not logged in to Airflow."}
    assert [house.get(path).status_code for path in ("/", "/nowhere", "/backfill")] == [401] * 3
    assert house.post(f"/incidents/pumps/{DAY}/x/verdict", data={"verdict": "confirmed"}).status_code == 401


def test_what_is_not_there_is_a_404_with_a_sentence(house: House) -> None:
    """Dataset, day, incident, page: none reaches the file system."""
    for path, words in {
        "/incidents/wells/2026-03-25/x": "There is no dataset 'wells'.",
        "/incidents/..%2f..%2fetc/2026-03-25/x": "There is no",
        "/incidents/pumps/yesterday/x": "'yesterday' is no day such as 2026-01-31.",
        "/incidents/pumps/2026-03-25/x": "pumps has no such incident on 2026-03-25.",
        "/reports/pumps/2020-01-01": "the step incidents was not done",
        "/reports/wells/2026-03-25": "There is no dataset 'wells'.",
        "/incidents?dataset=wells": "There is no dataset 'wells'.",
        "/nowhere": "There is no such page.",
    }.items():
        answer = house.get(path)
        assert answer.status_code == 404, path
        assert words in Outline(answer.text).text
    assert house.get(address(house, "pump-1", "/verdict")).status_code == 405


FROM = {
    "another site": ({"Sec-Fetch-Site": "cross-site"}, 403, 403),
    "a neighbour": ({"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"}, 403, 403),
    "another origin": ({"Origin": "https://evil.example"}, 403, 403),
    "no origin of its own": ({"Origin": "null"}, 403, 403),
    "nobody says": ({}, 403, 303),
    "these pages": ({"Sec-Fetch-Site": "same-origin"}, 303, 303),
    "these pages, by an old browser": ({"Origin": "http://testserver"}, 303, 303),
    "these pages, behind a proxy": ({"Origin": "https://airflow.example"}, 303, 303),
}


@pytest.mark.parametrize("who", FROM)
def test_only_these_pages_and_who_brings_a_token_can_write(
    house: House, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cookie is sent along whoever causes it, so the browser must say that these pages did; a token is meant."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    headers, by_cookie, by_token = FROM[who]
    for ambient, status in ((True, by_cookie), (False, by_token)):
        house.someone = Someone(ambient=ambient)
        answer = house.post(address(house, "pump-1", "/verdict"), headers, data={"verdict": "confirmed"})
        assert answer.status_code == status
        assert latest_verdicts(house.ws).is_empty() == (status == 403)
        if status == 303:
            house.post(address(house, "pump-1", "/verdict"), data={"verdict": "withdrawn"})


def test_all_that_comes_from_data_or_address_is_escaped(house: House) -> None:
    """A name, a reason, a note, a description or a query that is a script is shown as text."""
    house.post(address(house, NASTY, "/verdict"), data={"verdict": "confirmed", "note": NASTY})
    house.someone = Someone(name=NASTY)
    asked = (f"/incidents{rest}" for rest in ("", f"?entity={NASTY}", f"?first={NASTY}", "/<b>alert(1)/2026-03-25/x"))
    forms = (f"/backfill?{name}={NASTY}" for name in ("first", "entities"))
    for path in (*asked, address(house, NASTY), *forms):
        text = house.get(path).text
        assert "alert(1)" in text
        assert not re.search(r"<\w+>alert", text)
        assert set(re.findall(r"<script>(.*?)</script>", text, re.S)) <= {inline(name) for name in SCRIPTS}


def test_the_policy_lets_run_what_is_ours_alone(house: House) -> None:
    """Every answer forbids framing by others, guessing of types and keeping; the page's script is the one allowed."""
    for path in ("/incidents", address(house, "pump-1"), "/nowhere", "/api/incidents"):
        headers = house.get(path).headers
        assert headers["content-security-policy"] == policy()
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "same-origin"
    assert "'unsafe-inline'" not in re.search(r"script-src ([^;]*)", policy())[1]


def test_the_same_tables_give_the_same_bytes(house: House) -> None:
    """No page holds a clock."""
    for path in ("/incidents", address(house, "pump-1")):
        assert house.get(path).content == house.get(path).content


def test_raw_rows_come_as_csv_with_their_source(house: House) -> None:
    """Those of the entity around the incident, in order; numbers stay numbers."""
    answer = house.get(address(house, "pump-1", "/rows.csv"))
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.content.startswith(b"\xef\xbb\xbf"), "a spreadsheet takes it for no UTF-8"
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert {row["entity"] for row in rows} == {"pump-1"}
    assert {row["source"] for row in rows} >= {f"pumps-{DAY}.parquet"}
    times = [row["event_time"] for row in rows]
    assert times == sorted(times)
    assert times[0] < "2026-03-25T02:00"
    assert times[-1] > "2026-03-25T03:00"
    assert all(float(row["flow"]) > 98 for row in rows)


@pytest.mark.parametrize("cell", ["=1+1", "-1", "@a", "\ta", "007", "'=1"])
def test_no_cell_of_the_raw_rows_computes(cell: str) -> None:
    """It is guarded as in the CSV of incidents, and nothing else is touched."""
    (row,) = csv.DictReader(io.StringIO(harmless_csv(pl.DataFrame({"day": [1], "a": [cell], "b": ["ü = 1"]}))))
    assert (row["a"], row["b"]) == (f"'{cell}", "ü = 1")


def test_the_report_of_a_night_is_the_file_or_what_would_stand_in_it(house: House) -> None:
    """With its own policy on top of one that runs nothing from elsewhere."""
    made = house.get(f"/reports/pumps/{DAY}")
    assert "3 incidents" in made.text or "2 incidents" in made.text
    assert "frame-ancestors 'self'" in made.headers["content-security-policy"]
    file = house.ws.home.reports / "pumps" / f"{DAY}.html"
    file.parent.mkdir(parents=True)
    file.write_text("as it was written")
    assert house.get(f"/reports/pumps/{DAY}").text == "as it was written"


def test_a_script_reads_and_records_as_json(house: House) -> None:
    """The list's filters and pages; verdicts all or none, under the visitor's name."""
    house.someone = Someone(ambient=False)
    found = house.get("/api/incidents?entity=pump-*&kind=anomaly").json()
    assert [each["entity"] for each in found["incidents"]] == ["pump-1"]
    assert (found["page"], found["pages"], found["states"]) == (1, 1, {"open": 1})
    assert found["nights"] == ["2026-03-19", "2026-03-25"]
    known = {"incident": found["incidents"][0]["incident_id"], "verdict": "confirmed", "note": "seen"}
    refused = house.post("/api/verdicts", json={"dataset": "pumps", "verdicts": [known, {**known, "incident": "x"}]})
    assert (refused.status_code, "no incident 'x'" in refused.json()["detail"]) == (400, True)
    assert latest_verdicts(house.ws).is_empty()
    (said,) = house.post("/api/verdicts", json={"dataset": "pumps", "verdicts": [known]}).json()
    assert (said["verdict"], said["note"], said["reviewer"]) == ("confirmed", "seen", "anna")
    half = [{**known, "note": "\ud800"}]
    for said in ([{"incident": 1, "verdict": []}], {}, half):
        answer = house.post("/api/verdicts", content=json.dumps({"dataset": "pumps", "verdicts": said}))
        assert (answer.status_code, answer.json()["detail"][:7]) == (400, 'Send {"')
    for body in ("", "[]", "{}", '{"dataset": "\\ud800", "verdicts": []}'):
        assert house.post("/api/verdicts", content=body).status_code == 400


def test_what_fails_is_a_sentence_and_no_traceback(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """A broken YAML and broken tables: the list says which, a page that it cannot be read; folders are for the log."""
    place = address(house, "pump-1")
    for file in Path(house.ws.lake.uri("incidents")).rglob("*.parquet"):
        file.unlink()
    assert "pumps is not shown: its tables could not be read" in Outline(house.get("/incidents").text).text
    answer = house.get(place)
    assert answer.status_code == 503
    assert "The tables could not be read or written; the API server's log says why." in Outline(answer.text).text
    (house.ws.home.root / "datasets" / "pumps.yaml").write_text("kind: sensor\n")
    answer = house.get("/incidents")
    assert answer.status_code == 200
    assert "pumps.yaml: source: this key is missing" in Outline(answer.text).text
    refused = house.get(place)
    assert refused.status_code == 400
    assert str(house.ws.home.root) not in answer.text + refused.text
    assert str(house.ws.home.root) in caplog.text


def test_airflow_may_live_below_a_path(house: House) -> None:
    """Every address, also the way back from a verdict and to Airflow, stands below the path that Airflow has."""
    client = house.client(root_path="/air")
    answer = client.get("/air/nightsift/incidents")
    links = [value for name, value in Outline(answer.text).attributes if name in ("href", "action", "formaction")]
    assert links
    assert all(link.startswith("/air/") for link in links)
    verdict = f"/air/nightsift{address(house, 'pump-1', '/verdict')}"
    sent = client.post(verdict, headers=OURS, data={"verdict": "confirmed"})
    assert sent.headers["location"].startswith("/air/nightsift/incidents?said=pumps.")


def test_a_long_list_is_cut_into_pages(house: House) -> None:
    """Fifty rows a page, with the way on and back in the same question."""
    found = [incident(f"pump-{n}" + "x" * 200, at("02:00"), at("02:30"), VIBRATION, severity=1 + n) for n in range(120)]
    fill(house.ws, readings(house.ws.dataset, ["pump-1"]), found)
    page = Outline(house.get("/incidents?page=2&sort=time").text)
    assert "page 2 of 3" in page.text
    assert page.tags.count("tr") == 1 + 50
    assert ("href", "/nightsift/incidents?sort=time&page=3") in page.attributes
    assert ("href", "/nightsift/incidents?sort=time") in page.attributes
