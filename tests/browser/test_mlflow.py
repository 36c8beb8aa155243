"""A night in MLflow's own pages, as the analyst opens it: what we promise stands there, without another server."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.incidents import Found
from pipeline.links import MLFLOW_VIEW
from pipeline.night import log_night
from pipeline.report import write_report
from pipeline.state import State, write_state
from pipeline.workspace import Workspace
from tests.browser.conftest import NARROW, Watched
from tests.pipeline.test_report import DAY, FLOW, NASTY, VIBRATION, at, fill, incident, pumps, readings
from tests.pipeline.test_report import workspace as workspace_of
from tests.servers import HOST, mlflow_server

# MLflow greets a new browser with its assistant, over the page.
UNGREETED = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
Open = Callable[..., Watched]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A night of two pumps with an incident each, one of them with an evil name."""
    ws = workspace_of(tmp_path_factory.mktemp("mlflow"), pumps(description=f"Water pumps {NASTY}"))
    found = [
        incident("pump-7", at("14:00"), at("15:00"), VIBRATION, FLOW, severity=3.2),
        incident(NASTY, at("09:10"), at("09:40"), FLOW, severity=1.4),
    ]
    fill(ws, readings(ws.dataset, ["pump-7", NASTY]), found)
    write_state(ws, State(DAY, "incidents", "i", "c", "7-abc", asdict(Found(str(DAY), 2, 0))))
    write_report(ws, DAY)
    log_night(ws, DAY, {"validate": 2.1, "score": 9.4, "incidents": 0.8, "report": 1.2})
    return ws


@pytest.fixture(scope="module")
def mlflow(night: Workspace) -> Iterator[str]:
    """The address of an MLflow server over the night's store."""
    with mlflow_server(night.home.tracking_uri, night.home.artifacts, night.home.root / "server.log") as port:
        yield f"http://{HOST}:{port}"


@pytest.fixture(scope="module")
def run(night: Workspace) -> Any:
    """The night's run."""
    api = tracking.client(night)
    (found,) = api.search_runs([api.get_experiment_by_name("pumps/nights").experiment_id])
    return found


def opened(open_page: Open, address: str, run: Any, below: str = "", **options: Any) -> Watched:
    """A page of the run, without MLflow's greeting."""
    seen = open_page(f"{address}/health", **options)
    seen.page.context.add_init_script(UNGREETED)
    where = f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{below}?{MLFLOW_VIEW}"
    seen.page.goto(where, wait_until="load")
    seen.page.get_by_role("heading", name="2026-03-25 Wed, pumps night").wait_for()
    return seen


def only_its_server(seen: Watched, address: str) -> None:
    assert {f"http://{host}" for host in seen.hosts} == {address}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlflow-run", {}),
        ("mlflow-run-dark", {"scheme": "dark"}),
        ("mlflow-run-narrow", {"viewport": NARROW, "device_scale_factor": 2}),
    ],
)
def test_a_night_page_tells_the_night(
    open_page: Open, mlflow: str, run: Any, pictures: Path, name: str, options: dict[str, Any]
) -> None:
    """Its words, numbers and tags are there, whatever an entity is called, and it asks nobody but its server."""
    seen = opened(open_page, mlflow, run, **options)
    page = seen.page
    page.get_by_text(
        "2 incidents on 2026-03-25 in pumps: the most severe, pump-7 from 14:00 to 15:00 UTC"
    ).first.wait_for()
    page.get_by_text("alarms/incidents", exact=True).first.wait_for()
    text = page.locator("body").inner_text()
    for expected in ("Report", "Incidents", "7-abc", "alarms/false_alarms_promised", "pumps.clean", "weekday"):
        assert expected in text, expected
    if options.get("viewport") == NARROW:  # MLflow's side bar takes a third of it
        page.get_by_role("button", name="Toggle sidebar").click()
    page.screenshot(path=pictures / f"{name}.png")
    only_its_server(seen, mlflow)


def test_the_report_opens_from_the_night_page(open_page: Open, mlflow: str, run: Any) -> None:
    """The first link of the description leads to it, inside MLflow."""
    seen = opened(open_page, mlflow, run)
    with seen.page.context.expect_page() as new:
        seen.page.get_by_role("link", name="Report", exact=True).click()
    report = new.value.frame_locator("iframe")
    report.get_by_text("the most severe, pump-7 from 14:00 to 15:00").first.wait_for()
    only_its_server(seen, mlflow)


def test_the_incidents_are_a_table(open_page: Open, mlflow: str, run: Any) -> None:
    """With what the data calls an entity as text."""
    seen = opened(open_page, mlflow, run, "/artifacts/incidents.json")
    seen.page.get_by_text(NASTY, exact=True).first.wait_for()
    seen.page.get_by_text("2026-03-25 14:00:00 UTC").first.wait_for()
    assert not [said for said in seen.complaints if "alert" in said]


def test_an_experiment_leads_a_new_browser_to_its_runs(open_page: Open, mlflow: str, run: Any) -> None:
    """MLflow shows it other pages first; the experiment's first line leads to charts of the nights' numbers."""
    seen = open_page(f"{mlflow}/health")
    seen.page.context.add_init_script(UNGREETED)
    seen.page.goto(f"{mlflow}/#/experiments/{run.info.experiment_id}", wait_until="load")
    link = seen.page.get_by_text("as charts", exact=True).first  # MLflow's greeting hides roles
    link.wait_for()
    seen.page.goto(f"{mlflow}/{link.get_attribute('href')}", wait_until="load")
    seen.page.get_by_text("alarms/incidents", exact=True).first.wait_for()
    assert "workflowType=machine_learning" in seen.page.url
    assert f"A run is one night of pumps (Water pumps {NASTY})" in seen.page.locator("body").inner_text()
    only_its_server(seen, mlflow)
