"""Retrieval of pictures by captions, and of captions by pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def caption_retrieval(
    scores: NDArray[np.float32], right: NDArray[np.bool_]
) -> dict[str, dict[str, float]]:
    """Compute recall at 1, 5 and 10 in both directions, and that of random scores.

    Args:
        scores: float [T, N], captions by pictures; higher is more similar.
        right: bool [T, N], the caption is of the picture; each row and column has one.

    Returns:
        `caption_to_image` and `image_to_caption`, each `recall1`, `recall5`, `recall10` and
        `chance1` in [0, 1]: the share of queries with a right answer among the best k.
    """
    return {
        "caption_to_image": _recalls(scores, right),
        "image_to_caption": _recalls(scores.T, right.T),
    }


def _recalls(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> dict[str, float]:
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(right, order, axis=1)
    recalls = {f"recall{k}": float(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 10)}
    return recalls | {"chance1": float(right.mean())}
