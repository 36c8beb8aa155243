"""What the YAMLs may read, where they are written by others than those who run the workers.

The operator says so in NIGHTSIFT_SOURCES: folders, addresses, and names of variables that hold a connection string,
separated by commas, such as `/srv/readings,s3://acme-landing/pumps,PAYMENTS_DATABASE`. Without it a YAML may read all
that the process can.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import ConfigError

SETTING = "NIGHTSIFT_SOURCES"


def require_path(where: str) -> None:
    """Raise `ConfigError` where `where`, an absolute path or an address, is outside of what may be read.

    Links are followed first, and `..` in an address is refused.
    """
    allowed = _allowed()
    if allowed is not None and not any(_holds(entry, where) for entry in allowed):
        raise ConfigError(_refusal(where, allowed))


def require_connection(variable: str) -> None:
    """Raise `ConfigError` where a query may not use the connection string in `variable`."""
    allowed = _allowed()
    if allowed is not None and variable not in allowed:
        raise ConfigError(_refusal(f"the database in {variable}", allowed))


def _refusal(what: str, allowed: list[str]) -> str:
    return (
        f"{what} may not be read: {SETTING} allows {', '.join(allowed) or 'nothing'}; move the data there, or have "
        f"whoever runs the workers add it"
    )


def _allowed() -> list[str] | None:
    """The operator's entries; None where there is no limit. Raises `ConfigError` for one that limits nothing."""
    told = os.environ.get(SETTING)
    if told is None:
        return None
    entries = [entry.strip() for entry in told.split(",") if entry.strip()]
    for entry in entries:
        if not (entry.startswith("/") or "://" in entry or re.fullmatch(r"\w+", entry)):
            raise ConfigError(f"{SETTING}: {entry!r} is neither an absolute folder, an address such as s3://bucket/, "
                              "nor the name of a variable")  # fmt: skip
    return entries


def _holds(entry: str, where: str) -> bool:
    """Whether `where` lies within the folder or below the address `entry`."""
    if "://" in where:
        climbs = ".." in unquote(where).split("/")
        return "://" in entry and not climbs and f"{where}/".startswith(entry if entry[-1] == "/" else f"{entry}/")
    return entry.startswith("/") and Path(where).resolve().is_relative_to(Path(entry).resolve())
