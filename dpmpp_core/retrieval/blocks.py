"""Blocks of a gallery's scores against any queries, and selection of the relevant pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpmpp_core.retrieval.arguments import (
    Spaces,
    by_space,
    equal_neighbours,
    largest,
    matrix,
    refuse_bad_mask,
    refuse_other_spaces,
    refuse_other_width,
    sum_neighbours,
)
from dpmpp_core.retrieval.precision import bound_rounding
from dpmpp_core.retrieval.similarity import VANISHED

Excluded = Tensor | tuple[Tensor, ...] | None

GROUP = 8  # neighbouring dimensions with a common energy
FEW_QUERIES = 8  # up to here a block is read in pieces that fit a core's caches
PIECE_ITEMS = 256
TRIAL_ITEMS = 512  # of a block, on which a bound is tried
# Share of the pairs below which scoring each alone is cheaper; one query's matrix products cost
# more per pair, as they read all of the gallery (measured).
FEW, FEW_OF_ONE = 0.005, 0.1


@dataclass(frozen=True)
class ScoreSpace:
    """One space of a gallery.

    Attributes:
        codes: [G, D], the features that are scanned.
        lengths: float32 [G], of the codes.
        order: int64 [D], dimensions with similar weight in masks next to each other.
        energies: float32 [G, D / 8], sums of squares of `GROUP` neighbours in this order; None if
            scores are not bounded.
        exact: [G, D], the features of exact scores.
        error: float32 [G], |exact / scale - codes| for the best scale; None if both are the same.
    """

    codes: Tensor
    lengths: Tensor
    order: Tensor
    energies: Tensor | None
    exact: Tensor
    error: Tensor | None


class CandidatePairs(NamedTuple):
    """Pairs whose exact score may reach their query's floor.

    They are int64 [n] rows of the queries and items of the gallery, float32 [n] scores, and the
    largest errors of these (inf: not known).
    """

    rows: Tensor
    items: Tensor
    scores: Tensor
    off: Tensor


class Block:
    """Neighbouring items of a gallery, to be scored by any number of queries."""

    def __init__(self, spaces: Mapping[str, ScoreSpace], items: slice) -> None:
        self._stored, self.items = spaces, items
        self._spaces = {space: _Part(x, items) for space, x in spaces.items()}

    def reaching(
        self, query: Query, rows: slice, floor: Tensor, excluded: Excluded, k: int | None = None
    ) -> CandidatePairs:
        """Return the pairs of the queries `rows` whose score may be `floor` [q] or more.

        Without the `excluded` ones: an index into [q, g], such as a bool tensor. With `k` only
        those that may be among a query's k best of the block, where its floor is -inf.
        """
        products: list[Tensor | None] = [None] * len(self._spaces)
        if self._bounds_well(query, rows, floor):
            computed = [x.products(query.spaces[s], rows) for s, x in self._spaces.items()]
            few = self._bounded_pairs(query, rows, computed, floor, excluded)
            if few is not None:
                row, item = few
                unknown = torch.full((len(row),), torch.inf, device=floor.device)
                items = item + self.items.start
                return CandidatePairs(row + rows.start, items, torch.zeros_like(unknown), unknown)
            products = [*computed]
        scores, off = self._scores(query, rows, products)
        if excluded is not None:
            scores[excluded] = -torch.inf
        if k is not None and k < scores.shape[1] and torch.isneginf(floor).any():
            floor = torch.maximum(floor, (scores - off).topk(k, dim=1).values[:, -1])
        # No score is below -3 but those of excluded pairs, which a floor of -inf must not accept.
        row, item = _where(scores >= (floor[:, None] - off).clamp_min_(-3))
        off_by = off.expand_as(scores)[row, item]
        return CandidatePairs(row + rows.start, item + self.items.start, scores[row, item], off_by)

    def _bounds_well(self, query: Query, rows: slice, floor: Tensor) -> bool:
        """Return whether an upper bound of the scores may leave few pairs; try the first items."""
        if any(x.energies is None for x in self._spaces.values()):
            return False
        if not query.worth_bounding(rows, floor):
            return False
        first = self.items.start
        if self.items.stop - first < 8 * TRIAL_ITEMS:
            return True
        few = Block(self._stored, slice(first, first + TRIAL_ITEMS))
        products = [x.products(query.spaces[s], rows) for s, x in few._spaces.items()]
        return few._bounded_pairs(query, rows, products, floor, None) is not None

    def _scores(
        self, query: Query, rows: slice, products: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Return scores [q, g], in the memory of `products` if given, and their largest errors.

        The errors are float32 [q, g] or [1, 1].
        """
        parts = [
            x.scores(query.spaces[s], rows, product)
            for (s, x), product in zip(self._spaces.items(), products, strict=True)
        ]
        scores, off = parts[0]
        for other, other_off in parts[1:]:
            scores, off = scores.add_(other), off + other_off
        return (scores, off) if len(parts) == 1 else (scores.div_(len(parts)), off / len(parts))

    def _bounded_pairs(
        self, query: Query, rows: slice, products: list[Tensor], floor: Tensor, excluded: Excluded
    ) -> tuple[Tensor, Tensor] | None:
        """Return the pairs that an upper bound of their score leaves, if they are few.

        Then the lengths under the masks, half of the work, are needed for them alone.
        """
        upper: Tensor | None = None
        for (s, x), product in zip(self._spaces.items(), products, strict=True):
            bound = x.upper(query.spaces[s], rows, product)
            upper = bound if upper is None else upper.add_(bound)
        assert upper is not None
        if excluded is not None:
            upper[excluded] = -torch.inf
        mask = upper >= floor[:, None] * len(products)
        if int(mask.sum()) <= mask.numel() * (FEW + FEW_OF_ONE / len(mask)):
            return _where(mask)
        query.bound_was_loose(rows, floor)
        return None


