"""The errors that end a command or a task: each is one sentence that says what, where, and what to do."""

import re

from pipeline.redaction import without_secrets

LONGEST = 300  # characters of what a library says
CLASS = re.compile(r"\b(?:\w+\.)*[A-Z]\w*(?:Error|Exception): ")  # as a library's messages often begin


def one_line(error: BaseException) -> str:
    """A library's message on one line, without colours, arrows, names of its classes and secrets, and not too long.

    Secrets are taken out first: one that is cut, or stands on one line, is not known again.
    """
    plain = re.sub(r"\x1b\[\d*m|↳", "", without_secrets(str(error)))
    lines = (" ".join(line.split()) for line in plain.splitlines())
    return CLASS.sub("", ": ".join(line.removesuffix(":") for line in lines if line))[:LONGEST]


class NightsiftError(Exception):
    """A failure with a message for a person, without secrets; `exit_code` is what the command line returns."""

    exit_code = 1
    told = False  # whether those whom it concerns were told already, so that its failure needs no other message

    def __init__(self, sentence: str = "") -> None:
        super().__init__(without_secrets(sentence))


class ConfigError(NightsiftError):
    """Wrong usage or configuration: a YAML, a suite or an argument must be changed."""

    exit_code = 2


class GateRefusedError(NightsiftError):
    """The data gate stopped the night: the data must be mended, or the suite that judges it."""

    exit_code = 3


class DeadlineMissedError(NightsiftError):
    """A night is not done by its deadline; the dataset's targets have been told."""

    told = True
