"""Secrets are not shown: what the environment holds as one is taken out of each error and log line of ours."""

import os
import re
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 5  # characters; what is shorter stands in too many words
NAMES = re.compile(r"(PASSWORD|PASSPHRASE|SECRET|TOKEN|(SECRET|ACCESS|ACCOUNT|API|FERNET|PRIVATE)_KEY)$", re.IGNORECASE)
SWITCHES = {"true", "false"}  # values of variables that are called as if they held a secret
WORD = re.compile(r"\w{,7}|[a-zA-Z]{,15}")  # what may also be a part of a longer word, which then stays
USER = re.compile(r"(\w+://)[^/@\s]+@")
# Of an address in the environment, which may be one of several, or have a password with signs that should be quoted.
PASSWORDS = (re.compile(r"\w+://([^/@\s:]*):([^/@\s]+)@"), re.compile(r"\w+://([^/@\s:]*):(\S+)@"))
PARAMETER = re.compile(r"([?&](?:password|sslpassword|token)=)([^&\s]+)", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """`text` without users and passwords of addresses, and without the secrets of the environment."""
    for secret in secrets():
        text = _pattern(secret).sub(HIDDEN, text)
    return PARAMETER.sub(rf"\1{HIDDEN}", USER.sub(rf"\1{HIDDEN}@", text))


def secrets() -> list[str]:
    """What the environment holds as secrets, the longest first.

    That is the value of every variable that is called so, and the passwords of every address, as written and as meant.
    A password that is its user's name is none: it would be hidden wherever the user is named.
    """
    found = {value for name, value in os.environ.items() if NAMES.search(name) and value.lower() not in SWITCHES}
    for password in (each for value in os.environ.values() for each in _passwords(value)):
        found |= {password, unquote(password)}
    return sorted((secret for secret in found if len(secret) >= SHORTEST), key=len, reverse=True)


def _passwords(value: str) -> set[str]:
    """The passwords of the addresses in a variable's value, as they are written there."""
    users = (match for pattern in PASSWORDS for match in pattern.finditer(value))
    return {match[2] for match in users if match[1] != match[2]} | {match[2] for match in PARAMETER.finditer(value)}


def _pattern(secret: str) -> re.Pattern[str]:
    """Where `secret` stands in a text: anywhere, but if it is short or a plain word, not within a longer one."""
    bounds = (r"(?:(?<!\w)|(?<=%[0-9A-Fa-f]{2}))", r"(?!\w)") if WORD.fullmatch(secret) else ("", "")
    return re.compile(re.escape(secret).join(bounds))
