"""The best gallery items of each query, exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.retrieval.arguments import Spaces, tensor
from dpmpp_core.retrieval.gallery import BLOCK_ITEMS, Gallery, Query

Allowed = Callable[[slice, slice], Tensor | NDArray[np.bool_]]

BLOCK_QUERIES = 1024


def masked_topk(
    query: Spaces,
    query_mask: Spaces | None,
    gallery: Spaces | Gallery,
    k: int,
    allowed: Tensor | NDArray[np.bool_] | Allowed | None = None,
    block_items: int = BLOCK_ITEMS,
) -> tuple[Tensor, Tensor]:
    """The k best gallery items of each query by the masked metric, best first.

    Exact, whatever the blocks and the gallery's storage: the score is that of `Gallery.exact`.
    Equal scores are listed by gallery index, the lower first. Never holds [Q, G] scores.

    Args:
        query: features [Q, D], or a mapping of metric space to such, whose scores are averaged.
        query_mask: masks [Q, D], as `query`; None gives the plain cosine.
        gallery: features [G, D], as `query`; a `Gallery` if it is searched more than once.
        k: how many, >= 1.
        allowed: which items may be listed: bool [G], or a function of a slice of the queries and
            one of the gallery to bool [q, g]; None allows all.
        block_items: gallery items in a block; changes speed and memory only.

    Returns:
        scores float32 [Q, k] and indices int64 [Q, k], on the gallery's device; beyond the last
        item that may be listed NaN and -1.

    Raises:
        ValueError: k < 1, and as `masked_similarity`.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
    gallery = gallery if isinstance(gallery, Gallery) else Gallery(gallery)
    asked = Query(query, query_mask, gallery)
    size = len(asked)
    best = torch.full((size, k), -torch.inf, device=gallery.device)
    indices = torch.full((size, k), -1, device=gallery.device)
    for block in gallery.blocks(block_items):
        for start in range(0, size, BLOCK_QUERIES):
            rows = slice(start, min(start + BLOCK_QUERIES, size))
            scores, off = block.scores(asked, rows)
            upper = scores + off
            if allowed is not None:
                shown = _allowed(allowed, rows, block.items, gallery.device)
                upper.masked_fill_(~shown, -torch.inf)
            floor = best[rows, -1:]
            if torch.isinf(floor).any() and k < upper.shape[1]:
                lower = upper - 2 * off
                floor = torch.maximum(floor, lower.topk(k, dim=1).values[:, -1:])
            row, item = torch.nonzero((upper >= floor) & ~torch.isneginf(upper), as_tuple=True)
            row, item = row + start, item + block.items.start
            _merge(best, indices, row, gallery.exact(asked, row, item), item)
    best[indices < 0] = torch.nan
    return best, indices


def _allowed(
    allowed: Tensor | NDArray[np.bool_] | Allowed, rows: slice, items: slice, device: torch.device
) -> Tensor:
    shown = allowed(rows, items) if callable(allowed) else allowed[items][None]
    return tensor(shown).to(device)


def _merge(best: Tensor, indices: Tensor, row: Tensor, score: Tensor, item: Tensor) -> None:
    """Put scored items into the lists `best` and `indices` [Q, k] of their queries."""
    if len(row) == 0:
        return
    k, touched = best.shape[1], torch.unique(row)
    row = torch.cat([touched.repeat_interleave(k), row])
    score = torch.cat([best[touched].ravel(), score])
    item = torch.cat([indices[touched].ravel(), item])
    order = torch.argsort(item, stable=True)
    order = order[torch.argsort(score[order], descending=True, stable=True)]
    order = order[torch.argsort(row[order], stable=True)]
    row, score, item = row[order], score[order], item[order]
    starts = torch.searchsorted(row, touched)
    chosen = starts[:, None] + torch.arange(k, device=row.device)
    best[touched], indices[touched] = score[chosen], item[chosen]
