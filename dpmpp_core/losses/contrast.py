"""Contrasts between images, texts and prototypes (CLIP-ReID; prototype contrast: ours)."""

from __future__ import annotations

from torch import Tensor, nn


def supervised_contrast(anchors: Tensor, others: Tensor, labels: Tensor, scale: float) -> Tensor:
    """-mean_i mean_{p: same identity} log softmax_p(scale * <a_i, b_p>) (CLIP-ReID, eq. 3 and 4).

    Args:
        anchors, others: float [B, D]; row i of both belongs to labels[i].
        labels: int64 [B].
        scale: factor on the inner products; 1 for CLIP's raw features.

    Returns:
        float32 scalar.
    """
    logp = (scale * anchors.float() @ others.float().T).log_softmax(dim=1)
    positive = (labels[:, None] == labels[None]).float()
    return -((logp * positive).sum(dim=1) / positive.sum(dim=1)).mean()


def prototype_contrast(
    prototypes: Tensor, texts: Tensor, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """-mean_c log softmax_c'(cos(W_c, T_c') / temperature)[c]; no gradient flows to the texts.

    Args:
        prototypes: float [M, D], one an identity.
        texts: float [M, D], the same identities in the same order.
        labels: int64 [M], the identity of each row, where one may come more than once; it then
            still counts once. None = all different.

    Returns:
        float32 scalar.
    """
    w = nn.functional.normalize(prototypes.float(), dim=1)
    t = nn.functional.normalize(texts.detach().float(), dim=1)
    logits = (w @ t.T) / temperature
    if labels is None:
        return -logits.log_softmax(dim=1).diagonal().mean()
    # Weights instead of `unique`, whose size a GPU would have to tell the host.
    times = (labels[:, None] == labels[None]).sum(dim=1).float()
    nats = (logits - times.log()).logsumexp(dim=1) - logits.diagonal()
    return (nats / times).sum() / (1 / times).sum()
