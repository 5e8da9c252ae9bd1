"""Augmentation of a training image: flip, pad and crop, another camera's look, random erasing.

The geometry is drawn once and applied to pixels and saliency mask, so the mask is computed once per
image (ours; SPT runs a second network on each augmented batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.config import AugmentConfig

ERASE_AREA = (0.02, 0.4)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 100
LUMA = (0.299, 0.587, 0.114)  # lightness of R, G and B


@dataclass(frozen=True)
class Geometry:
    """Where a padded image is cropped, after an optional flip."""

    flip: bool
    dy: int
    """Top of the crop in the padded image, 0..2 * pad; pad = not moved."""
    dx: int
    """Left of the crop, likewise."""

    @classmethod
    def draw(cls, config: AugmentConfig, rng: np.random.Generator) -> Geometry:
        """Draw a geometry."""
        dy, dx = rng.integers(0, 2 * config.pad, size=2, endpoint=True)
        return cls(bool(rng.random() < config.flip), int(dy), int(dx))


def apply_to_image(image: NDArray[np.uint8], geometry: Geometry, pad: int) -> NDArray[np.uint8]:
    """Flip uint8 [H, W, 3], pad with `pad` black pixels and crop back; a new array (CLIP-ReID)."""
    height, width = image.shape[:2]
    source = cv2.flip(image, 1) if geometry.flip else image
    to_rows, from_rows = _kept(height, geometry.dy - pad)
    to_columns, from_columns = _kept(width, geometry.dx - pad)
    out = np.zeros_like(image)
    out[to_rows, to_columns] = source[from_rows, from_columns]
    return out


def apply_to_masks(
    masks: NDArray[np.bool_], geometries: Sequence[Geometry], pad: int, height: int, width: int
) -> NDArray[np.bool_]:
    """Return the masks of `apply_to_image`'s results (ours).

    A patch is person if at least half of its pixels come from person patches, counted exactly; the
    padding is background.

    Args:
        masks: bool [D, H, W] patches.
        geometries: D of them.
        pad: pixels added on each side.
        height: pixels of the images; a multiple of the masks' rows.
        width: likewise, of their columns.

    Returns:
        bool [D, H, W].
    """
    count, rows, columns = masks.shape
    patch = height // rows, width // columns
    down = np.empty((count, rows, rows), np.float32)
    across = np.empty((count, columns, columns), np.float32)
    for k, geometry in enumerate(geometries):
        down[k] = _shared_pixels(rows, patch[0], geometry.dy - pad)
        shared = _shared_pixels(columns, patch[1], geometry.dx - pad).T
        across[k] = shared[::-1] if geometry.flip else shared
    person = down @ masks.astype(np.float32) @ across
    return 2 * person >= patch[0] * patch[1]


def _kept(size: int, offset: int) -> tuple[slice, slice]:
    """Return the slice of the crop that the source fills, and that of the source, on one axis."""
    kept = max(size - abs(offset), 0)
    into, out_of = max(-offset, 0), max(offset, 0)
    return slice(into, into + kept), slice(out_of, out_of + kept)


@lru_cache(maxsize=256)
def _shared_pixels(patches: int, size: int, offset: int) -> NDArray[np.float32]:
    """Count the pixels that patch k of the crop takes from patch l of the source, float32 [k, l].

    The crop begins `offset` pixels into the source. Whole numbers, so float32 products are exact.
    """
    source = np.arange(patches) * size
    crop = source[:, None] + offset
    shared = np.minimum(crop, source) + size - np.maximum(crop, source)
    return np.maximum(shared, 0).astype(np.float32)


def camera_jitter(
    image: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Change colours and sharpness as another camera would (ours).

    A random colour matrix (gain of each channel, saturation, contrast), a gamma curve, and in half
    of the pictures fewer pixels, all uniform in the logarithm about no change.

    Args:
        image: uint8 [H, W, 3] RGB.
        strength: 0 = no change; at 1 a channel's gain varies by a factor of 1.35 either way, gamma
            and contrast by 1.6, saturation by 1.8, and the width falls to a quarter at the least.
        rng: the only source of randomness.

    Returns:
        uint8 [H, W, 3], a new array.
    """

    def factor(spread: float) -> float:
        return float(spread ** (strength * rng.uniform(-1, 1)))

    gains = np.diag([factor(1.35) for _ in range(3)]) * factor(1.35)
    saturation, contrast, gamma = factor(1.8), factor(1.6), factor(1.6)
    colours = saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA, (3, 1))
    matrix = contrast * colours @ gains
    offset = (1 - contrast) * 0.45 * 255 * np.ones((3, 1))
    curve = 255 * (np.arange(256) / 255) ** gamma
    out = cv2.LUT(image, curve.astype(np.uint8))
    out = cv2.transform(out, np.hstack([matrix, offset]))
    if rng.random() < 0.5:
        height, width = image.shape[:2]
        scale = 4 ** (-strength * rng.random())
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        out = cv2.resize(out, small, interpolation=cv2.INTER_AREA)
        out = cv2.resize(out, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(out, np.uint8)


def random_erase(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Replace a random rectangle by random pixels (Zhong et al., Random Erasing, AAAI 2020, RE-R).

    The area is 2 to 40 % of the image and height / width 0.3 to 3.3, both uniform; rectangles that
    do not fit are drawn again, at most 100 times. The image, uint8 [H, W, 3], is copied.
    """
    out = image.copy()
    height, width = image.shape[:2]
    for _ in range(ERASE_ATTEMPTS):
        area, aspect = rng.uniform(*ERASE_AREA) * height * width, rng.uniform(*ERASE_ASPECT)
        rows, columns = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            top = rng.integers(0, height - rows, endpoint=True)
            left = rng.integers(0, width - columns, endpoint=True)
            noise = rng.integers(0, 256, (rows, columns, image.shape[2]), np.uint8)
            out[top : top + rows, left : left + columns] = noise
            break
    return out
