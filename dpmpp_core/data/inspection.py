"""Inspection of one image file: a row of the manifest, or the reason why it is refused.

Pure functions of the root and the file, so that any number of workers can run them.
"""

from __future__ import annotations

import hashlib
from typing import Any

from dpmpp_core.data.files import read_bytes
from dpmpp_core.data.headers import MAX_BYTES, ImageError
from dpmpp_core.data.images import Image, decode
from dpmpp_core.data.layouts import Entry
from dpmpp_core.errors import DataError

UNREADABLE = "unreadable"  # the one reason that may pass without the file being changed


def inspect(root: str, entry: Entry) -> dict[str, Any]:
    """Inspect one image; return the fields of `manifest.INSPECTED_SCHEMA`; see `inspect_file`."""
    return {**entry._asdict(), **inspect_file(root, entry.path)}


def inspect_file(root: str, path: str) -> dict[str, Any]:
    """Read, check and decode one image.

    Returns width, height (pixels of the upright picture), bytes, sha256 (hex), and `reason` and
    `detail`, which are empty for a good image. Reasons: UNREADABLE and those of `ImageError`.
    Where a check failed, width, height and bytes are 0 and sha256 is empty. Bad files never raise;
    faults of the machine do (OSError).
    """
    return inspect_picture(root, path)[0]


def inspect_picture(root: str, path: str) -> tuple[dict[str, Any], Image | None]:
    """Return the row of `inspect_file`, and the picture, uint8 [H, W, 3] RGB; None if refused."""
    row: dict[str, Any] = dict.fromkeys(("width", "height", "bytes"), 0)
    row |= dict.fromkeys(("sha256", "reason", "detail"), "")
    try:
        data = read_bytes(root, path, limit=MAX_BYTES + 1)
    except DataError as error:
        return {**row, "reason": UNREADABLE, "detail": str(error)}, None
    try:
        image = decode(data)
    except ImageError as error:
        return {**row, "reason": error.reason, "detail": str(error)}, None
    row["height"], row["width"] = image.shape[:2]
    row["bytes"] = len(data)
    row["sha256"] = hashlib.sha256(data).hexdigest()
    return row, image
