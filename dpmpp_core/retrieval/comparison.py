"""Comparison of two methods, paired over training seeds, queries and identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.retrieval.bootstrap import paired_bootstrap

Floats = NDArray[np.float64]


class Difference(NamedTuple):
    """One method less another; all but `n` in the unit of what was compared.

    Attributes:
        mean: over seeds and queries.
        std: of the seeds' means, the effect of another training; NaN for one seed.
        low: of the 95 % interval over identities, the effect of other people.
        high: likewise.
        n: seeds.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the mean is above two standard deviations, and its interval above zero."""
        return self.n > 1 and self.mean > 2 * self.std and self.low > 0


def paired_difference(
    own: Sequence[Floats], other: Sequence[Floats], pids: NDArray[Any], seed: int = 0
) -> Difference:
    """Compute the mean of own - other, its spread over seeds and interval over identities (ours).

    Args:
        own: one array per training seed: a figure of every query, such as its average precision,
            [Q]; NaN = a query without a positive.
        other: likewise, in the same order.
        pids: int [Q], the identity of each query.
        seed: of the bootstrap.

    Raises:
        ValueError: no seed, or different numbers of them; see also `paired_bootstrap`.
    """
    if not own or len(own) != len(other):
        raise ValueError(f"{len(own)} and {len(other)} seeds: the same number above 0 is needed")
    gains = np.stack(own) - np.stack(other)  # [seeds, Q]
    interval = paired_bootstrap(gains.mean(axis=0), pids, seed=seed)
    by_seed = np.nanmean(gains, axis=1)
    std = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")
    return Difference(interval.mean, std, interval.low, interval.high, len(by_seed))
