"""Errors that a user can act on.

The message of each says what was wrong, where, and what to do; the command line prints it as one
line and exits with 2. Anything else that escapes is a defect or a fault of the machine (exit 1).
"""

import difflib
from collections.abc import Iterable

from dpmpp_core.redaction import redact


class UserError(Exception):
    """Base of every error that the user can mend. Its message holds no secrets, see `redact`."""

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
    """Training ended in a way that going on cannot mend, such as a loss that is no number."""


def suggest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """Return `; did you mean 'NEAREST'?`, to end a sentence; empty if no name is near.

    Args:
        cutoff: least similarity in [0, 1], see `difflib.get_close_matches`.
    """
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
