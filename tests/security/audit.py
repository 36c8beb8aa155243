"""Looks up the known vulnerabilities of the locked packages: `python -m tests.security.audit`, which is `make audit`.

Exit code 0: none is known; 1: some are, and each is named; 2: it could not be found out, and why.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCKS = [ROOT / name for name in ("requirements.lock", "requirements-gpu.lock")]  # what the images install
MOST = 600  # seconds that one look-up may take


def judge(lock: str, report: dict[str, Any] | None, said: str) -> tuple[int, str]:
    """The exit code and what to print of a lock, by pip-audit's report (None: it gave none) and its error output."""
    packages = [] if report is None else report["dependencies"]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    found = [
        f"{each['name']} {each['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for each in packages
        for known in each.get("vulns", [])
    ]
    if found:
        return 1, "\n".join([*found, f"{len(found)} vulnerabilities are known of the packages in {lock}"])
    if not packages or unknown:
        why = (
            f"nothing is known there of {len(unknown)} of {len(packages)} packages" if packages else said[-300:].strip()
        )
        return (
            2,
            f"the packages in {lock} could not be audited, which says nothing about them: {why}. "
            "Run it where pypi.org answers",
        )
    return 0, f"no vulnerability is known of the {len(packages)} packages in {lock}"


def audit(lock: Path) -> tuple[int, str]:
    """Run pip-audit on a lock; the exit code and what to print."""
    command = [sys.executable, "-m", "pip_audit", "-r", lock, "--no-deps", "--disable-pip", "-f", "json",
               "--progress-spinner", "off"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MOST)
    except subprocess.TimeoutExpired:
        return judge(lock.name, None, f"no answer within {MOST} seconds")
    try:
        return judge(lock.name, json.loads(done.stdout), done.stderr)
    except ValueError:
        return judge(lock.name, None, done.stderr)


def main() -> None:
    """Audit each lock, and say what was found; what is known of one counts for more than what is not of another."""
    found = [audit(lock) for lock in LOCKS]
    print("\n".join(said for _, said in found))
    codes = {code for code, _ in found}
    sys.exit(next((code for code in (1, 2) if code in codes), 0))


if __name__ == "__main__":
    main()
