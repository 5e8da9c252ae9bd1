"""A validation set out of training identities: what a search may look at (ours)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpmpp_core.data.manifest import Manifest
from dpmpp_core.errors import DataError

OCCLUDED = 0.1  # share of the person hidden from which a query counts as occluded


def hold_out(manifest: Manifest, share: float, seed: int, hidden: NDArray[Any]) -> Manifest:
    """The manifest with training identities as its test set, and the test set left out.

    Of each held-out identity, one image of every second camera becomes a query, all others become
    gallery, so that every query has a gallery image from another camera. Which identities, cameras
    and images: drawn from (seed, identity), so that more images of one person change no other.

    Args:
        share: of the identities seen by two cameras or more, in (0, 1).
        hidden: float [N], share hidden of each image of `manifest.images`, NaN where not known; a
            query with OCCLUDED or more counts as occluded.

    Raises:
        DataError: too few identities with two cameras, or too few left to train on.
    """
    images = manifest.images
    rows: dict[int, list[int]] = defaultdict(list)
    pids, camids = images["pid"].to_numpy(), images["camid"].to_numpy()
    for row in np.flatnonzero(images["split"].to_numpy(zero_copy_only=False) == "train"):
        rows[int(pids[row])].append(int(row))
    held = _held(manifest, rows, camids, share, seed)
    split = np.full(len(images), "", object)
    occluded = np.zeros(len(images), bool)
    for pid, own in rows.items():
        split[own] = "gallery" if pid in held else "train"
        if pid in held:
            queries = _queries(own, camids, np.random.default_rng([seed, pid]))
            split[queries] = "query"
            occluded[queries] = np.nan_to_num(hidden[queries]) >= OCCLUDED
    table = images.set_column(
        images.schema.get_field_index("split"), images.schema.field("split"), [split.tolist()]
    ).set_column(
        images.schema.get_field_index("occluded"), images.schema.field("occluded"), [occluded]
    )
    return manifest.with_images(table.filter(pa.array(split != "")))


def _held(
    manifest: Manifest, rows: dict[int, list[int]], camids: NDArray[Any], share: float, seed: int
) -> set[int]:
    """Identities to hold out."""
    seen = sorted(pid for pid, own in rows.items() if len({*camids[own]}) > 1)
    count = max(2, round(share * len(seen)))
    order = np.random.default_rng(seed).permutation(len(seen))
    held = {seen[i] for i in order[:count]}
    left = sum(len(own) > 1 for pid, own in rows.items() if pid not in held)
    if len(seen) < count or left < 2:
        raise DataError(
            f"{manifest.root}: of {len(rows)} training identities {len(seen)} are seen by two "
            f"cameras or more; {count} to validate on leave {left} with two images to train on, 2 "
            "are needed: lower the share, or add identities"
        )
    return held


def _queries(own: list[int], camids: NDArray[Any], rng: np.random.Generator) -> list[int]:
    """One image of every second camera; the others keep theirs."""
    cameras = rng.permutation(sorted({*camids[own].tolist()}))
    picked = cameras[: len(cameras) // 2]
    return [int(rng.choice([row for row in own if camids[row] == camera])) for camera in picked]
