"""CMC, mAP and mINP straight from features: no [Q, G] scores, no sorted lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dpmpp_core.retrieval.arguments import Spaces
from dpmpp_core.retrieval.gallery import BLOCK_ITEMS, Block, Gallery, Query
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

BLOCK_QUERIES = 1024


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
    own = _exact(gallery, query, rows, items)
    order = np.lexsort((own, rows))
    own, rows = own[order], rows[order]
    keys = _keys(rows, own)
    # The least score of each query's positives: what is below it counts for nothing.
    lowest = np.full(len(query), np.inf, np.float32)
    np.minimum.at(lowest, rows, own)
    passed = np.zeros(len(own) + 1, np.int64)  # items at or above the n lowest positives of a query
    same = np.argsort(pairs.items, kind="stable")
    for block in gallery.blocks(block_items):
        of_block = same[np.searchsorted(pairs.items[same], block.items.start) :]
        of_block = of_block[pairs.items[of_block] < block.items.stop]
        for start in range(0, len(query), BLOCK_QUERIES):
            part = slice(start, min(start + BLOCK_QUERIES, len(query)))
            hide = of_block[(pairs.rows[of_block] >= start) & (pairs.rows[of_block] < part.stop)]
            hidden = pairs.rows[hide] - start, pairs.items[hide] - block.items.start
            row, item, value, off = _reaching(block, query, part, hidden, lowest[part])
            undecided = np.searchsorted(keys, _keys(row, value - off)) != np.searchsorted(
                keys, _keys(row, value + off), side="right"
            )
            value[undecided] = _exact(gallery, query, row[undecided], item[undecided])
            reached = np.searchsorted(keys, _keys(row, value), side="right")
            reached = reached[value >= lowest[row]]
            passed += np.bincount(reached, minlength=len(passed))
    return _counted(len(query), rows, passed)


def _reaching(
    block: Block, query: Query, rows: slice, hidden: tuple[Ints, Ints], lowest: Floats32
) -> tuple[Ints, Ints, Floats32, Floats32]:
    """Pairs whose score may reach its query's `lowest` [q], without the `hidden` (row, item) of
    the block: queries, items, scores, and how far off these may be."""
    scores, off = block.scores(query, rows)
    upper = scores + off
    upper[hidden] = -torch.inf
    floor = torch.from_numpy(lowest).to(upper.device)[:, None]
    row, item = torch.nonzero(upper >= floor, as_tuple=True)
    value = scores[row, item].cpu().numpy()
    off_by = np.full_like(value, off) if isinstance(off, float) else off[row, item].cpu().numpy()
    return row.cpu().numpy() + rows.start, item.cpu().numpy() + block.items.start, value, off_by


def _counted(size: int, rows: Ints, passed: Ints) -> QueryRanks:
    """rows: query of each positive, by query and rising score. passed[n]: items whose score is at
    or above that of the first n positives of all, and below that of the next of their query."""
    starts = np.searchsorted(rows, np.arange(size + 1))
    average_precision, inverse_penalty = np.full(size, np.nan), np.full(size, np.nan)
    first_match_rank = np.zeros(size, np.int64)
    for i in range(size):
        start, end = starts[i], starts[i + 1]
        if start == end:
            continue
        at_least = np.cumsum(passed[start + 1 : end + 1][::-1])  # best positive first
        ranks = at_least + np.arange(1, len(at_least) + 1)
        average_precision[i], inverse_penalty[i], first_match_rank[i] = ranks_from_positions(ranks)
    return QueryRanks(average_precision, inverse_penalty, first_match_rank)


def _exact(gallery: Gallery, query: Query, rows: Ints, items: Ints) -> Floats32:
    pairs = (torch.from_numpy(x).to(gallery.device) for x in (rows, items))
    return gallery.exact(query, *pairs).cpu().numpy()


def _keys(rows: Ints, scores: Floats32) -> Ints:
    """Integers in the order of (row, score): int64 [n]."""
    bits = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0
    return (rows << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF))
