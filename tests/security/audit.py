"""Looks up the known vulnerabilities of the locked packages: `python -m tests.security.audit`, which is `make audit`.

Exit code 0: none is known; 1: some are, and each is named; 2: it could not be found out, and why.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[2] / "requirements.lock"


def judge(report: dict[str, Any] | None, said: str) -> tuple[int, str]:
    """The exit code and what to print, of pip-audit's report (None: it gave none) and its error output."""
    packages = [] if report is None else report["dependencies"]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    found = [
        f"{each['name']} {each['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for each in packages
        for known in each.get("vulns", [])
    ]
    if found:
        return 1, "\n".join([*found, f"{len(found)} vulnerabilities are known of the packages in {LOCK.name}"])
    if not packages or unknown:
        why = (
            f"nothing is known there of {len(unknown)} of {len(packages)} packages" if packages else said[-300:].strip()
        )
        return (
            2,
            f"the packages could not be audited, which says nothing about them: {why}. Run it where pypi.org answers",
        )
    return 0, f"no vulnerability is known of the {len(packages)} packages in {LOCK.name}"


def main() -> None:
    """Run pip-audit on the lock and say what it found."""
    command = [sys.executable, "-m", "pip_audit", "-r", LOCK, "--no-deps", "--disable-pip", "-f", "json",
               "--progress-spinner", "off"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = None
    code, said = judge(report, done.stderr)
    print(said)
    sys.exit(code)


if __name__ == "__main__":
    main()
