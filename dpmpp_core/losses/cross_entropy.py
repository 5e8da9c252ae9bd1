"""Identity loss: cross entropy with label smoothing that can leave one class a sample out."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, ignored: Tensor | None = None
) -> Tensor:
    """Mean cross entropy; the ignored class takes no part (class-ignoring: DPM, SPT).

    With k classes left for a sample, the target is 1 - e + e/k on its label and e/k on the other
    classes left; the ignored class has neither a logit nor a smoothing weight.

    Args:
        logits: float [B, C].
        labels: int64 [B].
        smoothing: e, in [0, 1).
        ignored: int64 [B], the class to leave out, negative = none; equal to the label = none.

    Returns:
        float32 scalar.
    """
    logits = logits.float()
    classes = logits.shape[1]
    kept = torch.ones_like(logits, dtype=torch.bool)
    if ignored is not None:
        drop = (ignored >= 0) & (ignored != labels)
        index = torch.where(drop, ignored, labels)
        kept = kept.scatter(1, index[:, None], (~drop)[:, None])
    logp = logits.masked_fill(~kept, float("-inf")).log_softmax(dim=1)
    picked = logp.gather(1, labels[:, None]).squeeze(1)
    if not smoothing:
        return -picked.mean()
    count = kept.sum(dim=1).clamp(max=classes)
    spread = logp.masked_fill(~kept, 0.0).sum(dim=1) / count
    return -((1 - smoothing) * picked + smoothing * spread).mean()
