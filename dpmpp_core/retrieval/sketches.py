"""Small pictures of gallery features, from which a masked score is told nearly (ours).

The numerator of the metric, <q_hat * m, g_hat>, is a plain inner product. So it may be taken in the
directions that hold most of the gallery, whatever the mask: 512 of 1280 dimensions, two bytes
each. The length under the mask comes from the energies of 32 groups of neighbouring dimensions:
exactly, where a mask is the same within a group (as masks by band are), else about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from dpmpp_core.retrieval.blocks import Query
from dpmpp_core.retrieval.similarity import VANISHED

WIDTH = 512  # directions, at most
GROUPS = 32  # of neighbouring dimensions
SAMPLE = 16_384  # items from which directions are learnt
ROWS = 8_192  # items at a time


@dataclass(frozen=True)
class _Space:
    """codes: float16 [N, W], unit features along the directions. energies: float32 [N, 32]."""

    codes: Tensor
    energies: Tensor


@dataclass(frozen=True)
class _Asked:
    """weight: float16 [Q, W], q_hat * m along the directions, its largest entry being 1; scale:
    float32 [Q], that entry. square: float32 [Q, 32], mean squares of the mask by group, or None."""

    weight: Tensor
    scale: Tensor
    square: Tensor | None


class Sketches:
    """Sketches of the features of any number of items.

    Args:
        features: metric space -> [N, D], any length but zero; may be mapped.
        turns: metric space -> its directions, of `directions`.
    """

    def __init__(self, features: Mapping[str, Tensor], turns: Mapping[str, Tensor]) -> None:
        self._turns = turns
        self._spaces = {space: _sketched(x, turns[space]) for space, x in features.items()}

    @property
    def bytes(self) -> int:
        return sum(x.codes.nbytes + x.energies.nbytes for x in self._spaces.values())

    def asked(self, query: Query) -> dict[str, _Asked]:
        """Queries as `scores` wants them."""
        found = {}
        for space, x in query.spaces.items():
            weight = x.weight @ self._turns[space]
            scale = weight.abs().amax(1).clamp_min(VANISHED)
            square = None if x.square is None else _means(x.square)
            found[space] = _Asked((weight / scale[:, None]).half(), scale, square)
        return found

    def scores(self, asked: Mapping[str, _Asked], row: int, slices: Sequence[slice]) -> Tensor:
        """About the scores of query `row` with these items, times the number of spaces: float32."""
        size = sum(s.stop - s.start for s in slices)
        total = torch.zeros(size)
        product, energy = torch.empty(size, dtype=torch.float16), torch.ones(size)
        for space, stored in self._spaces.items():
            of = asked[space]
            at = 0
            for s in slices:
                end = at + s.stop - s.start
                torch.mv(stored.codes[s], of.weight[row], out=product[at:end])
                if of.square is not None:
                    torch.mv(stored.energies[s], of.square[row], out=energy[at:end])
                at = end
            length = energy.clamp_min_(VANISHED**2).rsqrt_()
            total += product.float().mul_(of.scale[row]).mul_(length)
        return total


def directions(features: Tensor, width: int = WIDTH, seed: int = 0) -> Tensor:
    """The `width` directions that hold most of the unit features [N, D]: float32 [D, width]."""
    size = len(features)
    rows = np.sort(np.random.default_rng(seed).choice(size, min(size, SAMPLE), replace=False))
    x = normalize(features[torch.from_numpy(rows)].float())
    return torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :width].contiguous()


def _sketched(features: Tensor, turn: Tensor) -> _Space:
    size = len(features)
    codes = torch.empty(size, turn.shape[1], dtype=torch.float16)
    energies = torch.empty(size, GROUPS)
    for rows in _parts(size):
        x = normalize(features[rows].float())
        codes[rows] = (x @ turn).half()
        energies[rows] = _by_group(x.square_()).sum(2)
    return _Space(codes, energies)


def _by_group(x: Tensor) -> Tensor:
    """[N, D] -> [N, 32, D / 32], the last filled with zeros."""
    width = -(-x.shape[1] // GROUPS)
    return pad(x, (0, width * GROUPS - x.shape[1])).unflatten(1, (GROUPS, width))


def _means(x: Tensor) -> Tensor:
    """Mean of each group of dimensions: [N, 32]."""
    there = _by_group(torch.ones_like(x[:1])).sum(2)
    return _by_group(x).sum(2) / there.clamp_min(1)


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, size, ROWS))
