"""A validation set of training identities, for hyperparameter search (ours)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpmpp_core.data.manifest import Manifest
from dpmpp_core.errors import DataError

MIN_OCCLUSION_RATIO = 0.1  # share of the person hidden from which a query counts as occluded


def hold_out(manifest: Manifest, share: float, seed: int, ratios: NDArray[Any]) -> Manifest:
    """Return the manifest with training identities as its test set, without the original test set.

    Of each held-out identity, one image of every second camera becomes a query, all others become
    gallery, so every query has a gallery image from another camera. Identities, cameras and images
    are drawn from (seed, identity), so further images of one person change no other.

    Args:
        manifest: of the whole data set.
        share: of the identities seen by two cameras or more, in (0, 1).
        seed: non-negative.
        ratios: float [N], occlusion ratio of each image of `manifest.images`, NaN where not known;
            a query with MIN_OCCLUSION_RATIO or more counts as occluded.

    Raises:
        DataError: too few identities with two cameras, or too few left to train on.
    """
    images = manifest.images
    rows: dict[int, list[int]] = defaultdict(list)
    pids, camids = images["pid"].to_numpy(), images["camid"].to_numpy()
    for row in np.flatnonzero(images["split"].to_numpy(zero_copy_only=False) == "train"):
        rows[int(pids[row])].append(int(row))
    held = _draw_identities(manifest, rows, camids, share, seed)
    split = np.full(len(images), "", object)
    occluded = np.zeros(len(images), bool)
    for pid, of_person in rows.items():
        split[of_person] = "gallery" if pid in held else "train"
        if pid in held:
            queries = _draw_queries(of_person, camids, np.random.default_rng([seed, pid]))
            split[queries] = "query"
            occluded[queries] = np.nan_to_num(ratios[queries]) >= MIN_OCCLUSION_RATIO
    for name, values in (("split", split.tolist()), ("occluded", occluded)):
        index = images.schema.get_field_index(name)
        images = images.set_column(index, images.schema.field(index), [values])
    return manifest.with_images(images.filter(pa.array(split != "")))


def _draw_identities(
    manifest: Manifest, rows: dict[int, list[int]], camids: NDArray[Any], share: float, seed: int
) -> set[int]:
    seen = sorted(pid for pid, of_person in rows.items() if len({*camids[of_person]}) > 1)
    count = max(2, round(share * len(seen)))
    order = np.random.default_rng(seed).permutation(len(seen))
    held = {seen[i] for i in order[:count]}
    left = sum(len(of_person) > 1 for pid, of_person in rows.items() if pid not in held)
    if len(seen) < count or left < 2:
        raise DataError(
            f"{manifest.root}: of {len(rows)} training identities {len(seen)} are seen by two "
            f"cameras or more; {count} to validate on leave {left} with two images to train on, 2 "
            "are needed: lower the share, or add identities"
        )
    return held


def _draw_queries(rows: list[int], camids: NDArray[Any], rng: np.random.Generator) -> list[int]:
    cameras = rng.permutation(sorted({*camids[rows].tolist()}))
    picked = cameras[: len(cameras) // 2]
    return [int(rng.choice([row for row in rows if camids[row] == camera])) for camera in picked]
