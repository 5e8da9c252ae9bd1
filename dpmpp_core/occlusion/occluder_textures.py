"""Synthetic occluders that hide a part of a picture (ours).

Patch transfer hides people behind the scenes of the training set, and random erasing behind noise.
A model that learns visibility from these alone takes any other stone, cloth or plank for clothing.
A texture is two colours mixed by waves and smooth noise of random scales.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

HIDDEN_AREA_RANGE = (0.1, 0.6)  # of the picture that is hidden
MAX_WAVES, WAVE_LENGTHS = 2, (6.0, 120.0)  # lengths in pixels, uniform in the logarithm
MAX_CLOUDS, CLOUD_CELLS = 2, (2.0, 64.0)  # cells along 128 pixels, likewise
GRAIN = 12.0  # largest std of the noise of single pixels


def paste_synthetic_occluder(
    image: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3] with 10 to 60 % behind a texture, from one edge or in a box."""
    out = image.copy()
    rows, columns = _place(image.shape[0], image.shape[1], rng)
    out[rows, columns] = draw_texture(rows.stop - rows.start, columns.stop - columns.start, rng)
    return out


def _place(height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Draw a region: top, bottom, left, right or a box, equally often."""
    share, kind = rng.uniform(*HIDDEN_AREA_RANGE), rng.integers(5)
    tall, wide = max(1, round(share * height)), max(1, round(share * width))
    if kind < 2:
        return (slice(0, tall) if kind == 0 else slice(height - tall, height)), slice(0, width)
    if kind < 4:
        return slice(0, height), (slice(0, wide) if kind == 2 else slice(width - wide, width))
    across = rng.uniform(max(0.3, share), 1.0)  # share of the width; the height makes up the area
    tall, wide = max(1, round(share / across * height)), max(1, round(across * width))
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    return slice(top, top + tall), slice(left, left + wide)


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
