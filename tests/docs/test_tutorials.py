"""The tutorials: who does what they say, in an empty folder, sees what they show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.reader import BLOCK, Reader, alike, split_commands, write_yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("tutorial-*.md"))


def test_each_reader_has_a_tutorial() -> None:
    """Analyst, data engineer, ML engineer."""
    assert [page.stem for page in PAGES] == ["tutorial-analyst", "tutorial-data-engineer", "tutorial-ml-engineer"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_shows_what_its_reader_sees(page: Path, tmp_path: Path) -> None:
    """Every command ends as shown, and every block of output is compared; in a process of its own, as a reader has."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("NIGHTSIFT_", "MLFLOW_", "AIRFLOW_"))
    }
    env = {**own, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.docs.reader", str(page)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-8_000:]
    assert int(done.stdout.splitlines()[-1]) >= 8


@pytest.mark.parametrize(
    ("printed", "shown", "expected"),
    [
        ("3 incidents", "3 incidents", True),
        ("4 incidents", "3 incidents", False),
        ("pumps  2026-03-07:  x", "pumps 2026-03-07: x", True),
        ("pumps 2026-03-08", "pumps 2026-03-07", False),
        ("threshold 2.8 for", "threshold 1.25 for", True),
        ("threshold none for", "threshold 1.25 for", False),
        ("1 confirmed", "1 dismissed", False),
        ("from 14:01", "from 14:00", True),
        ("scored by 2-0123abcd, 77 anomalous", "scored by 1-fedc4321, 1,056 anomalous", True),
        ("wrote /tmp/x/a.yaml", "wrote …/a.yaml", True),
        ("wrote /tmp/x/b.yaml", "wrote …/a.yaml", False),
        ("a\nb\nc\nd", "a\n…\nd", True),
        ("a\nb\nc\ne", "a\n…\nd", False),
        ("a\nb", "a…", False),
        ("a\nb", "a", False),
        ("a", "", False),
        ("", "a", False),
    ],
)
def test_what_may_differ_and_what_may_not(printed: str, shown: str, expected: bool) -> None:
    """As docs/README.md tells its readers."""
    assert alike(printed, shown) is expected


def test_an_id_of_the_page_stands_for_the_one_that_was_printed_in_its_place(tmp_path: Path) -> None:
    """In every command below; another id is left alone."""
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo 0123456789abcdef\nfedcba9876543210\n$ echo fedcba9876543210 > told\n```\n")
    Reader(tmp_path, page).follow()
    assert (tmp_path / "told").read_text() == "0123456789abcdef\n"


@pytest.mark.parametrize("body", ["$ echo 2\n1\n", "$ false\n", "$ nightsift check nothing\n", "$ echo $?\n1\n"])
def test_a_page_that_shows_something_else_fails(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other output, and a command that fails without saying so."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"```console\n{body}```\n")
    with pytest.raises(AssertionError, match=r"page\.md|ended with"):
        Reader(tmp_path, page).follow()


def test_commands_are_split_from_what_they_print() -> None:
    """A command may go on in the next line, and be commented."""
    body = "$ nightsift check \\\n    pumps   # once\nok\n$ ls\na\nb\n"
    assert list(split_commands(body)) == [("nightsift check pumps", "ok\n"), ("ls", "a\nb\n")]


def test_a_yaml_is_written_where_its_first_line_says(tmp_path: Path) -> None:
    """Or added at the end; one without such a line is for reading alone."""
    write_yaml(tmp_path, "# datasets/a.yaml\nx: 1\n")
    write_yaml(tmp_path, "# datasets/a.yaml, at the end\ny: 2\n")
    write_yaml(tmp_path, "z: 3\n")
    assert (tmp_path / "datasets" / "a.yaml").read_text() == "x: 1\ny: 2\n"
    assert [file.name for file in tmp_path.rglob("*.yaml")] == ["a.yaml"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_tutorial_is_of_a_kind_that_is_known(page: Path) -> None:
    """A block that is misspelt would silently not be run; `sh` is for what the reader keeps open, such as servers."""
    kinds = {kind for kind, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert kinds <= {"console", "python", "text", "yaml", "sh"}
