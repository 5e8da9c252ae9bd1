"""The calibration of an index: a file in its folder."""

from __future__ import annotations

from typing import Any

from dpmpp_core.errors import DataError
from dpmpp_core.retrieval.calibration import Calibration

CALIBRATION_FILE = "calibration.json"


def check_calibration(value: Any, index: str, weights_sha256: str) -> Calibration:
    """Return the calibration that an index's file holds.

    Args:
        value: content of the file.
        index: folder or URI of the index, for the errors.
        weights_sha256: of the model of the index.

    Raises:
        DataError: a damaged one, or one of another model.
    """
    try:
        calibration = Calibration.model_validate(value)
    except ValueError as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{index}/{CALIBRATION_FILE} is damaged: {problem}") from None
    if calibration.weights_sha256 != weights_sha256:
        raise DataError(
            f"{index}/{CALIBRATION_FILE} is of another model: run `dpmpp index calibrate` again"
        )
    return calibration


def describe_calibration(calibration: Calibration | None, base_rate: float | None) -> str:
    """Return in words what the probabilities of a search mean."""
    if calibration is None or base_rate is None:
        return "none: the index is not calibrated (dpmpp index calibrate)"
    return (
        f"if {100 * base_rate:g} % of the compared pairs show the same person; "
        f"fitted on {calibration.same:,} pairs of the same person and {calibration.different:,} of "
        f"two, of {calibration.persons} persons"
    )
