"""The starting model: any open_clip model with a ViT tower, or a timm ViT."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from dpmpp_core.config import ModelConfig
from dpmpp_core.errors import ConfigError, WeightsError, suggest
from dpmpp_core.models.lean import use_lean_layers
from dpmpp_core.models.tensors import (
    load_problem,
    read_tensors,
    refuse_non_finite,
    weights_alone,
)
from dpmpp_core.models.timm_vit import build_timm, fetch_timm, fit_grid, patch_size, timm_tag
from dpmpp_core.models.weights import GENERATED, RECIPES, TIMM_PREFIX, find_head, hash_file, is_timm

POSITIONS = "visual.positional_embedding"

for _file in (RECIPES / "models").iterdir():
    open_clip.add_model_config(_file)


def grid_size(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of patches for an image of height x width pixels.

    Raises:
        ConfigError: unknown backbone, or a stride that leaves no patch.
    """
    patch = _patch_size(config)
    stride = config.stride or patch
    grid = (height - patch) // stride + 1, (width - patch) // stride + 1
    if min(grid) < 1 or stride > patch:
        raise ConfigError(
            f"model.stride {stride} does not fit patches of {patch} px in {height}x{width} images"
        )
    return grid


def check_weights(config: ModelConfig) -> Path | None:
    """Find the weights that `config` names, downloading a known tag; None = random weights.

    Raises:
        ConfigError: unknown backbone or tag.
        WeightsError: the file is absent and cannot be downloaded.
    """
    _patch_size(config)
    if config.checkpoint is not None:
        path = Path(config.checkpoint).expanduser()
        if not path.is_file():
            raise WeightsError(f"model.checkpoint: no file {path}")
        return path
    if config.pretrained is None:
        return None
    if config.pretrained == GENERATED:
        return _generated(config.backbone)
    if is_timm(config.backbone):
        tagged = timm_tag(config)
        name, source = f"{TIMM_PREFIX}{tagged}", f"{TIMM_PREFIX}{tagged}"
    else:
        tag = _open_clip_tag(config)
        name = f"{config.backbone}/{config.pretrained}"
        source = tag.get("hf_hub") or tag.get("url") or "its published place"
    try:
        with _quiet():
            if is_timm(config.backbone):
                return fetch_timm(tagged)
            return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # the hub's client raises many kinds, all meaning: no file
        raise WeightsError(
            f"weights {name} ({source}) are not in the local cache "
            f"and could not be downloaded ({type(error).__name__}); fetch that file where there is "
            "a network and pass it with model.checkpoint=FILE, or model.pretrained=null for "
            "random weights"
        ) from None


def weights_fingerprint(config: ModelConfig) -> str | None:
    """Identify the weights that `config` names; None = random ones.

    Return the SHA-256 (hex) of a user's or packaged file, else the tag, whose file is fixed.
    """
    if config.checkpoint is None and config.pretrained != GENERATED:
        return config.pretrained
    path = check_weights(config)
    assert path is not None
    return hash_file(path)


def _generated(backbone: str) -> Path:
    path = RECIPES / "weights" / f"{backbone}.safetensors"
    if not path.is_file():
        files = (f for f in path.parent.glob("*.safetensors") if not f.stem.endswith(".visibility"))
        names = ", ".join(sorted(file.stem for file in files))
        raise ConfigError(
            f"model.pretrained={GENERATED}: the package has such weights for {names}, not for "
            f"{backbone}"
        )
    return path


def read_head(config: ModelConfig) -> dict[str, Tensor] | None:
    """Read the tensors of the visibility head that training starts from; None = random ones.

    Raises:
        WeightsError: the file is absent or damaged.
    """
    path = find_head(config)
    return None if path is None else read_tensors(path)


def find_tokenizer(backbone: str) -> Callable[[list[str]], Tensor]:
    """Return the tokenizer of an open_clip model: sentences -> int64 [M, context length].

    Raises:
        WeightsError: it has to be downloaded and cannot be.
    """
    source = _model_settings(backbone)["text_cfg"].get("hf_tokenizer_name")
    try:
        with _quiet():
            return open_clip.get_tokenizer(backbone)
    except Exception as error:
        problem = "the package transformers is not installed"
        if importlib.util.find_spec("transformers") is not None:
            problem = type(error).__name__
        raise WeightsError(
            f"the tokenizer of {backbone} ({source or 'built in'}) is not in the local cache and "
            f"could not be downloaded ({problem}); fetch it once where there is a network, or take "
            "a backbone with CLIP's own tokenizer (ViT-B-16, EVA02-B-16, ...)"
        ) from None


