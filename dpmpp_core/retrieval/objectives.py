"""What a search of configurations maximises on validation queries (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpmpp_core.data.synthesis import CLEAN_QUERIES
from dpmpp_core.errors import DataError

OBJECTIVES = ("occluded", "holistic")


def compute_objectives(
    metrics: Mapping[str, Any], robustness: Mapping[str, Any]
) -> dict[str, float]:
    """Return the masked mAP of occluded queries and of clean ones, in [0, 1].

    `occluded` is a mean over queries. A synthetically occluded query counts with its mean over
    parts and bins, a really occluded one with its own figure. The mAP of a few real ones depends
    on the training's seed, so they must not weigh more than their number.

    Args:
        metrics: of the evaluation, by query set.
        robustness: CLEAN_QUERIES -> figures, and part -> bin -> figures.

    Raises:
        DataError: no query is occluded.
    """
    synthetic = [
        figure["mAP_masked"]
        for part, bands in robustness.items()
        if part != CLEAN_QUERIES
        for figure in bands.values()
        if figure["mAP_masked"] is not None
    ]
    clean = robustness[CLEAN_QUERIES]["queries"]
    parts = [(float(np.mean(synthetic)), clean)] if synthetic else []
    if "occluded" in metrics:
        real = metrics["occluded"]
        parts.append((real["masked"]["mAP"], real["num_queries"]))
    if not parts:
        raise DataError("not one validation query could be occluded: see `dpmpp saliency`")
    figures, queries = zip(*parts, strict=True)
    return {
        "occluded": float(np.average(figures, weights=queries)),
        "holistic": float(metrics["holistic"]["masked"]["mAP"]),
    }
