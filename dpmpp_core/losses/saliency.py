"""What asks a soft person mask for the right size and for all of the identity (SPT, AAAI 2024)."""

from __future__ import annotations

from torch import Tensor


def area_loss(person: Tensor, target: float) -> Tensor:
    """Mean over samples of (mean_n M~_n - target)^2 (SPT).

    Args:
        person: float [B, N] in [0, 1], M~.
        target: share of the picture that shows the person.

    Returns:
        float32 scalar.
    """
    return (person.float().mean(dim=1) - target).square().mean()


def background_penalty(whole: Tensor, background: Tensor) -> Tensor:
    """Sum over samples of <softmax(z), softmax(z-)> (SPT): what is left must not look alike.

    Args:
        whole: float [B, C], logits of the whole picture.
        background: float [B, C], logits of the picture without its person.

    Returns:
        float32 scalar in [0, B].
    """
    return (whole.float().softmax(dim=1) * background.float().softmax(dim=1)).sum()
