"""Secrets are not shown: what the environment holds as one is taken out of each error and log line of ours."""

import os
import re
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 5  # characters; what is shorter stands in too many words
NAMES = re.compile(r"(PASSWORD|PASSPHRASE|SECRET|TOKEN|(SECRET|ACCESS|ACCOUNT|API|FERNET|PRIVATE)_KEY)$", re.IGNORECASE)
USER = re.compile(r"(\w+://)[^/@\s]+@")
PASSWORD = re.compile(r"\w+://[^/@\s:]*:([^/@\s]+)@")


def without_secrets(text: str) -> str:
    """`text` without users and passwords of addresses, and without the secrets of the environment."""
    for secret in secrets():
        text = text.replace(secret, HIDDEN)
    return USER.sub(rf"\1{HIDDEN}@", text)


def secrets() -> list[str]:
    """What the environment holds as secrets, the longest first.

    That is the value of every variable that is called so, and the password of every address, as written and as meant.
    """
    found = {value for name, value in os.environ.items() if NAMES.search(name) and "://" not in value}
    for password in (match[1] for value in os.environ.values() for match in PASSWORD.finditer(value)):
        found |= {password, unquote(password)}
    return sorted((secret for secret in found if len(secret) >= SHORTEST), key=len, reverse=True)
