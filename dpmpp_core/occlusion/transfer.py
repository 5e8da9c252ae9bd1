"""The mixed picture: the recipient's person seen through the donor's scene (SPT, AAAI 2024)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def transfer_patches(
    recipient: NDArray[np.uint8],
    donor: NDArray[np.uint8],
    donor_mask: NDArray[np.bool_],
    shift: int,
) -> NDArray[np.uint8]:
    """Show the recipient, rolled, on the donor's person patches, and the donor everywhere else.

    Whole pixel patches are moved, so with a patch embedding of that stride this equals mixing the
    embeddings (SPT); on pixels it works for every stride and backbone (ours).

    Args:
        recipient: uint8 [3, height, width] pixels; its identity is kept.
        donor: uint8 [3, height, width] pixels; its scene is kept.
        donor_mask: bool [H, W] patches, True = the donor's person.
        shift: patches by which the recipient is rolled to the right, round the edge.

    Returns:
        uint8 [3, height, width], a new array in the donor's memory layout.

    Raises:
        ValueError: the shapes differ, or the pixels are no whole number of patches.
    """
    if recipient.shape != donor.shape:
        raise ValueError(f"recipient is {recipient.shape}, donor is {donor.shape}: must be equal")
    (_, height, width), (rows, columns) = donor.shape, donor_mask.shape
    if height % rows or width % columns:
        raise ValueError(f"{height}x{width} pixels are no whole number of {rows}x{columns} patches")
    out = donor.copy(order="K")
    y, x = np.nonzero(donor_mask)
    _patches(out, rows, columns)[y, x] = _patches(recipient, rows, columns)[
        y, (x - shift) % columns
    ]
    return out


def visible_patches(
    recipient_mask: NDArray[np.bool_], donor_mask: NDArray[np.bool_], shift: int
) -> NDArray[np.bool_]:
    """Return the patches of the mixed picture that show the recipient's person, bool [H, W]."""
    columns = np.arange(donor_mask.shape[1]) - shift
    return recipient_mask.take(columns, axis=1, mode="wrap") & donor_mask


def _patches(image: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """View [3, height, width] pixels as [H, W, patch height, patch width, 3]."""
    _, height, width = image.shape
    split = image.reshape(3, rows, height // rows, columns, width // columns)
    return split.transpose(1, 3, 2, 4, 0)
