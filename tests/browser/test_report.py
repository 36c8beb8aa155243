"""The nightly report as a browser shows it: a file that needs nothing else, for eyes, pointer, keyboard and paper."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import Page, expect

from pipeline.report import write_report
from tests.browser.conftest import NARROW, Watched
from tests.lake import DAY, at, cards, fill, incident, pumps, readings, true_night, workspace

NASTY = "<script>alert(1)</script>"
Open = Callable[..., Watched]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a night with faults, a silence, a drift and nights before it."""
    return write_report(true_night(tmp_path_factory.mktemp("night")), DAY)


def reading(page: Page, number: int = 0) -> str:
    """What a screen reader says of the moment that was chosen in a picture."""
    return page.locator(".probe").nth(number).get_attribute("aria-valuetext") or ""


def view(page: Page) -> list[int]:
    """Left edge and width of what the first picture shows."""
    left, _, width, _ = (page.locator(".panel svg").first.get_attribute("viewBox") or "").split()
    return [round(float(left)), round(float(width))]


def hover(page: Page, part: float) -> None:
    """Move the pointer so far into the first picture."""
    box = page.locator(".probe").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] / 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_alone_and_is_accessible(open_page: Open, report: Path, pictures: Path, scheme: str) -> None:
    """Nothing is asked for but the file itself, nothing complains, and axe finds nothing serious in either scheme."""
    watched = open_page(report, scheme, viewport={"width": 1280, "height": 1750})
    watched.accessible()
    assert watched.asked == [report.as_uri()]
    assert watched.complaints == []
    watched.page.screenshot(path=pictures / ("report.png" if scheme == "light" else "report-dark.png"))


def test_the_pointer_reads_values_in_all_panels(open_page: Open, report: Path) -> None:
    """Over the incident: the time in the dataset's zone, and in each panel what was observed and expected there."""
    page = open_page(report).page
    page.locator(".probe").first.scroll_into_view_if_needed()
    hover(page, 0.5)
    spoken = reading(page)
    assert spoken.startswith(f"{DAY} 09:5")
    assert " UTC: vibration, mm/s " in spoken
    assert ", expected 1.4" in spoken
    assert "; score " in spoken
    first = page.locator("figure").first
    expect(first.locator(".panel .read").first).to_contain_text("expected 1.4")
    expect(first.locator(".panel .read").last).not_to_be_empty()
    observed = float((first.locator(".panel .read").first.text_content() or "").split(",")[0])
    assert 3 < observed < 6  # 45 spreads of 0.09 above 1.4, give or take
    page.mouse.move(5, 5)
    expect(first.locator(".panel .read").first).to_be_hidden()


def test_the_keyboard_reads_and_zooms(open_page: Open, report: Path) -> None:
    """Arrows go from reading to reading, Home and End to the edges, plus and minus zoom, Escape shows all again."""
    page = open_page(report).page
    page.locator(".probe").first.focus()
    page.keyboard.press("Home")
    assert reading(page).startswith(f"{DAY} 08:45:00")
    page.keyboard.press("ArrowRight")
    assert reading(page).startswith(f"{DAY} 08:46:00")
    page.keyboard.press("End")
    assert reading(page).startswith(f"{DAY} 10:59:00")
    page.keyboard.press("+")
    assert view(page) == [5000, 5000]
    page.keyboard.press("Home")
    assert view(page)[0] == 0
    page.keyboard.press("-")
    assert view(page) == [0, 10000]
    page.keyboard.press("+")
    page.keyboard.press("Escape")
    assert view(page) == [0, 10000]


def test_dragging_zooms_into_a_stretch_of_time(open_page: Open, report: Path) -> None:
    """What was dragged over fills the picture, the axis tells its times, and a double click shows all again."""
    page = open_page(report).page
    page.locator(".probe").first.scroll_into_view_if_needed()
    before = page.locator("figure .x").first.text_content()
    hover(page, 0.25)
    page.mouse.down()
    hover(page, 0.75)
    page.mouse.up()
    assert view(page) == pytest.approx([2500, 5000], abs=30)
    assert page.locator("figure .x span").first.text_content().startswith("09:25")
    hover(page, 0)
    assert reading(page).startswith(f"{DAY} 09:18")
    page.locator(".probe").first.dblclick()
    assert view(page) == [0, 10000]
    assert page.locator("figure .x").first.text_content() == before


def test_buttons_zoom_as_well(open_page: Open, report: Path) -> None:
    """Who can neither drag nor type has three buttons, with names."""
    page = open_page(report).page
    figure = page.locator("figure").first
    figure.get_by_role("button", name="zoom in").click()
    assert view(page) == [2500, 5000]
    figure.get_by_role("button", name="zoom out").click()
    assert view(page) == [0, 10000]
    figure.get_by_role("button", name="zoom in").click()
    figure.get_by_role("button", name="show all").click()
    assert view(page) == [0, 10000]


def test_the_filter_keeps_what_has_all_its_words(open_page: Open, report: Path) -> None:
    """By pump or by cause; the cards follow the table, and what is left out is out of reach for a screen reader too."""
    page = open_page(report).page
    box = page.get_by_label("Show only")
    box.fill("vibration")
    expect(page.locator(".list tbody tr:visible")).to_have_count(2)
    expect(page.locator("details.card:visible")).to_have_count(2)
    expect(page.locator(".filter output")).to_have_text("2 of 6")
    box.fill("PUMP-0007 vib")
    expect(page.locator("details.card:visible")).to_have_count(1)
    box.fill("")
    expect(page.locator("details.card:visible")).to_have_count(6)
    expect(page.locator(".filter output")).to_be_empty()


