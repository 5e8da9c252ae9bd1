"""Exact search for the best gallery items of each query."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.retrieval.arguments import Spaces, by_space, tensor
from dpmpp_core.retrieval.blocks import FEW_QUERIES, Block, Query
from dpmpp_core.retrieval.gallery import BLOCK_ITEMS, BLOCK_QUERIES, Gallery

Mask = Tensor | NDArray[np.bool_]
Allowed = Callable[[slice, slice], Mask]


def masked_topk(
    query: Spaces,
    query_mask: Spaces | None,
    gallery: Spaces | Gallery,
    k: int,
    allowed: Mask | Allowed | None = None,
    block_items: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k best gallery items of each query by the masked metric, best first.

    Exact for any blocks and storage of the gallery: the score is that of `Gallery.exact`. Equal
    scores are listed by gallery index. Never holds [Q, G] scores.

    Args:
        query: features [Q, D], or a mapping of metric space to such, whose scores are averaged.
        query_mask: masks [Q, D], as `query`; None gives the plain cosine.
        gallery: features [G, D], as `query`; a `Gallery` if it is searched more than once.
        k: number of items, >= 1.
        allowed: which items may be listed: bool [G], or a function of a slice of the queries and
            one of the gallery to bool [q, g]; None allows all.
        block_items: gallery items in a block; changes speed and memory only. None: 4096, or 65536
            for few queries, whose scores are few.

    Returns:
        scores float32 [Q, k] and indices int64 [Q, k], on the gallery's device; beyond the last
        item that may be listed NaN and -1.

    Raises:
        ValueError: k < 1, and as `masked_similarity`.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
    gallery = gallery if isinstance(gallery, Gallery) else Gallery(gallery)
    if block_items is None:
        few = len(next(iter(by_space(query).values()), ())) <= FEW_QUERIES
        block_items = BLOCK_ITEMS * 16 if few else BLOCK_ITEMS
    lists = _Lists(gallery.query(query, query_mask), gallery, k, allowed)
    gallery.each_block(lists.add, block_items)
    lists.best[lists.indices < 0] = torch.nan
    return lists.best, lists.indices


class _Lists:
    def __init__(
        self, query: Query, gallery: Gallery, k: int, allowed: Mask | Allowed | None
    ) -> None:
        self.query, self.gallery, self.k, self.allowed = query, gallery, k, allowed
        self.best = torch.full((len(query), k), -torch.inf, device=gallery.device)
        self.indices = torch.full((len(query), k), -1, device=gallery.device)
        self.lock = Lock()

    def add(self, block: Block) -> None:
        for start in range(0, len(self.query), BLOCK_QUERIES):
            rows = slice(start, min(start + BLOCK_QUERIES, len(self.query)))
            excluded = self._excluded(rows, block.items)
            floor = self.best[rows, -1]
            pairs = block.reaching(self.query, rows, floor, excluded, self.k)
            scores = self.gallery.exact(self.query, pairs.rows, pairs.items)
            with self.lock:
                merge(self.best, self.indices, pairs.rows, scores, pairs.items)

    def _excluded(self, rows: slice, items: slice) -> Tensor | None:
        if self.allowed is None:
            return None
        listed = self.allowed(rows, items) if callable(self.allowed) else self.allowed[items][None]
        excluded = ~tensor(listed).to(self.gallery.device)
        return excluded.expand(rows.stop - rows.start, items.stop - items.start)


def merge(best: Tensor, indices: Tensor, row: Tensor, score: Tensor, item: Tensor) -> None:
    """Merge scored items into the lists `best` and `indices` [Q, k] of their queries."""
    if len(row) == 0:
        return
    k, touched = best.shape[1], torch.unique(row)
    row = torch.cat([touched.repeat_interleave(k), row])
    score = torch.cat([best[touched].ravel(), score])
    item = torch.cat([indices[touched].ravel(), item])
    order = _order(row, score, item)
    row, score, item = row[order], score[order], item[order]
    starts = torch.searchsorted(row, touched)
    chosen = starts[:, None] + torch.arange(k, device=row.device)
    best[touched], indices[touched] = score[chosen], item[chosen]


def _order(row: Tensor, score: Tensor, item: Tensor) -> Tensor:
    """Sort by row, then the best score, then the lowest item; only equal scores need two sorts."""
    bits = (score + 0.0).view(torch.int32)  # + 0.0: a zero has one sign
    rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # integers in the order of the floats
    key = (row << 32) - rising
    if key.device.type == "cpu":
        order = torch.from_numpy(np.argsort(key.numpy()))  # AVX-512: a tenth of torch's time
    else:
        order = torch.argsort(key)
    equal = torch.nn.functional.pad(key[order].diff() == 0, (1, 1))
    tied = equal[1:] | equal[:-1]
    some = order[tied]
    some = some[torch.argsort(item[some], stable=True)]
    order[tied] = some[torch.argsort(key[some], stable=True)]
    return order
