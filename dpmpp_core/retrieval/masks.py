"""Control masks and statistics, which show whether masks depend on their queries.

A mask that helps as much when queries swap theirs, or when all use the mean one, is not adaptive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.floating[Any]]
DEAD_MASK = 0.01  # a std over pictures below this: the same mask for all (ours)


def expand_masks(masks: Mapping[str, Mask], features: Mapping[str, Mask]) -> dict[str, Mask]:
    """Return masks of full width, [N, D], by space.

    Args:
        masks: [N, R] by space, each value for D / R neighbouring dimensions, such as those of a
            band; those of full width are returned as they are.
        features: [.., D] of the same spaces.

    Raises:
        ValueError: R is no divisor of D.
    """
    expanded = {}
    for space, mask in masks.items():
        times, rest = divmod(features[space].shape[1], mask.shape[1])
        if rest:
            raise ValueError(
                f"masks of '{space}' have {mask.shape[1]} values for "
                f"{features[space].shape[1]} dimensions: give one for each, or for equal groups"
            )
        expanded[space] = mask if times == 1 else np.repeat(mask, times, axis=1)
    return expanded


def apply_mask(features: Mask, mask: Mask) -> Mask:
    """Return features [N, D] times a mask [N, R], which is not expanded."""
    groups = features.reshape(len(features), mask.shape[1], -1)
    return (groups * mask[:, :, None]).reshape(features.shape)


def static_masks(masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """Give every query the mean mask of all, by space, as a control."""
    means = {space: mask.mean(0, dtype=np.float64) for space, mask in masks.items()}
    return {
        space: np.broadcast_to(mean, masks[space].shape).astype(masks[space].dtype)
        for space, mean in means.items()
    }


def mask_statistics(masks: Mapping[str, Mask]) -> dict[str, dict[str, float]]:
    """Measure the masks [N, D] of each space; all values are fractions.

    mean: of all entries.
    std_queries: mean over channels of the std across queries; near 0 = the same mask for all.
    std_channels: mean over queries of the std across channels; near 0 = the plain cosine.
    participation: mean over queries of (sum m)^2 / (D sum m^2), the share of channels in use:
        1 for a constant mask, 1/D for a single channel; NaN for an all-zero mask.
    """
    return {space: _statistics(np.asarray(m, np.float64)) for space, m in masks.items()}


def _statistics(mask: NDArray[np.float64]) -> dict[str, float]:
    energy = np.square(mask).sum(1) * mask.shape[1]
    used = np.full(len(mask), np.nan)
    np.divide(np.square(mask.sum(1)), energy, out=used, where=energy > 0)
    return {
        "mean": float(mask.mean()),
        "std_queries": float(mask.std(0).mean()),
        "std_channels": float(mask.std(1).mean()),
        "participation": float(used.mean()),
    }


def derangement(size: int, seed: int) -> NDArray[np.int64]:
    """Draw a uniform derangement of `size` queries from `seed`: none keeps its mask, a control.

    Raises ValueError if size < 2.
    """
    if size < 2:
        raise ValueError(f"{size} query masks cannot change places; at least 2 are needed")
    rng = np.random.default_rng(np.random.SeedSequence((seed, size)))
    # A draw is a derangement with probability 1/e, for any size: three tries on average.
    while True:
        order = rng.permutation(size)
        if (order != np.arange(size)).all():
            return order
