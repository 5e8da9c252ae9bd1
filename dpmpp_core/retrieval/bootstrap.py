"""Confidence intervals of figures over identities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK_VALUES = 4_000_000  # groups drawn at a time: 32 MB of indices
INTERVAL = (2.5, 97.5)  # percentiles


class Interval(NamedTuple):
    """A mean and its 95 % interval, in the unit of what was compared."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    differences: ArrayLike, groups: NDArray[Any], draws: int = 10_000, seed: int = 0
) -> Interval:
    """Compute the mean paired difference over queries and its 95 % interval (Efron, 1979).

    Whole groups are drawn with replacement, as many as there are (cluster bootstrap): pictures of
    one person succeed and fail together, so single pictures would give too narrow an interval. A
    group has the weight of its queries, so `mean` is the plain mean over queries: the difference of
    two mAPs if the differences are those of average precisions. The interval covers other
    identities, not other training seeds; below some 20 groups it is too narrow.

    Args:
        differences: [Q], one method less another on the same query; NaN = a query without a
            positive, which takes no part.
        groups: [Q], such as person ids.
        draws: number of bootstrap samples.
        seed: non-negative; the same gives the same interval.

    Raises:
        ValueError: lengths differ, a difference is infinite, there are fewer than two groups with
            a difference, or `draws` is not positive.
    """
    values, names = np.asarray(differences, np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != names.shape:
        raise ValueError(
            f"differences {values.shape} and groups {names.shape} must both be [Q], one a query"
        )
    if np.isinf(values).any():
        raise ValueError("differences: one is infinite; only NaN may stand for a missing figure")
    if draws < 1:
        raise ValueError(f"draws {draws}: at least 1 is needed")
    valid = ~np.isnan(values)
    index = np.unique(names[valid], return_inverse=True)[1]
    sizes = np.bincount(index)
    if len(sizes) < 2:
        raise ValueError(f"{len(sizes)} groups have a difference: at least 2 are needed")
    sums = np.bincount(index, weights=values[valid])
    means = _resampled(sums.astype(np.float64), sizes, draws, seed)
    low, high = np.percentile(means, INTERVAL)
    return Interval(float(values[valid].mean()), float(low), float(high))


def two_way_bootstrap(
    differences: NDArray[np.float64], groups: NDArray[Any], draws: int = 10_000, seed: int = 0
) -> Interval:
    """Compute the mean paired difference and its 95 % interval over seeds and identities (ours).

    As `paired_bootstrap`, but every sample draws training seeds with replacement too: the interval
    covers other people and another training. With less than five seeds it is too narrow.

    Args:
        differences: [seeds, Q], one method less another; NaN = a query without a positive.
        groups: [Q], such as person ids.
        draws: number of bootstrap samples.
        seed: non-negative; the same gives the same interval.

    Raises:
        ValueError: fewer than two groups have a difference.
    """
    valid = ~np.isnan(differences).any(axis=0)
    names, index = np.unique(groups[valid], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} groups have a difference: at least 2 are needed")
    trainings = len(differences)
    sizes = np.bincount(index)
    sums = np.stack([np.bincount(index, weights=row[valid]) for row in differences])
    rng = np.random.default_rng(seed)
    people = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    seeds = rng.multinomial(trainings, np.full(trainings, 1 / trainings), draws) / trainings
    means = ((people @ sums.T) / (people @ sizes)[:, None] * seeds).sum(axis=1)
    low, high = np.percentile(means, INTERVAL)
    return Interval(float(differences[:, valid].mean()), float(low), float(high))


def bootstrap_bounds(values: ArrayLike, groups: NDArray[Any]) -> dict[str, float | None]:
    """Return the `paired_bootstrap` of a figure by query as plain `mean`, `low`, `high`.

    The last two are None if fewer than two groups have a value, the first too if none has.
    """
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    if len(np.unique(np.asarray(groups)[known])) < 2:
        mean = float(values[known].mean()) if known.any() else None
        return {"mean": mean, "low": None, "high": None}
    return paired_bootstrap(values, groups)._asdict()


def _resampled(
    sums: NDArray[np.float64], sizes: NDArray[np.int64], draws: int, seed: int
) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    count = len(sums)
    step = max(1, BLOCK_VALUES // count)
    means = []
    for start in range(0, draws, step):
        drawn = rng.integers(0, count, (min(step, draws - start), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)
