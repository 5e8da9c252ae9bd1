"""A trial that trains nothing: what its process loads is what Tune and its reports need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.tuning.measured import (
    FACTOR_KEY,
    FIRST_RUNG_KEY,
    NUMBER_KEY,
    load_measured,
    report_measured,
)

FAILING = 3, 4  # member and epochs


def trainable(config: dict[str, Any], log: Path, rungs: tuple[int, ...]) -> None:
    """Reports as a trial of a search does; the start is the worst of all."""
    measured = load_measured()
    for epochs in rungs[config.get(FIRST_RUNG_KEY, 0) :]:
        if str(epochs) in measured["rungs"]:
            continue
        if (config[NUMBER_KEY], epochs) == FAILING:
            raise ValueError("out of luck")
        measured["rates"] = [*measured["rates"], config.get(FACTOR_KEY, 1.0)]
        with log.open("a") as file:
            file.write(json.dumps([config[NUMBER_KEY], measured["rates"]]) + "\n")
        lr = config.get("metric.lr", 0.0 if FACTOR_KEY in config else config[NUMBER_KEY] / 10)
        value = {"occluded": lr + epochs / 100, "holistic": 0.0}
        measured["rungs"][str(epochs)] = value
        report_measured(epochs, measured)
