"""The re-identification model, from images to features and masks, and its file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpmpp_core.config import Config, DataConfig, ModelConfig
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.models.bands import VisibleBands
from dpmpp_core.models.clip import build_clip
from dpmpp_core.models.encoder import Encoded, ImageEncoder
from dpmpp_core.models.mask_generator import MaskGenerator
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.saved import fill, read_saved, write_saved

NAME = "model"
WEIGHTS_FILE, CARD_FILE = f"{NAME}.safetensors", f"{NAME}.json"


@dataclass(frozen=True)
class Embedded:
    """Features and masks of N images, each a mapping of metric space to float32 [N, width]."""

    features: dict[str, npt.NDArray[np.float32]]
    masks: dict[str, npt.NDArray[np.float32]]


@dataclass
class Reading:
    """Result of one pass over B pictures.

    Attributes:
        encoded: result of the encoder.
        features: metric space -> float32 [B, width], before the necks.
        masks: the same spaces -> float32 [B, width] in (0, 1).
        visible: float32 [B, rows, columns], logits that the patch shows the person; None without
            bands.
    """

    encoded: Encoded
    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    visible: Tensor | None


class ReidModel(nn.Module):
    """Encoder, mask generator and batch-norm necks.

    Metric spaces: `visual`; with text, `joint`; with `config.bands`, `bands`.

    Args:
        config: section of the run's configuration, stored with the weights.
        data: likewise.
        clip: the model to start from, see `build_clip`; its image tower is taken over.
    """

    def __init__(self, config: ModelConfig, data: DataConfig, clip: Any) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.encoder = ImageEncoder(clip.visual, config.taps)
        channels = len(self.encoder.taps) * self.encoder.token_width
        self.mask_generator = MaskGenerator(channels, self.encoder.spaces, config.mask_generator)
        self.spaces = dict(self.encoder.spaces)
        self.bands = None
        if config.bands:
            tokens = self.encoder.token_width
            self.bands = VisibleBands(channels, tokens, config.bands)
            self.spaces[BANDS] = self.bands.width
        self.necks = nn.ModuleDict({name: batch_norm_neck(d) for name, d in self.spaces.items()})

    @property
    def masked_spaces(self) -> list[str]:
        """Spaces whose masks depend on the picture; those of the others are always 0.5."""
        generated = self.mask_generator.spaces
        return [name for name in self.spaces if name in generated or name == BANDS]

    def forward(self, images: Tensor) -> Reading:
        """Compute features and masks of normalised images float [B, 3, H, W]."""
        return self.read(self.encoder(images))

    def read(self, encoded: Encoded) -> Reading:
        """Compute features and masks from the result of the encoder."""
        features, masks = features_of(encoded), self.mask_generator(encoded.taps)
        if self.bands is None:
            return Reading(encoded, features, masks, None)
        banded = self.bands(encoded.taps)
        features, masks = features | {BANDS: banded.feature}, masks | {BANDS: banded.mask}
        return Reading(encoded, features, masks, banded.visible)

    def retrieval_features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return features in the space that `config.retrieval_features` names, [B, width]."""
        if self.config.retrieval_features == "pre_bn":
            return dict(features)
        return {name: self.necks[name](feature) for name, feature in features.items()}

    @torch.inference_mode()
    def embed(self, images: Any, batch: int = 64) -> Embedded:
        """Embed pictures.

        Args:
            images: uint8 [N, H, W, 3] RGB, a sequence of such [H, W, 3] arrays of any size, or a
                sequence of paths.
            batch: pictures per forward pass.

        Raises:
            ValueError: an array of another type or shape, named by its position.
            DataError: a path that does not hold a readable image.
        """
        if isinstance(images, (str, Path)):
            images = [images]
        was_training = self.training
        self.eval()
        parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for start in range(0, len(images), batch):
            pictures = fitted(images[start : start + batch], self.data, start)
            pixels = to_tensor_batch(pictures, self.data.mean, self.data.std)
            reading = self(pixels.to(next(self.parameters()).device))
            parts.append((self.retrieval_features(reading.features), reading.masks))
        self.train(was_training)
        return Embedded(
            features=self._join([features for features, _ in parts]),
            masks=self._join([masks for _, masks in parts]),
        )

    def _join(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: np.concatenate([part[name].float().cpu().numpy() for part in parts])
            if parts
            else np.zeros((0, width), np.float32)
            for name, width in self.spaces.items()
        }


def fitted(images: Any, data: DataConfig, first: int = 0) -> npt.NDArray[np.uint8]:
    """Read and resize the `images` of `ReidModel.embed` to uint8 [N, height, width, 3].

    Errors are those of `ReidModel.embed`; `first` is the position of the first image, for them.
    """
    pictures = []
    for index, item in enumerate(images, first):
        if isinstance(item, (str, Path)):
            item = read_image(str(Path(item).parent), Path(item).name)
        rgb = isinstance(item, np.ndarray) and item.ndim == 3 and item.shape[2] == 3
        if not rgb or item.dtype != np.uint8 or not item.size:
            array = isinstance(item, np.ndarray)
            given = f"{item.dtype} {item.shape}" if array else type(item).__name__
            raise ValueError(f"image {index}: uint8 [H, W, 3] RGB or a path is needed, not {given}")
        pictures.append(resize(item, data.height, data.width))
    return np.stack(pictures)


def features_of(encoded: Encoded) -> dict[str, Tensor]:
    """Return the features of each metric space before its neck, float32 [B, width]."""
    features = {"visual": encoded.visual.float()}
    if encoded.joint is not None:
        features["joint"] = encoded.joint.float()
    return features


def start_clip(config: Config) -> Any:
    """Build the model that training starts from; random weights are drawn from `config.seed`.

    Raises:
        ConfigError, WeightsError: as `build_clip`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return build_clip(config.model, config.data.height, config.data.width)


def batch_norm_neck(width: int) -> nn.BatchNorm1d:
    """Return a batch-norm neck whose shift is fixed at zero (BoT, CLIP-ReID)."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def save_model(model: ReidModel, folder: Path, facts: Mapping[str, Any] | None = None) -> str:
    """Write `model.safetensors` and `model.json` into `folder`; return the weights' SHA-256.

    `facts` are further JSON-able values for the card (data set identity, class count, ...).
    """
    facts = {"spaces": model.spaces, **(facts or {})}
    return write_saved(folder, NAME, model.state_dict(), model.config, model.data, facts)


def load_model(path: str | Path, device: str = "cpu") -> ReidModel:
    """Read a model that `save_model` wrote.

    Args:
        path: the folder with `model.safetensors` and `model.json`.
        device: a torch device.

    Raises:
        WeightsError: files missing or damaged, another format, weights whose hash is not the
            card's, that hold NaN, or that do not fit the network of the card.
        ConfigError: the card names no known backbone.
    """
    config, data, state = read_saved(Path(path), NAME)
    with torch.random.fork_rng():
        clip = build_clip(config, data.height, data.width, load_weights=False)
        model = ReidModel(config, data, clip)
    fill(model, state, path)
    return model.to(device).eval()
