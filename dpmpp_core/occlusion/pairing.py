"""Pairing of recipients and donors by occlusion-aware IoU with mask rolling (SPT, AAAI 2024).

The recipient keeps its identity, the donor keeps its scene. The recipient is seen only through the
donor's person mask, so what the donor's mask leaves out of the recipient's person is hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.config import OcclusionConfig


@dataclass(frozen=True)
class Pairs:
    """One donor and one shift for each of B samples; a sample without donor stays clean."""

    donor: NDArray[np.int64]
    """[B] index among the donors, -1 = clean."""
    shift: NDArray[np.int64]
    """[B] columns of patches by which the recipient is rolled to the right; 0 where clean."""
    oiou: NDArray[np.float32]
    """[B] in [0, 1]; 0 where clean."""
    occlusion_ratio: NDArray[np.float32]
    """[B] share of the recipient's person that is hidden, in [0, 1]; 0 where clean."""


def oiou(person_masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Compute the occlusion-aware IoU of every pair at every shift (SPT).

    OIoU(i, j, s) = |roll(M_i, s) & M_j| / |M_j|, and 0 where M_j is empty. The donor's area alone
    is the denominator: what the recipient has outside M_j is allowed, it becomes occluded.

    Args:
        person_masks: bool [B, H, W], True = person patch.

    Returns:
        float32 [B, B, W]: recipient i, donor j, recipient rolled s columns to the right.
    """
    shared = overlap(person_masks, person_masks, person_masks.shape[2])
    return shared / _area(person_masks).clip(1)[None, :, None]


def draw_pairs(
    person_masks: NDArray[np.bool_],
    config: OcclusionConfig,
    rng: np.random.Generator,
    donor_masks: NDArray[np.bool_] | None = None,
    excluded: NDArray[np.bool_] | None = None,
) -> Pairs:
    """Draw a donor and a shift for each sample (rules: SPT; bounds: ours, see OcclusionConfig).

    A sample is mixed with `config.probability`. Its candidates are all (j, s) with j not excluded,
    a donor mask of at least `min_donor` of the patches, OIoU >= `min_oiou` and a hidden share
    1 - |roll(M_i, s) & M_j| / |M_i| in [min_ratio, max_ratio]. One is drawn uniformly from the best
    `top_share` of them by OIoU, at least one; equal OIoU is ordered at random, so that no place in
    the batch is preferred. Without a candidate the sample stays clean.

    Args:
        person_masks: bool [B, H, W], the samples after augmentation.
        config: probability and bounds.
        rng: the only source of randomness: the same state gives the same pairs.
        donor_masks: bool [D, H, W], the donors after augmentation; None = the samples lend to each
            other.
        excluded: bool [B, D], donors that a sample must not take; None = itself, where the samples
            lend to each other, else none.
    """
    samples, _, width = person_masks.shape
    if donor_masks is None:
        donor_masks = person_masks
        excluded = np.eye(samples, dtype=np.bool_) if excluded is None else excluded
    shifts = width if config.rolling else 1
    recipients = np.flatnonzero(rng.random(samples) < config.probability)
    draws = rng.random((samples, 2))

    # Only what can be drawn is compared: half the samples, at the default probability.
    lenders = np.flatnonzero(donor_masks.mean(axis=(1, 2)) >= config.min_donor)
    shared = overlap(person_masks[recipients], donor_masks[lenders], shifts)
    score = shared / _area(donor_masks[lenders]).clip(1)[None, :, None]
    ratio = 1 - shared / _area(person_masks[recipients]).clip(1)[:, None, None]
    allowed = (score >= config.min_oiou) & (shared > 0)
    allowed &= (ratio >= config.min_ratio) & (ratio <= config.max_ratio)
    if excluded is not None:
        allowed &= ~excluded[np.ix_(recipients, lenders)][:, :, None]

    donor, shift = np.full(samples, -1, np.int64), np.zeros(samples, np.int64)
    drawn_score, drawn_ratio = np.zeros(samples, np.float32), np.zeros(samples, np.float32)
    for k in np.flatnonzero(allowed.any(axis=(1, 2))):
        i = recipients[k]
        candidates = np.flatnonzero(allowed[k])
        chosen = candidates[_draw_best(score[k].flat[candidates], config.top_share, draws[i])]
        lender, shift[i] = divmod(int(chosen), shifts)
        donor[i] = lenders[lender]
        drawn_score[i], drawn_ratio[i] = score[k].flat[chosen], ratio[k].flat[chosen]
    return Pairs(donor, shift, drawn_score, drawn_ratio)


@dataclass(frozen=True)
class Placement:
    """One donor and one shift for one sample."""

    donor: int
    shift: int
    """Columns of patches by which the recipient is rolled to the right."""
    oiou: float
    occlusion_ratio: float
    """Share of the recipient's person that is hidden, in [0, 1]."""


def place(
    person_mask: NDArray[np.bool_],
    donor_masks: NDArray[np.bool_],
    hidden_percent: tuple[int, int],
    rng: np.random.Generator,
    excluded: NDArray[np.bool_] | None = None,
) -> Placement | None:
    """Choose the donor and shift that hide a wanted share of the person with the best OIoU (ours).

    One of several with the best OIoU is drawn at random.

    Args:
        person_mask: bool [H, W], the recipient.
        donor_masks: bool [D, H, W].
        hidden_percent: least share hidden, and the share it must stay below; counted in whole
            patches, so exactly.
        rng: the only source of randomness.
        excluded: bool [D], donors not to be taken.

    Returns:
        None if no donor hides such a share at any shift.
    """
    area = int(person_mask.sum())
    shared = overlap(person_mask[None], donor_masks, person_mask.shape[1])[0]
    lost = 100 * (area - shared)
    score = shared / _area(donor_masks).clip(1)[:, None]
    low, high = hidden_percent
    score[(lost < low * area) | (lost >= high * area) | (shared == 0)] = -1
    if excluded is not None:
        score[excluded] = -1
    best = np.flatnonzero(score == score.max(initial=0))
    if not len(best):
        return None
    donor, shift = divmod(int(rng.choice(best)), score.shape[1])
    share = 1 - float(shared[donor, shift]) / area
    return Placement(donor, shift, float(score[donor, shift]), share)


def overlap(
    person_masks: NDArray[np.bool_], donor_masks: NDArray[np.bool_], shifts: int
) -> NDArray[np.float32]:
    """Count the patches |roll(M_i, s) & M_j| for s = 0..shifts-1, exactly.

    Recipients are bool [B, H, W], donors bool [D, H, W], counts float32 [B, D, shifts].
    """
    samples, height, width = person_masks.shape
    donors = len(donor_masks)
    columns = (np.arange(width)[None, :] - np.arange(shifts)[:, None]) % width
    rolled = person_masks.astype(np.float32)[:, :, columns].transpose(2, 0, 1, 3)
    flat = donor_masks.reshape(donors, height * width).astype(np.float32)
    counts = rolled.reshape(shifts * samples, height * width) @ flat.T
    return np.ascontiguousarray(counts.reshape(shifts, samples, donors).transpose(1, 2, 0))


def _area(person_masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    return person_masks.sum(axis=(1, 2), dtype=np.float32)


def _draw_best(
    scores: NDArray[np.float32], top_share: float, draws: NDArray[np.float64]
) -> np.int64:
    """Draw an index uniformly from the best `top_share` of the scores, at least one.

    The first of `draws` picks a rank, the second one of the scores equal to that rank's. This is
    the same as shuffling the ties before sorting, without sorting.
    """
    best = max(1, int(np.ceil(top_share * len(scores))))
    rank = len(scores) - 1 - int(draws[0] * best)
    ties = np.flatnonzero(scores == np.partition(scores, rank)[rank])
    return ties[int(draws[1] * len(ties))]
