"""Hiding a named part of a person - the top, the bottom, a side - behind a donor's scene (ours).

Pairing hides what the donor's silhouette leaves out, wherever that is. Here the part is given, and
the donor is the one whose own person stands least in the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.occlusion.pairing import overlap

Cut = Literal["top", "bottom", "side"]


@dataclass(frozen=True)
class Lender:
    """One donor and one shift for one cut."""

    donor: int
    shift: int
    """Columns of patches by which the donor's picture is rolled to the right."""
    kept: NDArray[np.bool_]
    """[H, W], True = the recipient is shown, False = the donor."""


def cut_away(
    person_mask: NDArray[np.bool_],
    part: Cut,
    hidden: tuple[int, int],
    rng: np.random.Generator,
) -> NDArray[np.bool_] | None:
    """The patches beyond a row or column, so that a wanted share of the person lies there.

    `top` hides all rows above one, `bottom` all below, `side` all columns left or all right of one,
    by lot. Of the edges that hide such a share one is drawn by lot. A row of patches may hold more
    of the person than the band is wide, so that no edge does: then a last row (of `side`: column)
    is filled patch by patch, from an end that is drawn by lot, until the share is reached.

    Args:
        person_mask: bool [H, W].
        hidden: least share hidden and the share it must stay below, in percent; counted in whole
            patches, so exactly. At least one patch is hidden, and at least one is not.
        rng: the only source of chance.

    Returns:
        bool [H, W], True = hidden; None if no whole number of patches is such a share.
    """
    lots = rng.integers(0, 2, 2)
    view = _turned(person_mask, part, lots)
    area, columns = int(person_mask.sum()), view.shape[1]
    counts = np.arange(1, area)
    counts = counts[(100 * counts >= hidden[0] * area) & (100 * counts < hidden[1] * area)]
    if not len(counts):
        return None
    passed = np.cumsum(view)  # person patches up to and with each patch, row by row
    whole = np.intersect1d(counts, passed[columns - 1 :: columns])
    count = int(rng.choice(whole if len(whole) else counts))
    end = int(np.searchsorted(passed, count)) + 1
    if len(whole):
        end = -(-end // columns) * columns
    cut = np.zeros_like(person_mask)
    _turned(cut, part, lots)[...] = (np.arange(view.size) < end).reshape(view.shape)
    return cut


def lend_scene(
    person_mask: NDArray[np.bool_],
    cut: NDArray[np.bool_],
    donor_masks: NDArray[np.bool_],
    rng: np.random.Generator,
    excluded: NDArray[np.bool_] | None = None,
) -> Lender | None:
    """The donor and shift whose person covers least of the recipient's cut part.

    What is to hide is a scene, not a second person: where the donor's person would stand beside the
    recipient's, the recipient's own scene is left; where it covers the part that is cut away, and
    no donor does without, it is shown. Equal donors are decided between by lot.

    Args:
        person_mask: bool [H, W], the recipient.
        cut: bool [H, W], what is to be hidden of its picture.
        donor_masks: bool [D, H, W].
        excluded: bool [D], donors not to be taken.

    Returns:
        None if nobody can lend: an empty mask does not say where the donor's person is.
    """
    width = cut.shape[1]
    standing = overlap((person_mask & cut)[None], donor_masks, width)[0]
    standing[~donor_masks.any(axis=(1, 2))] = np.inf
    if excluded is not None:
        standing[excluded] = np.inf
    least = standing.min(initial=np.inf)
    if not np.isfinite(least):
        return None
    donor, left = divmod(int(rng.choice(np.flatnonzero(standing == least))), width)
    shift = -left % width  # rolling the recipient left is rolling the donor right
    beside = np.roll(donor_masks[donor], shift, axis=1) & ~person_mask
    return Lender(donor, shift, ~cut | beside)


def _turned(grid: NDArray[np.bool_], part: Cut, lots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A view of the grid in which the part to hide comes first, row by row."""
    rows = grid.T if part == "side" else grid
    from_end = part == "bottom" or (part == "side" and bool(lots[0]))
    return rows[:: -1 if from_end else 1, :: -1 if lots[1] else 1]
