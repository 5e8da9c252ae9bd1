"""Errors that a user can act on.

The message of each says what was wrong, where, and what to do; the command line prints it as one
line and exits with 2. Anything else that escapes is a defect or a fault of the machine (exit 1).
"""

from dpmpp_core.redaction import redact


class UserError(Exception):
    """Base of every error that the user can mend. Its message holds no secrets, see `redact`."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """A data set is unusable: wrong layout, no training identity, queries without gallery."""


class WeightsError(UserError):
    """Model weights or a saved model are missing, damaged or do not fit."""


class TrainingError(UserError):
    """Training ended in a way that going on cannot mend, such as a loss that is no number."""
