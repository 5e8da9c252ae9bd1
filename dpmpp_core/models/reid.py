"""The re-identification model, from images to features and masks, and its file format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpmpp_core.config import Config, DataConfig, ModelConfig, load_config
from dpmpp_core.errors import ConfigError, WeightsError
from dpmpp_core.models.bands import SPACE as BANDS
from dpmpp_core.models.bands import VisibleBands
from dpmpp_core.models.clip import build_clip, read_head
from dpmpp_core.models.embedded import Embedded, describe_spaces
from dpmpp_core.models.encoder import Encoded, ImageEncoder
from dpmpp_core.models.mask_generator import MaskGenerator
from dpmpp_core.models.pictures import fit_pictures, list_pictures
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.saved import fill, read_saved, write_saved
from dpmpp_core.models.sources import NAME, SHIPPED, SHIPPED_WORTH, fetch_model_folder
from dpmpp_core.models.visibility import Visibility, VisibilityHead
from dpmpp_core.models.weights import starts_with_head

if TYPE_CHECKING:
    from dpmpp_core.models.pictures import Picture

log = logging.getLogger(__name__)


@dataclass
class Reading:
    """Result of one pass over B pictures.

    Attributes:
        encoded: result of the encoder.
        features: metric space -> float32 [B, width], before the necks.
        masks: the same spaces -> float32 [B, width] in (0, 1).
        visibility: of the patches; None without a visibility head.
    """

    encoded: Encoded
    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    visibility: Visibility | None


class ReidModel(nn.Module):
    """Encoder, visibility head, mask generator and batch-norm necks.

    Metric spaces: `visual`; with text, `joint`; with `config.bands`, `bands`.

    Args:
        config: section of the run's configuration, stored with the weights.
        data: likewise.
        clip: the model to start from, see `build_clip`; its image tower is taken over.

    Raises:
        ConfigError: patches cannot be masked from attention in this backbone.
    """

    def __init__(self, config: ModelConfig, data: DataConfig, clip: Any) -> None:
        super().__init__()
        self.config, self.data = config, data
        depth = config.attention_mask_depth
        self.encoder = ImageEncoder(clip.visual, config.taps, depth or 1.0, config.bands_depth)
        if depth and not self.encoder.masks_attention:
            raise ConfigError(
                f"model.attention_mask_depth: patches of {config.backbone} cannot be masked from "
                "attention; set it to null"
            )
        width = self.encoder.token_width
        channels = len(self.encoder.taps) * width
        self.mask_generator = MaskGenerator(channels, self.encoder.spaces, config.mask_generator)
        self.spaces = dict(self.encoder.spaces)
        self.visibility = None
        if config.bands or depth:
            early = len(self.encoder.early_taps) * width
            self.visibility = VisibilityHead(early, amodal=depth is not None)
        self.bands = None
        if config.bands:
            self.bands = VisibleBands(width, config.bands, config.band_masks == "visible")
            self.spaces[BANDS] = self.bands.width
        self.necks = nn.ModuleDict({name: batch_norm_neck(d) for name, d in self.spaces.items()})

    def start_head(self) -> None:
        """Load the visibility head that `config` names or the package has for these weights.

        Raises:
            WeightsError: the file is absent or damaged, or of a head that reads other tokens.
        """
        if self.visibility is None or not starts_with_head(self.config):
            return
        state, own = read_head(self.config), self.visibility.state_dict()
        assert state is not None
        if {n: x.shape for n, x in state.items()} != {n: x.shape for n, x in own.items()}:
            raise WeightsError(
                f"model.visibility_head={self.config.visibility_head}: that head reads other "
                "tokens than model.taps and model.attention_mask_depth give; with "
                "model.visibility_head=none it is learnt in the training"
            )
        self.visibility.load_state_dict(state)

    @property
    def masked_spaces(self) -> list[str]:
        """Spaces whose masks depend on the picture; those of the others are always 0.5."""
        generated = self.mask_generator.spaces
        banded = self.config.band_masks == "visible"
        return [n for n in self.spaces if n in generated or (n == BANDS and banded)]

    @property
    def mask_values(self) -> dict[str, int]:
        """Number of values of each space's mask, the others being their repetitions.

        One for each dimension, for each band, or 1 for a space whose masks are always 0.5.
        """
        counts = {n: d if n in self.masked_spaces else 1 for n, d in self.spaces.items()}
        return counts | ({BANDS: self.config.bands} if self.config.bands else {})

    def forward(
        self, images: Tensor, masked: Tensor | None = None, known: Tensor | None = None
    ) -> Reading:
        """Compute features and masks of normalised images float [B, 3, H, W].

        Arguments as `encode`.
        """
        return self.read(*self.encode(images, masked, known))

    def encode(
        self, images: Tensor, masked: Tensor | None = None, known: Tensor | None = None
    ) -> tuple[Encoded, Visibility | None]:
        """Encode images and predict the visibility of their patches.

        Args:
            images: normalised float [B, 3, H, W].
            masked: bool [B, rows, columns], patches to be masked from attention; None = those
                predicted to be occluded.
            known: bool [B], the images to which `masked` applies; None = all.
        """
        if self.visibility is None:
            return self.encoder(images), None
        if self.config.attention_mask_depth is None:
            encoded = self.encoder(images)
            return encoded, self.visibility(encoded.taps)
        head, predicted = self.visibility, []

        def choose(taps: Tensor) -> Tensor:
            predicted.append(head(taps))
            occluded = predicted[0].occluded.detach() > 0
            if masked is None:
                return occluded
            return masked if known is None else masked.where(known[:, None, None], occluded)

        return self.encoder(images, choose_masked=choose), predicted[0]

    def read(self, encoded: Encoded, visibility: Visibility | None) -> Reading:
        """Compute features and masks from the results of `encode`."""
        features, masks = features_of(encoded), self.mask_generator(encoded.taps)
        if self.bands is not None and visibility is not None:
            banded = self.bands(encoded.middle, visibility.visible.detach())
            features, masks = features | {BANDS: banded.feature}, masks | {BANDS: banded.mask}
        return Reading(encoded, features, masks, visibility)

    def retrieval_features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return features in the space that `config.retrieval_features` names, [B, width]."""
        if self.config.retrieval_features == "pre_bn":
            return dict(features)
        return {name: self.necks[name](feature) for name, feature in features.items()}

    @torch.inference_mode()
    def embed(
        self,
        images: Picture | Sequence[Picture] | npt.NDArray[np.uint8],
        batch: int = 64,
        masked: npt.NDArray[np.bool_] | None = None,
    ) -> Embedded:
        """Embed pictures; after `model.encoder.bfloat16()` the encoder computes in bfloat16.

        Examples:
            >>> import dpmpp_core
            >>> dpmpp_core.load_model().embed(["a.jpg", "b.jpg"])
            Embedded(2 images; visual 192, joint 192, bands 1536)

        Args:
            images: one picture, or N of any size: paths, bytes of files, Pillow images, arrays
                uint8 [H, W, 3] RGB; or one array uint8 [N, H, W, 3].
            batch: pictures per forward pass.
            masked: bool [N, rows, columns], patches to be masked from attention in place of those
                predicted to be occluded: a control.

        Raises:
            ValueError: something of another type or shape, named by its position.
            DataError: a path or bytes that do not hold a readable image.
        """
        pictures = list_pictures(images)
        was_training = self.training
        self.eval()
        parts: list[Embedded] = []
        device = next(self.parameters()).device
        for start in range(0, len(pictures), batch):
            fitted = fit_pictures(pictures[start : start + batch], self.data, start)
            pixels = to_tensor_batch(fitted, self.data.mean, self.data.std, device)
            chosen = None
            if masked is not None:
                chosen = torch.from_numpy(masked[start : start + batch]).to(device)
            parts.append(self._to_numpy(self(pixels, chosen)))
        self.train(was_training)
        occluded = [part.occluded for part in parts if part.occluded is not None]
        return Embedded(
            features=self._join([part.features for part in parts]),
            masks=self._join([part.masks for part in parts]),
            occluded=np.concatenate(occluded) if occluded else None,
        )

    def __repr__(self) -> str:
        millions = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        return (
            f"ReidModel({self.config.backbone}, {self.data.height}x{self.data.width} pixels; "
            f"{describe_spaces(self.spaces)}; {millions:.1f} M parameters)"
        )

    def _to_numpy(self, reading: Reading) -> Embedded:
        features = self.retrieval_features(reading.features)
        occluded = None if reading.visibility is None else reading.visibility.occluded
        return Embedded(
            features={name: x.float().cpu().numpy() for name, x in features.items()},
            masks={name: x.float().cpu().numpy() for name, x in reading.masks.items()},
            occluded=None if occluded is None else occluded.float().sigmoid().cpu().numpy(),
        )

    def _join(
        self, parts: Sequence[Mapping[str, npt.NDArray[np.float32]]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: np.concatenate([np.zeros((0, width), np.float32), *(p[name] for p in parts)])
            for name, width in self.spaces.items()
        }


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
    with torch.random.fork_rng(devices=[]):
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


def load_model(name: str | Path = SHIPPED, device: str = "cpu") -> ReidModel:
    """Load a model by its name, ready to embed pictures (in evaluation mode).

    Examples:
        >>> import dpmpp_core
        >>> dpmpp_core.load_model()
        ReidModel(dpmpp-small, 256x128 pixels; visual 192, joint 192, bands 1536; 3.1 M parameters)

    Args:
        name: `shipped` = the package's own; its accuracy is logged as a warning, once per process.
            Else the folder of a saved model, or of the stage or run that trained it. With the extra
            `train` also `s3://bucket/prefix`, `models:/NAME@ALIAS` and `models:/NAME/VERSION`.
        device: a torch device, such as `cpu` or `cuda:0`.

    Raises:
        WeightsError: there is no such model in a folder, or it is an exported graph (.onnx). Its
            files are damaged or of another format, or the hash of the weights is not the card's.
            The weights hold NaN or infinity, or do not fit the network of the card.
        ConfigError: the card names no known backbone. Or the name is a URI, and the extra `train`
            is not installed or there is no registry.
        UserError: there is no model at the URI, or the registry does not answer.
        RuntimeError: torch does not know the device, or it is not available.
    """
    if name == SHIPPED:
        _warn_once()
        return shipped_model(device)
    folder = fetch_model_folder(str(name))
    config, data, state = read_saved(folder, NAME)
    with torch.random.fork_rng(devices=[]):
        clip = build_clip(config, data.height, data.width, load_weights=False)
        model = ReidModel(config, data, clip)
    fill(model, state, folder)
    return model.to(device).eval()


def shipped_model(device: str = "cpu") -> ReidModel:
    """Return the package's own model: its small CLIP and visibility head, which saw drawn people.

    Nothing in it is random, so it is the same everywhere. It is worth `SHIPPED_WORTH`.

    Args:
        device: a torch device.
    """
    config = load_config("demo")
    model = ReidModel(config.model, config.data, start_clip(config))
    model.start_head()
    return model.to(device).eval()


@cache
def _warn_once() -> None:
    log.warning(SHIPPED_WORTH)
