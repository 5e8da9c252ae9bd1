"""Pictures as queries: what a model, or an exported one, tells of them, one by one or fused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpmpp_core.data.images import Image, resize
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel
from dpmpp_core.retrieval import fuse
from pipelines.inference.onnx_model import OnnxModel

SHOWN_FRAMES = 16  # of a tracklet


@dataclass(frozen=True)
class QueryEmbeddings:
    """Q queries.

    Attributes:
        features, masks: metric space -> float32 [Q, D].
        visible: float32 [Q, rows, columns] in (0, 1), is this patch seen to be the person? None
            for a model that does not tell.
        bands: float32 [Q, bands], how much the mask trusts each band of the person, from the top;
            None for a model without bands.
    """

    features: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    visible: np.ndarray | None
    bands: np.ndarray | None


@torch.inference_mode()
def embed_queries(model: ReidModel | OnnxModel, pictures: Sequence[Image]) -> QueryEmbeddings:
    """Features and masks of pictures [H, W, 3], and what the model saw of the person in them.

    An exported model does not tell which patches it took for the person.
    """
    if isinstance(model, OnnxModel):
        made = model.embed(pictures)
        return QueryEmbeddings(made.features, made.masks, None, _by_band(made.masks, model.bands))
    size = model.data.height, model.data.width
    batch = np.stack([resize(picture, *size) for picture in pictures])
    device = next(model.parameters()).device
    reading = model(to_tensor_batch(batch, model.data.mean, model.data.std).to(device))
    features = model.retrieval_features(reading.features)
    masks = {space: mask.float().cpu().numpy() for space, mask in reading.masks.items()}
    visible = reading.visible
    return QueryEmbeddings(
        features={space: x.float().cpu().numpy() for space, x in features.items()},
        masks=masks,
        visible=None if visible is None else visible.sigmoid().float().cpu().numpy(),
        bands=_by_band(masks, model.config.bands),
    )


def _by_band(masks: Mapping[str, np.ndarray], bands: int) -> np.ndarray | None:
    if not bands:
        return None
    return masks[BANDS].reshape(len(masks[BANDS]), bands, -1).mean(axis=2)


def fuse_queries(parts: Sequence[QueryEmbeddings]) -> QueryEmbeddings:
    """All queries as one."""
    spaces = parts[0].features
    features, masks = (
        {s: np.concatenate([getattr(part, kind)[s] for part in parts]) for s in spaces}
        for kind in ("features", "masks")
    )
    rows = np.arange(len(next(iter(features.values()))))[None]
    own = [part.bands for part in parts if part.bands is not None]
    bands = np.concatenate(own).max(axis=0, keepdims=True) if own else None
    return QueryEmbeddings(*fuse(features, masks, rows), visible=None, bands=bands)


def tile_frames(pictures: Sequence[Image]) -> Image:
    """Frames in a square grid, each 128 high and 64 wide; empty cells are white."""
    across = math.isqrt(len(pictures) - 1) + 1
    grid = np.full((across, across, 128, 64, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        grid[divmod(number, across)] = resize(picture, 128, 64)
    return grid.transpose(0, 2, 1, 3, 4).reshape(128 * across, 64 * across, 3)


def select_query(asked: QueryEmbeddings, i: int) -> QueryEmbeddings:
    """Query i alone."""
    row = slice(i, i + 1)
    return QueryEmbeddings(
        {space: x[row] for space, x in asked.features.items()},
        {space: x[row] for space, x in asked.masks.items()},
        None if asked.visible is None else asked.visible[row],
        None if asked.bands is None else asked.bands[row],
    )
