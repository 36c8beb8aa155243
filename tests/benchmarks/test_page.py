"""The benchmark of the incidents page asks every question of the incidents that it says it does."""

from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks import page
from pipeline.review import read_reviewed
from pipeline.workspace import open_workspace


def test_every_question_is_asked_of_all_incidents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are in the tables, over all nights and with the verdicts; each answer is a page, and the bound is judged."""
    monkeypatch.setattr(page, "VERDICTS", 10)  # each is a commit
    found = page.measure(quick=True, scratch=tmp_path)
    there = read_reviewed(open_workspace("pumps", tmp_path, tmp_path / "datasets"), page.FIRST, page.LAST)
    assert len(there) == found["incidents"] == page.QUICK
    assert set(there["day"]) == {page.FIRST + timedelta(days=n) for n in range(page.NIGHTS)}
    assert len(there.filter(state="open")) == page.QUICK - 10
    assert set(found["seconds"]) == {*page.QUESTIONS, "one incident"}
    assert all(each["kilobytes"] > 1 for each in found["seconds"].values())
    assert (found["bound_seconds"], found["bound"] in ("kept", "missed")) == (1, True)
