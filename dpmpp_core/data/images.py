"""Decoding of image files; without torch, so that data workers need not load it."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.files import read_bytes
from dpmpp_core.errors import DataError

MAX_PIXELS = 50_000_000  # a larger image is taken for a decompression bomb
Image = NDArray[np.uint8]
_REDUCED = {  # factors of decoding a JPEG smaller; the colour flag takes precedence over "grey"
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# Our own errors name the file and its problem, once.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def header_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels from the header of a JPEG, PNG, BMP or TIFF.

    Only the header is read, so an absurd size is known before memory is allocated for it. EXIF
    rotation is not applied. OpenCV returns no size without decoding, and Pillow takes eight times
    as long: 25 microseconds, next to 94 for decoding a JPEG of 48x128. Raises DataError if the
    bytes are of none of these formats, or EOFError if they end inside the header.
    """
    for magic, read in _HEADERS:
        if data.startswith(magic):
            try:
                return read(data)
            except (struct.error, IndexError) as error:
                raise EOFError("the file ends inside its header") from error
    raise DataError("not a JPEG, PNG, BMP or TIFF image")


def decode(data: bytes, min_size: tuple[int, int] = (0, 0)) -> Image:
    """Decode an image file to uint8 [H, W, 3], RGB, turned upright by its EXIF orientation.

    Grey and CMYK become RGB, 16 bits are scaled to 8, an alpha channel is dropped (the colour
    below it stays). Raises DataError with the reason, which does not name the file. A JPEG of
    `min_size` times two, four or eight in height and width is decoded at a half, quarter or
    eighth of its size, which takes less time; (0, 0) = always in full.
    """
    try:
        width, height = header_size(data)
    except EOFError as error:
        raise DataError(str(error)) from error
    if width * height > MAX_PIXELS:
        raise DataError(f"{width}x{height} pixels are more than the {MAX_PIXELS:,} allowed")
    try:
        pixels = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(pixels, _REDUCED[_reduction(data, (height, width), min_size)])
        if image is not None and (image.shape[0] < min_size[0] or image.shape[1] < min_size[1]):
            image = cv2.imdecode(pixels, cv2.IMREAD_COLOR_RGB)  # turned by its EXIF orientation
    except cv2.error as error:
        raise DataError(f"the image does not decode: {error.err}") from error
    if image is None:
        raise DataError("the image does not decode")
    return image.astype(np.uint8, copy=False)


def _reduction(data: bytes, size: tuple[int, int], min_size: tuple[int, int]) -> int:
    """Return the factor by which a JPEG can be decoded smaller, its sides `min_size` or more."""
    if not all(min_size) or not data.startswith(b"\xff\xd8"):
        return 1
    fits = [r for r in _REDUCED if size[0] >= r * min_size[0] and size[1] >= r * min_size[1]]
    return max(fits, default=1)


def read_image(root: str, path: str, min_size: tuple[int, int] = (0, 0)) -> Image:
    """Read and `decode` the file at `path` below `root`; DataError names the file."""
    return decode_file(read_bytes(root, path), root, path, min_size)


def decode_file(data: bytes, root: str, path: str, min_size: tuple[int, int] = (0, 0)) -> Image:
    """Decode bytes that were read from `path` below `root`, as `decode` does.

    Nothing is read here: the two names are for the DataError.
    """
    try:
        return decode(data, min_size)
    except DataError as error:
        raise DataError(f"{path} in {root}: {error}") from error


def resize(image: Image, height: int, width: int) -> Image:
    """Resize uint8 [H, W, 3] to [height, width, 3].

    Pixel areas are averaged when both sides shrink, since plain interpolation would alias; else
    bilinear (choice: ours).
    """
    shrinks = image.shape[0] > height and image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method).astype(np.uint8, copy=False)


def jpeg_segments(data: bytes) -> tuple[tuple[int, int], int]:
    """Return width and height of a JPEG, and the offset at which its compressed data starts.

    The offset, from which the end mark is searched, is in no public interface of Pillow or OpenCV.
    Raises IndexError or struct.error if the bytes end before that.
    """
    size = (0, 0)
    at = 2
    while True:
        at = data.find(b"\xff", at)  # decoders skip stray bytes between segments too
        if at < 0:
            raise IndexError("no compressed data")
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2  # padding, and markers without a length
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (width, height)
        at += 2 + length
        if marker == 0xDA:
            return size, at


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return width, abs(height)  # negative: rows from the top


def _tiff_size(data: bytes) -> tuple[int, int]:
    """Return the size of the first picture of a TIFF, from tags 256 (width) and 257 (height)."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    size = {256: 0, 257: 0}
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in size:
            (size[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 8)
    return size[256], size[257]


_HEADERS = (
    (b"\xff\xd8\xff", lambda data: jpeg_segments(data)[0]),
    (b"\x89PNG\r\n\x1a\n", lambda data: struct.unpack_from(">II", data, 16)),
    (b"BM", _bmp_size),
    (b"II*\0", _tiff_size),
    (b"MM\0*", _tiff_size),
)
