"""Search in part of a large gallery: the lists of items whose centres score best (ours).

An inverted file, as vector libraries have it, under the masked metric throughout. A library's own
index knows one inner product: of the masked metric it could search the numerator alone, which is
another order. Here centres are ranked by the query's mask too, and the items of the chosen lists,
which lie side by side in memory, get their exact scores. So what is found is in its right order;
what may be missed are items in other lists.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.retrieval.arguments import Spaces, by_space, matrix
from dpmpp_core.retrieval.gallery import Gallery
from dpmpp_core.retrieval.search import masked_topk, merge

SAMPLE = 64  # items a list, from which its centre is learnt
ROUNDS = 8
ASSIGNED = 16_384  # items assigned at a time


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
    """A gallery in lists.

    Args:
        features: [N, D] or a mapping, in the order that `group` gave: list by list. May be mapped.
        sizes: int64 [lists], items of each.
        originals, usual_mask: as of `Gallery`, the first in the same order.
    """

    def __init__(
        self,
        features: Spaces,
        sizes: Tensor,
        originals: Spaces | None = None,
        usual_mask: Spaces | None = None,
    ) -> None:
        self.gallery = Gallery(features, originals, usual_mask)
        sizes = sizes[sizes > 0]
        self.starts = [0, *torch.cumsum(sizes, 0).tolist()]
        if self.starts[-1] != len(self.gallery):
            raise ValueError(f"sizes sum to {self.starts[-1]}, features have {len(self.gallery)}")
        self.centres = Gallery({space: self._means(x) for space, x in by_space(features).items()})

    def topk(
        self, query: Spaces, query_mask: Spaces | None, k: int, probes: int
    ) -> tuple[Tensor, Tensor]:
        """The best k items among the `probes` lists that suit each query best: float32 [Q, k] and
        int64 [Q, k], as `masked_topk`; all lists give what that gives. Indices count in the order
        of `features`. Raises ValueError as `masked_topk`."""
        asked = self.gallery.query(query, query_mask)
        probes = min(probes, len(self.centres))
        _, lists = masked_topk(query, query_mask, self.centres, probes)
        best = torch.full((len(asked), k), -torch.inf)
        indices = torch.full((len(asked), k), -1)

        def search(row: int) -> None:
            mine = best[row : row + 1], indices[row : row + 1]
            rows = slice(row, row + 1)
            # The best list alone says how good an item must be to matter.
            chosen = [slice(self.starts[i], self.starts[i + 1]) for i in lists[row].tolist()]
            for part in (chosen[:1], chosen[1:]):
                if part:
                    block = self.gallery.block(part)
                    found = block.reaching(asked, rows, mine[0][:, -1], None, k)
                    scores = self.gallery.exact(asked, found.rows, found.items)
                    merge(*mine, torch.zeros_like(found.rows), scores, found.items)

        threads = torch.get_num_threads()
        if threads == 1 or len(asked) == 1:
            for row in range(len(asked)):
                search(row)
        else:
            with ThreadPoolExecutor(
                threads, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                list(pool.map(search, range(len(asked))))
            torch.set_num_threads(threads)
        best[indices < 0] = torch.nan
        return best, indices

    def _means(self, features: Tensor | NDArray[np.floating]) -> Tensor:
        """Mean direction of each list."""
        x = matrix("features", "", features)
        return torch.stack(
            [
                torch.nn.functional.normalize(x[start:stop].float()).mean(0)
                for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True)
            ]
        )


def _directions(parts: list[Tensor], rows: Tensor) -> Tensor:
    """Unit vectors of all spaces side by side, of length one: float32 [n, sum of D]."""
    found = [torch.nn.functional.normalize(x[rows].float()) for x in parts]
    return torch.cat(found, dim=1) / math.sqrt(len(parts))


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(1) for part in x.split(ASSIGNED)])
