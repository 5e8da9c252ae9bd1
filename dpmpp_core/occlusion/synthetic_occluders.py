"""Synthetic occluders that hide a part of a picture (ours).

Patch transfer hides people behind the scenes of the training set, and random erasing behind noise.
A model that learns visibility from these alone takes any other stone, cloth or plank for clothing.
An occluder is a shape filled with a texture, or with a piece of another picture, which may show
another person. A texture is two colours mixed by waves and smooth noise of random scales.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

HIDDEN_AREA_RANGE = (0.08, 0.65)  # of the picture that is hidden
TEXTURE_SHARE = 0.5  # of the occluders; the others are pieces of pictures
LARGEST_ZOOM = 2.5  # of a piece of a picture
MAX_WAVES, WAVE_LENGTHS = 2, (6.0, 120.0)  # lengths in pixels, uniform in the logarithm
MAX_CLOUDS, CLOUD_CELLS = 2, (2.0, 64.0)  # cells along 128 pixels, likewise
GRAIN = 12.0  # largest std of the noise of single pixels
BLUR = (0.4, 1.5)  # std of the blur of an edge, pixels


def paste_synthetic_occluder(
    image: NDArray[np.uint8], other: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Hide a part of `image` behind a texture or a piece of `other`, both uint8 [H, W, 3].

    Returns:
        the new picture, and where the occluder is, bool [H, W].
    """
    height, width = image.shape[:2]
    shape = draw_shape(height, width, rng)
    textured = rng.random() < TEXTURE_SHARE
    front = draw_texture(height, width, rng) if textured else _piece(other, rng)
    above, below = rng.uniform(0.5, 1.2, 2)
    light = np.linspace(above, below, height, dtype=np.float32)[:, None, None]
    edge = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), rng.uniform(*BLUR))[..., None]
    mixed = image + edge * (np.minimum(front * light, 255) - image)
    return mixed.astype(np.uint8), shape


def draw_shape(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a region: beyond an edge of any slant, a strip, an ellipse, a box or a blob."""
    y = np.arange(height, dtype=np.float32)[:, None] / height
    x = np.arange(width, dtype=np.float32) / width
    share, kind = rng.uniform(*HIDDEN_AREA_RANGE), rng.integers(6)
    if kind <= 1:
        side = rng.integers(4) * np.pi / 2 + rng.normal(0, rng.choice([0.1, 0.5]))
        distance = np.cos(side) * x + np.sin(side) * y
        return distance > np.quantile(distance, 1 - share)
    if kind == 2:
        along, across = (x, y) if rng.random() < 0.5 else (y, x)
        middle = rng.uniform(0.1, 0.9) + rng.normal(0, 0.2) * (across - 0.5)
        return np.abs(along - middle) + 0 * across < 0.4 * share + 0.03
    top, left = rng.random(2)
    tall, wide = np.sqrt(share / np.pi) * np.exp(np.array([1, -1]) * rng.normal(0, 0.4))
    if kind == 3:
        return ((x - left) / wide) ** 2 + ((y - top) / tall) ** 2 < 1
    if kind == 4:
        return (np.abs(x - left) < wide) & (np.abs(y - top) < tall)
    coarse = rng.standard_normal((rng.integers(3, 9), rng.integers(2, 6))).astype(np.float32)
    blob = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    blob -= np.hypot(x - left, y - top)
    return blob > np.quantile(blob, 1 - share)


def _piece(other: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Enlarge a random piece of a picture to the picture's size; half of them mirrored."""
    height, width = other.shape[:2]
    zoom = rng.uniform(1, LARGEST_ZOOM)
    tall, wide = int(height / zoom), int(width / zoom)
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    piece = other[top : top + tall, left : left + wide]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    return cv2.resize(piece, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def draw_texture(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a texture, uint8 [height, width, 3]."""
    first, second = rng.integers(0, 256, (2, 3)).astype(np.float32)
    field = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(MAX_WAVES + 1)):
        field += _wave(height, width, rng)
    for _ in range(rng.integers(MAX_CLOUDS + 1)):
        cells = _log_uniform(CLOUD_CELLS, rng) / 128
        coarse = (max(2, int(cells * height)), max(2, int(cells * width)))
        cloud = rng.standard_normal(coarse, np.float32) * np.float32(rng.uniform(0.2, 1))
        field += cv2.resize(cloud, (width, height), interpolation=cv2.INTER_LINEAR)
    blend = np.clip(0.5 + np.float32(rng.uniform(0.1, 0.75)) * field, 0, 1)[..., None]
    grain = np.float32(rng.uniform(0, GRAIN)) * rng.standard_normal((height, width, 1), np.float32)
    return np.clip(second + (first - second) * blend + grain, 0, 255).astype(np.uint8)


def _wave(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a plane wave in [-1, 1]; half of them have hard edges, as stripes and planks have."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    turn = 2 * np.pi / _log_uniform(WAVE_LENGTHS, rng)
    y = np.arange(height, dtype=np.float32)[:, None] * np.float32(turn * np.sin(angle))
    x = np.arange(width, dtype=np.float32) * np.float32(turn * np.cos(angle)) + np.float32(phase)
    wave = np.sin(y + x)
    return np.sign(wave) if rng.random() < 0.5 else wave


def _log_uniform(span: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(span))))
