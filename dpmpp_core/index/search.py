"""Exact search in a gallery index, with the same answer however it is cut into blocks and shards.

A block's scores come from a float32 matrix product, whose last bits depend on shapes and threads.
So every row that comes within `CLOSE` of the k-th of its block is scored again by itself in
float64, and ranked by that; equal scores by position, the earlier added first (ours).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.index.gallery import Block, GalleryIndex
from dpmpp_core.index.segments import Matrix
from dpmpp_core.retrieval import masked_similarity
from dpmpp_core.retrieval.similarity import VANISHED

Spaces = Mapping[str, Matrix]
CLOSE = 1e-5  # more than twice what float32 may be wrong by
SPARE = 16  # rows beyond k that are looked at first
BLOCK_SCORES = 4_000_000  # queries times rows at a time


@dataclass(frozen=True)
class Where:
    """Which rows may be found.

    Attributes:
        cameras: of these cameras; None = of any, also of none that is known.
        since, until: taken at or after, and before, in seconds since 1970; a row without a time is
            in no window.
    """

    cameras: Collection[int] | None = None
    since: int | None = None
    until: int | None = None

    def keeps(self, block: Block) -> NDArray[np.bool_]:
        """bool [N]: not deleted, and as asked."""
        keep = block.live
        if self.cameras is not None:
            camid = block.rows["camid"]
            keep = keep & pc.is_in(camid, value_set=_ints(self.cameras)).to_numpy(False)
        time = block.rows["time"]
        if self.since is not None:
            keep = keep & _true(pc.greater_equal(time, self.since))
        if self.until is not None:
            keep = keep & _true(pc.less(time, self.until))
        return keep


@dataclass(frozen=True)
class Found:
    """The best rows of each of Q queries, best first.

    Attributes:
        scores: float64 [Q, k], in [-1, 1]; NaN beyond the last row.
        positions: int64 [Q, k] in the index; -1 beyond the last row.
    """

    scores: NDArray[np.float64]
    positions: NDArray[np.int64]


def search(
    index: GalleryIndex,
    query: Spaces,
    query_mask: Spaces | None,
    k: int,
    where: Where | None = None,
    segments: Collection[str] | None = None,
) -> Found:
    """The k best rows for each query: those that float64 arithmetic ranks first.

    Args:
        query: metric space -> [Q, D].
        query_mask: the same spaces -> [Q, D], >= 0; None = plain cosine.
        where: which rows may be found.
        segments: files of those to look into; None = all.

    Raises:
        ValueError: k below 1; see also `masked_similarity`.
        DataError, FileNotFoundError: as `GalleryIndex.blocks`.
    """
    if k < 1:
        raise ValueError(f"k {k}: at least 1 is needed")
    where = where or Where()
    count = len(next(iter(query.values())))
    found = Found(np.full((count, k), np.nan), np.full((count, k), -1, np.int64))
    for block in index.blocks(segments):
        rows = np.flatnonzero(where.keeps(block))
        if len(rows):
            floor = found.scores[:, -1]
            found = best([found, _in_block(block, rows, query, query_mask, k, floor)], k)
    return found


def best(parts: Iterable[Found], k: int) -> Found:
    """The k best of several answers to the same queries."""
    parts = list(parts)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    positions = np.concatenate([part.positions for part in parts], axis=1)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]  # NaN last
    return Found(np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1))


def _in_block(
    block: Block,
    rows: NDArray[np.int64],
    query: Spaces,
    mask: Spaces | None,
    k: int,
    floor: NDArray[np.float64],
) -> Found:
    """The k best of these rows of a block for each query.

    floor: [Q], scores of the k-th found so far; NaN = not so many yet. What is clearly below may be
    missing.
    """
    whole = len(rows) == len(block.live)
    chosen = torch.from_numpy(rows)
    features = {s: x if whole else x[chosen] for s, x in block.features.items()}
    count = len(floor)
    found = Found(np.full((count, k), np.nan), np.full((count, k), -1, np.int64))
    for i, near in enumerate(_candidates(features, query, mask, k)):
        at = near.at[near.scores >= floor[i] - CLOSE] if np.isfinite(floor[i]) else near.at
        if not len(at):
            continue
        near_features = {s: x[torch.from_numpy(at)] for s, x in features.items()}
        own = {s: x[i] for s, x in query.items()}
        own_mask = None if mask is None else {s: x[i] for s, x in mask.items()}
        scores = exact_scores(own, own_mask, near_features)
        order = np.lexsort((at, -scores))[:k]
        found.scores[i, : len(order)] = scores[order]
        found.positions[i, : len(order)] = block.start + rows[at[order]]
    return found


class _Near(NamedTuple):
    """Rows of one query that may be among its best, and their float32 scores."""

    at: NDArray[np.int64]
    scores: NDArray[np.float32]


def _candidates(
    features: Mapping[str, Tensor], query: Spaces, mask: Spaces | None, k: int
) -> Iterator[_Near]:
    """Of each query all rows within `CLOSE` of the k-th."""
    size = len(next(iter(features.values())))
    step = max(1, BLOCK_SCORES // size)
    for start in range(0, len(next(iter(query.values()))), step):
        part = {s: x[start : start + step] for s, x in query.items()}
        masks = None if mask is None else {s: x[start : start + step] for s, x in mask.items()}
        scores = masked_similarity(part, masks, features)
        first = torch.topk(scores, min(k + SPARE, size), dim=1)
        for i in range(len(scores)):
            values, at = first.values[i], first.indices[i]
            lowest = values[min(k, size) - 1] - CLOSE
            if len(at) < size and values[-1] >= lowest:  # many alike
                at = (scores[i] >= lowest).nonzero()[:, 0]
                values = scores[i, at]
            near = values >= lowest
            yield _Near(at[near].numpy(), values[near].numpy())


def exact_scores(
    query: Spaces, mask: Spaces | None, gallery: Mapping[str, Tensor]
) -> NDArray[np.float64]:
    """Scores of one query, float64 [N], each row's by itself.

    The order of summation depends on nothing but the number of dimensions, and scores are rounded
    to 12 decimals, so that what is equal but for rounding is a tie. Vectors are [D], as in
    `masked_similarity`; gallery [N, D].
    """
    scores = np.zeros(len(next(iter(gallery.values()))))
    for space, stored in gallery.items():
        q = query[space].astype(np.float64)
        q /= np.linalg.norm(q)
        m = np.ones_like(q) if mask is None else mask[space].astype(np.float64)
        m /= m.max()
        g = stored.double().numpy()
        g = g / np.abs(g).max(axis=1, keepdims=True)
        length = np.sqrt(np.square(g * m).sum(axis=1))
        scores += (g * (q * m)).sum(axis=1) / np.maximum(length, VANISHED)
    return np.round(scores / len(gallery), 12)


def _ints(values: Collection[int]) -> pa.Array:
    return pa.array(sorted(values), pa.int64())


def _true(condition: pa.BooleanArray) -> NDArray[np.bool_]:
    return condition.fill_null(False).to_numpy(False)
