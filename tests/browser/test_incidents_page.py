"""The incidents page inside a real Airflow: its login, its permissions, its frame; in a browser."""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from pipeline.config import Home
from pipeline.incidents import incident_id
from pipeline.local import environment, migrate, prepare
from pipeline.processes import Processes
from pipeline.review import confirmed, history, record
from pipeline.workspace import Workspace, open_workspace
from tests.browser.conftest import NARROW, Watched
from tests.lake import DAY, at, fill, incident, readings, silence
from tests.servers import free_port

YAML = """
kind: sensor
description: Water pumps
zone: Europe/Berlin
source: {path: "*.parquet"}
entity: pump
event_time: time
cadence: 5m
features: [{name: flow, unit: m3/h}, {name: vibration, unit: mm/s}]
"""
NASTY = "<script>alert(1)</script>" + "-and-a-long-name" * 8
VIBRATION, FLOW = ("vibration", 0.62, 15.1, 3.0), ("flow", 0.38, 100.4, 100.0)
PASSWORDS = {"admin": "of the admin", "viewer": "of the viewer"}
OpenPage = Callable[..., Watched]


@dataclass(frozen=True)
class Served:
    """A running API server, and the tables that its pages show."""

    url: str
    ws: Workspace

    @property
    def list(self) -> str:
        return f"{self.url}/nightsift/incidents"

    def incident(self, entity: str = "pump-1") -> str:
        return f"{self.list}/pumps/{DAY}/{incident_id(entity, at('14:00'), 'anomaly')}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Airflow's API server alone, with two users, over a lake that no night has made."""
    root = tmp_path_factory.mktemp("page")
    (root / "datasets").mkdir()
    (root / "datasets" / "pumps.yaml").write_text(YAML)
    ws = open_workspace("pumps", root / "var", root / "datasets")
    names = ["pump-1", "pump-2", "pump-4", "pump-5", NASTY]
    found = [
        incident("pump-1", at("14:00"), at("15:00"), VIBRATION, FLOW, severity=14.2, steps=13),
        incident("pump-2", at("14:00"), at("14:40"), FLOW, severity=3.1, steps=8),
        incident("pump-4", at("14:00"), at("17:20"), VIBRATION, severity=1.8, steps=40, reason="seal change"),
        incident("pump-5", at("14:00"), at("14:00"), FLOW, VIBRATION, severity=1.1, steps=1),
        incident(NASTY, at("14:00"), at("15:00"), VIBRATION, FLOW),
        silence("pump-3", at("06:10"), at("23:00")),
    ]
    fill(ws, readings(ws.dataset, names), found)
    setup, port = prepare(Home.at(root / "var"), root / "datasets"), free_port()  # prepare's may be wanted by others
    setup.password_file.write_text(json.dumps(PASSWORDS))
    users = ",".join(f"{name}:{name}" for name in PASSWORDS)
    env = environment(setup.home, root / "datasets", setup.folder, port)
    env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = users
    setup = replace(setup, airflow_port=port, env=env)
    migrate(setup)
    processes = Processes(setup.folder / "logs", setup.env)
    processes.start("api-server", [sys.executable, "-m", "airflow", "api-server"])
    try:
        wait_for(f"{setup.airflow_url}/api/v2/version", processes)
        yield Served(setup.airflow_url, ws)
    finally:
        processes.stop()


def wait_for(url: str, processes: Processes) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            processes.check()
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.3)
        else:
            return


@pytest.fixture(scope="module")
def logins(served: Served, browser: Browser) -> dict[str, dict]:
    """What the browser keeps of each user, who has come to the page, was sent to Airflow's login, and came back."""
    kept = {}
    for user, password in PASSWORDS.items():
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{served.list}?entity=pump-1")
        page.get_by_role("link", name="Log in").click()
        page.fill("input[name=username]", user)
        page.fill("input[name=password]", password)
        page.click("button[type=submit]")
        page.wait_for_url(f"{served.list}?entity=pump-1")
        kept[user] = context.storage_state()
        context.close()
    return kept


@pytest.fixture
def admin(open_page: OpenPage, logins: dict[str, dict]) -> OpenPage:
    """Opens an address as the admin."""
    return lambda address, **options: open_page(address, storage_state=logins["admin"], **options)


@pytest.fixture
def viewer(open_page: OpenPage, logins: dict[str, dict]) -> OpenPage:
    """Opens an address as the viewer."""
    return lambda address, **options: open_page(address, storage_state=logins["viewer"], **options)


