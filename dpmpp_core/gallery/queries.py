"""Embed images as queries, one by one or fused, with a model or an exported one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dpmpp_core.data.images import Image, resize
from dpmpp_core.errors import ArgumentError
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.models.clip import grid_size
from dpmpp_core.models.embedded import Embedded
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel
from dpmpp_core.retrieval import fuse

SHOWN_FRAMES = 16  # of a tracklet


class ExportedModel(Protocol):
    """A model as `dpmpp export` writes it: it computes features and masks, and no more.

    Attributes:
        bands: number of horizontal bands of the person, 0 = none.
    """

    bands: int

    def embed(self, images: Any, batch: int = 64) -> Embedded:
        """Embed images, as `ReidModel.embed`."""
        ...


@dataclass(frozen=True)
class QueryEmbeddings:
    """Embeddings of Q queries.

    Attributes:
        features: Metric space -> float32 [Q, D].
        masks: Metric space -> float32 [Q, D].
        visible: float32 [Q, rows, columns] in (0, 1), whether each patch shows the person; None
            for a model without a visibility head.
        bands: float32 [Q, bands], how much the mask trusts each band of the person, from the top;
            None for a model without bands.
        occluded: bool [Q, rows, columns], patches that were masked from attention; None for a model
            that masks none.
    """

    features: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    visible: np.ndarray | None
    bands: np.ndarray | None
    occluded: np.ndarray | None = None


@torch.inference_mode()
def embed_queries(
    model: ReidModel | ExportedModel, pictures: Sequence[Image], masked: bool = True
) -> QueryEmbeddings:
    """Embed pictures [H, W, 3]; an exported model has no output for `visible`.

    Args:
        model: the model.
        pictures: of any size.
        masked: with their masks. If not, no patch is masked from attention, and all dimensions
            count alike.

    Raises:
        ArgumentError: not `masked`, of an exported model, whose graph masks attention itself.
    """
    if not masked:
        return _embed_unmasked(model, pictures)
    if not isinstance(model, ReidModel):
        result = model.embed(pictures)
        bands = _average_by_band(result.masks, model.bands)
        occluded = None if result.occluded is None else result.occluded > 0.5
        return QueryEmbeddings(result.features, result.masks, None, bands, occluded)
    size = model.data.height, model.data.width
    batch = np.stack([resize(picture, *size) for picture in pictures])
    device = next(model.parameters()).device
    reading = model(to_tensor_batch(batch, model.data.mean, model.data.std).to(device))
    features = model.retrieval_features(reading.features)
    masks = {space: mask.float().cpu().numpy() for space, mask in reading.masks.items()}
    visible = occluded = None
    if reading.visibility is not None:
        visible = reading.visibility.visible.sigmoid().float().cpu().numpy()
        if reading.visibility.occluded is not None:
            occluded = (reading.visibility.occluded > 0).cpu().numpy()
    return QueryEmbeddings(
        features={space: x.float().cpu().numpy() for space, x in features.items()},
        masks=masks,
        visible=visible,
        bands=_average_by_band(masks, model.config.bands),
        occluded=occluded,
    )


def _embed_unmasked(model: ReidModel | ExportedModel, pictures: Sequence[Image]) -> QueryEmbeddings:
    if not isinstance(model, ReidModel):
        result = model.embed(pictures)
        if result.occluded is not None:
            raise ArgumentError(
                "--no-mask: the exported graph masks attention itself; search with --engine torch"
            )
    else:
        grid = grid_size(model.config, model.data.height, model.data.width)
        nothing = np.zeros((len(pictures), *grid), bool)
        result = model.embed(pictures, masked=nothing)
    masks = {space: np.ones_like(x) for space, x in result.features.items()}
    return QueryEmbeddings(result.features, masks, visible=None, bands=None)


def _average_by_band(masks: Mapping[str, np.ndarray], bands: int) -> np.ndarray | None:
    if not bands:
        return None
    return masks[BANDS].reshape(len(masks[BANDS]), bands, -1).mean(axis=2)


def fuse_queries(parts: Sequence[QueryEmbeddings]) -> QueryEmbeddings:
    """Fuse all queries into one."""
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
    """Arrange frames in a square grid, each 128 high and 64 wide; empty cells are white."""
    across = math.isqrt(len(pictures) - 1) + 1
    grid = np.full((across, across, 128, 64, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        grid[divmod(number, across)] = resize(picture, 128, 64)
    return grid.transpose(0, 2, 1, 3, 4).reshape(128 * across, 64 * across, 3)


def select_query(queries: QueryEmbeddings, i: int) -> QueryEmbeddings:
    """Return query i alone."""
    row = slice(i, i + 1)
    return QueryEmbeddings(
        {space: x[row] for space, x in queries.features.items()},
        {space: x[row] for space, x in queries.masks.items()},
        None if queries.visible is None else queries.visible[row],
        None if queries.bands is None else queries.bands[row],
        None if queries.occluded is None else queries.occluded[row],
    )
