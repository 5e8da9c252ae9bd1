"""Donors of occlusions: any training image, or a picture without people in the shape of one.

The pairing compares masks alone, so only the pictures of the donors that are drawn are read.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.config import AugmentConfig, OcclusionConfig
from dpmpp_core.data.augment import Geometry, apply_to_image, apply_to_masks
from dpmpp_core.data.files import list_files
from dpmpp_core.data.headers import IMAGE_NAME, NOT_AN_IMAGE_NAME
from dpmpp_core.data.images import Image, decode_file, read_image, resize
from dpmpp_core.data.packed import PackedImages
from dpmpp_core.errors import DataError

log = logging.getLogger(__name__)

CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class OccluderBank:
    """D donors, each with a geometry; no picture is read yet."""

    rows: NDArray[np.int64]
    """[D] training row whose mask the donor has."""
    backgrounds: NDArray[np.int64]
    """[D] index of the background that it shows in place of the row's image, -1 = none."""
    geometries: list[Geometry]
    places: NDArray[np.float64]
    """[D] where the background's window lies along its longer side, in [0, 1)."""
    masks: NDArray[np.bool_]
    """[D, gh, gw] after augmentation, True = person."""


class Donors:
    """Draws banks of donors from all training images, and returns the pictures of single donors.

    A background shows no person: it borrows the mask of the training row drawn in its place, and
    the recipient is seen through that shape (ours).

    Args:
        images: the training images.
        masks: bool [N, gh, gw] saliency, True = person.
        augment: how donors are flipped and moved.
        occlusion: `backgrounds` and `background_share` are read.

    Raises:
        DataError: the folder of backgrounds cannot be read or holds no image.
    """

    def __init__(
        self,
        images: ImageCache,
        masks: NDArray[np.bool_],
        augment: AugmentConfig,
        occlusion: OcclusionConfig,
    ) -> None:
        self._images, self._masks, self._augment = images, masks, augment
        self._share = occlusion.background_share if occlusion.backgrounds else 0.0
        self._backgrounds: ImageCache | None = None
        if occlusion.backgrounds:
            root, (height, width) = occlusion.backgrounds, images.size
            self._backgrounds = ImageCache(
                root, list_backgrounds(root), height, width, images.max_bytes, cover=True
            )

    def draw(self, count: int, rng: np.random.Generator) -> OccluderBank:
        """Draw donors from all rows, none twice unless there are fewer; backgrounds come first."""
        population, pad = len(self._masks), self._augment.pad
        rows = rng.choice(population, count, replace=count > population)
        backgrounds = np.full(count, -1, np.int64)
        if self._backgrounds is not None:
            shown = round(self._share * count)
            backgrounds[:shown] = rng.integers(0, len(self._backgrounds), shown)
        offsets = rng.integers(0, 2 * pad, (count, 2), endpoint=True)
        flips = rng.random(count) < self._augment.flip
        geometries = [
            Geometry(bool(flip), int(dy), int(dx))
            for flip, (dy, dx) in zip(flips, offsets, strict=True)
        ]
        height, width = self._images.size
        masks = apply_to_masks(self._masks[rows], geometries, pad, height, width)
        return OccluderBank(rows, backgrounds, geometries, rng.random(count), masks)

    def picture(self, bank: OccluderBank, donor: int) -> Image:
        """Return the donor's pixels, uint8 [height, width, 3], a new array; may raise DataError."""
        geometry, shown = bank.geometries[donor], int(bank.backgrounds[donor])
        if shown < 0:
            image = self._images[int(bank.rows[donor])]
            return apply_to_image(image, geometry, self._augment.pad)
        assert self._backgrounds is not None
        return _window(
            self._backgrounds[shown], geometry.flip, bank.places[donor], *self._images.size
        )

    def source(self, bank: OccluderBank, donor: int) -> str:
        """Return the path of the donor's picture below the data's root, or of a background."""
        shown = int(bank.backgrounds[donor])
        if shown < 0:
            return self._images.paths[int(bank.rows[donor])]
        assert self._backgrounds is not None
        return f"{self._backgrounds.root}/{self._backgrounds.paths[shown]}"


def list_backgrounds(root: str) -> list[str]:
    """Return the paths of the images below `root`, sorted; DataError if there are none.

    Files that are no images by their names are left out, and counted in the log.
    """
    files = list_files(root).files
    paths = [file.path for file in files if IMAGE_NAME.search(file.path)]
    if len(paths) < len(files):
        log.info("%s: %d files are %s, and left out", root, len(files) - len(paths),
                 NOT_AN_IMAGE_NAME)  # fmt: skip
    if not paths:
        raise DataError(
            f"occlusion.backgrounds {root} holds no image (.jpg, .jpeg, .png, .bmp, .tif): name a "
            "folder of pictures without people"
        )
    return paths


def _window(image: Image, flip: bool, place: float, height: int, width: int) -> Image:
    """Cut height x width pixels out of a picture, `place` of the way along it."""
    top = int(place * (image.shape[0] - height + 1))
    left = int(place * (image.shape[1] - width + 1))
    window = image[top : top + height, left : left + width]
    return (cv2.flip(window, 1) if flip else window.copy()).astype(np.uint8, copy=False)


class ImageCache:
    """Decoded and resized images by number, the most recently used ones kept in memory.

    Args:
        root: folder of the images.
        paths: relative to root.
        height: pixels of every image.
        width: likewise.
        max_bytes: at most so many bytes are kept.
        cover: keep the aspect ratio; height and width are then the least ones.
        packed: where the files are read from, if not from root.
    """

    def __init__(
        self,
        root: str,
        paths: Sequence[str],
        height: int,
        width: int,
        max_bytes: int = CACHE_BYTES,
        cover: bool = False,
        packed: PackedImages | None = None,
    ) -> None:
        self.root, self.paths, self.size, self.max_bytes = root, paths, (height, width), max_bytes
        self._cover, self._packed = cover, packed
        self._kept: OrderedDict[int, Image] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Image:
        """Return an image, uint8 [H, W, 3], read-only; DataError names a bad file."""
        image = self._kept.get(number)
        if image is not None:
            self._kept.move_to_end(number)
            return image
        image = self._resized(self._read(number))
        image.setflags(write=False)
        self._kept[number] = image
        self._bytes += image.nbytes
        while self._bytes > self.max_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return image

    def _read(self, number: int) -> Image:
        if self._packed is None:
            return read_image(self.root, self.paths[number], self.size)
        data = self._packed.read(number)
        return decode_file(data, self.root, self.paths[number], self.size)

    def _resized(self, pixels: Image) -> Image:
        height, width = self.size
        if self._cover:
            scale = max(height / pixels.shape[0], width / pixels.shape[1])
            height = max(height, round(scale * pixels.shape[0]))
            width = max(width, round(scale * pixels.shape[1]))
        return resize(pixels, height, width)
