"""Pictures as a user has them: paths, bytes of a file, Pillow images, arrays."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpmpp_core.config import DataConfig
from dpmpp_core.data.headers import ImageError
from dpmpp_core.data.images import Image, decode, read_image, resize

if TYPE_CHECKING:
    import PIL.Image

    Picture = str | os.PathLike[str] | bytes | PIL.Image.Image | Image


def list_pictures(pictures: Picture | Sequence[Picture] | Image) -> Sequence[Any]:
    """Return a sequence of pictures; one picture becomes a sequence of itself."""
    single = isinstance(pictures, (str, os.PathLike, bytes)) or _is_pillow(pictures)
    if single or (isinstance(pictures, np.ndarray) and pictures.ndim == 3):
        return [pictures]
    return pictures  # type: ignore[return-value]


def read_picture(picture: Picture, number: int = 0) -> Image:
    """Return a picture as uint8 [H, W, 3] RGB; files are read as `decode` does.

    A Pillow image is turned upright by its EXIF orientation, as a file is.

    Args:
        picture: a path, the bytes of a file, a Pillow image, or uint8 [H, W, 3] RGB.
        number: its position among several, for the errors.

    Raises:
        ValueError: of another type or shape.
        DataError: a path or bytes that hold no readable image.
    """
    item: Any = picture
    if isinstance(item, (str, os.PathLike)):
        path = Path(item)
        return read_image(str(path.parent), path.name)
    if isinstance(item, bytes):
        try:
            return decode(item)
        except ImageError as error:
            raise ImageError(error.reason, f"image {number}: {error}") from None
    if _is_pillow(item):
        from PIL import ImageOps

        item = np.asarray(ImageOps.exif_transpose(item).convert("RGB"))
    rgb = isinstance(item, np.ndarray) and item.ndim == 3 and item.shape[2] == 3
    if not rgb or item.dtype != np.uint8 or not item.size:
        array = isinstance(item, np.ndarray)
        given = f"{item.dtype} {item.shape}" if array else type(item).__name__
        raise ValueError(
            f"image {number}: uint8 [H, W, 3] RGB, a path, bytes of a file or a Pillow image is "
            f"needed, not {given}"
        )
    return item


def fit_pictures(pictures: Sequence[Any], data: DataConfig, first: int = 0) -> Image:
    """Read and resize pictures to uint8 [N, height, width, 3], the size of `data`.

    Errors are those of `read_picture`; `first` is the position of the first one, for them.
    """
    read = (read_picture(picture, number) for number, picture in enumerate(pictures, first))
    return np.stack([resize(picture, data.height, data.width) for picture in read])


def _is_pillow(picture: object) -> bool:
    pillow = sys.modules.get("PIL.Image")  # where it is not loaded, nobody holds such an image
    return pillow is not None and isinstance(picture, pillow.Image)
