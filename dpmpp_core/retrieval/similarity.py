"""The dynamic masked metric, for all pairs of queries and gallery items at once.

The query's mask re-weights the other side, which is then normalised again (DPM, ACM MM 2022):

    psi(q, g; m) = < q / |q| , (m * g) / |m * g| >
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from dpmpp_core.retrieval.arguments import (
    SMALLEST,
    Array,
    Spaces,
    by_space,
    equal_neighbours,
    largest,
    matrix,
    refuse_bad_mask,
    refuse_other_spaces,
    refuse_other_width,
    sum_neighbours,
)
from dpmpp_core.retrieval.precision import full_float32

# Guard of a division. Its product with SMALLEST bounds a gradient, and must stay below 1e38.
VANISHED = 1e-12


def masked_similarity(query: Spaces, query_mask: Spaces | None, gallery: Spaces) -> Tensor:
    """Score every query against every gallery item: [Q, G], in [-1, 1], higher is more similar.

    Computed in closed form, as two matrix products and without a [Q, G, D] tensor (ours, equal to
    the loop of the published code):

        psi = ((q_hat * m) @ g_hat.T) / sqrt((m ** 2) @ (g_hat ** 2).T)

    Where all masks are equal in groups of dimensions, as those of bands are, the second product is
    one of a value per group, and costs next to nothing.

    Args:
        query: features [Q, D], any length but zero; or a mapping of metric space to such features,
            whose scores are averaged.
        query_mask: masks [Q, D], finite and >= 0, one per query; only their direction counts. A
            mapping over the same spaces if `query` is one. None gives the plain cosine.
        gallery: features [G, D], as `query`.

    Tensors and NumPy arrays mix; scores are computed on the gallery's device. float64 stays
    float64, everything else is computed in float32, under autocast and where TF32 is allowed too.
    Gradients flow to all three arguments and stay finite as a mask approaches
    zero. A gallery item that vanishes under a mask scores 0 (as do all under a mask whose entries
    are all below 1e-36).

    Raises:
        ValueError: spaces or shapes that do not fit; NaN or infinity; a feature vector of length
            zero; a mask that is all zero or has a negative value. Names the argument and the row.
    """
    queries, galleries = by_space(query), by_space(gallery)
    masks = {space: None for space in queries} if query_mask is None else by_space(query_mask)
    if not queries:
        raise ValueError("query has no metric space")
    refuse_other_spaces("gallery", galleries, queries)
    refuse_other_spaces("query_mask", masks, queries)
    with full_float32():
        scores = [_one_space(s, queries[s], masks[s], galleries[s]) for s in queries]
    return scores[0] if len(scores) == 1 else torch.stack(scores).mean(0)


def _one_space(space: str, query: Array, mask: Array | None, gallery: Array) -> Tensor:
    q, g = _wide("query", space, query), _wide("gallery", space, gallery)
    q = q.to(g.device)
    refuse_other_width(space, q, g)
    q = q / largest("query", space, q, "is a feature vector of length zero")
    g = g / largest("gallery", space, g, "is a feature vector of length zero")
    if mask is None:
        with torch.autocast(q.device.type, enabled=False):
            return normalize(q) @ normalize(g).T
    m = _wide("query_mask", space, mask).to(g.device)
    refuse_bad_mask(space, m, q)
    dtype = torch.promote_types(q.dtype, m.dtype)
    return masked_cosine(q.to(dtype), m.to(dtype), g.to(dtype), equal_neighbours(m))


def _wide(name: str, space: str, value: Array) -> Tensor:
    x = matrix(name, space, value)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def masked_cosine(query: Tensor, mask: Tensor, gallery: Tensor, group: int = 1) -> Tensor:
    """Compute `masked_similarity` of one space for training, without checks that wait for a GPU.

    Query, mask (>= 0) and gallery are [Q, D], [Q, D] and [G, D] of float32 or float64, which must
    hold the squares of the features. `group`: see `equal_neighbours`.
    """
    with torch.autocast(query.device.type, enabled=False):
        # The metric ignores the mask's scale, but the squares of a small one would underflow.
        mask = mask / mask.detach().amax(1, keepdim=True).clamp_min(SMALLEST)
        return _MaskedCosine.apply(normalize(query), mask, gallery, group)


class _MaskedCosine(torch.autograd.Function):
    """The closed form and its gradient, with two matrix products per argument.

    psi = A / L with A = (q * m) @ g.T and L^2 = (m * m) @ (g * g).T. Lengths of the gallery cancel,
    so that it is not normalised, and its gradient comes out orthogonal to it.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, m: Tensor, g: Tensor, group: int) -> Tensor:
        squares = g.square()
        length = m[:, ::group].square() @ sum_neighbours(squares, group).T
        inverse = length.clamp_min_(VANISHED**2).rsqrt_()
        psi = ((q * m) @ g.T).mul_(inverse)
        ctx.save_for_backward(q, m, g, squares, inverse, psi)
        return psi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, m, g, squares, inverse, psi = ctx.saved_tensors
        by_product = grad * inverse  # d loss / d A
        by_square = (by_product * psi).mul_(inverse).neg_()  # 2 d loss / d L^2
        pulled = by_product @ g
        grad_m = (by_square @ squares).mul_(m).addcmul_(q, pulled)
        grad_g = (by_square.T @ m.square()).mul_(g).addmm_(by_product.T, q * m)
        return pulled.mul_(m), grad_m, grad_g, None
