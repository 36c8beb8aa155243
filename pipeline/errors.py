"""The errors that end a command or a task: each is one sentence that says what, where, and what to do."""


class NightsiftError(Exception):
    """A failure with a message for a person; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(NightsiftError):
    """Wrong usage or configuration: a YAML, a suite or an argument must be changed."""

    exit_code = 2


class GateRefusedError(NightsiftError):
    """The data gate stopped the night: the data must be mended, or the suite that judges it."""

    exit_code = 3