def answer(url: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, str]:
    """Status and text of an answer that refuses."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60)
    return refused.value.code, refused.value.read().decode()


PLACES = ("/nightsift/incidents", f"/nightsift/incidents/pumps/{DAY}/x", f"/nightsift/incidents/pumps/{DAY}/x/rows.csv",
          f"/nightsift/reports/pumps/{DAY}", "/nightsift/api/incidents", "/nightsift/backfill", "/nightsift/",
          "/nightsift/nowhere")  # fmt: skip
WRITES = (f"/nightsift/incidents/pumps/{DAY}/x/verdict", "/nightsift/api/verdicts")


@pytest.mark.parametrize("place", PLACES + WRITES)
@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Cookie": "_token=x"}, 403), ({"Authorization": "Bearer x"}, 403)],
    ids=["nobody", "a broken cookie", "a broken token"],
)
def test_nobody_gets_in_without_airflows_login(
    served: Served, place: str, headers: dict[str, str], status: int
) -> None:
    """Every address asks first: 401 without a login, 403 for one that Airflow did not give; and tells nothing."""
    code, text = answer(served.url + place, headers, b"verdict=confirmed" if place in WRITES else None)
    assert code == status
    assert "pump-1" not in text
    assert ("You are not logged in to Airflow." if status == 401 else "Airflow refuses this login.") in text


def test_a_viewer_sees_and_cannot_judge(served: Served, viewer: OpenPage) -> None:
    """She has list, picture and rows, no button, and what she sends past the buttons is refused with a sentence."""
    shown = viewer(served.list)
    expect(shown.page.get_by_role("link", name="pump-1")).to_be_visible()
    expect(shown.page.get_by_role("button", name="real")).to_have_count(0)
    shown.page.goto(served.incident())
    expect(shown.page.locator("figure svg").first).to_be_visible()
    expect(shown.page.locator("button[name=verdict], textarea")).to_have_count(0)
    expect(shown.page.get_by_role("link", name="Run the night again")).to_have_count(0)
    assert shown.complaints == []
    sent = {"headers": {"Origin": served.url}, "form": {"verdict": "confirmed"}}
    refused = shown.page.request.post(f"{served.incident()}/verdict", **sent)
    assert refused.status == 403
    assert "Only who may start runs of the DAG pumps_nightly can record a verdict." in refused.text()
    assert shown.page.request.get(f"{served.url}/nightsift/backfill").status == 403
    assert not served.ws.lake.exists("verdicts")


def frame_of(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title=Incidents]")


def test_the_analyst_judges_an_incident_inside_airflow(served: Served, admin: OpenPage, pictures: Path) -> None:
    """From Airflow's navigation to list, filter, picture and a verdict that stands there, and in the table, later."""
    airflow = admin(served.url)
    ours: list[str] = []
    airflow.page.on(
        "console", lambda m: ours.append(m.text) if m.type == "error" and "nightsift" in str(m.location) else None
    )
    airflow.page.get_by_role("link", name="Incidents").click()
    frame = frame_of(airflow.page)
    expect(frame.get_by_text("6 incidents in the nights")).to_be_visible()
    frame.get_by_label("entity").fill("pump-*")
    frame.get_by_label("kind").select_option("anomaly")
    frame.get_by_role("button", name="Show").click()
    expect(frame.get_by_text("4 incidents in the nights")).to_be_visible()
    airflow.page.screenshot(path=pictures / "incidents-in-airflow.png")
    frame.get_by_role("link", name="pump-1").click()
    expect(frame.get_by_role("heading", name="pump-1")).to_be_visible()
    expect(frame.locator("figure svg").first).to_be_visible()
    frame.get_by_label("note").fill("bearing changed at noon")
    frame.get_by_role("button", name="real").click()
    expect(frame.get_by_text("It is confirmed")).to_be_visible()
    airflow.page.reload()
    expect(frame.locator(".history li")).to_have_count(1)
    told = " ".join(frame.locator(".history li").inner_text().split())
    assert "confirmed by admin" in told
    assert "bearing changed at noon" in told
    assert "Europe/Berlin" in told
    assert confirmed(served.ws)["entity"].to_list() == ["pump-1"]
    assert ours == []
    assert airflow.hosts == {served.url.removeprefix("http://")}


