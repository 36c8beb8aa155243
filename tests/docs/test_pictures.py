"""The pictures in docs: all that are shown are there, all that are there are shown, and show the pages as they are."""

import os
import re
from pathlib import Path

import pytest

from tests.browser import taken

ROOT = taken.ROOT
FOLDER = ROOT / "docs" / "pictures"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LARGEST = 500_000  # bytes


def shown() -> set[Path]:
    """The pictures that the pages show, in Markdown or in HTML."""
    found = re.compile(r"""[\w./-]+\.(?:png|jpg|svg|gif|webp)\b""")
    return {(page.parent / name).resolve() for page in PAGES for name in found.findall(page.read_text(encoding="utf-8"))
            if not name.startswith("//")}  # fmt: skip


def pictures() -> list[Path]:
    return sorted(file for file in FOLDER.glob("*") if file.name != taken.NOTES)


def test_every_picture_that_a_page_shows_is_there() -> None:
    """By the path that the page gives."""
    assert [str(file) for file in sorted(shown()) if not file.is_file()] == [], "run: make pictures"


def test_every_picture_that_is_there_is_shown_and_small() -> None:
    """Nobody keeps, or loads, what nobody sees."""
    assert [file.name for file in pictures() if file not in shown()] == []
    assert [file.name for file in pictures() if file.stat().st_size > LARGEST] == []


def test_no_picture_is_older_than_what_draws_it() -> None:
    """Templates, charts and words are as they were when it was taken."""
    notes = taken.read(FOLDER)
    assert [file.name for file in pictures() if notes.get(file.name) != taken.digest()] == [], "run: make pictures"
    assert set(notes) == {file.name for file in pictures()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small one, with a template and a module that draw."""
    for name, text in (("templates/style.css", "a {color: red}\n"), ("report.py", "# what\nx = 1\n"), ("lake.py", "")):
        file = tmp_path / "pipeline" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_the_digest_changes_with_what_draws_alone(project: Path) -> None:
    """A colour and a word do; a comment, an empty line and another module do not."""
    before, folder = taken.digest(project), project / "pipeline"
    (folder / "lake.py").write_text("y = 1\n")
    (folder / "report.py").write_text("# what else\n\nx = 1\n")
    assert taken.digest(project) == before
    (folder / "report.py").write_text("x = 2\n")
    changed = taken.digest(project)
    (folder / "templates" / "style.css").write_text("a {color: blue}\n")
    blue = taken.digest(project)
    (folder / "templates" / "style.css").write_text("a {color: blue}\n#b {color: red}\n")
    assert len({before, changed, blue, taken.digest(project)}) == 4


def test_every_pattern_of_what_draws_finds_something() -> None:
    """A module that is renamed is not forgotten."""
    assert [pattern for pattern in taken.DRAWS if not list(ROOT.glob(pattern))] == []


def test_only_what_was_taken_anew_is_noted_anew(tmp_path: Path) -> None:
    """A part of the tests freshens its own pictures; one that is gone is forgotten."""
    for name in ("old.png", "new.png", "gone.png"):
        (tmp_path / name).write_bytes(b"1")
    taken.note(tmp_path, {})
    (tmp_path / taken.NOTES).write_text('{"old.png": "before", "new.png": "before", "gone.png": "before"}')
    since = taken.times(tmp_path)
    os.utime(tmp_path / "new.png", ns=(0, since["new.png"] + 1))
    (tmp_path / "gone.png").unlink()
    taken.note(tmp_path, since)
    assert taken.read(tmp_path) == {"old.png": "before", "new.png": taken.digest()}
