"""Persons as what moves before a fixed camera; needs no weights.

The background is a mixture of Gaussians per pixel (Zivkovic, ICPR 2004; OpenCV's MOG2). What moves
in the shape of an upright person is taken for one (ours). Who stands still becomes background, two
who walk close together are one shape that is left out, and a car is left out by its shape alone.
"""

from __future__ import annotations

import cv2
import numpy as np

from dpmpp_core.data.images import Image
from dpmpp_core.detection.boxes import Detections, clip

WORK_HEIGHT = 360  # pixels to which a picture is shrunk; a larger one moves no better
HISTORY_FRAMES = 300  # after so many without motion a person is background
VARIANCE_THRESHOLD = 20.0  # squared distance in standard deviations from which a pixel moves
MIN_RATIO, MAX_RATIO = 1.25, 4.5  # height by width of an upright person
MIN_FILL = 0.35  # share of the box that moves
LEARNING_FRAMES = 3  # of the background, before anything is taken for a person
MOVING = 255  # value of MOG2's mask; 127 is a shadow
DARKEST_SHADOW = 0.7  # of the background's brightness; below, dark clothes are taken for a shadow


class MotionDetector:
    """Finds what moves in the shape of a person; one for each video.

    Args:
        min_height: pixels of the smallest person.
    """

    def __init__(self, min_height: int) -> None:
        self._background = cv2.createBackgroundSubtractorMOG2(HISTORY_FRAMES, VARIANCE_THRESHOLD)
        self._background.setShadowThreshold(DARKEST_SHADOW)
        self._min_height = min_height
        self._seen = 0

    def detect(self, image: Image) -> Detections:
        """Return what moves, with the moving share of its box as score; see `Detector`."""
        height, width = image.shape[:2]
        scale = min(1.0, WORK_HEIGHT / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        mask = self._background.apply(cv2.GaussianBlur(small, (0, 0), 1.0))
        self._seen += 1
        if self._seen <= LEARNING_FRAMES:
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        smallest = max(4.0, self._min_height * scale)
        moving = _join_parts((mask == MOVING).astype(np.uint8), smallest)
        boxes, scores = _person_shapes(moving, smallest)
        order = np.argsort(-scores, kind="stable")
        boxes = (boxes[order] / scale).astype(np.float32)
        return Detections(clip(boxes, height, width), scores[order])


def _join_parts(moving: np.ndarray, smallest: float) -> np.ndarray:
    """Remove specks of a mask, uint8 [H, W], and join the parts of a person across its gaps."""
    clean = cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    tall, wide = max(3, round(smallest / 6)), max(3, round(smallest / 12))
    return cv2.morphologyEx(clean, cv2.MORPH_CLOSE, np.ones((tall, wide), np.uint8))


def _person_shapes(moving: np.ndarray, smallest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes [N, 4] and moving shares [N] of the connected parts that may be persons."""
    stats = cv2.connectedComponentsWithStats(moving, connectivity=8)[2][1:]
    left, top, wide, tall, area = stats.T.astype(np.float32).reshape(5, -1)
    ratio, fill = tall / np.maximum(wide, 1), area / np.maximum(wide * tall, 1)
    kept = (tall >= smallest) & (ratio >= MIN_RATIO) & (ratio <= MAX_RATIO) & (fill >= MIN_FILL)
    boxes = np.stack([left, top, left + wide, top + tall], 1)
    return boxes[kept], np.minimum(fill, 1)[kept]
