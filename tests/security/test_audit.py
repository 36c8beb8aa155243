"""The audit of the locked packages tells "none is known" from "some are" and from "it could not be found out"."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.security import audit
from tests.security.audit import judge

SOUND = {"name": "polars", "version": "2.1.0", "vulns": []}
BAD = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "keras", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([SOUND], 0, "no vulnerability is known of the 1 packages"),
        ([SOUND, BAD], 1, "old 1.0: PYSEC-1, mended in 1.1\n1 vulnerabilities are known"),
        ([SOUND, BAD, UNKNOWN], 1, "old 1.0: PYSEC-1"),
        ([SOUND, UNKNOWN], 2, "nothing is known there of 1 of 2 packages. Run it where pypi.org answers"),
        ([], 2, "could not be audited, which says nothing about them: no route to host"),
    ],
)
def test_what_could_not_be_audited_is_not_called_sound(packages: list[dict[str, Any]], code: int, words: str) -> None:
    """pip-audit itself ends well where its service knows none of the packages."""
    found, said = judge("a.lock", {"dependencies": packages} if packages else None, "no route to host")
    assert found == code
    assert words in said
    assert "a.lock" in said


def test_each_lock_that_an_image_installs_is_audited() -> None:
    """Those that the Dockerfile names."""
    named = re.findall(r"requirements[\w-]*\.lock", (audit.ROOT / "docker/Dockerfile").read_text())
    assert {lock.name for lock in audit.LOCKS} == {*named}
    assert all(lock.is_file() for lock in audit.LOCKS)


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 0), 0), ((0, 2), 2), ((2, 0), 2), ((2, 1), 1), ((1, 2), 1), ((1, 0), 1)]
)
def test_the_worst_of_any_lock_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], codes: tuple[int, int], code: int
) -> None:
    """And what is said of each is printed."""
    each = iter(codes)
    monkeypatch.setattr(audit, "audit", lambda lock: (next(each), lock.name))
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert ended.value.code == code
    assert capsys.readouterr().out.split() == [lock.name for lock in audit.LOCKS]


def test_a_look_up_without_an_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not taken for a sound lock."""

    def silent(command: list[Any], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", silent)
    code, said = audit.audit(Path("a.lock"))
    assert code == 2
    assert "no answer within" in said
