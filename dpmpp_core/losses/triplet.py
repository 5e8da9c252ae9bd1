"""Batch-hard triplet loss (Hermans et al. 2017) that can ignore donors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def batch_hard_triplet(
    features: Tensor | Sequence[Tensor],
    labels: Tensor,
    margin: float | None,
    ignored: Tensor | None = None,
) -> Tensor:
    """Compute the mean over anchors of relu(hardest positive - hardest negative + margin).

    Distances are Euclidean. With a soft margin: softplus(hardest positive - hardest negative).

    Args:
        features: float [B, D]; several, of the same samples in different spaces, are taken
            together, and their losses are added.
        labels: int64 [B].
        margin: in the units of the features; None = soft.
        ignored: int64 [B], an identity that is no negative of the sample (its donor's: class-
            ignoring, SPT), negative = none.

    Returns:
        float32 scalar; anchors without a positive or a negative are left out, none left = 0.
    """
    spaces = [features] if isinstance(features, Tensor) else features
    product = torch.stack([x @ x.T for x in (x.float() for x in spaces)])  # [S, B, B]
    squares = product.diagonal(dim1=1, dim2=2)
    squared = squares[:, :, None] + squares[:, None] - 2 * product
    distance = squared.clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels[None]
    negative = ~same
    if ignored is not None:
        negative &= ignored[:, None] != labels[None]
    positive = same.fill_diagonal_(False)  # no anchor is its own
    hardest_positive = distance.masked_fill(~positive, float("-inf")).amax(dim=2)
    hardest_negative = distance.masked_fill(~negative, float("inf")).amin(dim=2)
    usable = positive.any(dim=1) & negative.any(dim=1)
    gap = torch.where(usable, hardest_positive - hardest_negative, 0.0)
    loss = nn.functional.softplus(gap) if margin is None else (gap + margin).relu()
    return (loss * usable).sum() / usable.sum().clamp(min=1)
