"""Search in part of a large gallery: the lists of items whose centres score best (ours).

An inverted file, as vector libraries have it, under the masked metric throughout: centres and items
are ranked by the query's mask, from small sketches of them that lie side by side in memory. Those
items whose sketches score best get their exact scores. So what is found is in its right order; what
may be missed are items in other lists, or whose sketches tell too little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from dpmpp_core.retrieval.arguments import Spaces, by_space, matrix, tensor
from dpmpp_core.retrieval.blocks import places
from dpmpp_core.retrieval.gallery import Gallery
from dpmpp_core.retrieval.search import Mask, keep_best
from dpmpp_core.retrieval.sketches import Sketches, directions

SAMPLE = 64  # items a list, from which its centre is learnt
ROUNDS = 8
ASSIGNED = 16_384  # items assigned at a time
CANDIDATES = 400  # items that get exact scores


def group(features: Spaces, lists: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Which items go into which list: k-means on the sphere (Dhillon and Modha, 2001).

    Args:
        features: [N, D], or a mapping of metric space to such; spaces count alike.
        lists: how many; None: the square root of N.
        seed: of the sample and the first centres.

    Returns:
        order: int64 [N], items list by list, rising within each. sizes: int64 [lists].
    """
    parts = [matrix("features", space, x) for space, x in by_space(features).items()]
    size = len(parts[0])
    lists = min(size, lists or max(1, math.isqrt(size)))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(size, min(size, SAMPLE * lists), replace=False))
    x = _directions(parts, torch.from_numpy(sample))
    centres = x[torch.from_numpy(rng.choice(len(x), lists, replace=False))]
    for _ in range(ROUNDS):
        nearest = _nearest(x, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        empty = sums.norm(dim=1) == 0
        sums[empty] = centres[empty]
        centres = torch.nn.functional.normalize(sums)
    rows = torch.arange(size)
    lists_of = torch.cat(
        [_nearest(_directions(parts, part), centres) for part in rows.split(ASSIGNED)]
    )
    return torch.argsort(lists_of, stable=True), torch.bincount(lists_of, minlength=lists)


class Shortlist:
    """A gallery in lists, with a sketch of each item, which is looked at first.

    Args:
        features: [N, D] or a mapping, in the order that `group` gave: list by list. May be mapped:
            a search reads a few hundred of them, and sketches: 1,152 bytes an item and space.
        sizes: int64 [lists], items of each.
    """

    def __init__(self, features: Spaces, sizes: Tensor) -> None:
        parts = {space: matrix("features", space, x) for space, x in by_space(features).items()}
        self.gallery = Gallery(parts, bounded=False)
        sizes = sizes[sizes > 0]
        self.starts = [0, *torch.cumsum(sizes, 0).tolist()]
        if self.starts[-1] != len(self.gallery):
            raise ValueError(f"sizes sum to {self.starts[-1]}, features have {len(self.gallery)}")
        turns = {space: directions(x) for space, x in parts.items()}
        self.sketches = Sketches(parts, turns)
        self.centres = Sketches({space: self._means(x) for space, x in parts.items()}, turns)

    def topk(
        self,
        query: Spaces,
        query_mask: Spaces | None,
        k: int,
        probes: int,
        candidates: int = CANDIDATES,
        allowed: Mask | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The best k items of those `candidates` whose sketches score best, in the `probes` lists
        that suit each query best.

        Scores are exact, and so is the order of what is found; all lists and all items as
        candidates give what `masked_topk` gives.

        Args:
            query, query_mask, k: as of `masked_topk`.
            allowed: bool [N], which items may be listed; None allows all.

        Returns:
            float32 [Q, k] and int64 [Q, k], as `masked_topk`. Indices count in the order of
            `features`.

        Raises:
            ValueError: as `masked_topk`.
        """
        if k < 1:
            raise ValueError(f"k is {k}; at least 1 is needed")
        asked = self.gallery.query(query, query_mask)
        sketched = self.sketches.asked(asked)
        hidden = None if allowed is None else ~tensor(allowed)
        lists = slice(0, len(self.starts) - 1)
        best = torch.full((len(asked), k), -torch.inf)
        indices = torch.full((len(asked), k), -1)

        def search(row: int) -> None:
            suits = self.centres.scores(sketched, row, [lists])
            chosen = suits.topk(min(probes, len(suits))).indices.sort().values.tolist()
            slices = self._slices(chosen)
            scores = self.sketches.scores(sketched, row, slices)
            if hidden is not None:
                scores[torch.cat([hidden[s] for s in slices])] = -torch.inf
            first = scores.topk(min(max(candidates, k), len(scores)))
            items = places(slices, first.indices[first.values > -torch.inf])
            keep_best(self.gallery, asked, row, items, best, indices)

        side_by_side(search, len(asked))
        best[indices < 0] = torch.nan
        return best, indices

    def _slices(self, lists: Sequence[int]) -> list[slice]:
        """Where these lists lie, in rising order; neighbours as one."""
        found: list[slice] = []
        for i in lists:
            start = self.starts[i]
            if found and found[-1].stop == start:
                start = found.pop().start
            found.append(slice(start, self.starts[i + 1]))
        return found

    def _means(self, x: Tensor) -> Tensor:
        """Mean direction of each list."""
        return torch.stack(
            [
                torch.nn.functional.normalize(x[start:stop].float()).mean(0)
                for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True)
            ]
        )


def side_by_side(search: Callable[[int], None], queries: int) -> None:
    """`search` of each query, one thread a core."""
    threads = torch.get_num_threads()
    if threads == 1 or queries == 1:
        for row in range(queries):
            search(row)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(search, range(queries)))
    finally:
        torch.set_num_threads(threads)


def _directions(parts: list[Tensor], rows: Tensor) -> Tensor:
    """Unit vectors of all spaces side by side, of length one: float32 [n, sum of D]."""
    found = [torch.nn.functional.normalize(x[rows].float()) for x in parts]
    return torch.cat(found, dim=1) / math.sqrt(len(parts))


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(1) for part in x.split(ASSIGNED)])
