"""Losses of the size and completeness of a soft person mask (SPT, AAAI 2024)."""

from __future__ import annotations

from torch import Tensor


def area_loss(person: Tensor, target: float) -> Tensor:
    """Compute the mean over samples of (mean_n M~_n - target)^2 (SPT), a float32 scalar.

    M~ is float [B, N] in [0, 1]; `target` is the share of the picture that shows the person.
    """
    return (person.float().mean(dim=1) - target).square().mean()


def background_penalty(whole: Tensor, background: Tensor) -> Tensor:
    """Compute the sum over samples of <softmax(z), softmax(z-)> (SPT), a scalar in [0, B].

    z and z- are logits, float [B, C], of the picture and of the picture without its person.
    """
    return (whole.float().softmax(dim=1) * background.float().softmax(dim=1)).sum()
