"""Re-ranking by shared neighbours: k-reciprocal encoding (Zhong et al., CVPR 2017), sparse.

With S the masked metric among all queries and gallery items, distances are

    d = 1 - (S + S.T) / 2, 0 on the diagonal;        e[i] = d[i] ** 2 / max(d[i] ** 2)

as in the published code. An item's k-reciprocal neighbours, expanded, weighted by exp(-e) and
averaged over its nearest ones, are its row of V; the final distance is

    (1 - weight) * (1 - sum(min(V[q], V[g])) / sum(max(V[q], V[g]))) + weight * e[q, g]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.retrieval.arguments import Spaces, by_space, largest, matrix, refuse_bad_mask
from dpmpp_core.retrieval.precision import full_float32
from dpmpp_core.retrieval.search import merge
from dpmpp_core.retrieval.similarity import VANISHED

Ints = NDArray[np.int64]
Floats32 = NDArray[np.float32]

BLOCK = 2048  # items on either side of a block of scores
BLOCK_ROWS = 512  # items whose neighbours' neighbours are compared together
BLOCK_PAIRS = 256
ITEM = 2**32 - 1  # the bits of an item in a key


def rerank(
    query: Spaces,
    query_mask: Spaces | None,
    gallery: Spaces,
    gallery_mask: Spaces | None,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    top: int = 100,
) -> tuple[Floats32, Ints]:
    """Order the `top` gallery items of each query by d by the final distance, on the CPU.

    Args:
        query: features [Q, D], or a mapping of metric space to such; copied from a GPU.
        query_mask: masks of the same shapes; None = the plain cosine on that side.
        gallery: features [G, D], likewise.
        gallery_mask: likewise.
        k1: neighbours that may be reciprocal (default: the paper's).
        k2: neighbours averaged over.
        weight: of the distance itself, in [0, 1].
        top: number of items of each list to reorder.

    Returns:
        distances float32 [Q, min(top, G)], rising, and indices int64 of the same shape into the
        gallery; equal distances by rising index.

    Raises:
        ValueError: k1, k2 or top below 1; weight outside [0, 1]; as `masked_similarity`.
    """
    if min(k1, k2, top) < 1 or not 0 <= weight <= 1:
        raise ValueError(
            f"k1 {k1}, k2 {k2}, top {top} and weight {weight}: the first three must be at least 1, "
            "the last in [0, 1]"
        )
    items = _Items(query, query_mask, gallery, gallery_mask)
    with full_float32():
        near = _neighbours(items, max(k1, k2 - 1) + 1, top)
    rows = _encoded(items, near, k1)
    if k2 > 1:
        rows = _averaged(rows, near.items[:, :k2])
    return _reordered(rows, near, items.queries, weight)


class _Items:
    """Queries, then gallery items, in each space.

    Features have length one, [N, D]; weights are features * masks; squares are those of the masks.
    """

    def __init__(
        self, query: Spaces, query_mask: Spaces | None, gallery: Spaces, gallery_mask: Spaces | None
    ) -> None:
        self.spaces: list[tuple[Tensor, Tensor, Tensor]] = []
        sides = [
            ("query", by_space(query), query_mask),
            ("gallery", by_space(gallery), gallery_mask),
        ]
        if sides[0][1].keys() != sides[1][1].keys():
            raise ValueError(
                f"query has the spaces {sorted(sides[0][1])} but gallery {sorted(sides[1][1])}"
            )
        for space in sides[0][1]:
            features, masks = [], []
            for name, given, mask in sides:
                x = matrix(name, space, given[space]).cpu().float()
                x = x / largest(name, space, x, "is a feature vector of length zero")
                features.append(torch.nn.functional.normalize(x))
                m = torch.ones_like(x)
                if mask is not None:
                    m = matrix(f"{name}_mask", space, by_space(mask)[space]).cpu().float()
                    refuse_bad_mask(space, m, x)
                masks.append(m / m.amax(1, keepdim=True))
            x, m = torch.cat(features), torch.cat(masks)
            self.spaces.append((x, x * m, m.square_()))
        self.queries, self.size = len(sides[0][1][space]), len(x)

    def scores(self, of: slice, against: slice, by_other: bool = False) -> Tensor:
        """Return S of two blocks, [a, b], or S[against, of].T if `by_other`."""
        total: Tensor | None = None
        for x, weights, squares in self.spaces:
            if by_other:
                length = x[of].square() @ squares[against].T
                product = x[of] @ weights[against].T
            else:
                length = squares[of] @ x[against].square().T
                product = weights[of] @ x[against].T
            product.mul_(length.clamp_min_(VANISHED**2).rsqrt_())
            total = product if total is None else total.add_(product)
        assert total is not None
        return total.div_(len(self.spaces))

    def alike(self, rows: Ints, columns: Ints) -> Floats32:
        """Return (S + S.T) / 2 of pairs, [n]."""
        similarity = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), BLOCK_PAIRS):
            part = slice(start, start + BLOCK_PAIRS)
            i, j = torch.from_numpy(rows[part]), torch.from_numpy(columns[part])
            total = torch.zeros(len(i))
            for x, weights, squares in self.spaces:
                for a, b in ((i, j), (j, i)):
                    other = x.index_select(0, b)
                    product = torch.linalg.vecdot(weights.index_select(0, a), other)
                    length = torch.linalg.vecdot(squares.index_select(0, a), other.square_())
                    total += product / length.clamp_min_(VANISHED**2).sqrt_()
            similarity[part] = (total / (2 * len(self.spaces))).numpy()
        return similarity


@dataclass(frozen=True)
class _Near:
    """Nearest items.

    Attributes:
        items: int64 [N, k], each item's nearest, itself first.
        listed: int64 [Q, top], the gallery items to be reordered, in any order.
        alike: float32 [Q, top], their similarities.
        least: float32 [N], the least similarity of each item.
    """

    items: Ints
    listed: Ints
    alike: Floats32
    least: Floats32


def _neighbours(items: _Items, k: int, top: int) -> _Near:
    """Find neighbours; every block of scores is computed once and used for both of its sides."""
    size, queries = items.size, items.queries
    k, top = min(k, size), min(top, size - queries)
    nearest = torch.full((size, k), -torch.inf), torch.full((size, k), -1)
    least = torch.full((size,), torch.inf)
    lists = []

    def update(alike: Tensor, of: slice, against: slice) -> None:
        least[of] = torch.minimum(least[of], alike.amin(1))
        _keep(nearest, alike, of, against)

    blocks = [slice(i, min(i + BLOCK, size)) for i in range(0, size, BLOCK)]
    for i, of in enumerate(blocks):
        # Queries come first, so these blocks have all gallery items of the queries among `of`.
        scores = torch.empty(max(0, min(of.stop, queries) - of.start), size - queries)
        for against in blocks[i:]:
            alike = items.scores(of, against)
            if of == against:
                alike = (alike + alike.T) / 2
                alike.fill_diagonal_(torch.inf)  # an item precedes all that are equal to it
            else:
                alike.add_(items.scores(of, against, by_other=True)).div_(2)
                update(alike.T.contiguous(), against, of)
            update(alike, of, against)
            first = max(against.start, queries)
            part = scores[:, first - queries : max(first, against.stop) - queries]
            part.copy_(alike[: len(scores), first - against.start :])
        lists.append(_best(scores.numpy(), top))
    listed, similarities = (np.concatenate(x) for x in zip(*lists, strict=True))
    return _Near(nearest[1].numpy(), listed, similarities, least.numpy())


def _best(alike: Floats32, top: int) -> tuple[Ints, Floats32]:
    """Return the `top` items of the most similar, the lowest of equal ones, and similarities."""
    items = np.arange(alike.shape[1])
    if top == len(items):
        return np.broadcast_to(items, alike.shape), alike
    best = np.empty((len(alike), top), np.int64)
    for row, result in zip(alike, best, strict=True):
        result[:] = np.partition(_keys(np.maximum(1 - row, 0), items), top - 1)[:top]
    best &= ITEM
    return best, np.take_along_axis(alike, best, 1)


def _keys(distances: Floats32, items: Ints) -> Ints:
    """Return int64 of the order of the distances (0 or more), then of the items."""
    return (distances.view(np.int32).astype(np.int64) << 32) | items


def _keep(lists: tuple[Tensor, Tensor], alike: Tensor, of: slice, against: slice) -> None:
    best, _ = lists
    k = best.shape[1]
    floor = best[of, -1:]
    if torch.isinf(floor).any() and k < alike.shape[1]:
        floor = torch.maximum(floor, alike.topk(k, dim=1).values[:, -1:])
    flat = torch.from_numpy(np.flatnonzero((alike >= floor).numpy()))
    row = flat // alike.shape[1]
    column = flat - row * alike.shape[1]
    merge(*lists, row + of.start, alike[row, column], column + against.start)


class _Rows(NamedTuple):
    """A sparse matrix: columns and values of row i are at starts[i] : starts[i + 1]."""

    starts: Ints
    columns: Ints
    values: Floats32


def _encoded(items: _Items, near: _Near, k1: int) -> _Rows:
    """Compute V before averaging: weights of each item's expanded k-reciprocal neighbours."""
    wide, half = near.items[:, : k1 + 1], near.items[:, : round(k1 / 2) + 1]
    mutual = np.concatenate([_mutual(wide, part) for part in _parts(items.size)])
    mutual_half = np.concatenate([_mutual(half, part) for part in _parts(items.size)])
    rows, columns = [], []
    for part in _parts(items.size):
        reciprocal = np.where(mutual[part], wide[part], -1)  # [b, K]
        theirs = np.where(mutual_half[wide[part]], half[wide[part]], -2)  # [b, K, H]
        sizes = (theirs >= 0).sum(2)
        shared = np.zeros_like(sizes)
        for column in reciprocal.T:
            shared += (theirs == column[:, None, None]).sum(2)
        accepted = (reciprocal >= 0) & (shared > 2 / 3 * sizes)
        theirs[~accepted] = -2
        flat = theirs.reshape(len(reciprocal), -1)
        expanded = np.sort(np.concatenate([reciprocal, flat], axis=1), axis=1)
        unique = (expanded >= 0) & (np.diff(expanded, axis=1, prepend=-3) > 0)
        row, place = np.nonzero(unique)
        rows.append(row + part.start)
        columns.append(expanded[row, place])
    row, column = np.concatenate(rows), np.concatenate(columns)
    weights = np.exp(-_normalised(items.alike(row, column), near.least[row], row == column))
    starts = np.searchsorted(row, np.arange(items.size + 1))
    weights /= np.repeat(np.add.reduceat(weights, starts[:-1]), np.diff(starts))
    return _Rows(starts, column, weights)


def _mutual(nearest: Ints, part: slice) -> NDArray[np.bool_]:
    """Return which of the nearest have the item among their nearest: bool [b, K]."""
    items = np.arange(part.start, part.start + len(nearest[part]))
    return (nearest[nearest[part]] == items[:, None, None]).any(2)


def _averaged(rows: _Rows, nearest: Ints) -> _Rows:
    """Replace each row by the mean of the rows of its nearest, itself included."""
    size, k = nearest.shape
    flat = nearest.ravel()
    place, lengths = _places(rows.starts[flat], rows.starts[flat + 1])
    key = np.repeat(np.repeat(np.arange(size), k), lengths) * size + rows.columns[place]
    order = np.argsort(key)
    key, values = key[order], rows.values[place][order]
    new = np.flatnonzero(np.diff(key, prepend=-1))
    key, values = key[new], np.add.reduceat(values, new) / k
    row = key // size
    return _Rows(np.searchsorted(row, np.arange(size + 1)), key - row * size, values)


def _reordered(rows: _Rows, near: _Near, queries: int, weight: float) -> tuple[Floats32, Ints]:
    """Sort each list by the final distance; most items share no neighbour with the query."""
    by_column = _gallery_by_column(rows, queries)
    size = len(rows.starts) - 1 - queries
    keys = np.empty(near.alike.shape, np.int64)
    for i, (listed, alike) in enumerate(zip(near.listed, near.alike, strict=True)):
        part = slice(rows.starts[i], rows.starts[i + 1])
        columns, values = rows.columns[part], rows.values[part]
        place, sizes = _places(by_column.starts[columns], by_column.starts[columns + 1])
        least = np.minimum(by_column.values[place], np.repeat(values, sizes))
        common = np.bincount(by_column.columns[place], least, minlength=size)[listed]
        jaccard = np.maximum(1 - common / (2 - common), 0)  # rounding may pass 0
        direct = _normalised(alike, near.least[i], np.array(False))
        distances = ((1 - weight) * jaccard + weight * direct).astype(np.float32)
        keys[i] = np.sort(_keys(distances, listed))
    return (keys >> 32).astype(np.int32).view(np.float32), keys & ITEM


def _gallery_by_column(rows: _Rows, queries: int) -> _Rows:
    """Transpose the rows of the gallery: for each item, which gallery items have it, rising."""
    size = len(rows.starts) - 1
    first = rows.starts[queries]
    row = np.repeat(np.arange(size - queries), np.diff(rows.starts[queries:]))
    key = rows.columns[first:] * size + row
    order = np.argsort(key)
    starts = np.searchsorted(key[order], np.arange(size + 1) * size)
    return _Rows(starts, row[order], rows.values[first:][order])


def _places(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Concatenate the ranges from `starts` to `stops`; also return their sizes."""
    sizes = stops - starts
    ends = np.cumsum(sizes)
    return np.arange(sizes.sum()) + np.repeat(starts - (ends - sizes), sizes), sizes


def _normalised(alike: Floats32, least: Floats32, same: NDArray[np.bool_]) -> Floats32:
    """Compute e of the module's docstring from similarities."""
    span = 1 - least
    span = np.where(span > 0, span, np.float32(1))  # all items equal: every distance is 0
    return np.where(same, np.float32(0), np.square((1 - alike) / span))


def _parts(size: int) -> Iterator[slice]:
    return (slice(i, i + BLOCK_ROWS) for i in range(0, size, BLOCK_ROWS))
