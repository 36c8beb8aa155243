"""The benchmark of the report makes the page of the night that it says it does, and judges its bound."""

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks._common import bound


def test_the_report_is_of_every_incident_and_small_enough(tmp_path: Path) -> None:
    """An incident and its pictures for each pump, a step for each minute, and a page below 5 MB."""
    found = report.measure(quick=True, scratch=tmp_path)
    assert (found["incidents"], found["steps"]) == (50, 50 * 24 * 60)
    assert found["pictures"] >= found["incidents"]
    assert 0 < found["bytes"] < 5_000_000
    assert (found["bound_seconds"], found["bound"] in ("kept", "missed")) == (10, True)


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "kept"), (1.0, "kept"), (1.01, "missed")])
def test_a_bound_is_kept_or_missed(seconds: float, said: str) -> None:
    """It says which, beside the bound itself."""
    assert bound(seconds, 1) == {"bound_seconds": 1, "bound": said}
