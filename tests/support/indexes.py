"""A small index, and a large one of drawn features with queries for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from dpmpp_core.gallery.queries import QueryEmbeddings
from dpmpp_core.index import ROW_SCHEMA, GalleryIndex, ModelVersion

MODEL = ModelVersion(weights_sha256="a" * 64, spaces={"visual": 64, "bands": 256})


def build_small_index(folder: Path) -> GalleryIndex:
    """Three images of two cameras; two of them have the same file name."""
    names = ["/d/camA/1.jpg", "/d/camB/1.jpg", "/d/camB/2.jpg"]
    columns = {
        "image": names, "sha256": names, "bytes": [1] * 3, "mtime_ns": [1] * 3,
        "pid": [1, 1, None], "camid": [3, 4, None], "time": [None] * 3,
    }  # fmt: skip
    model = ModelVersion(weights_sha256="a" * 64, spaces={"visual": 8})
    features = {"visual": np.eye(3, 8, dtype=np.float32)}
    empty = GalleryIndex.create(folder, model, "m")
    return empty.append(model, pa.table(columns, schema=ROW_SCHEMA), features)[0]


def build_large_index(folder: Path) -> GalleryIndex:
    """Seven segments of 14,000 rows, many of them equal, some deleted."""
    index = GalleryIndex.create(folder, MODEL, "m")
    rng = np.random.default_rng(0)
    for segment in range(7):
        count = 2000
        names = [f"{segment}-{i}.jpg" for i in range(count)]
        columns = {
            "image": names, "sha256": names, "bytes": [1] * count, "mtime_ns": [1] * count,
            "pid": rng.integers(0, 50, count), "camid": rng.integers(0, 4, count),
            "time": rng.integers(0, 1000, count),
        }  # fmt: skip
        distinct = rng.integers(0, 300, count)
        features = {
            space: np.random.default_rng(1).normal(size=(300, d)).astype(np.float32)[distinct]
            for space, d in MODEL.spaces.items()
        }
        index, _ = index.append(MODEL, pa.table(columns, schema=ROW_SCHEMA), features)
    return index.delete(images=["3-7.jpg", "6-1999.jpg"])[0]


def draw_queries(count: int) -> QueryEmbeddings:
    rng = np.random.default_rng(5)
    features, masks = (
        {
            space: rng.uniform(0.01, 1, (count, d)).astype(np.float32)
            for space, d in MODEL.spaces.items()
        }
        for _ in range(2)
    )
    return QueryEmbeddings(features, masks, None, None)
