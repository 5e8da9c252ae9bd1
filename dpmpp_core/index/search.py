"""Exact search in a gallery index, with the same answer however it is cut into blocks and shards.

Scores are those of `masked_topk`, which depend on nothing but the pair; equal scores are listed by
position, the earlier added first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dpmpp_core.index.gallery import Block, GalleryIndex
from dpmpp_core.index.segments import Matrix
from dpmpp_core.retrieval import masked_topk

Spaces = Mapping[str, Matrix]


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
        scores: float32 [Q, k], in [-1, 1]; NaN beyond the last row.
        positions: int64 [Q, k] in the index; -1 beyond the last row.
    """

    scores: NDArray[np.float32]
    positions: NDArray[np.int64]


def search(
    index: GalleryIndex,
    query: Spaces,
    query_mask: Spaces | None,
    k: int,
    where: Where | None = None,
    segments: Collection[str] | None = None,
) -> Found:
    """The k best rows for each query, exactly.

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
    found = Found(np.full((count, k), np.nan, np.float32), np.full((count, k), -1, np.int64))
    usual = None if query_mask is None else {s: m.mean(0) for s, m in query_mask.items()}
    for block, gallery in index.galleries(segments, usual):
        keep = where.keeps(block)
        if keep.any():
            allowed = None if keep.all() else keep
            scores, items = masked_topk(query, query_mask, gallery, k, allowed)
            positions = np.where(items.numpy() < 0, -1, items.numpy() + block.start)
            found = best([found, Found(scores.numpy(), positions)], k)
    return found


def best(parts: Iterable[Found], k: int) -> Found:
    """The k best of several answers to the same queries."""
    parts = list(parts)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    positions = np.concatenate([part.positions for part in parts], axis=1)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]  # NaN last
    return Found(np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1))


def _ints(values: Collection[int]) -> pa.Array:
    return pa.array(sorted(values), pa.int64())


def _true(condition: pa.BooleanArray) -> NDArray[np.bool_]:
    return condition.fill_null(False).to_numpy(False)
