"""Comparison of two methods, paired over training seeds, queries and identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.retrieval.bootstrap import two_way_bootstrap

Floats = NDArray[np.float64]
FEWEST_IDENTITIES = 20  # below, a bootstrap interval is too narrow to decide anything
T_VALUES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Two-sided 95 % values of Student's t for 1, 2, ... degrees of freedom."""


class Difference(NamedTuple):
    """One method less another; all but `n` in the unit of what was compared.

    Attributes:
        mean: over seeds and queries.
        std: of the seeds' means, the effect of another training; NaN for one seed.
        low: of the 95 % interval over seeds and identities, see `two_way_bootstrap`.
        high: likewise.
        n: seeds.
        identities: of the queries that have a figure.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int
    identities: int

    @property
    def beyond_noise(self) -> bool:
        """Whether zero is outside the interval, and outside Student's 95 % interval over seeds.

        Never with one seed or less than `FEWEST_IDENTITIES`.
        """
        if self.n < 2 or self.identities < FEWEST_IDENTITIES:
            return False
        t = T_VALUES[min(self.n - 1, len(T_VALUES)) - 1]
        over_seeds = abs(self.mean) > t * self.std / self.n**0.5
        return over_seeds and (self.low > 0 or self.high < 0)


def paired_difference(
    own: Sequence[Floats], other: Sequence[Floats], pids: NDArray[Any], seed: int = 0
) -> Difference:
    """Compute the mean of own - other, its spread over seeds, and its interval (ours).

    Args:
        own: one array per training seed: a figure of every query, such as its average precision,
            [Q]; NaN = a query without a positive.
        other: likewise, in the same order.
        pids: int [Q], the identity of each query.
        seed: of the bootstrap.

    Raises:
        ValueError: no seed, or different numbers of them; see also `two_way_bootstrap`.
    """
    if not own or len(own) != len(other):
        raise ValueError(f"{len(own)} and {len(other)} seeds: the same number above 0 is needed")
    gains = np.stack(own) - np.stack(other)  # [seeds, Q]
    interval = two_way_bootstrap(gains, pids, seed=seed)
    by_seed = np.nanmean(gains, axis=1)
    std = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")
    identities = len(np.unique(pids[~np.isnan(gains).any(axis=0)]))
    return Difference(interval.mean, std, interval.low, interval.high, len(by_seed), identities)