class ImageOnly(nn.Module):
    """A timm model in the place of an open_clip model: an image tower and no text."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


def build_clip(config: ModelConfig, height: int, width: int, load_weights: bool = True) -> Any:
    """Build the model with positions interpolated to the grid of height x width images.

    With overlapping patches (`stride` below the patch size) it is built for the image whose plain
    grid has as many patches, and then the stride of the patch projection is lowered. Without
    `load_weights` the weights stay random, but the activation is that of the `pretrained` tag
    (OpenAI's QuickGELU).

    Returns:
        an open_clip model, or `ImageOnly`; `visual` is its image tower.

    Raises:
        ConfigError, WeightsError: as `grid_size` and `check_weights`; also for weights that do not
            fit and towers other than a ViT.
    """
    weights = check_weights(config) if load_weights else None
    grid = grid_size(config, height, width)
    patch = _patch_size(config)
    stride = config.stride or patch
    if is_timm(config.backbone):
        with _quiet():
            model: Any = ImageOnly(build_timm(config, weights))
            fit_grid(model.visual, height, width, grid, stride)
        return model
    model = _build_open_clip(config, weights, (grid[0] * patch, grid[1] * patch))
    tower = model.visual
    if isinstance(tower, TimmModel):
        with _quiet():
            fit_grid(tower.trunk, height, width, grid, stride)
    elif isinstance(tower, VisionTransformer) and getattr(tower, "attn_pool_contrastive", None):
        raise ConfigError(f"model.backbone {config.backbone}: two pooling attentions in a row")
    else:
        tower.conv1.stride = (stride, stride)
        use_lean_layers(tower)
    return model


def _build_open_clip(config: ModelConfig, weights: Path | None, size: tuple[int, int]) -> Any:
    tag = open_clip.get_pretrained_cfg(config.backbone, config.pretrained or "") or {}
    try:
        with _quiet(), weights_alone():
            state = _oblong_weights(config, weights, size) if weights else None
            model = open_clip.create_model(
                config.backbone,
                pretrained=str(weights) if weights and state is None else None,
                force_image_size=size,
                force_quick_gelu=bool(tag.get("quick_gelu", False)),
                weights_only=True,
            )
            if state is not None:
                model.load_state_dict(state)
    except Exception as error:
        if weights is None:
            raise
        problem = load_problem(weights, error)
        raise WeightsError(f"{weights} does not load as {config.backbone}: {problem}") from None
    if weights is not None:
        refuse_non_finite(model.state_dict(), str(weights))
    return model


def _oblong_weights(
    config: ModelConfig, weights: Path, size: tuple[int, int]
) -> dict[str, Tensor] | None:
    """Read weights for oblong images, positions fitted to images of `size`; None if they are not.

    open_clip interprets the positions of any weights as those of a square.
    """
    vision = _model_settings(config.backbone)["vision_cfg"]
    native, patch = vision["image_size"], vision.get("patch_size")
    if not isinstance(native, list) or native[0] == native[1] or patch is None:
        return None
    state = open_clip.factory.load_state_dict(str(weights), weights_only=True)
    positions = state[POSITIONS].float()
    new = size[0] // patch, size[1] // patch
    for old in (new, (native[0] // patch, native[1] // patch)):
        if len(positions) == 1 + old[0] * old[1]:
            grid = positions[1:].T.unflatten(1, old)[None]
            grid = nn.functional.interpolate(grid, new, mode="bicubic", antialias=True)
            return state | {POSITIONS: torch.cat([positions[:1], grid[0].flatten(1).T])}
    return None


def _open_clip_tag(config: ModelConfig) -> dict:
    tags = open_clip.list_pretrained_tags_by_model(config.backbone)
    tag = open_clip.get_pretrained_cfg(config.backbone, config.pretrained or "")
    if not tag:
        raise ConfigError(
            f"model.pretrained: {config.backbone} has no tag {config.pretrained!r} "
            f"(tags: {', '.join(tags) or 'none'}; null = random weights)"
        )
    return tag


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress logs of open_clip and the hub's client, which our own errors replace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _patch_size(config: ModelConfig) -> int:
    if is_timm(config.backbone):
        return patch_size(config.backbone.removeprefix(TIMM_PREFIX))
    vision = _model_settings(config.backbone)["vision_cfg"]
    if "timm_model_name" in vision:
        return patch_size(vision["timm_model_name"])
    if vision.get("patch_size") is None:
        raise ConfigError(f"model.backbone {config.backbone}: its image tower has no ViT patches")
    return int(vision["patch_size"])


def _model_settings(backbone: str) -> dict:
    # Names with a place (`hf-hub:`, `local-dir:`) would be fetched from there at once.
    settings = None if ":" in backbone else open_clip.get_model_config(backbone)
    if settings is None:
        hint = suggest(backbone, open_clip.list_models())
        raise ConfigError(f"model.backbone: open_clip has no model {backbone!r}{hint}")
    return settings
