"""Headless Chromium for pages: what a test asks for beyond its own server is refused and fails it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, sync_playwright

from tests.browser import taken

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SERIOUS = ("serious", "critical")
NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; a machine without it fails, for nothing of these tests can be told otherwise."""
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@dataclass
class Watched:
    """A page, the addresses that it asked for, and what its console and its scripts complained of."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> set[str]:
        """The hosts that were asked; empty for a page that is a file."""
        return {
            urlsplit(address).netloc for address in self.asked if not address.startswith(("file:", "data:", "blob:"))
        }

    def accessible(self) -> None:
        """Fail where axe finds something serious; with what, and where."""
        found = Axe().run(self.page).response["violations"]
        bad = [f"{v['id']}: {v['help']}: {[n['html'][:200] for n in v['nodes'][:3]]}" for v in found
               if v["impact"] in SERIOUS]  # fmt: skip
        assert bad == []


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens an address (or a file) in a context of its own: `open_page(url, scheme="dark", **playwright_options)`.

    Requests to anywhere but the address's own host are aborted, and are complaints.
    """
    contexts = []

    def open_(address: str | Path, scheme: str = "light", **options) -> Watched:
        url = address.as_uri() if isinstance(address, Path) else address
        context = browser.new_context(**{"viewport": WIDE, "color_scheme": scheme, **options})
        contexts.append(context)
        watched = Watched(context.new_page())

        def decide(route: Route, request: Request) -> None:
            own = request.url.startswith(("data:", "blob:")) or urlsplit(request.url).netloc == urlsplit(url).netloc
            watched.asked.append(request.url)
            if own:
                route.continue_()
            else:
                watched.complaints.append(f"asked for {request.url}")
                route.abort()

        def listen(message: ConsoleMessage) -> None:
            if message.type == "error":
                watched.complaints.append(message.text)

        context.route("**/*", decide)
        watched.page.on("console", listen)
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.goto(url, wait_until="load")
        return watched

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the tests put the pictures that they take: `docs/pictures` for `make pictures`, else a folder of theirs.

    In the end it is noted there what those show that were taken.
    """
    given = os.environ.get("NIGHTSIFT_PICTURES")
    folder = Path(given) if given else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    before = taken.times(folder)
    yield folder
    taken.note(folder, before)
