"""The audit of the locked packages tells "none is known" from "some are" and from "it could not be found out"."""

from typing import Any

import pytest

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
    found, said = judge({"dependencies": packages} if packages else None, "no route to host")
    assert found == code
    assert words in said
