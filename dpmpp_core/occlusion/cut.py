"""Hide a named part of a person - the top, the bottom, a side - behind a donor's scene (ours).

Pairing hides what the donor's silhouette leaves out. Here the part is given, and the donor is the
one whose person covers least of it.
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
    hidden_percent: tuple[int, int],
    rng: np.random.Generator,
) -> NDArray[np.bool_] | None:
    """Choose the patches beyond a row or column, so that a wanted share of the person lies there.

    `top` hides all rows above one, `bottom` all below, `side` all columns on a random side of one.
    The edge is drawn from those that hide such a share. A row of patches may hold more of the
    person than the band is wide, so that no edge does. Then a last row (of `side`: column) is
    filled patch by patch, from a random end, until the share is reached.

    Args:
        person_mask: bool [H, W].
        part: what is hidden.
        hidden_percent: least share hidden, and the share it must stay below; counted in whole
            patches, so exactly. At least one patch is hidden, and at least one is not.
        rng: the only source of randomness.

    Returns:
        bool [H, W], True = hidden; None if no whole number of patches is such a share.
    """
    draws = rng.integers(0, 2, 2)
    view = _turned(person_mask, part, draws)
    area, columns = int(person_mask.sum()), view.shape[1]
    counts = np.arange(1, area)
    low, high = hidden_percent
    counts = counts[(100 * counts >= low * area) & (100 * counts < high * area)]
    if not len(counts):
        return None
    passed = np.cumsum(view)  # person patches up to and with each patch, row by row
    whole = np.intersect1d(counts, passed[columns - 1 :: columns])
    count = int(rng.choice(whole if len(whole) else counts))
    end = int(np.searchsorted(passed, count)) + 1
    if len(whole):
        end = -(-end // columns) * columns
    cut = np.zeros_like(person_mask)
    _turned(cut, part, draws)[...] = (np.arange(view.size) < end).reshape(view.shape)
    return cut


def lend_scene(
    person_mask: NDArray[np.bool_],
    cut: NDArray[np.bool_],
    donor_masks: NDArray[np.bool_],
    rng: np.random.Generator,
    excluded: NDArray[np.bool_] | None = None,
) -> Lender | None:
    """Choose the donor and the shift whose person covers least of the recipient's person in `cut`.

    Inside `cut` the donor's picture replaces the recipient's. It should show a scene there, not a
    second person. Where both persons are, the donor's is shown; the number of these patches is
    minimal. Other patches of the donor's person stay the recipient's. One of equal choices is drawn
    at random.

    Args:
        person_mask: bool [H, W], patches, True = the recipient's person.
        cut: bool [H, W], True = to be hidden; from `cut_away`.
        donor_masks: bool [D, H, W], True = the donor's person; D may be 0.
        rng: the only source of randomness.
        excluded: bool [D], True = this donor is not taken; None = all may be taken.

    Returns:
        The donor, 0 to D - 1, its shift, 0 to W - 1 columns of patches to the right, and the
        patches kept. None if each donor is excluded or has an empty mask, which does not locate its
        person.

    Raises:
        ValueError: the masks differ in H or W.
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
    outside = np.roll(donor_masks[donor], shift, axis=1) & ~person_mask
    return Lender(donor, shift, ~cut | outside)


def _turned(grid: NDArray[np.bool_], part: Cut, draws: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a view of the grid in which the part to hide comes first, row by row."""
    rows = grid.T if part == "side" else grid
    from_end = part == "bottom" or (part == "side" and bool(draws[0]))
    return rows[:: -1 if from_end else 1, :: -1 if draws[1] else 1]