class _Part:
    def __init__(self, stored: ScoreSpace, items: slice) -> None:
        self.codes, self.lengths = stored.codes[items], stored.lengths[items]
        self.energies = None if stored.energies is None else stored.energies[items]
        self.error = None if stored.error is None else stored.error[items]
        # The square below which a length under a mask counts as nothing, as in exact scores.
        self.vanished = (self.lengths * VANISHED).square_()
        self._features: Tensor | None = None
        self._squares: dict[int, Tensor] = {}

    @property
    def features(self) -> Tensor:
        if self._features is None:
            self._features = self.codes.float()
        return self._features

    def squares(self, group: int) -> Tensor:
        """Return the squares of features, summed over groups of neighbouring dimensions."""
        if group not in self._squares:
            self._squares[group] = sum_neighbours(self.features.square(), group)
        return self._squares[group]

    def products(self, query: PreparedQueries, rows: slice) -> Tensor:
        weight = query.weight[rows]
        if self.codes.dtype != torch.float32 and self._in_pieces(weight):
            return self._piecewise(weight, squared=False)
        return _product(weight, self.features)

    def scores(
        self, query: PreparedQueries, rows: slice, products: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Block._scores`."""
        squares: Tensor | None = None
        single = rows.stop - rows.start == 1 and self.lengths.device.type == "cpu"
        if products is None and single and query.square is not None:
            products, squares = self._at_once(query.weight[rows], query.square[rows])
        elif products is None:
            products = self.products(query, rows)
        if query.square is None:
            inverse = self.lengths.reciprocal()[None]
        else:
            if squares is None:
                squares = self._squared(query.square[rows], query.group)
            inverse = torch.maximum(squares, self.vanished, out=squares).rsqrt_()
        scores = products.mul_(inverse)
        off = query.rounding[rows]
        return scores, off if self.error is None else off + self._share(inverse)

    def upper(self, query: PreparedQueries, rows: slice, products: Tensor) -> Tensor:
        """Return upper bounds of the exact scores: float32 [q, g], at most 1.

        The length under a mask is at least that under the least mask of each group of dimensions.
        """
        assert query.least is not None and self.energies is not None
        inverse = _product(query.least[rows], self.energies)
        torch.maximum(inverse, self.vanished, out=inverse).mul_(1 - 1e-5).rsqrt_()
        upper = (products * inverse).clamp_min_(0)
        if self.error is not None:
            upper += self._share(inverse)
        off = query.rounding[rows]
        return upper.add_(off).clamp_max_(1 + off)

    def _squared(self, square: Tensor, group: int) -> Tensor:
        if self._in_pieces(square):
            return self._piecewise(square, squared=True)
        return _product(square[:, ::group], self.squares(group))

    def _in_pieces(self, weights: Tensor) -> bool:
        """Return whether pieces are faster: a GPU takes whole blocks, as each launch costs it."""
        return len(weights) <= FEW_QUERIES and self.codes.device.type == "cpu"

    def _at_once(self, weight: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        """Return products of one query with features and with their squares, [1, g] each.

        Memory, which decides the speed, is read once.
        """
        results = weight.new_empty(2, len(self.codes))
        buffer = weight.new_empty(PIECE_ITEMS, weight.shape[1])
        arrays = [x.detach().numpy() for x in (results, buffer, weight[0], square[0])]
        (product, length), decoded, w, m = arrays
        whole = self.codes.detach().numpy() if self.codes.dtype == torch.float32 else None
        for start in range(0, len(self.codes), PIECE_ITEMS):
            here = slice(start, min(start + PIECE_ITEMS, len(self.codes)))
            size = here.stop - start
            piece, squares = decoded[:size], decoded[:size]
            if whole is not None:
                piece = whole[here]
            else:
                buffer[:size].copy_(self.codes[here])
            np.vecdot(piece, w, out=product[here])
            np.multiply(piece, piece, out=squares)
            np.vecdot(squares, m, out=length[here])
        return results[:1], results[1:]

    def _piecewise(self, weights: Tensor, squared: bool) -> Tensor:
        """Multiply `weights` [q, D] by the features, or their squares: [q, g].

        Each piece stays in the caches while it is decoded, squared and multiplied.
        """
        results = weights.new_empty(len(weights), len(self.codes))
        buffer = weights.new_empty(PIECE_ITEMS, weights.shape[1])
        start = 0
        for piece in self.codes.split(PIECE_ITEMS):
            decoded = buffer[: len(piece)]
            if squared and piece.dtype == torch.float32:
                torch.mul(piece, piece, out=decoded)
            else:
                decoded.copy_(piece)
                if squared:
                    decoded.square_()
            _product(weights, decoded, results[:, start : start + len(piece)])
            start += len(piece)
        return results

    def _share(self, inverse: Tensor) -> Tensor:
        """Bound the difference of unit vectors by 2 |u - v| / (|u| + |v|) (Dunkl, 1964)."""
        assert self.error is not None
        share = (inverse * self.error).clamp_max_(1)
        return 2 * share / (2 - share)


@dataclass(frozen=True)
class PreparedQueries:
    """Queries in one space; the largest entry of each mask is 1.

    Attributes:
        weight: q_hat * m, float32 [Q, D]; `weight64` in float64.
        square: m * m, likewise; None without masks.
        group: neighbouring dimensions with equal masks, see `equal_neighbours`.
        least: float32 [Q, D / 8], the least square of each group of dimensions, or None.
        rounding: float32 [Q, 1], largest error of float32 scores, see `bound_rounding`.
    """

    weight: Tensor
    square: Tensor | None
    group: int
    least: Tensor | None
    rounding: Tensor
    weight64: Tensor
    square64: Tensor | None


class Query:
    """Queries and their masks [Q, D], checked, for a gallery.

    `spaces` maps the gallery's spaces to the `order` of their dimensions [D].
    """

    def __init__(
        self,
        query: Spaces,
        query_mask: Spaces | None,
        spaces: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        queries = by_space(query)
        masks = None if query_mask is None else by_space(query_mask)
        if not queries:
            raise ValueError("query has no metric space")
        refuse_other_spaces("gallery", spaces, queries)
        if masks is not None:
            refuse_other_spaces("query_mask", masks, queries)
        self.spaces: dict[str, PreparedQueries] = {}
        for space, order in spaces.items():
            q = matrix("query", space, queries[space]).to(device)
            m = None
            if masks is not None:
                m = matrix("query_mask", space, masks[space]).to(device)
            refuse_other_width(space, q, order[None])
            self.spaces[space] = _prepare_queries(space, q, m, order)
        sizes = {len(x.weight) for x in self.spaces.values()}
        if len(sizes) != 1:
            raise ValueError(f"the spaces of query have different numbers of queries: {sizes}")
        self._size = sizes.pop()
        self._loose: dict[int, float] = {}

    def __len__(self) -> int:
        return self._size

    def worth_bounding(self, rows: slice, floor: Tensor) -> bool:
        """Return whether an upper bound of scores may leave few pairs.

        It does not if it left many of these queries before, at slightly lower floors.
        """
        masked = next(iter(self.spaces.values())).least is not None
        lowest = float(floor.min())
        return masked and lowest > self._loose.get(rows.start, 0.0)

    def bound_was_loose(self, rows: slice, floor: Tensor) -> None:
        """Record that a bound at this floor left many pairs."""
        self._loose[rows.start] = float(floor.min()) + 0.02


def _prepare_queries(
    space: str, query: Tensor, mask: Tensor | None, order: Tensor
) -> PreparedQueries:
    q = query.double()
    q = q / largest("query", space, query, "is a feature vector of length zero").double()
    q = q / torch.linalg.vector_norm(q, dim=1, keepdim=True)
    if mask is None:
        return PreparedQueries(q.float(), None, 1, None, bound_rounding(q.float()), q, None)
    refuse_bad_mask(space, mask, query)
    m = mask.double()
    m = m / m.amax(1, keepdim=True)
    weight, square = q * m, m.square()
    least = -group_dimensions(-square.float()[:, order]).amax(2)
    off = bound_rounding(weight.float())
    group = equal_neighbours(mask)
    return PreparedQueries(weight.float(), square.float(), group, least, off, weight, square)


def group_dimensions(x: Tensor) -> Tensor:
    """Reshape [N, D] to [N, ceil(D / 8), 8], neighbours together, padded with zeros."""
    filled = torch.nn.functional.pad(x, (0, -x.shape[1] % GROUP))
    return filled.unflatten(1, (-1, GROUP))


def _product(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute x @ y.T in full float32."""
    if len(x) == 1 and y.device.type == "cpu":
        out = x.new_empty(1, len(y)) if out is None else out
        # Dot products in sequence read memory at its full rate. BLAS reads several rows at a time,
        # which the processor does not prefetch: up to twice the time (measured).
        np.vecdot(y.detach().numpy(), x[0].detach().numpy(), out=out[0].numpy())
        return out
    with torch.autocast(x.device.type, enabled=False):
        return torch.mm(x, y.T, out=out)


def _where(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the true values; on a CPU ten times as fast as torch.nonzero."""
    if mask.device.type != "cpu":
        flat = torch.nonzero(mask.flatten())[:, 0]
    else:
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    row = flat // mask.shape[1]
    return row, flat - row * mask.shape[1]
