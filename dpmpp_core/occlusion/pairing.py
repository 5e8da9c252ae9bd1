"""Who lends the occlusion: pairing by occlusion-aware IoU with mask rolling (SPT, AAAI 2024).

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
    hidden: NDArray[np.float32]
    """[B] share of the recipient's person that is hidden, in [0, 1]; 0 where clean."""


def oiou(person_masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Occlusion-aware IoU of every pair at every shift (SPT).

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
    `top_share` of them by OIoU, at least one; equal OIoU is ordered by lot, so that no place in the
    batch is preferred. Without a candidate the sample stays clean.

    Args:
        person_masks: bool [B, H, W], as the samples look after augmentation.
        rng: the only source of chance: the same state gives the same pairs.
        donor_masks: bool [D, H, W], as the donors look after augmentation; None = the samples lend
            to each other.
        excluded: bool [B, D], donors that a sample must not take; None = itself, where the samples
            lend to each other, else nobody.
    """
    samples, _, width = person_masks.shape
    if donor_masks is None:
        donor_masks = person_masks
        excluded = np.eye(samples, dtype=np.bool_) if excluded is None else excluded
    shifts = width if config.rolling else 1
    recipients = np.flatnonzero(rng.random(samples) < config.probability)
    lots = rng.random((samples, 2))

    # Only what can be drawn is compared: half the samples, at the default probability.
    lenders = np.flatnonzero(donor_masks.mean(axis=(1, 2)) >= config.min_donor)
    shared = overlap(person_masks[recipients], donor_masks[lenders], shifts)
    score = shared / _area(donor_masks[lenders]).clip(1)[None, :, None]
    hidden = 1 - shared / _area(person_masks[recipients]).clip(1)[:, None, None]
    allowed = (score >= config.min_oiou) & (shared > 0)
    allowed &= (hidden >= config.min_ratio) & (hidden <= config.max_ratio)
    if excluded is not None:
        allowed &= ~excluded[np.ix_(recipients, lenders)][:, :, None]

    donor, shift = np.full(samples, -1, np.int64), np.zeros(samples, np.int64)
    drawn_score, drawn_hidden = np.zeros(samples, np.float32), np.zeros(samples, np.float32)
    for k in np.flatnonzero(allowed.any(axis=(1, 2))):
        i = recipients[k]
        candidates = np.flatnonzero(allowed[k])
        chosen = candidates[_draw_best(score[k].flat[candidates], config.top_share, lots[i])]
        lender, shift[i] = divmod(int(chosen), shifts)
        donor[i] = lenders[lender]
        drawn_score[i], drawn_hidden[i] = score[k].flat[chosen], hidden[k].flat[chosen]
    return Pairs(donor, shift, drawn_score, drawn_hidden)


@dataclass(frozen=True)
class Placement:
    """One donor and one shift for one sample."""

    donor: int
    shift: int
    """Columns of patches by which the recipient is rolled to the right."""
    oiou: float
    hidden: float
    """Share of the recipient's person that is hidden, in [0, 1]."""


def place(
    person_mask: NDArray[np.bool_],
    donor_masks: NDArray[np.bool_],
    hidden: tuple[int, int],
    rng: np.random.Generator,
    excluded: NDArray[np.bool_] | None = None,
) -> Placement | None:
    """The donor and shift that hide a wanted share of the person with the best OIoU (ours).

    Equal OIoU is decided by lot.

    Args:
        person_mask: bool [H, W], the recipient.
        donor_masks: bool [D, H, W].
        hidden: least share hidden and the share it must stay below, in percent; counted in whole
            patches, so exactly.
        excluded: bool [D], donors not to be taken.

    Returns:
        None if no donor hides such a share at any shift.
    """
    area = int(person_mask.sum())
    shared = overlap(person_mask[None], donor_masks, person_mask.shape[1])[0]
    lost = 100 * (area - shared)
    score = shared / _area(donor_masks).clip(1)[:, None]
    score[(lost < hidden[0] * area) | (lost >= hidden[1] * area) | (shared == 0)] = -1
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
    """|roll(M_i, s) & M_j| for s = 0..shifts-1, exact: counts are small whole numbers.

    Args:
        person_masks: bool [B, H, W], the recipients.
        donor_masks: bool [D, H, W].

    Returns:
        float32 [B, D, shifts]: patches shared.
    """
    samples, height, width = person_masks.shape
    donors = len(donor_masks)
    columns = (np.arange(width)[None, :] - np.arange(shifts)[:, None]) % width
    rolled = person_masks.astype(np.float32)[:, :, columns].transpose(2, 0, 1, 3)
    flat = donor_masks.reshape(donors, height * width).astype(np.float32)
    counts = rolled.reshape(shifts * samples, height * width) @ flat.T
    return np.ascontiguousarray(counts.reshape(shifts, samples, donors).transpose(1, 2, 0))


def _area(person_masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Person patches of each mask, float32 [B]."""
    return person_masks.sum(axis=(1, 2), dtype=np.float32)


def _draw_best(
    scores: NDArray[np.float32], top_share: float, lots: NDArray[np.float64]
) -> np.int64:
    """Index drawn uniformly from the best `top_share` of the scores, at least one.

    The first lot picks a rank, the second one of the scores equal to that rank's: the same as
    shuffling the ties before sorting, without sorting.
    """
    best = max(1, int(np.ceil(top_share * len(scores))))
    rank = len(scores) - 1 - int(lots[0] * best)
    ties = np.flatnonzero(scores == np.partition(scores, rank)[rank])
    return ties[int(lots[1] * len(ties))]
