"""Identity loss: cross entropy with label smoothing that can ignore one class per sample."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, ignored: Tensor | None = None
) -> Tensor:
    """Compute the mean cross entropy without the ignored class (class-ignoring: DPM, SPT).

    With k classes left for a sample, the target is 1 - e + e/k on its label and e/k on the other
    classes left; the ignored class has neither a logit nor a smoothing weight.

    Args:
        logits: float [..., B, C], of as many classifiers as one likes.
        labels: int64 [B].
        smoothing: e, in [0, 1).
        ignored: int64 [B], the class to leave out, negative = none; equal to the label = none.

    Returns:
        float32 [...], one loss for each classifier; a scalar for logits [B, C].
    """
    logits = logits.float()
    count: int | Tensor = logits.shape[-1]
    if ignored is None:
        logp = kept = logits.log_softmax(dim=-1)
    else:
        drop = (ignored >= 0) & (ignored != labels)
        index = torch.where(drop, ignored, labels)
        count = count - drop.long()
        logp = _filled(logits, index, drop, float("-inf")).log_softmax(dim=-1)
        kept = _filled(logp, index, drop, 0.0) if smoothing else logp
    picked = logp.gather(-1, of_rows(labels, logp)).squeeze(-1)
    if not smoothing:
        return -picked.mean(dim=-1)
    spread = kept.sum(dim=-1) / count
    return -((1 - smoothing) * picked + smoothing * spread).mean(dim=-1)


def of_rows(columns: Tensor, x: Tensor) -> Tensor:
    """Return `columns` [B] as the index [..., B, 1] of one column of each row of x [..., B, C]."""
    return columns[:, None].expand(*x.shape[:-1], 1)


def _filled(x: Tensor, index: Tensor, where: Tensor, value: float) -> Tensor:
    """Return `x` [..., B, C] with `value` at column index[i] of the rows that `where` marks."""
    columns = of_rows(index, x)
    there = x.gather(-1, columns).masked_fill(where[:, None], value)
    return x.scatter(-1, columns, there)
