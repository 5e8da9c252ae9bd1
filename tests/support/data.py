"""Manifest rows, pictures, and the makers of steps out of them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from dpmpp_core.config import AugmentConfig, DataConfig, OcclusionConfig
from dpmpp_core.data.plan import StepPlan
from dpmpp_core.data.steps import StepMaker, TrainingImages

DATA = DataConfig(height=64, width=32)
GRID = (4, 2)
BOUNDS = OcclusionConfig(min_ratio=0, max_ratio=0.9, min_oiou=0.5, bank=0)


def row(path: str, pid: int, camid: int, split: str, **changes: Any) -> dict[str, Any]:
    plain = {
        "path": path,
        "pid": pid,
        "camid": camid,
        "split": split,
        "occluded": False,
        "width": 64,
        "height": 128,
        "bytes": 100,
        "sha256": path,
        "reason": "",
        "detail": "",
    }
    return plain | changes


def write_images(root):
    """Thirty small pictures of noise, of two sizes."""
    rng = np.random.default_rng(0)
    for row in range(30):
        size = (64, 32) if row % 2 else (50, 20)
        cv2.imwrite(str(root / f"{row}.png"), rng.integers(1, 256, (*size, 3), np.uint8))


def maker(folder, occlusion=BOUNDS, augment=None, cache_bytes=2**20, seed=7, **parts):
    """A step maker; `parts` are further arguments, by default what a visibility head needs."""
    parts = {"visibility": True, "attention_masks": (0.3, 0.4)} | parts
    labels, camids = np.arange(30) % 6, np.arange(30) % 5
    masks = np.random.default_rng(1).random((30, *GRID)) < 0.7
    return StepMaker(
        TrainingImages(str(folder), [f"{row}.png" for row in range(30)], labels, camids, masks),
        plan=StepPlan(labels, camids, 4, 2, seed),
        data=DATA,
        augment=augment or AugmentConfig(),
        occlusion=occlusion,
        cache_bytes=cache_bytes,
        **parts,
    )


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        assert np.array_equal(left[key], right[key]), key
