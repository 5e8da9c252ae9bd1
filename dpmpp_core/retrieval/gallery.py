"""A gallery made ready once: blocks of its scores against any queries, and exact scores of pairs.

The score of a pair is the masked metric of `similarity.py`, computed in float64 and rounded to a
multiple of 2^-24, which float32 holds exactly (`ours`). Matrix products in float32 come within a
known distance of it, whatever their blocks; where that is too far to decide an order, the exact
score decides. So rankings do not depend on blocks, shards, or on how the gallery is stored, and
what is equal (copies of an item, items of which the mask leaves nothing) ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpmpp_core.retrieval.arguments import (
    Array,
    Spaces,
    by_space,
    largest,
    matrix,
    of,
    refuse_bad_mask,
    refuse_other_spaces,
    refuse_other_width,
)
from dpmpp_core.retrieval.similarity import VANISHED

Storage = Literal["float32", "bfloat16", "int8"]

Hidden = Tensor | tuple[Tensor, ...] | None

BLOCK_ITEMS = 4096  # gallery items in a matrix product
BLOCK_QUERIES = 512
GROUP = 8  # neighbouring dimensions whose energy is kept as one
FEW = 0.005  # share of the pairs below which scoring each on its own is cheaper (measured)
BLOCK_PAIRS = 128  # pairs scored exactly at a time: what fits a core's caches
SAFE = (1e-12, 1e12)  # lengths whose squares keep their digits in float32
GRID = 2.0**24  # exact scores are multiples of 1 / GRID
STEPS = 127  # of int8, either side of zero


def compact(features: Spaces, storage: Storage) -> dict[str, Tensor]:
    """Features [N, D] by space as a smaller type: bfloat16, or int8 steps of each row's largest.

    Only directions count in the metric, so that the rows' scales are not needed and not kept.
    Raises ValueError for NaN, infinity and rows of zeros.
    """
    codes = {}
    for space, values in by_space(features).items():
        x = matrix("features", space, values)
        x = x.float() / largest("features", space, x, "is a feature vector of length zero")
        codes[space] = (
            (x * STEPS).round_().to(torch.int8)
            if storage == "int8"
            else x.to(getattr(torch, storage))
        )
    return codes


@dataclass(frozen=True)
class _Stored:
    """One space of a gallery.

    codes: [G, D], what is scanned. lengths: float32 [G], theirs. energies: float32 [G, D / 8], sums
    of squares of `GROUP` neighbouring dimensions. exact: [G, D], what exact scores are made of.
    error: float32 [G], |exact / scale - codes| for the best scale; None if both are the same.
    """

    codes: Tensor
    lengths: Tensor
    energies: Tensor
    exact: Tensor
    error: Tensor | None


class Gallery:
    """Gallery features, checked once, to be searched any number of times.

    Args:
        features: [G, D], or a mapping of metric space to such: tensors or NumPy arrays, also
            memory-mapped ones, which are read block by block. float32, bfloat16 and int8 stay as
            they are, other types become float32. Only directions count: int8 needs no scale.
        originals: the float features that `features` are a compact form of (`compact`), if they
            are at hand: then the compact ones are scanned, and whatever they cannot decide is
            scored by the originals, so that results are exactly those of the originals.

    Raises:
        ValueError: NaN, infinity, a feature vector of length zero (names argument and row), or
            originals of another shape.
    """

    def __init__(self, features: Spaces, originals: Spaces | None = None) -> None:
        given = by_space(features)
        exact = by_space(originals) if originals is not None else {}
        if exact:
            refuse_other_spaces("originals", exact, given)
        self._spaces = {s: _stored(s, given[s], exact.get(s)) for s in given}
        sizes = {len(x.codes) for x in self._spaces.values()}
        if len(sizes) != 1:
            raise ValueError(f"the spaces of gallery have different numbers of items: {sizes}")
        self._size = sizes.pop()

    def __len__(self) -> int:
        return self._size

    @property
    def spaces(self) -> dict[str, int]:
        """Width of each metric space."""
        return {space: x.codes.shape[1] for space, x in self._spaces.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self._spaces.values())).codes.device

    def each_block(self, work: Callable[[Block], None], step: int) -> None:
        """`work` with each `step` items of the gallery, in any order; on a CPU one thread a core.

        Whole blocks side by side, each computed by one thread: nobody waits for the slowest, and
        what is not a matrix product is shared too.
        """
        blocks = (
            Block(self._spaces, slice(start, min(start + step, len(self))))
            for start in range(0, len(self), step)
        )
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        if threads == 1 or len(self) <= step:
            for block in blocks:
                work(block)
            return
        try:
            with ThreadPoolExecutor(
                threads, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                for done in [pool.submit(work, block) for block in blocks]:
                    done.result()
        finally:
            torch.set_num_threads(threads)

    def exact(self, query: Query, rows: Tensor, items: Tensor) -> Tensor:
        """Scores of the pairs (rows[i], items[i]): float32 [n], the definition of the score."""
        step = BLOCK_PAIRS if self.device.type == "cpu" else BLOCK_PAIRS * 64
        scores = [
            self._exact(query, rows[i : i + step], items[i : i + step])
            for i in range(0, len(rows), step)
        ]
        return torch.cat([torch.empty(0, device=self.device), *scores])

    def _exact(self, query: Query, rows: Tensor, items: Tensor) -> Tensor:
        total = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        for space, stored in self._spaces.items():
            asked = query.spaces[space]
            g = stored.exact.index_select(0, items).double()
            product = asked.weight64.index_select(0, rows).mul_(g).sum(1)
            squares = g.square_()
            length = squares.sum(1)
            if asked.square64 is not None:
                masked = asked.square64.index_select(0, rows).mul_(squares).sum(1)
                length = torch.maximum(masked, length * VANISHED**2)
            total += product / length.sqrt()
        return (total * (GRID / len(self._spaces))).round().float() / GRID


class Reaching(NamedTuple):
    """Pairs whose exact score may reach their query's floor: int64 [n] rows of the queries and
    items of the gallery, float32 [n] scores, and how far these may be off (inf: not known)."""

    rows: Tensor
    items: Tensor
    scores: Tensor
    off: Tensor


class Block:
    """Some items of a gallery, to be scored by any number of queries."""

    def __init__(self, spaces: dict[str, _Stored], items: slice) -> None:
        self.items = items
        self._spaces = {space: _Decoded(x, items) for space, x in spaces.items()}

    def reaching(
        self, query: Query, rows: slice, floor: Tensor, hidden: Hidden, k: int | None = None
    ) -> Reaching:
        """The pairs of the queries `rows` whose score may be `floor` [q] or more, but for the
        `hidden` ones: an index into [q, g], such as a bool tensor. With `k` only those that may
        be among a query's k best of the block, where its floor is -inf."""
        products = [x.products(query.spaces[s], rows) for s, x in self._spaces.items()]
        few = self._promising(query, rows, products, floor, hidden)
        if few is not None:
            unknown = torch.full((len(few[0]),), torch.inf, device=floor.device)
            return Reaching(
                few[0] + rows.start, few[1] + self.items.start, torch.zeros_like(unknown), unknown
            )
        scores, off = self._scores(query, rows, products)
        if hidden is not None:
            scores[hidden] = -torch.inf
        if k is not None and k < scores.shape[1] and torch.isneginf(floor).any():
            floor = torch.maximum(floor, (scores - off).topk(k, dim=1).values[:, -1])
        # No score is below -3, but the hidden ones are: a floor of -inf must not let them in.
        row, item = _where(scores >= (floor[:, None] - off).clamp_min_(-3))
        off_by = off.expand_as(scores)[row, item]
        return Reaching(row + rows.start, item + self.items.start, scores[row, item], off_by)

    def _scores(self, query: Query, rows: slice, products: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores [q, g], which take the place of `products`, and how far off the exact ones they
        may be: float32 [q, g] or [1, 1]."""
        found = [
            x.scores(query.spaces[s], rows, product)
            for (s, x), product in zip(self._spaces.items(), products, strict=True)
        ]
        scores, off = found[0]
        for other, other_off in found[1:]:
            scores, off = scores.add_(other), off + other_off
        return (scores, off) if len(found) == 1 else (scores.div_(len(found)), off / len(found))

    def _promising(
        self, query: Query, rows: slice, products: list[Tensor], floor: Tensor, hidden: Hidden
    ) -> tuple[Tensor, Tensor] | None:
        """The pairs that an upper bound of their score leaves, if they are few: then the lengths
        under the masks, half of the work, are needed for them alone."""
        if not query.worth_bounding(rows, floor):
            return None
        upper: Tensor | None = None
        for (s, x), product in zip(self._spaces.items(), products, strict=True):
            bound = x.upper(query.spaces[s], rows, product)
            upper = bound if upper is None else upper.add_(bound)
        assert upper is not None
        if hidden is not None:
            upper[hidden] = -torch.inf
        mask = upper >= floor[:, None] * len(products)
        few = int(mask.sum()) <= mask.numel() * FEW
        query.bounded(rows, few)
        return _where(mask) if few else None


class _Decoded:
    """A block of one space."""

    def __init__(self, stored: _Stored, items: slice) -> None:
        self.features = stored.codes[items].float()
        self.lengths = stored.lengths[items]
        self.energies = stored.energies[items]
        self.error = None if stored.error is None else stored.error[items]
        self.rounding = rounding(stored.codes.shape[1])
        self._squares: Tensor | None = None

    @property
    def squares(self) -> Tensor:
        if self._squares is None:
            self._squares = self.features.square()
        return self._squares

    def products(self, query: _Asked, rows: slice) -> Tensor:
        return _product(query.weight[rows], self.features)

    def scores(self, query: _Asked, rows: slice, products: Tensor) -> tuple[Tensor, Tensor]:
        if query.square is None:
            inverse = self.lengths.reciprocal()[None]
        else:
            inverse = _product(query.square[rows], self.squares)
            inverse = inverse.clamp_min_(VANISHED**2).rsqrt_()
        scores = products.mul_(inverse)
        off = scores.new_full((1, 1), self.rounding)
        return scores, off if self.error is None else off + self._share(inverse)

    def upper(self, query: _Asked, rows: slice, products: Tensor) -> Tensor:
        """No less than the exact scores: the length under a mask is at least that under the least
        mask of each group of dimensions. float32 [q, g], at most 1."""
        assert query.least is not None
        inverse = _product(query.least[rows], self.energies)
        inverse = inverse.mul_(1 - 1e-5).clamp_min_(VANISHED**2).rsqrt_()
        upper = (products * inverse).clamp_min_(0)
        if self.error is not None:
            upper += self._share(inverse)
        return upper.add_(self.rounding).clamp_max_(1 + self.rounding)

    def _share(self, inverse: Tensor) -> Tensor:
        """Unit vectors along u and v differ by at most 2 |u - v| / (|u| + |v|) (Dunkl, 1964)."""
        assert self.error is not None
        share = (inverse * self.error).clamp_max_(1)
        return 2 * share / (2 - share)


@dataclass(frozen=True)
class _Asked:
    """Queries in one space, the largest entry of each mask being 1; the last three and `square`
    are None without masks.

    weight: q_hat * m, square: m * m, both [Q, D], in float32 and float64; least: float32
    [Q, D / 8], the least square of each group of dimensions.
    """

    weight: Tensor
    square: Tensor | None
    least: Tensor | None
    weight64: Tensor
    square64: Tensor | None


class Query:
    """Queries and their masks, checked, for a gallery's spaces. Arguments as `masked_topk`."""

    def __init__(self, query: Spaces, query_mask: Spaces | None, gallery: Gallery) -> None:
        queries = by_space(query)
        masks = None if query_mask is None else by_space(query_mask)
        if not queries:
            raise ValueError("query has no metric space")
        refuse_other_spaces("gallery", gallery.spaces, queries)
        if masks is not None:
            refuse_other_spaces("query_mask", masks, queries)
        self.spaces: dict[str, _Asked] = {}
        for space, width in gallery.spaces.items():
            q = matrix("query", space, queries[space]).to(gallery.device)
            m = None
            if masks is not None:
                m = matrix("query_mask", space, masks[space]).to(gallery.device)
            refuse_other_width(space, q, torch.empty(0, width))
            self.spaces[space] = _asked(space, q, m)
        sizes = {len(x.weight) for x in self.spaces.values()}
        if len(sizes) != 1:
            raise ValueError(f"the spaces of query have different numbers of queries: {sizes}")
        self._size = sizes.pop()
        self._loose: set[int] = set()

    def __len__(self) -> int:
        return self._size

    def worth_bounding(self, rows: slice, floor: Tensor) -> bool:
        """Whether an upper bound of scores may leave few pairs: not if it failed before."""
        masked = next(iter(self.spaces.values())).least is not None
        return masked and rows.start not in self._loose and bool((floor > 0).all())

    def bounded(self, rows: slice, few: bool) -> None:
        """Remember whether the bound left few pairs of these queries."""
        if not few:
            self._loose.add(rows.start)


def rounding(width: int) -> float:
    """How far float32 scores of width D may be off the exact ones: 2.6e-6 at 1280 (ours).

    Sums of D products: rounding errors of 2^-24, which add up like a random walk; eight more for
    the steps around them. Measured errors are a fifth of it and less, see `retrieval.md`.
    """
    return (math.sqrt(width) + 8) * 2**-24


def _asked(space: str, query: Tensor, mask: Tensor | None) -> _Asked:
    q = query.double()
    q = q / largest("query", space, query, "is a feature vector of length zero").double()
    q = q / torch.linalg.vector_norm(q, dim=1, keepdim=True)
    if mask is None:
        return _Asked(q.float(), None, None, q, None)
    refuse_bad_mask(space, mask, query)
    m = mask.double()
    m = m / m.amax(1, keepdim=True)
    weight, square = q * m, m.square()
    least = -_grouped(-square.float()).amax(2)
    return _Asked(weight.float(), square.float(), least, weight, square)


def _grouped(x: Tensor) -> Tensor:
    """[N, D] as groups of neighbouring dimensions [N, D / 8, 8], the last filled with zeros."""
    filled = torch.nn.functional.pad(x, (0, -x.shape[1] % GROUP))
    return filled.unflatten(1, (-1, GROUP))


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y.T in full float32."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.mv(y, x[0])[None] if len(x) == 1 else x @ y.T


def _where(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the true values: as torch.nonzero, but on a CPU ten times as fast."""
    if mask.device.type != "cpu":
        flat = torch.nonzero(mask.flatten())[:, 0]
    else:
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    row = flat // mask.shape[1]
    return row, flat - row * mask.shape[1]


def _stored(space: str, features: Array, original: Array | None) -> _Stored:
    codes = matrix("gallery", space, features)
    if codes.dtype not in (torch.float32, torch.bfloat16, torch.int8):
        codes = codes.float()
    codes, energies = _checked("gallery", space, codes)
    lengths = energies.sum(1).sqrt_()
    if original is None:
        return _Stored(codes, lengths, energies, codes, None)
    exact = matrix("originals", space, original)
    if exact.shape != codes.shape:
        raise ValueError(
            f"originals{of(space)} has shape {tuple(exact.shape)} but gallery {tuple(codes.shape)}"
        )
    exact, _ = _checked(
        "originals", space, exact if exact.dtype == torch.float32 else exact.float()
    )
    error = torch.cat([_residual(codes[r].float(), exact[r]) for r in _slices(len(codes))])
    return _Stored(codes, lengths, energies, exact, error)


def _checked(name: str, space: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features whose squares fit float32, and the energies of their groups. Copied only if they do
    not fit as they are."""
    energies = x.new_empty((len(x), -(-x.shape[1] // GROUP)), dtype=torch.float32)
    for r in _slices(len(x)):
        energies[r] = _grouped(x[r].float().square()).sum(2)
    total = energies.sum(1)
    if ((total > SAFE[0] ** 2) & (total < SAFE[1] ** 2)).all():
        return x, energies
    x = x / largest(name, space, x, "is a feature vector of length zero").to(x.dtype)
    return x, _grouped(x.float().square()).sum(2)


def _residual(codes: Tensor, exact: Tensor) -> Tensor:
    """|exact / scale - codes| of each row, for the scale that makes it least."""
    scale = (codes * exact).sum(1) / codes.square().sum(1)
    return torch.linalg.vector_norm(exact / scale[:, None] - codes, dim=1)


def _slices(size: int) -> Iterator[slice]:
    return (slice(i, i + BLOCK_ITEMS) for i in range(0, size, BLOCK_ITEMS))
