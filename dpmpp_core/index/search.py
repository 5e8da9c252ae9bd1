"""Search in a gallery index, exact unless an approximate one is requested.

The exact result is the same for any blocks and shards: scores are those of `masked_topk`, which
depend on the pair alone; equal scores are listed by position. An approximate result has the same
scores, but may miss images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from dpmpp_core.data.sightings import Label
from dpmpp_core.index.gallery import GalleryIndex
from dpmpp_core.index.names import LabelNames, find_number
from dpmpp_core.index.segments import Block, Matrix
from dpmpp_core.retrieval import Gallery, masked_topk
from dpmpp_core.retrieval.blocks import Query
from dpmpp_core.retrieval.sketches import Sketches, pick

Spaces = Mapping[str, Matrix]


@dataclass(frozen=True)
class RowFilter:
    """A filter of rows.

    Attributes:
        cameras: of these cameras, by number or name; None = of any, also without a known one.
        since: taken at or after, in seconds since 1970; a row without a time is in no window.
        until: taken before.
    """

    cameras: Collection[Label] | None = None
    since: int | None = None
    until: int | None = None

    def keeps(self, block: Block) -> NDArray[np.bool_]:
        """Return bool [N]: not deleted, and within the filter, whose cameras are numbers."""
        keep = block.live
        if self.cameras is not None:
            camid = block.rows["camid"]
            cameras = pa.array(list(self.cameras), pa.int64())
            keep = keep & pc.is_in(camid, value_set=cameras).to_numpy(False)
        time = block.rows["time"]
        if self.since is not None:
            keep = keep & _true(pc.greater_equal(time, self.since))
        if self.until is not None:
            keep = keep & _true(pc.less(time, self.until))
        return keep

    def numbered(self, names: LabelNames) -> RowFilter:
        """Return the filter with the numbers of its cameras; DataError for an unknown name."""
        if self.cameras is None:
            return self
        cameras = [find_number(camera, names.cameras, "camera") for camera in self.cameras]
        return replace(self, cameras=sorted(cameras))


@dataclass(frozen=True)
class SearchResult:
    """The best rows of each of Q queries, best first.

    Attributes:
        scores: float32 [Q, k], in [-1, 1]; NaN beyond the last row.
        positions: int64 [Q, k] in the index; -1 beyond the last row.
        scored: number of rows scored per query; of an exact result all that pass the filter.
    """

    scores: NDArray[np.float32]
    positions: NDArray[np.int64]
    scored: int


def search(
    index: GalleryIndex,
    query: Spaces,
    query_mask: Spaces | None,
    k: int,
    where: RowFilter | None = None,
    segments: Collection[str] | None = None,
    approximate: bool = False,
) -> SearchResult:
    """Find the k best rows for each query, exactly or among those whose sketches score best.

    Args:
        index: the index.
        query: metric space -> [Q, D].
        query_mask: the same spaces -> [Q, D], >= 0; None = plain cosine.
        k: number of rows.
        where: filter of rows.
        segments: files of those to search; None = all.
        approximate: in segments with sketches, score the candidates of `Sketches.candidates` only;
            segments without are searched exactly.

    Raises:
        ValueError: k below 1; see also `masked_similarity`.
        DataError: a camera by a name that the index does not have.
        DataError, FileNotFoundError: as `GalleryIndex.blocks` and `GalleryIndex.sketches`.
    """
    if k < 1:
        raise ValueError(f"k {k}: at least 1 is needed")
    where = (where or RowFilter()).numbered(index.manifest.names)
    count = len(next(iter(query.values())))
    result = SearchResult(
        np.full((count, k), np.nan, np.float32), np.full((count, k), -1, np.int64), 0
    )
    usual = None if query_mask is None else {s: m.mean(0) for s, m in query_mask.items()}
    whole = [
        segment.file
        for segment in index.manifest.segments
        if (segments is None or segment.file in segments) and not (approximate and segment.sketches)
    ]
    for block, gallery in index.galleries(whole, usual):
        keep = where.keeps(block)
        if keep.any():
            allowed = None if keep.all() else keep
            scores, items = masked_topk(query, query_mask, gallery, k, allowed)
            positions = np.where(items.numpy() < 0, -1, items.numpy() + block.start)
            result = merge_results(
                [result, SearchResult(scores.numpy(), positions, int(keep.sum()))], k
            )
    if approximate:
        for blocks, sketches in index.sketches(segments):
            part = _by_sketches(blocks, sketches, query, query_mask, k, where)
            result = merge_results([result, part], k)
    return result


def _by_sketches(
    blocks: Sequence[Block],
    sketches: Sketches,
    query: Spaces,
    query_mask: Spaces | None,
    k: int,
    where: RowFilter,
) -> SearchResult:
    parts = [block.originals or block.features for block in blocks]
    keep = np.concatenate([where.keeps(block) for block in blocks])
    orders = {space: torch.arange(x.shape[1]) for space, x in parts[0].items()}
    prepared = Query(query, query_mask, orders, torch.device("cpu"))
    scores = np.full((len(prepared), k), np.nan, np.float32)
    positions = np.full((len(prepared), k), -1, np.int64)
    scored = 0
    for i, candidates in enumerate(sketches.candidates(prepared, k, keep)):
        scored = len(candidates)
        if scored:
            row = slice(i, i + 1)
            gallery = Gallery(pick(parts, candidates), bounded=False)
            mask = None if query_mask is None else {s: m[row] for s, m in query_mask.items()}
            top, items = masked_topk({s: q[row] for s, q in query.items()}, mask, gallery, k)
            scores[i] = top[0].numpy()
            places = items[0].numpy()
            positions[i] = np.where(places < 0, -1, candidates[places] + blocks[0].start)
    return SearchResult(scores, positions, scored)


def merge_results(parts: Iterable[SearchResult], k: int) -> SearchResult:
    """Merge the k best of several results of the same queries."""
    parts = list(parts)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    positions = np.concatenate([part.positions for part in parts], axis=1)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]  # NaN last
    scores, positions = (np.take_along_axis(x, order, 1) for x in (scores, positions))
    return SearchResult(scores, positions, sum(part.scored for part in parts))


def _true(condition: pa.BooleanArray) -> NDArray[np.bool_]:
    return condition.fill_null(False).to_numpy(False)
