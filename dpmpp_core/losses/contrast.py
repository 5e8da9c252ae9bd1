"""Contrasts between images, texts and prototypes (CLIP-ReID; prototype contrast: ours)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def supervised_contrast(anchors: Tensor, others: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Compute -mean_i mean_{p: same identity} log softmax_p(scale * <a_i, b_p>).

    CLIP-ReID, equations 3 and 4, a float32 scalar. Row i of `anchors` and of `others`, both float
    [B, D], belongs to labels[i], int64 [B]. `scale` is 1 for CLIP's raw features.
    """
    logp = (scale * anchors.float() @ others.float().T).log_softmax(dim=1)
    positive = (labels[:, None] == labels[None]).float()
    return -((logp * positive).sum(dim=1) / positive.sum(dim=1)).mean()


def prototype_contrast(
    prototypes: Tensor, texts: Tensor, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """Compute -mean_c log softmax_c'(cos(W_c, T_c') / temperature)[c], float32 [...].

    No gradient flows to the texts.

    Args:
        prototypes: float [..., M, D], one per identity.
        texts: float [M, D], the same identities in the same order.
        temperature: above 0.
        labels: int64 [M], the identity of each row, if some occur more than once; each then still
            counts once. None = all different.
    """
    w = nn.functional.normalize(prototypes.float(), dim=-1)
    t = nn.functional.normalize(texts.detach().float(), dim=1)
    logits = (w @ t.T) / temperature
    if labels is None:
        return -logits.log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    # Weights instead of `unique`, for whose size the host would have to wait for the GPU.
    times = (labels[:, None] == labels[None]).sum(dim=1).float()
    own = logits.diagonal(dim1=-2, dim2=-1)
    nats = (logits - times.log()).logsumexp(dim=-1) - own
    return (nats / times).sum(dim=-1) / (1 / times).sum()


def multi_view_contrast(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute -mean_i mean_{p != i: same identity} log softmax_{j != i}(<f_i, f_j> / t)[p].

    Supervised contrast (Khosla et al., NeurIPS 2020, L_out), a float32 scalar. Features are float
    [B, D] unit vectors; `labels`, int64 [B], have each identity at least twice.
    """
    diagonal = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = (features.float() @ features.float().T / temperature).masked_fill(diagonal, -torch.inf)
    positive = (labels[:, None] == labels[None]) & ~diagonal
    logp = logits.log_softmax(dim=1).masked_fill(~positive, 0.0)
    return -(logp.sum(dim=1) / positive.sum(dim=1)).mean()


def caption_contrast(
    images: Tensor, texts: Tensor, index: Tensor, same: Tensor, scale: Tensor
) -> Tensor:
    """Contrast images with captions and captions with images, as in CLIP; a float32 scalar.

    Args:
        images: float [B, D] unit vectors.
        texts: float [C, D] unit vectors, one per caption.
        index: int64 [B], the caption of each image.
        same: bool [C, C], equal captions: all of them are right.
        scale: factor on the cosines.
    """
    logits = scale * images @ texts.T
    right = same[index]
    to_text = logits.log_softmax(dim=1).masked_fill(~right, 0.0).sum(dim=1) / right.sum(dim=1)
    to_image = logits.log_softmax(dim=0).masked_fill(~right, 0.0).sum(dim=0) / right.sum(dim=0)
    return -(to_text.mean() + to_image.mean()) / 2
