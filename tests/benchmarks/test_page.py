"""The incidents page answers within a second, as the benchmark measures it."""

from pathlib import Path

import pytest

from benchmarks import page


def test_ten_thousand_incidents_are_answered_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and later answers, whatever is asked: the first page, the last, by time, filtered, one incident."""
    monkeypatch.setattr(page, "VERDICTS", 10)  # each is a commit: hundreds take longer than all answers
    found = page.measure(quick=False, scratch=tmp_path)
    assert found["incidents"] == 10_000
    assert set(found["seconds"]) == {*page.QUESTIONS, "one incident"}
    assert {name: taken for name, taken in found["seconds"].items() if max(taken["first"], taken["later"]) > 1} == {}
