"""Inspection of one image file: a row of the manifest, or the reason why it is refused.

Pure functions of the root and the file, so that any number of workers can run them.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from dpmpp_core.data.files import read_bytes
from dpmpp_core.data.images import MAX_PIXELS, Image, decode, header_size, jpeg_segments
from dpmpp_core.data.layouts import Entry
from dpmpp_core.errors import DataError

MIN_SIDE = 8  # pixels; below, nothing of a person is left
MAX_BYTES = 64 * 1024 * 1024  # of one file
UNREADABLE = "unreadable"  # the one reason that may pass without the file being changed
# A JPEG spends a bit or more on 16x16 pixels; decoders fill missing ones with grey.
JPEG_PIXELS_A_BIT = 16 * 16


def inspect(root: str, entry: Entry) -> dict[str, Any]:
    """Inspect one image; return the fields of `manifest.INSPECTED_SCHEMA`; see `inspect_file`."""
    return {**entry._asdict(), **inspect_file(root, entry.path)}


def inspect_file(root: str, path: str) -> dict[str, Any]:
    """Read, check and decode one image.

    Returns width, height (pixels of the upright picture), bytes, sha256 (hex), and `reason` and
    `detail`, which are empty for a good image. Reasons: UNREADABLE, `empty_file`, `not_an_image`,
    `truncated`, `too_small`, `too_large`. Where a check failed, width, height and bytes are 0 and
    sha256 is empty. Bad files never raise; faults of the machine do (OSError).
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
    reason, detail = _fault(data)
    if reason:
        return {**row, "reason": reason, "detail": detail}, None
    try:
        image = decode(data)
    except DataError as error:
        return {**row, "reason": "truncated", "detail": str(error)}, None
    row["height"], row["width"] = image.shape[:2]
    row["bytes"] = len(data)
    row["sha256"] = hashlib.sha256(data).hexdigest()
    return row, image


def _fault(data: bytes) -> tuple[str, str]:
    """Return reason and detail of what is wrong with the bytes of a file; empty if nothing."""
    if not data:
        return "empty_file", "the file holds 0 bytes"
    if len(data) > MAX_BYTES:
        return "too_large", f"the file is larger than {MAX_BYTES // 2**20} MiB"
    try:
        width, height = header_size(data)
    except DataError as error:
        return "not_an_image", f"{error}; it starts with {data[:8]!r}"
    except EOFError as error:
        return "truncated", str(error)
    if min(width, height) < MIN_SIDE:
        return "too_small", f"{width}x{height} pixels; the shorter side needs {MIN_SIDE}"
    if width * height > MAX_PIXELS:
        return "too_large", f"{width}x{height} pixels are more than the {MAX_PIXELS:,} allowed"
    if not _is_complete(data):
        return "truncated", f"the end of the picture is missing ({len(data):,} bytes are there)"
    if data.startswith(b"\xff\xd8") and 8 * len(data) < width * height / JPEG_PIXELS_A_BIT:
        detail = f"{len(data):,} bytes cannot hold the {width}x{height} pixels of the header"
        return "truncated", detail
    return "", ""


def _is_complete(data: bytes) -> bool:
    """Return whether a JPEG or PNG has its end mark; decoders may fill up a cut picture silently.

    BMP and TIFF have none: cut ones do not decode.
    """
    if data.startswith(b"\xff\xd8"):
        # Compressed data never holds FF D9; a thumbnail in the header, skipped here, does.
        return data.find(b"\xff\xd9", jpeg_segments(data)[1]) >= 0
    if data.startswith(b"\x89PNG"):
        at = 8
        while at + 12 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            if kind == b"IEND":
                return True
            at += 12 + length
        return False
    return True
