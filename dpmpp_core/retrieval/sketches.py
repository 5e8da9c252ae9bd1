"""Sketches of gallery features, by which an approximate search selects candidates (ours).

The numerator of the masked metric, <q_hat * m, g_hat>, is an inner product and nearly decides the
order alone: lengths under a mask differ little between items. So it is computed in the directions
that hold most of the gallery, for any mask: 256 of them, two bytes each, a tenth of 1280 dimensions
in float32. The best one in 250 items by sketch hold 98 % of the ten best of 100,000; candidates
then get their exact scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from dpmpp_core.retrieval.blocks import Query

WIDTH = 256  # directions, at most
SAMPLE_ITEMS = 16_384  # from which directions are learnt
QUERIES = 16  # scored at a time, against all items
# One in so many items is a candidate, at least so many are: recall@10 0.98 (measured).
CANDIDATE_SHARE, MIN_CANDIDATES = 250, 400

Features = Mapping[str, Tensor]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Sketches:
    """Sketches of N items, on the CPU; features and queries on a GPU are copied.

    Attributes:
        directions: float32 [W, D], D the width of all spaces, concatenated by name.
        codes: bfloat16 [N, W], unit features of each space along them; may be memory-mapped.
    """

    directions: Tensor
    codes: Tensor

    @classmethod
    def create(cls, parts: Sequence[Features], seed: int = 0) -> Sketches:
        """Create sketches of the items of all parts; holds one part as float32 at a time.

        Args:
            parts: metric space -> [n, D], any length but zero; may be memory-mapped.
            seed: of the sample from which directions are learnt.
        """
        size = sum(map(_length, parts))
        rng = np.random.default_rng(seed)
        sample = np.sort(rng.choice(size, min(size, SAMPLE_ITEMS), replace=False))
        x = _concatenate_spaces(pick(parts, sample))
        directions = torch.linalg.eigh(x.T @ x).eigenvectors.T.flip(0)[:WIDTH].contiguous()
        codes = torch.empty(size, len(directions), dtype=torch.bfloat16)
        start = 0
        for part in parts:
            end = start + _length(part)
            codes[start:end] = _concatenate_spaces(part) @ directions.T
            start = end
        return cls(directions, codes)

    def candidates(self, query: Query, k: int, allowed: NDArray[np.bool_]) -> Iterator[Rows]:
        """Yield the items whose exact scores each query needs, rising: int64 [n].

        These are all that bool [N] `allowed` leaves, if they are no more than the usual number of
        candidates: then nothing can be missed. Else at least `k`.
        """
        listed = np.flatnonzero(allowed)
        count = max(k, MIN_CANDIDATES, len(self.codes) // CANDIDATE_SHARE)
        if len(listed) <= count:
            yield from (listed for _ in range(len(query)))
            return
        excluded = np.flatnonzero(~allowed)
        for weights in (_weights(query) @ self.directions.T).bfloat16().split(QUERIES):
            scores = (weights @ self.codes.T).float().numpy()
            scores[:, excluded] = -np.inf
            for row in scores:
                yield np.sort(np.argpartition(row, -count)[-count:])


def pick(parts: Sequence[Features], items: Rows) -> dict[str, Tensor]:
    """Copy these items of all parts to the CPU, in rising order: metric space -> [n, D]."""
    ends = np.cumsum([_length(part) for part in parts])
    cuts = np.searchsorted(items, ends)
    picked: dict[str, list[Tensor]] = {space: [] for space in parts[0]}
    for part, end, first, last in zip(parts, ends, [0, *cuts], cuts, strict=False):
        if last > first:
            rows = torch.from_numpy(items[first:last] - (end - _length(part)))
            for space, x in part.items():
                picked[space].append(x.index_select(0, rows.to(x.device)).cpu())
    return {space: torch.cat(pieces) for space, pieces in picked.items()}


def _length(part: Features) -> int:
    return len(next(iter(part.values())))


def _concatenate_spaces(part: Features) -> Tensor:
    """Concatenate unit features of all spaces: float32 [n, D], on the CPU."""
    return torch.cat([normalize(x.cpu().float()) for _, x in sorted(part.items())], dim=1)


def _weights(query: Query) -> Tensor:
    """Return q_hat * m of all spaces, float32 [Q, D].

    Each is divided by the usual length of a feature under the query's mask, as spaces have equal
    weight.
    """
    weights = [
        x.weight if x.square is None else x.weight * x.square.mean(1, keepdim=True).rsqrt()
        for _, x in sorted(query.spaces.items())
    ]
    return torch.cat(weights, dim=1).cpu()
