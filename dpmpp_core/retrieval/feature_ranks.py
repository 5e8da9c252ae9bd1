"""CMC, mAP and mINP straight from features: no [Q, G] scores, no sorted lists."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from dpmpp_core.retrieval.arguments import Spaces
from dpmpp_core.retrieval.gallery import BLOCK_ITEMS, BLOCK_QUERIES, Block, Gallery, Query
from dpmpp_core.retrieval.ranking import (
    Ints,
    QueryRanks,
    RankingResult,
    matching_items,
    ranks_from_positions,
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
    """`evaluate_ranking` of the masked metric, in blocks of gallery and queries.

    A positive's rank is one plus the number of valid items that beat it, so that each block of
    scores is only compared with the positives' own and forgotten. Junk rule, ties and skipped
    queries as in `evaluate_ranking`; scores are those of `Gallery.exact`, so that the result is
    the same for any block size.

    Args:
        query, query_mask, gallery: as `masked_topk`.
        query_pids, query_camids: integers [Q].
        gallery_pids, gallery_camids: integers [G].
        block_items: gallery items in a block; changes speed and memory only.

    Raises:
        ValueError: shapes that do not fit; as `masked_similarity`.
        DataError: no query has a positive.
    """
    gallery = gallery if isinstance(gallery, Gallery) else Gallery(gallery)
    asked = Query(query, query_mask, gallery)
    refuse_other_lengths(
        (len(asked), len(gallery)), query_pids, gallery_pids, query_camids, gallery_camids
    )
    pairs = _Pairs.of(query_pids, gallery_pids, query_camids, gallery_camids)
    return summarise(_ranks(asked, gallery, pairs, block_items), gallery_size=len(gallery))


@dataclass(frozen=True)
class _Pairs:
    """Query and gallery item of one pid, by query: int64 [n] each; the first of a query's are at
    starts [Q + 1]. positive: bool [n], the rest is junk."""

    rows: Ints
    items: Ints
    positive: NDArray[np.bool_]

    @staticmethod
    def of(q_pids: Ints, g_pids: Ints, q_camids: Ints, g_camids: Ints) -> _Pairs:
        found = list(matching_items(q_pids, g_pids, q_camids, g_camids))
        none = np.empty(0, np.int64)
        return _Pairs(
            np.repeat(np.arange(len(found)), [len(same) for same, _ in found]),
            np.concatenate([none, *(same for same, _ in found)]),
            np.concatenate([none.astype(bool), *(positive for _, positive in found)]),
        )


def _ranks(query: Query, gallery: Gallery, pairs: _Pairs, block_items: int) -> QueryRanks:
    rows, items = pairs.rows[pairs.positive], pairs.items[pairs.positive]
    counts = _Counts(query, gallery, pairs, rows, _exact(gallery, query, rows, items))
    gallery.each_block(counts.add, block_items)
    return counts.ranks()


class _Counts:
    """How many items reach each positive's score, while blocks of the gallery come in."""

    def __init__(
        self, query: Query, gallery: Gallery, pairs: _Pairs, rows: Ints, own: Floats32
    ) -> None:
        self.query, self.gallery, self.lock = query, gallery, Lock()
        order = np.lexsort((own, rows))
        own, self.rows = own[order], rows[order]
        self.keys = _keys(self.rows, own)
        # The least score of each query's positives: what is below it counts for nothing.
        self.lowest = np.full(len(query), np.inf, np.float32)
        np.minimum.at(self.lowest, self.rows, own)
        # Items at or above the first n positives of all, but below the next of their query.
        self.passed = np.zeros(len(own) + 1, np.int64)
        by_item = np.argsort(pairs.items, kind="stable")
        self.same_rows, self.same_items = pairs.rows[by_item], pairs.items[by_item]

    def add(self, block: Block) -> None:
        items = block.items
        part = slice(*np.searchsorted(self.same_items, [items.start, items.stop]))
        same_rows, same_items = self.same_rows[part], self.same_items[part]
        for start in range(0, len(self.query), BLOCK_QUERIES):
            rows = slice(start, min(start + BLOCK_QUERIES, len(self.query)))
            here = (same_rows >= start) & (same_rows < rows.stop)
            hidden = (same_rows[here] - start, same_items[here] - items.start)
            floor = torch.from_numpy(self.lowest[rows]).to(self.gallery.device)
            pairs = block.reaching(
                self.query, rows, floor, tuple(torch.from_numpy(x) for x in hidden)
            )
            self._count(*(x.cpu().numpy() for x in pairs))

    def _count(self, rows: Ints, items: Ints, scores: Floats32, off: Floats32) -> None:
        keys = self.keys
        undecided = np.searchsorted(keys, _keys(rows, scores - off)) != np.searchsorted(
            keys, _keys(rows, scores + off), side="right"
        )
        scores[undecided] = _exact(self.gallery, self.query, rows[undecided], items[undecided])
        reached = np.searchsorted(keys, _keys(rows, scores), side="right")
        reached = reached[scores >= self.lowest[rows]]
        with self.lock:
            self.passed += np.bincount(reached, minlength=len(self.passed))

    def ranks(self) -> QueryRanks:
        size = len(self.query)
        starts = np.searchsorted(self.rows, np.arange(size + 1))
        average_precision, inverse_penalty = np.full(size, np.nan), np.full(size, np.nan)
        first_match_rank = np.zeros(size, np.int64)
        for i in range(size):
            start, end = starts[i], starts[i + 1]
            if start == end:
                continue
            at_least = np.cumsum(self.passed[start + 1 : end + 1][::-1])  # best positive first
            ranks = at_least + np.arange(1, len(at_least) + 1)
            average_precision[i], inverse_penalty[i], first_match_rank[i] = ranks_from_positions(
                ranks
            )
        return QueryRanks(average_precision, inverse_penalty, first_match_rank)


def _exact(gallery: Gallery, query: Query, rows: Ints, items: Ints) -> Floats32:
    pairs = (torch.from_numpy(x).to(gallery.device) for x in (rows, items))
    return gallery.exact(query, *pairs).cpu().numpy()


def _keys(rows: Ints, scores: Floats32) -> Ints:
    """Integers in the order of (row, score): int64 [n]."""
    bits = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0
    return (rows << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF))
