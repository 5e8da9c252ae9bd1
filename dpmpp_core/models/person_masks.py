"""Four providers of person masks.

Each is called with pictures uint8 [N, H, W, 3] RGB of the run's size and their N paths, and returns
bool [N, gh, gw], True = person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpmpp_core.config import Config, DataConfig
from dpmpp_core.data.given_masks import GivenMasks
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import start_clip
from dpmpp_core.models.saliency import SaliencyModel
from dpmpp_core.occlusion.saliency import attention_saliency, resample_area, spectral_saliency

PersonMasks = Callable[[NDArray[np.uint8], Sequence[str]], NDArray[np.bool_]]
BATCH = 64  # pictures per forward pass


def person_masks(
    config: Config,
    root: str,
    grid: tuple[int, int],
    model: SaliencyModel | None = None,
    device: str = "cpu",
) -> PersonMasks:
    """Create the provider that `config.saliency.provider` names.

    Args:
        config: the run's configuration.
        root: the data folder; `given` reads the masks there.
        grid: (gh, gw) of the masks wanted.
        model: the trained saliency model; for `sps`.
        device: a torch device, for those that have a model.

    Raises:
        DataError: `given`, and the data has no masks.
        ConfigError, WeightsError: `attention`, as `start_clip`.
    """
    section = config.saliency
    if section.provider == "given":
        return GivenMasks(root, grid)
    if section.provider == "spectral":
        return SpectralMasks(grid, section.target_ratio)
    if section.provider == "attention":
        return AttentionMasks(config, grid, device)
    assert model is not None
    return LearnedMasks(model, grid, device)


class SpectralMasks:
    """`spectral_saliency` of each picture; no model (ours)."""

    def __init__(self, grid: tuple[int, int], target_ratio: float) -> None:
        self._grid, self._target_ratio = grid, target_ratio

    def __call__(self, images: NDArray[np.uint8], paths: Sequence[str]) -> NDArray[np.bool_]:
        """See the module."""
        return np.stack([spectral_saliency(x, self._grid, self._target_ratio) for x in images])


class AttentionMasks:
    """Attention of the class token in the starting encoder's last block (ours)."""

    def __init__(self, config: Config, grid: tuple[int, int], device: str) -> None:
        encoder = ImageEncoder(start_clip(config).visual, config.model.taps)
        self._encoder = encoder.to(device).eval()
        self._data, self._grid = config.data, grid
        self._target_ratio = config.saliency.target_ratio

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], paths: Sequence[str]) -> NDArray[np.bool_]:
        """See the module."""
        maps = []
        for batch in _normalise(images, self._data, self._encoder):
            encoded = self._encoder(batch)
            attention = encoded.heads.float().softmax(dim=-1).mean(dim=1)
            maps += list(attention.unflatten(1, encoded.taps.shape[-2:]).cpu().numpy())
        return np.stack([attention_saliency(m, self._grid, self._target_ratio) for m in maps])


class LearnedMasks:
    """A trained saliency model: M~ >= 0.5, resampled to the grid (SPT)."""

    def __init__(self, model: SaliencyModel, grid: tuple[int, int], device: str = "cpu") -> None:
        self._model, self._grid = model.to(device).eval(), grid

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], paths: Sequence[str]) -> NDArray[np.bool_]:
        """See the module."""
        person = [
            self._model(batch)[1].cpu().numpy()
            for batch in _normalise(images, self._model.data, self._model)
        ]
        return resample_area(np.concatenate(person), self._grid) >= 0.5


def _normalise(
    images: NDArray[np.uint8], data: DataConfig, module: nn.Module
) -> Iterator[torch.Tensor]:
    device = next(module.parameters()).device
    for start in range(0, len(images), BATCH):
        yield to_tensor_batch(images[start : start + BATCH], data.mean, data.std).to(device)
