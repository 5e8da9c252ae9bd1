"""Additive angular margin on cosines (ArcFace, CVPR 2019), on the masked metric as in DPM."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpmpp_core.losses.cross_entropy import of_rows

_EDGE = 1e-4  # keeps the gradient of sqrt(1 - cos^2) finite at cos = +-1


def arcface_logits(cosine: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Compute logits s * cos(theta + m) on the label, s * cos(theta) elsewhere.

    Where theta + m would pass pi (cos <= cos(pi - m)) the label's logit continues as
    s * (cos - sin(pi - m) * m), which keeps it monotone.

    Args:
        cosine: float [..., B, C] in [-1, 1].
        labels: int64 [B].
        scale: s > 0.
        margin: m in [0, pi/2), radians; 0 gives s * cosine.

    Returns:
        float32 [..., B, C].
    """
    cosine = cosine.float()
    columns = of_rows(labels, cosine)
    target = cosine.gather(-1, columns)
    safe = target.clamp(-1 + _EDGE, 1 - _EDGE)
    sine = torch.sqrt(1 - safe * safe)
    moved = safe * math.cos(margin) - sine * math.sin(margin)
    beyond = target - math.sin(math.pi - margin) * margin
    with_margin = torch.where(target > math.cos(math.pi - margin), moved, beyond)
    if margin == 0:
        with_margin = target
    return scale * cosine.scatter(-1, columns, with_margin)
