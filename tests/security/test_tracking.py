"""What stands in the registry's entries is no path, and whatever stands where a detector's copy should is judged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.errors import NightsiftError
from pipeline.workspace import Workspace

LABEL = "1-0a1b2c3d"


@pytest.fixture
def registered(make_workspace: Callable[..., Workspace], tmp_path: Path) -> Workspace:
    """A champion of one file, version 1."""
    ws, folder = make_workspace(), tmp_path / "made" / "detector"
    folder.mkdir(parents=True)
    (folder / "detector.json").write_text("{}")
    api = tracking.client(ws)
    api.create_registered_model("demo")
    tags = {"label": LABEL, tracking.FILES: tracking.files_digest(folder)}
    api.create_model_version("demo", source=folder.parent.as_uri(), tags=tags)
    api.set_registered_model_alias("demo", tracking.CHAMPION, "1")
    return ws


def test_what_was_registered_is_fetched(registered: Workspace) -> None:
    """Under its label, once."""
    found = tracking.champion(registered)
    assert found == tracking.version(registered, LABEL) == tracking.current(registered)
    assert found.folder == registered.home.root / "detectors" / "demo" / LABEL
    assert (found.folder / "detector.json").is_file()


ASKED: list[Callable[[Workspace], object]] = [
    tracking.champion,
    tracking.current,
    lambda ws: tracking.version(ws, "1"),
    lambda ws: tracking.label_of(ws, "1"),
    lambda ws: tracking.registered(ws, "1"),
    tracking.newest_trained,
    lambda ws: tracking.siblings(ws, LABEL),
]


@pytest.mark.parametrize("label", ["../../../../planted", "/etc", "..", "", f"{LABEL}/..", f"{LABEL}\n", "1-0A1B2C3D"])
def test_no_label_leads_out(registered: Workspace, label: str) -> None:
    """Who can write tags cannot have files put anywhere, or read: a sentence, and nothing is fetched."""
    tracking.client(registered).set_model_version_tag("demo", "1", "label", label)
    before = {*registered.home.root.parent.rglob("*")}
    for asked in ASKED:
        with pytest.raises(NightsiftError, match=r"version 1 of demo has the tag label = .* which is no label"):
            asked(registered)
    assert {*registered.home.root.parent.rglob("*")} == before


def test_what_a_detector_was_adapted_from_is_a_label(registered: Workspace) -> None:
    """As its own is."""
    tracking.client(registered).set_model_version_tag("demo", "1", "trained", "../x")
    with pytest.raises(NightsiftError, match=r"has the tag trained = '\.\./x'"):
        tracking.siblings(registered, LABEL)


@pytest.mark.parametrize("same", [True, False])
def test_a_copy_that_appears_during_the_fetch_is_judged(
    registered: Workspace, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """Another process' is used; what is not what was registered is not."""
    fetch, target = tracking.fetch, tracking.detector_folder(registered, LABEL)

    def fetch_late(ws: Workspace, number: str, into: Path) -> Path:
        folder = fetch(ws, number, into)
        shutil.copytree(folder, target)
        if not same:
            (target / "more").touch()
        return folder

    monkeypatch.setattr(tracking, "fetch", fetch_late)
    if same:
        assert tracking.champion(registered).folder == target
    else:
        with pytest.raises(NightsiftError, match="is not what was registered"):
            tracking.champion(registered)
