"""CMC, mAP and mINP straight from features: no [Q, G] scores, no sorted lists."""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from dpmpp_core.retrieval.arguments import Spaces
from dpmpp_core.retrieval.blocks import Block, Query
from dpmpp_core.retrieval.gallery import BLOCK_ITEMS, BLOCK_QUERIES, Gallery
from dpmpp_core.retrieval.ranking import (
    Ints,
    Pairs,
    Positives,
    RankingResult,
    refuse_other_lengths,
    summarise,
)

Floats32 = NDArray[np.float32]


def rank_features(
    query: Spaces,
    query_mask: Spaces | None,
    gallery: Spaces | Gallery,
    query_pids: Ints,
    gallery_pids: Ints,
    query_camids: Ints,
    gallery_camids: Ints,
    block_items: int = BLOCK_ITEMS,
) -> RankingResult:
    """Compute `evaluate_ranking` of the masked metric, in blocks of gallery and queries.

    A positive's rank is one plus the number of valid items above it, so that each block of scores
    is compared with those of the positives and then dropped. Junk rule, ties and skipped queries as
    in `evaluate_ranking`; scores are those of `Gallery.exact`, so the result is the same for any
    block size, `block_items`. The first three arguments are those of `masked_topk`; ids are
    integers [Q] and [G].

    Raises:
        ValueError: shapes that do not fit; as `masked_similarity`.
        DataError: no query has a positive.
    """
    gallery = gallery if isinstance(gallery, Gallery) else Gallery(gallery)
    prepared = gallery.query(query, query_mask)
    ids = query_pids, gallery_pids, query_camids, gallery_camids
    refuse_other_lengths((len(prepared), len(gallery)), *ids)
    ranks = _Ranks(prepared, gallery, Pairs.of(*ids))
    gallery.each_block(ranks.add, block_items)
    return summarise(ranks.positives.ranks(), gallery_size=len(gallery))


class _Ranks:
    """Counts the items that reach each positive's score, block by block of the gallery."""

    def __init__(self, query: Query, gallery: Gallery, pairs: Pairs) -> None:
        self.query, self.gallery, self.lock = query, gallery, Lock()
        rows, items = pairs.rows[pairs.positive], pairs.items[pairs.positive]
        self.positives = Positives(rows, self._exact(rows, items), len(query))
        by_item = np.argsort(pairs.items, kind="stable")
        self.same_rows, self.same_items = pairs.rows[by_item], pairs.items[by_item]

    def add(self, block: Block) -> None:
        items = block.items
        part = slice(*np.searchsorted(self.same_items, [items.start, items.stop]))
        same_rows, same_items = self.same_rows[part], self.same_items[part]
        for start in range(0, len(self.query), BLOCK_QUERIES):
            rows = slice(start, min(start + BLOCK_QUERIES, len(self.query)))
            here = (same_rows >= start) & (same_rows < rows.stop)
            junk = (same_rows[here] - start, same_items[here] - items.start)
            floor = torch.from_numpy(self.positives.lowest[rows]).to(self.gallery.device)
            excluded = tuple(torch.from_numpy(x) for x in junk)
            pairs = block.reaching(self.query, rows, floor, excluded)
            self._count(*(x.cpu().numpy() for x in pairs))

    def _count(self, rows: Ints, items: Ints, scores: Floats32, off: Floats32) -> None:
        """Place scores between the positives that they certainly reach and those they do not.

        If a positive lies in between, the exact score decides.
        """
        places = self.positives.places(rows, scores - off, "left")
        ends = self.positives.starts[rows + 1]
        following = self.positives.scores[np.minimum(places, ends - 1)]
        open_ = (places < ends) & (following <= scores + off)
        exact = self._exact(rows[open_], items[open_])
        sure = places[~open_]
        with self.lock:
            self.positives.count_places(sure)
            self.positives.count(rows[open_], exact)

    def _exact(self, rows: Ints, items: Ints) -> Floats32:
        pairs = (torch.from_numpy(x).to(self.gallery.device) for x in (rows, items))
        return self.gallery.exact(self.query, *pairs).cpu().numpy()
