"""Batch-hard triplet loss (Hermans et al. 2017) that can ignore donors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def batch_hard_triplet(
    features: Tensor, labels: Tensor, margin: float | None, ignored: Tensor | None = None
) -> Tensor:
    """Compute the mean over anchors of relu(hardest positive - hardest negative + margin).

    Distances are Euclidean.

    With a soft margin: softplus(hardest positive - hardest negative).

    Args:
        features: float [B, D].
        labels: int64 [B].
        margin: in the units of the features; None = soft.
        ignored: int64 [B], an identity that is no negative of the sample (its donor's: class-
            ignoring, SPT), negative = none.

    Returns:
        float32 scalar; anchors without a positive or a negative are left out, none left = 0.
    """
    features = features.float()
    squares = features.square().sum(dim=1)
    product = features @ features.T
    distance = (squares[:, None] + squares[None] - 2 * product).clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels[None]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    negative = ~same
    if ignored is not None:
        negative = negative & (ignored[:, None] != labels[None])
    positive = same & ~itself
    hardest_positive = distance.masked_fill(~positive, float("-inf")).amax(dim=1)
    hardest_negative = distance.masked_fill(~negative, float("inf")).amin(dim=1)
    usable = positive.any(dim=1) & negative.any(dim=1)
    gap = torch.where(usable, hardest_positive - hardest_negative, 0.0)
    loss = nn.functional.softplus(gap) if margin is None else (gap + margin).relu()
    return torch.where(usable, loss, 0.0).sum() / usable.sum().clamp(min=1)
