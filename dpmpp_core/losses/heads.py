"""Head enrichment (DPM): the heads of the last block should attend to different places."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def head_diversity(logits: Tensor) -> Tensor:
    """Compute the mean over samples of ||A A^T - I||_F^2 / heads^2 for L2-normalised rows A.

    Args:
        logits: float [B, heads, N], class-to-patch attention before softmax.

    Returns:
        float32 scalar: 0 for orthonormal rows, (heads^2 - heads) / heads^2 for identical rows.
    """
    rows = nn.functional.normalize(logits.float(), dim=-1)
    gram = rows @ rows.transpose(1, 2)
    heads = logits.shape[1]
    excess = gram - torch.eye(heads, device=gram.device)
    return excess.square().sum(dim=(1, 2)).mean() / heads**2
