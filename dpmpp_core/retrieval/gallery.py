"""A prepared gallery: blocks of its scores against any queries, and exact scores of pairs.

The score of a pair is the masked metric of `similarity.py`, computed in float64 and rounded to a
multiple of 2^-24, which float32 holds exactly (ours). Matrix products in float32 have a known
largest error, for any blocks. If that does not decide an order, the exact score does. So rankings
do not depend on blocks, shards, or on the storage of the gallery, and equal items (copies, items
that vanish under the mask) tie.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor

from dpmpp_core.retrieval.arguments import (
    Array,
    Spaces,
    by_space,
    largest,
    matrix,
    of_space,
    refuse_other_spaces,
    tensor,
)
from dpmpp_core.retrieval.blocks import GROUP, Block, Query, ScoreSpace, group_dimensions
from dpmpp_core.retrieval.precision import full_float32
from dpmpp_core.retrieval.similarity import VANISHED

Storage = Literal["float32", "float16", "bfloat16", "int8"]

BLOCK_ITEMS = 4096  # gallery items in a matrix product
BLOCK_QUERIES = 512
BLOCK_PAIRS = 128  # pairs scored exactly at a time, which fit a core's caches
# Lengths of features that stay as they are: squares, and those of the least length under a mask,
# keep their digits in float32.
SAFE = (1e-3, 1e12)
GRID = 2.0**24  # exact scores are multiples of 1 / GRID
STEPS = 127  # of int8, either side of zero
SCANNED = (torch.float32, torch.float16, torch.bfloat16, torch.int8)  # without conversion


def compact(features: Spaces, storage: Storage) -> dict[str, Tensor]:
    """Convert features [N, D] by space to two bytes, or to int8 steps of each row's largest entry.

    A single array is returned as the space ''. Only directions count in the metric, so the rows'
    scales are not kept. Raises ValueError for NaN, infinity and rows of zeros.
    """
    codes = {}
    for space, values in by_space(features).items():
        x = matrix("features", space, values)
        x = x.float() / largest("features", space, x, "is a feature vector of length zero")
        int8 = storage == "int8"
        codes[space] = (x * STEPS).round_().char() if int8 else x.to(getattr(torch, storage))
    return codes


class Gallery:
    """Gallery features, checked once, to be searched any number of times.

    Args:
        features: [G, D], or a mapping of metric space to such: tensors or NumPy arrays, also
            memory-mapped ones, which are read block by block. float32, float16, bfloat16 and int8
            stay as they are, others become float32. Only directions count: int8 needs no scale.
        originals: the float features of which `features` are a compact form (`compact`), if
            available: then the compact ones are scanned, and pairs that they do not decide are
            scored by the originals, so that results are exactly those of the originals. They may
            be in host memory where `features` are on a GPU.
        usual_mask: a typical mask of queries, [D] or by space, such as the mean of many. Changes
            speed only: scores are bounded by groups of dimensions of similar weight.
        bounded: whether scores are bounded at all, which takes D / 2 bytes per item and saves
            searches of all items most of their work.

    Raises:
        ValueError: NaN, infinity, a feature vector of length zero (names argument and row), or
            originals of another shape.
    """

    def __init__(
        self,
        features: Spaces,
        originals: Spaces | None = None,
        usual_mask: Spaces | None = None,
        bounded: bool = True,
    ) -> None:
        given = by_space(features)
        exact = by_space(originals) if originals is not None else {}
        if exact:
            refuse_other_spaces("originals", exact, given)
        usual = by_space(usual_mask) if usual_mask is not None else {}
        if usual:
            refuse_other_spaces("usual_mask", usual, given)
        self._spaces = {s: _stored(s, given[s], exact.get(s), usual.get(s), bounded) for s in given}
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
        """Where the features are."""
        return next(iter(self._spaces.values())).codes.device

    @property
    def scanned_bytes(self) -> int:
        """Memory that a search reads, without the originals of compact features."""
        kept = (t for x in self._spaces.values() for t in (x.codes, x.lengths, x.energies, x.error))
        return sum(t.nbytes for t in kept if t is not None)

    def query(self, query: Spaces, query_mask: Spaces | None) -> Query:
        """Check queries and their masks, as in `masked_topk`, against this gallery."""
        orders = {space: x.order for space, x in self._spaces.items()}
        return Query(query, query_mask, orders, self.device)

    def each_block(self, work: Callable[[Block], None], step: int) -> None:
        """Call `work` with each `step` items of the gallery, in any order; in threads on a CPU.

        Each block is computed by one thread, so that no thread waits for others, and all operations
        run in parallel. Products are computed in full float32.
        """
        with full_float32():
            self._each_block(work, step)

    def _each_block(self, work: Callable[[Block], None], step: int) -> None:
        # The first is small: its results raise the floors for later ones.
        starts = [0, *range(max(1, step // 16), len(self), step)]
        blocks = (
            Block(self._spaces, slice(start, stop))
            for start, stop in itertools.pairwise([*starts, len(self)])
            if start < stop
        )
        for first in itertools.islice(blocks, 1):
            work(first)
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        if threads == 1 or len(self) <= step:
            for block in blocks:
                work(block)
            return
        try:
            limit = torch.set_num_threads
            with ThreadPoolExecutor(threads, initializer=limit, initargs=(1,)) as pool:
                for done in [pool.submit(work, block) for block in blocks]:
                    done.result()
        finally:
            torch.set_num_threads(threads)

    def exact(self, query: Query, rows: Tensor, items: Tensor) -> Tensor:
        """Compute scores of pairs (rows[i], items[i]): float32 [n], the definition of scores."""
        step = BLOCK_PAIRS if self.device.type == "cpu" else BLOCK_PAIRS * 64
        scores = [
            self._exact(query, rows[i : i + step], items[i : i + step])
            for i in range(0, len(rows), step)
        ]
        return torch.cat([torch.empty(0, device=self.device), *scores])

    def _exact(self, query: Query, rows: Tensor, items: Tensor) -> Tensor:
        total = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        for space, stored in self._spaces.items():
            prepared = query.spaces[space]
            exact = stored.exact  # may be in host memory where the codes are on a GPU
            g = exact.index_select(0, items.to(exact.device)).to(self.device).double()
            product = prepared.weight64.index_select(0, rows).mul_(g).sum(1)
            squares = g.square_()
            length = squares.sum(1)
            if prepared.square64 is not None:
                masked = prepared.square64.index_select(0, rows).mul_(squares).sum(1)
                length = torch.maximum(masked, length * VANISHED**2)
            total += product / length.sqrt()
        return (total * (GRID / len(self._spaces))).round().float() / GRID


def _stored(
    space: str, features: Array, original: Array | None, usual_mask: Array | None, bounded: bool
) -> ScoreSpace:
    codes = matrix("gallery", space, features)
    if codes.dtype not in SCANNED:
        codes = codes.float()
    order = torch.arange(codes.shape[1], device=codes.device)
    if usual_mask is not None:
        usual = tensor(usual_mask).to(codes.device)
        if usual.shape != order.shape:
            raise ValueError(
                f"usual_mask{of_space(space)} has shape {tuple(usual.shape)}, not "
                f"{tuple(order.shape)}"
            )
        order = torch.argsort(usual)
    codes, lengths, energies = _checked("gallery", space, codes, order if bounded else None)
    if original is None:
        return ScoreSpace(codes, lengths, order, energies, codes, None)
    exact = matrix("originals", space, original)
    if exact.shape != codes.shape:
        raise ValueError(
            f"originals{of_space(space)} has shape {tuple(exact.shape)} but gallery "
            f"{tuple(codes.shape)}"
        )
    exact = exact if exact.dtype == torch.float32 else exact.float()
    exact, _, _ = _checked("originals", space, exact, None)
    errors = [_residual(codes[r].float(), exact[r].to(codes.device)) for r in _slices(len(codes))]
    error = torch.cat(errors)
    return ScoreSpace(codes, lengths, order, energies, exact, error)


def _checked(
    name: str, space: str, x: Tensor, order: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features whose squares fit float32, their lengths, and the energies of groups.

    The groups are those of the `order` of dimensions, if given. Features that fit are not copied.
    """
    totals = torch.empty(len(x), device=x.device)
    energies = None
    if order is not None:
        energies = torch.empty(len(x), -(-x.shape[1] // GROUP), device=x.device)
    for r in _slices(len(x)):
        squares = x[r].float().square()
        totals[r] = squares.sum(1)
        if energies is not None:
            energies[r] = group_dimensions(squares[:, order]).sum(2)
    if ((totals > SAFE[0] ** 2) & (totals < SAFE[1] ** 2)).all():
        return x, totals.sqrt_(), energies
    x = x / largest(name, space, x, "is a feature vector of length zero").to(x.dtype)
    squares = x.float().square()
    energies = None if order is None else group_dimensions(squares[:, order]).sum(2)
    return x, squares.sum(1).sqrt_(), energies


def _residual(codes: Tensor, exact: Tensor) -> Tensor:
    """Return |exact / scale - codes| of each row, for the scale that minimises it."""
    scale = (codes * exact).sum(1) / codes.square().sum(1)
    return torch.linalg.vector_norm(exact / scale[:, None] - codes, dim=1)


def _slices(size: int) -> Iterator[slice]:
    return (slice(i, i + BLOCK_ITEMS) for i in range(0, size, BLOCK_ITEMS))
