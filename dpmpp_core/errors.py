"""Errors that a user can act on.

Each message states what was wrong, where, and what to do. The command line prints it as one line
and exits with 2. Any other exception is a defect or a fault of the machine (exit 1).
"""

import difflib
from collections.abc import Iterable

from dpmpp_core.redaction import redact


class UserError(Exception):
    """Base of every error that the user can correct. Its message has no secrets, see `redact`."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ArgumentError(UserError):
    """An argument of a command is wrong."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """A data set is unusable: wrong layout, no training identity, queries without gallery."""


class WeightsError(UserError):
    """Model weights or a saved model are missing, damaged or do not fit."""


class TrainingError(UserError):
    """Training cannot continue, for example after a loss that is not a number."""


def suggest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """Return `; did you mean 'NEAREST'?`, or nothing if no similarity in [0, 1] is `cutoff`."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
