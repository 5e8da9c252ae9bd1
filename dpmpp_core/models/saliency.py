"""The saliency model (SPT, AAAI 2024): which patches carry the identity; its file format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpmpp_core.config import DataConfig, ModelConfig
from dpmpp_core.models.clip import build_clip
from dpmpp_core.models.encoder import Encoded, ImageEncoder
from dpmpp_core.models.saved import fill, read_saved, write_saved

NAME = "saliency"
WEIGHTS_FILE, CARD_FILE = f"{NAME}.safetensors", f"{NAME}.json"


class SaliencyModel(nn.Module):
    """An image encoder, and ONE 1x1 convolution on the patch tokens of its tapped blocks (SPT).

    Args:
        config: section of the run's configuration, stored with the weights.
        data: likewise.
        clip: the open_clip model to start from; its image tower is taken over.
        target_ratio: in (0, 1), the share of the picture that the untrained mask starts near.
    """

    def __init__(
        self, config: ModelConfig, data: DataConfig, clip: Any, target_ratio: float = 0.3
    ) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.encoder = ImageEncoder(clip.visual, config.taps)
        self.head = nn.Conv2d(len(self.encoder.taps) * self.encoder.token_width, 1, 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, math.log(target_ratio / (1 - target_ratio)))

    def forward(self, images: Tensor) -> tuple[Encoded, Tensor]:
        """Return the result of the encoder for normalised images float [B, 3, H, W], and M~.

        M~ is float32 [B, rows, columns] in (0, 1) on the encoder's grid, high = person. No gradient
        flows from it into the encoder.
        """
        encoded = self.encoder(images)
        return encoded, self.head(encoded.taps.detach()).squeeze(1).float().sigmoid()


def save_saliency(model: SaliencyModel, folder: Path) -> str:
    """Write `saliency.safetensors` and `saliency.json`; return the weights' SHA-256."""
    return write_saved(folder, NAME, model.state_dict(), model.config, model.data, {})


def load_saliency(path: str | Path) -> SaliencyModel:
    """Read a model that `save_saliency` wrote, in evaluation mode.

    Raises:
        WeightsError, ConfigError: as `load_model`.
    """
    config, data, state = read_saved(Path(path), NAME)
    with torch.random.fork_rng(devices=[]):
        clip = build_clip(config, data.height, data.width, load_weights=False)
        model = SaliencyModel(config, data, clip)
    fill(model, state, path)
    return model.eval()