def test_a_link_in_the_table_unfolds_its_incident(open_page: Open, report: Path) -> None:
    """The sixth incident is folded until somebody asks for it."""
    page = open_page(report).page
    card = page.locator("details.card").nth(5)
    expect(card).not_to_have_attribute("open", "")
    page.locator(".list a").nth(5).click()
    expect(card).to_have_attribute("open", "")
    expect(card.locator("figure")).to_be_in_viewport()


def test_the_first_tab_skips_to_what_happened(open_page: Open, report: Path) -> None:
    """The skip link shows when it has the focus, and leads past the navigation."""
    page = open_page(report).page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to what happened")).to_be_in_viewport()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_phone_scrolls_in_one_direction(open_page: Open, report: Path, pictures: Path) -> None:
    """At 390 pixels nothing is wider than the page, zoomed or not, and axe has no more to say than on a desk."""
    watched = open_page(report, viewport=NARROW, has_touch=True)
    page = watched.page
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        page.locator("figure").first.get_by_role("button", name="zoom in").tap()
    watched.accessible()
    page.locator(".probe").first.tap()
    assert reading(page) != "none chosen"
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=pictures / "report-narrow.png")


def test_paper_has_everything_but_the_controls(open_page: Open, report: Path, pictures: Path) -> None:
    """Every card and quarantined row is printed, in black on white, whatever the screen was like; no control is."""
    page = open_page(report, "dark", viewport={"width": 794, "height": 1123}).page
    page.get_by_label("Show only").fill("nothing has this")
    page.emulate_media(media="print")
    for shown in ("details.card figure", ".raw", ".list tbody tr"):
        parts = page.locator(shown)
        assert parts.count() > 0
        assert all(part.is_visible() for part in parts.all()), shown
    for control in (".zoom", ".probe", ".filter", "nav", ".skip"):
        expect(page.locator(control).first).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.screenshot(path=pictures / "report-print.png")


def test_without_its_script_the_page_reads_as_well(open_page: Open, report: Path) -> None:
    """Incidents, pictures and links are there; only the controls are not."""
    page = open_page(report, java_script_enabled=False).page
    assert page.locator("figure").count() == 6
    assert page.locator("svg .observed").count() >= 12
    assert page.locator(".probe, .zoom, .filter").count() == 0


def test_names_that_are_scripts_do_nothing(open_page: Open, tmp_path: Path) -> None:
    """A card, its categories, a quarantined row and a warning named as a script are text, also when they are read."""
    ws = workspace(tmp_path, cards())
    times = [at("12:00") + timedelta(minutes=7 * n) for n in range(-8, 3)]
    burst = [moment >= at("12:00") for moment in times]
    rows = pl.DataFrame({
        "day": DAY, "entity": NASTY, "event_time": times, "amount": [2000.0 if b else 20.0 for b in burst],
        "shop": [NASTY if b else "grocer" for b in burst], "score": [12.0 if b else 1.0 for b in burst],
        "p_value": 1e-7, "threshold": 5.0, "is_anomaly": burst, "detector_version": NASTY,
        **{f"{what}_{c}": 1.5 for what in ("observed", "expected", "contribution") for c in ws.dataset.channels},
    }).with_columns(pl.col("event_time").dt.cast_time_unit("us"))  # fmt: skip
    found = incident(NASTY, times[8], times[-1], ("amount", 0.6, 2000.0, 21.0), ("shop", 0.4, 4.6, 1.4), reason=NASTY)
    bad = {"source": NASTY, "source_row": 0, "raw": NASTY, "problems": [NASTY], "reasons": [NASTY]}
    fill(ws, rows, [found], [bad], [NASTY])
    watched = open_page(write_report(ws, DAY))
    page, dialogs = watched.page, []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.locator(".probe").first.scroll_into_view_if_needed()
    hover(page, 0.95)
    assert f"shop {NASTY}" in reading(page)
    assert f"{DAY} 12:14:00 UTC" in reading(page)
    assert "amount, EUR 2,000, expected 2" in reading(page)
    page.reload()
    assert page.evaluate("document.scripts.length") == 1
    assert (dialogs, watched.complaints) == ([], [])


def test_a_script_that_got_into_the_page_would_not_run(open_page: Open, report: Path, tmp_path: Path) -> None:
    """The page's policy allows the one script by its digest: another one is refused, and so is a handler."""
    forged = tmp_path / "forged.html"
    harm = '<script>document.title = "harmed"</script><button onclick="document.title = \'harmed\'">go</button>'
    forged.write_text(report.read_text().replace('<main id="main"', f'{harm}<main id="main"'))
    watched = open_page(forged)
    watched.page.get_by_role("button", name="go").click()
    assert watched.page.title() == f"pumps · Wednesday {DAY}"
    assert len(watched.complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in watched.complaints)


def test_a_quiet_night_is_accessible_too(open_page: Open, tmp_path: Path) -> None:
    """A night without incidents says so, with nothing to do and no control."""
    ws = workspace(tmp_path, pumps())
    fill(ws, readings(ws.dataset, ["pump-2"]).with_columns(is_anomaly=False), [])
    watched = open_page(write_report(ws, DAY))
    watched.accessible()
    expect(watched.page.locator(".summary")).to_contain_text("Nothing abnormal")
    expect(watched.page.locator(".digest")).to_contain_text("Nothing.")
    assert watched.page.locator("input, button").count() == 0
    assert watched.complaints == []
