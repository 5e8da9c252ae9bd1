"""Visibility of patches, which the transfer provides and the visibility head learns (ours)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

BODY_WEIGHT = 5.0
"""Weight of a patch of the body for `occluded`: the background is easy and ten times larger."""


def patch_visibility(
    visible_logits: Tensor,
    occluded_logits: Tensor | None,
    visible: Tensor,
    occluded: Tensor,
    foreign: Tensor,
) -> Tensor:
    """Compute the binary cross entropy of predicted with true visibility of patches.

    Args:
        visible_logits: float [B, rows, columns], on the encoder's grid.
        occluded_logits: likewise; None for a head without this output.
        visible: bool or float in [0, 1], [B, gh, gw] on the transfer's grid: the patches that show
            the person. Where the grid is another one, the target is the share of the encoder's
            patch.
        occluded: likewise, the patches in which something hides the body.
        foreign: likewise, the patches of an occluder or of another scene. Those without
            body teach `occluded` nothing: person masks are uncertain there, and masking such a
            patch does no harm.

    Returns:
        float32 scalar, mean over patches and samples.
    """
    grid = int(visible_logits.shape[1]), int(visible_logits.shape[2])
    visible, occluded, foreign = (resample(x, grid) for x in (visible, occluded, foreign))
    loss = binary_cross_entropy_with_logits(visible_logits.float(), visible)
    if occluded_logits is None:
        return loss
    body = (visible + occluded).clamp(max=1)
    weight = (1 + (BODY_WEIGHT - 1) * body) * (1 - (1 - body) * foreign)
    return loss + binary_cross_entropy_with_logits(occluded_logits.float(), occluded, weight)


def resample(shares: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return shares of patches, [B, gh, gw] bool or in [0, 1], on another grid, as float32."""
    shares = shares.float()
    if shares.shape[1:] == grid:
        return shares
    return interpolate(shares[:, None], grid, mode="bilinear", antialias=True)[:, 0]
