"""Boxes of persons in a picture, and how far two of them overlap."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.images import Image

Boxes = NDArray[np.float32]  # [N, 4]: left, top, right, bottom in pixels, right and bottom outside


class Detections(NamedTuple):
    """Persons that a detector finds in one picture.

    Attributes:
        boxes: float32 [N, 4], inside the picture.
        scores: float32 [N], in [0, 1].
    """

    boxes: Boxes
    scores: NDArray[np.float32]


class Detector(Protocol):
    """Finds persons in pictures; those of a video come in the order of time."""

    def detect(self, image: Image) -> Detections:
        """Return the persons of a picture, uint8 [H, W, 3] RGB; the best first."""
        ...


def overlap(first: Boxes, second: Boxes) -> NDArray[np.float32]:
    """Return intersection over union of each box [N, 4] with each [M, 4]: float32 [N, M]."""
    shared = _shared_area(first, second)
    union = _area(first)[:, None] + _area(second)[None] - shared
    return (shared / np.maximum(union, 1e-6)).astype(np.float32)


def share_inside(first: Boxes, second: Boxes) -> NDArray[np.float32]:
    """Return the share of each box [N, 4] that lies in each of [M, 4]: float32 [N, M]."""
    area = np.maximum(_area(first), 1e-6)[:, None]
    return (_shared_area(first, second) / area).astype(np.float32)


def _area(boxes: Boxes) -> NDArray[np.float32]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def _shared_area(first: Boxes, second: Boxes) -> NDArray[np.float32]:
    a, b = first[:, None], second[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.maximum(sides, 0).prod(-1)


def clip(boxes: Boxes, height: int, width: int) -> Boxes:
    """Cut boxes [N, 4] off at the edges of a picture."""
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes, 0, limits).astype(np.float32)
