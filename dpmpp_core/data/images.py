"""Decoding of image files; without torch, so that data workers need not load it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.files import read_bytes
from dpmpp_core.data.headers import MAX_BYTES, ImageError, check_image
from dpmpp_core.data.heif import decode_heif, heif_kind

Image = NDArray[np.uint8]
_REDUCED = {  # factors of decoding a JPEG smaller; the colour flag takes precedence over "grey"
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# Our own errors name the file and its problem, once.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes, min_size: tuple[int, int] = (0, 0)) -> Image:
    """Decode an image file to uint8 [H, W, 3], RGB, turned upright by its EXIF orientation.

    Grey and CMYK become RGB, 16 bits are scaled to 8, an alpha channel is dropped (the colour
    below it stays). A JPEG of `min_size` times two, four or eight in height and width is decoded
    at a half, quarter or eighth of its size, which takes less time; (0, 0) = always in full.

    Raises:
        ImageError: the file is no whole picture of a permitted size; the file is not named.
    """
    width, height = check_image(data)
    pixels = np.frombuffer(data, np.uint8)
    factor = _reduction(data, (height, width), min_size)
    kind = heif_kind(data)
    image = _decode_heif(data, kind) if kind else _imdecode(pixels, factor)
    if factor > 1 and (image.shape[0] < min_size[0] or image.shape[1] < min_size[1]):
        image = _imdecode(pixels, factor := 1)  # turned by its EXIF orientation
    expected = {*image.shape[:2]} == {height, width}
    if kind:  # its header may state what a decoder cuts off
        sides = zip(sorted(image.shape[:2]), sorted((height, width)), strict=True)
        expected = all(side <= stated for side, stated in sides)
    if factor == 1 and not expected:
        detail = f"{image.shape[1]}x{image.shape[0]} pixels, but {width}x{height} in its header"
        raise ImageError("not_an_image", detail)
    return image


def _imdecode(pixels: NDArray[np.uint8], factor: int) -> Image:
    try:
        image = cv2.imdecode(pixels, _REDUCED[factor])
    except cv2.error as error:
        raise ImageError("truncated", f"the image does not decode: {error.err}") from error
    if image is None:
        raise ImageError("truncated", "the image does not decode")
    return image.astype(np.uint8, copy=False)


def _decode_heif(data: bytes, kind: str) -> Image:
    try:
        return decode_heif(data, kind)
    except ImportError:
        detail = f"{kind} needs the package pi-heif: pip install 'dpmpp[heic]'"
        raise ImageError("no_decoder", detail) from None
    except Exception as error:  # decoders have many
        raise ImageError("truncated", f"the image does not decode: {error}") from error


def _reduction(data: bytes, size: tuple[int, int], min_size: tuple[int, int]) -> int:
    """Return the factor by which a JPEG can be decoded smaller, its sides `min_size` or more."""
    if not all(min_size) or not data.startswith(b"\xff\xd8"):
        return 1
    fits = [r for r in _REDUCED if size[0] >= r * min_size[0] and size[1] >= r * min_size[1]]
    return max(fits, default=1)


def read_image(root: str, path: str, min_size: tuple[int, int] = (0, 0)) -> Image:
    """Read and `decode` the file at `path` below `root`; DataError names the file."""
    return decode_file(read_bytes(root, path, MAX_BYTES + 1), root, path, min_size)


def decode_file(data: bytes, root: str, path: str, min_size: tuple[int, int] = (0, 0)) -> Image:
    """Decode bytes that were read from `path` below `root`, as `decode` does.

    Nothing is read here: the two names are for the DataError.
    """
    try:
        return decode(data, min_size)
    except ImageError as error:
        raise ImageError(error.reason, f"{path} in {root}: {error}") from error


def is_wide(image: Image) -> bool:
    """Return whether a picture [H, W, 3] is wider than high, as few of one person are."""
    return image.shape[1] > image.shape[0]


def resize(image: Image, height: int, width: int) -> Image:
    """Resize uint8 [H, W, 3] to [height, width, 3].

    Pixel areas are averaged when both sides shrink, since plain interpolation would alias; else
    bilinear (choice: ours).
    """
    shrinks = image.shape[0] > height and image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method).astype(np.uint8, copy=False)
