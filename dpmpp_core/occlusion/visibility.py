"""Measures how well occluded patches of the body are distinguished from visible ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def body_auc(
    occluded: NDArray[np.floating], body: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> float:
    """Compute the area under the ROC curve of `occluded` among patches of the body (ours).

    Over all patches a static map of where people stand would do well; among those of the body only
    distinguishing the occluder from the person does.

    Args:
        occluded: score of each patch, [N, rows, columns]; higher = more likely occluded.
        body: patches of the body, hidden ones too.
        visible: those of them that show it.

    Returns:
        in [0, 1], 0.5 by chance; NaN if all patches of the body are visible, or none is.
    """
    scores, hidden = occluded[body], ~visible[body]
    positives, negatives = int(hidden.sum()), int((~hidden).sum())
    if not positives or not negatives:
        return float("nan")
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]  # ties share their mean rank
    return float((ranks[hidden].sum() - positives * (positives + 1) / 2) / (positives * negatives))
