"""Visibility of patches, which the transfer provides and the bands learn (ours)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate


def patch_visibility(logits: Tensor, visible: Tensor) -> Tensor:
    """Compute the binary cross entropy of patch logits with the patches that show the person.

    Args:
        logits: float [B, rows, columns], on the encoder's grid.
        visible: bool [B, gh, gw], on the transfer's grid; where that is another one, the target is
            the share of the encoder's patch.

    Returns:
        float32 scalar, mean over patches and samples.
    """
    target = visible.float()
    if target.shape[1:] != logits.shape[1:]:
        grid = (int(logits.shape[1]), int(logits.shape[2]))
        target = interpolate(target[:, None], grid, mode="bilinear", antialias=True)[:, 0]
    return binary_cross_entropy_with_logits(logits.float(), target)
