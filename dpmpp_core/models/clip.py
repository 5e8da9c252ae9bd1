"""The vision-language model that everything starts from: any open_clip model with a ViT tower."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transformer import VisionTransformer

from dpmpp_core.config import ModelConfig
from dpmpp_core.errors import ConfigError, WeightsError

for _file in (resources.files("dpmpp_core") / "recipes" / "models").iterdir():
    open_clip.add_model_config(Path(str(_file)))


def grid_size(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches for an image of height x width pixels.

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
        WeightsError: the file is absent and cannot be downloaded; says which and what to do.
    """
    _model_settings(config.backbone)
    if config.checkpoint is not None:
        path = Path(config.checkpoint).expanduser()
        if not path.is_file():
            raise WeightsError(f"model.checkpoint: no file {path}")
        return path
    if config.pretrained is None:
        return None
    tags = open_clip.list_pretrained_tags_by_model(config.backbone)
    tag = open_clip.get_pretrained_cfg(config.backbone, config.pretrained)
    if not tag:
        raise ConfigError(
            f"model.pretrained: {config.backbone} has no tag {config.pretrained!r} "
            f"(tags: {', '.join(tags) or 'none'}; null = random weights)"
        )
    source = tag.get("hf_hub") or tag.get("url") or "its published place"
    try:
        with _quiet():
            return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # the hub's client raises many kinds, all meaning: no file
        raise WeightsError(
            f"weights {config.backbone}/{config.pretrained} ({source}) are not in the local cache "
            f"and could not be downloaded ({type(error).__name__}); fetch that file where there is "
            "a network and pass it with model.checkpoint=FILE, or model.pretrained=null for "
            "random weights"
        ) from None


def build_clip(config: ModelConfig, height: int, width: int, load_weights: bool = True) -> Any:
    """The open_clip model with positions interpolated to the grid of height x width images.

    With overlapping patches (`stride` below the patch size) the model is built for the image whose
    plain grid has as many patches, so that open_clip interpolates the positions, and then the
    stride of the patch projection is lowered.

    Without `load_weights` the weights stay random, for a caller that has its own, but the
    activation still is the one that the `pretrained` tag was trained with (OpenAI's QuickGELU).

    Raises:
        ConfigError, WeightsError: as `grid_size` and `check_weights`; also for weights that do not
            fit and towers other than a ViT with a class token.
    """
    weights = check_weights(config) if load_weights else None
    rows, columns = grid_size(config, height, width)
    patch = _patch_size(config)
    tag = open_clip.get_pretrained_cfg(config.backbone, config.pretrained or "") or {}
    try:
        with _quiet():
            model = open_clip.create_model(
                config.backbone,
                pretrained=str(weights) if weights else None,
                force_image_size=(rows * patch, columns * patch),
                force_quick_gelu=bool(tag.get("quick_gelu", False)),
                weights_only=True,
            )
    except Exception as error:
        if weights is None:
            raise
        problem = " ".join(str(error).split())[:300]
        raise WeightsError(f"{weights} does not load as {config.backbone}: {problem}") from None
    tower = model.visual
    plain = isinstance(tower, VisionTransformer) and tower.attn_pool is None
    if not plain or tower.pool_type != "tok":
        raise ConfigError(
            f"model.backbone {config.backbone}: its image tower is a {type(tower).__name__}; "
            "an open_clip VisionTransformer with a class token is needed (ViT-B-16, ViT-L-14, ...)"
        )
    tower.conv1.stride = (config.stride or patch,) * 2
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip and the hub's client from logging what our own errors say better."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _patch_size(config: ModelConfig) -> int:
    vision = _model_settings(config.backbone)["vision_cfg"]
    patch = vision.get("patch_size")
    if patch is None or "timm_model_name" in vision:
        raise ConfigError(f"model.backbone {config.backbone}: its image tower has no ViT patches")
    return int(patch)


def _model_settings(backbone: str) -> dict:
    settings = open_clip.get_model_config(backbone)
    if settings is None:
        near = difflib.get_close_matches(backbone, open_clip.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"model.backbone: open_clip has no model {backbone!r}{hint}")
    return settings