def test_a_verdict_is_one_click_and_so_is_its_way_back(served: Served, admin: OpenPage) -> None:
    """In the list, `nothing` dismisses; the line that says so takes it back, and both are told afterwards."""
    shown = admin(f"{served.list}?kind=anomaly&state=open")
    shown.page.get_by_role("button", name="nothing: pump-2").click()
    line = shown.page.locator(".just")
    expect(line).to_contain_text("pump-2")
    expect(line).to_contain_text("dismissed")
    assert "kind=anomaly" in shown.page.url
    line.get_by_role("button", name="undo").click()
    expect(line).to_contain_text("open again")
    said = history(served.ws, incident_id("pump-2", at("14:00"), "anomaly"))
    assert said["verdict"].to_list() == ["withdrawn", "dismissed"]
    assert set(said["reviewer"]) == {"admin"}
    assert shown.complaints == []


def test_the_form_and_the_notices_are_sound(served: Served, open_page: OpenPage, admin: OpenPage) -> None:
    """Nothing serious for axe in the form of a backfill, nor where nobody is logged in or nothing is there."""
    admin(f"{served.url}/nightsift/backfill?dataset=pumps").accessible()
    admin(f"{served.list}/pumps/{DAY}/x").accessible()
    open_page(served.list).accessible()


def test_a_verdict_from_another_site_is_refused(served: Served, logins: dict[str, dict]) -> None:
    """A form elsewhere can send the cookie along, not where it comes from: neither a verdict nor a trace of it."""
    (cookie,) = (c for c in logins["admin"]["cookies"] if c["name"] == "_token")
    known = {"Cookie": f"_token={cookie['value']}"}
    before = len(history(served.ws, incident_id(NASTY, at("14:00"), "anomaly")))
    for told in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
                 {"Sec-Fetch-Site": "same-site", "Origin": served.url}, {}):  # fmt: skip
        code, text = answer(f"{served.incident(NASTY)}/verdict", known | told, b"verdict=confirmed")
        assert code == 403
        assert "sent from another site" in text
    assert len(history(served.ws, incident_id(NASTY, at("14:00"), "anomaly"))) == before


def test_the_backfill_form_is_filled_in_and_airflow_judges_it(served: Served, admin: OpenPage) -> None:
    """Dataset, night and entity stand there; what cannot be run comes back with the sentence of Airflow's own route."""
    page = admin(served.incident("pump-2")).page
    page.get_by_role("link", name="Run the night again").click()
    for label, value in {"dataset": "pumps", "first day": str(DAY), "last day": str(DAY), "entities": "pump-2"}.items():
        expect(page.get_by_label(label)).to_have_value(value)
    expect(page.get_by_label("overwrite")).to_be_checked()
    page.get_by_label("last day").fill(str(DAY - timedelta(days=2)))
    page.get_by_role("button", name="Start the backfill").click()
    expect(page.get_by_role("status")).to_contain_text("a backfill takes 1 to")


def test_links_leave_the_frame(served: Served, admin: OpenPage) -> None:
    """Airflow's sandbox holds links inside; those to Airflow's pages and to the report lead out of it all the same."""
    page = admin(f"{served.url}/plugin/incidents{served.incident().removeprefix(served.url)}").page
    frame_of(page).get_by_role("link", name="Train again").click()
    page.wait_for_url(f"{served.url}/dags/pumps_train")
    page.go_back()
    frame_of(page).get_by_role("link", name="Report of the night").click()
    page.wait_for_url(f"{served.url}/nightsift/reports/pumps/{DAY}")
    expect(page.get_by_role("heading", name=f"pumps · Wednesday {DAY}")).to_be_visible()


LOOKS = {"": {}, "-dark": {"scheme": "dark"}, "-narrow": {"viewport": NARROW}}
FITS = "[...document.querySelectorAll('button')].every(b => b.getBoundingClientRect().right <= innerWidth)"


@pytest.mark.parametrize("look", LOOKS)
def test_the_pages_are_sound_in_every_look(served: Served, admin: OpenPage, pictures: Path, look: str) -> None:
    """No complaint, no other host, nothing serious for axe, no sideways scrolling; a name that is a script is text."""
    record(served.ws, incident_id("pump-2", at("14:00"), "anomaly"), "dismissed", "filter was cleaned", "anna")
    shown = admin(f"{served.list}?entity=pump-*", **LOOKS[look])
    for name, next_place in {"incidents": served.incident(), "incident": served.incident(NASTY), "nasty": served.list,
                             "list": served.list}.items():  # fmt: skip
        shown.accessible()
        assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        assert shown.page.evaluate(FITS), name
        if name.startswith("incident"):
            shown.page.screenshot(path=pictures / f"{name}{look}.png", full_page=True)
        shown.page.goto(next_place)
    expect(shown.page.get_by_role("link", name=NASTY)).to_be_visible()
    assert shown.complaints == []
    assert shown.hosts == {served.url.removeprefix("http://")}
