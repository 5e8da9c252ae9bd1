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
    """[B] index in the batch, -1 = clean."""
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
    return _overlap(person_masks) / _area(person_masks).clip(1)[None, :, None]


def draw_pairs(
    person_masks: NDArray[np.bool_], config: OcclusionConfig, rng: np.random.Generator
) -> Pairs:
    """Draw a donor and a shift for each sample (rules: SPT; bounds: ours, see OcclusionConfig).

    A sample is mixed with `config.probability`. Its candidates are all (j, s) with j != i, a donor
    mask of at least `min_donor` of the patches, OIoU >= `min_oiou` and a hidden share
    1 - |roll(M_i, s) & M_j| / |M_i| in [min_ratio, max_ratio]. One is drawn uniformly from the best
    `top_share` of them by OIoU, at least one; equal OIoU is ordered by lot, so that no place in the
    batch is preferred. Without a candidate the sample stays clean.

    Args:
        person_masks: bool [B, H, W], as the samples look after augmentation.
        rng: the only source of chance: the same state gives the same pairs.
    """
    samples, _, width = person_masks.shape
    area = _area(person_masks)
    shifts = width if config.rolling else 1
    overlap = _overlap(person_masks)[:, :, :shifts]
    score = overlap / area.clip(1)[None, :, None]
    hidden = 1 - overlap / area.clip(1)[:, None, None]

    allowed = (score >= config.min_oiou) & (overlap > 0)
    allowed &= (hidden >= config.min_ratio) & (hidden <= config.max_ratio)
    allowed[:, person_masks.mean(axis=(1, 2)) < config.min_donor] = False
    allowed[np.arange(samples), np.arange(samples)] = False
    allowed[rng.random((samples,)) >= config.probability] = False
    lots = rng.random((samples, 2))

    donor, shift = np.full(samples, -1, np.int64), np.zeros(samples, np.int64)
    drawn_score, drawn_hidden = np.zeros(samples, np.float32), np.zeros(samples, np.float32)
    for i in np.flatnonzero(allowed.any(axis=(1, 2))):
        candidates = np.flatnonzero(allowed[i])
        chosen = candidates[_draw_best(score[i].flat[candidates], config.top_share, lots[i])]
        donor[i], shift[i] = divmod(int(chosen), shifts)
        drawn_score[i], drawn_hidden[i] = score[i].flat[chosen], hidden[i].flat[chosen]
    return Pairs(donor, shift, drawn_score, drawn_hidden)


def _area(person_masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Person patches of each mask, float32 [B]."""
    return person_masks.sum(axis=(1, 2), dtype=np.float32)


def _overlap(person_masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """|roll(M_i, s) & M_j| as float32 [B, B, W], exact: counts are small whole numbers."""
    samples, height, width = person_masks.shape
    columns = (np.arange(width)[None, :] - np.arange(width)[:, None]) % width
    rolled = person_masks.astype(np.float32)[:, :, columns].transpose(2, 0, 1, 3)
    flat = person_masks.reshape(samples, height * width).astype(np.float32)
    counts = rolled.reshape(width * samples, height * width) @ flat.T
    return np.ascontiguousarray(counts.reshape(width, samples, samples).transpose(1, 2, 0))


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
