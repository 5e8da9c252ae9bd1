"""A gallery made ready once: blocks of its scores against any queries, and exact scores of pairs.

The score of a pair is the masked metric of `similarity.py`, computed in float64 and rounded to a
multiple of 2^-24, which float32 holds exactly (`ours`). Matrix products in float32 come within a
known distance of it, whatever their blocks; where that is too far to decide an order, the exact
score decides. So rankings do not depend on blocks, shards, or on how the gallery is stored, and
what is equal (copies of an item, items of which the mask leaves nothing) ties.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

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

BLOCK_ITEMS = 4096  # gallery items in a matrix product
BLOCK_PAIRS = 4096  # pairs scored exactly at a time
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
    """One space. codes: [G, D] what is scanned; lengths: float32 [G], theirs; exact: [G, D] what
    exact scores are made of; error: float32 [G], |exact / scale - codes| for the best scale, or
    None if both are the same."""

    codes: Tensor
    lengths: Tensor
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

    def blocks(self, step: int = BLOCK_ITEMS) -> Iterator[Block]:
        """The gallery in order, `step` items at a time, ready to be scored."""
        for start in range(0, len(self), step):
            yield Block(self._spaces, slice(start, min(start + step, len(self))))

    def exact(self, query: Query, rows: Tensor, items: Tensor) -> Tensor:
        """Scores of the pairs (rows[i], items[i]): float32 [n], the definition of the score."""
        scores = [
            self._exact(query, rows[i : i + BLOCK_PAIRS], items[i : i + BLOCK_PAIRS])
            for i in range(0, len(rows), BLOCK_PAIRS)
        ]
        return torch.cat([torch.empty(0, device=self.device), *scores])

    def _exact(self, query: Query, rows: Tensor, items: Tensor) -> Tensor:
        total = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        for space, stored in self._spaces.items():
            asked = query.spaces[space]
            g = stored.exact[items].double()
            product = torch.einsum("nd,nd->n", asked.weight64[rows], g)
            squares = g.square_()
            length = squares.sum(1)
            if asked.square64 is not None:
                masked = torch.einsum("nd,nd->n", asked.square64[rows], squares)
                length = torch.maximum(masked, length * VANISHED**2)
            total += product / length.sqrt()
        return (total * (GRID / len(self._spaces))).round().float() / GRID


class Block:
    """Some items of a gallery, decoded and squared, to be scored by any number of queries."""

    def __init__(self, spaces: dict[str, _Stored], items: slice) -> None:
        self.items = items
        self._spaces = {space: _Decoded(x, items) for space, x in spaces.items()}

    def scores(self, query: Query, rows: slice) -> tuple[Tensor, Tensor | float]:
        """Scores of the queries `rows`, float32 [q, g], and how far off the exact ones they may
        be: one number, or [q, g]."""
        found = [self._spaces[s].scores(asked, rows) for s, asked in query.spaces.items()]
        if len(found) == 1:
            return found[0]
        scores = torch.stack([score for score, _ in found]).mean(0)
        off = found[0][1]
        for _, other in found[1:]:
            off = off + other
        return scores, off / len(found)


class _Decoded:
    def __init__(self, stored: _Stored, items: slice) -> None:
        self.features = stored.codes[items].float()
        self.lengths = stored.lengths[items]
        self.error = None if stored.error is None else stored.error[items]
        self._squares: Tensor | None = None

    @property
    def squares(self) -> Tensor:
        if self._squares is None:
            self._squares = self.features.square()
        return self._squares

    def scores(self, query: _Asked, rows: slice) -> tuple[Tensor, Tensor | float]:
        with torch.autocast(self.features.device.type, enabled=False):
            scores = query.weight[rows] @ self.features.T
            if query.square is None:
                inverse = 1 / self.lengths[None]
            else:
                inverse = query.square[rows] @ self.squares.T
                inverse = inverse.clamp_min_(VANISHED**2).rsqrt_()
        scores *= inverse
        off = rounding(self.features.shape[1])
        if self.error is None:
            return scores, off
        # Unit vectors along u and v differ by no more than 2 |u - v| / (|u| + |v|) (Dunkl, 1964).
        share = (inverse * self.error[None]).clamp_max_(1)
        return scores, (2 * share / (2 - share) + off).expand_as(scores)


@dataclass(frozen=True)
class _Asked:
    """Queries in one space: weight = q_hat * m and square = m * m (None without a mask), [Q, D],
    in float32 and float64; the largest entry of a mask is 1."""

    weight: Tensor
    square: Tensor | None
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

    def __len__(self) -> int:
        return self._size


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
        return _Asked(q.float(), None, q, None)
    refuse_bad_mask(space, mask, query)
    m = mask.double()
    m = m / m.amax(1, keepdim=True)
    weight, square = q * m, m.square()
    return _Asked(weight.float(), square.float(), weight, square)


def _stored(space: str, features: Array, original: Array | None) -> _Stored:
    codes = matrix("gallery", space, features)
    if codes.dtype not in (torch.float32, torch.bfloat16, torch.int8):
        codes = codes.float()
    codes, lengths = _checked("gallery", space, codes)
    if original is None:
        return _Stored(codes, lengths, codes, None)
    exact = matrix("originals", space, original)
    if exact.shape != codes.shape:
        raise ValueError(
            f"originals{of(space)} has shape {tuple(exact.shape)} but gallery {tuple(codes.shape)}"
        )
    exact, _ = _checked(
        "originals", space, exact if exact.dtype == torch.float32 else exact.float()
    )
    error = torch.cat([_residual(codes[r].float(), exact[r]) for r in _slices(len(codes))])
    return _Stored(codes, lengths, exact, error)


def _checked(name: str, space: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features whose squares fit float32, and their lengths. Copied only if they do not fit."""
    lengths = torch.cat(
        [torch.linalg.vector_norm(x[r].float(), dim=1) for r in _slices(len(x))]
        or [x.new_empty(0, dtype=torch.float32)]
    )
    if ((lengths > SAFE[0]) & (lengths < SAFE[1])).all():
        return x, lengths
    x = x / largest(name, space, x, "is a feature vector of length zero").to(x.dtype)
    return x, torch.linalg.vector_norm(x.float(), dim=1)


def _residual(codes: Tensor, exact: Tensor) -> Tensor:
    """|exact / scale - codes| of each row, for the scale that makes it least."""
    scale = (codes * exact).sum(1) / codes.square().sum(1)
    return torch.linalg.vector_norm(exact / scale[:, None] - codes, dim=1)


def _slices(size: int) -> Iterator[slice]:
    return (slice(i, i + BLOCK_ITEMS) for i in range(0, size, BLOCK_ITEMS))
