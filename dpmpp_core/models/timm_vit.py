"""timm's vision transformers: which of them are supported, their weights, their grid."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.layers import PatchEmbed
from timm.models import Beit, Eva, VisionTransformer
from torch import nn

from dpmpp_core.config import ModelConfig
from dpmpp_core.errors import ConfigError, WeightsError, suggest
from dpmpp_core.models.tensors import load_problem, refuse_non_finite, weights_alone
from dpmpp_core.models.weights import TIMM_PREFIX


@cache
def patch_size(name: str) -> int:
    """Return the patch size in pixels of timm's model `name`.

    Raises:
        ConfigError: an unknown model, or one that is not a ViT with patch tokens in all blocks.
    """
    if not timm.is_model(name):
        hint = suggest(name, timm.list_models())
        raise ConfigError(f"model.backbone: timm has no model {name!r}{hint}")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    embed = getattr(model, "patch_embed", None)
    if not isinstance(model, (VisionTransformer, Eva, Beit)) or type(embed) is not PatchEmbed:
        raise ConfigError(
            f"model.backbone: timm's {name} is a {type(model).__name__} with a "
            f"{type(embed).__name__}; a ViT with plain patches is needed (vit, deit, deit3, "
            "dinov2, dinov3, eva02, beit, siglip, ...)"
        )
    return int(embed.patch_size[0])


def timm_tag(config: ModelConfig) -> str:
    """Return `NAME.TAG` of the weights that `config` names; ConfigError if there is no such tag."""
    name = config.backbone.removeprefix(TIMM_PREFIX)
    known = timm.models.get_arch_pretrained_cfgs(name)
    tagged = f"{name}.{config.pretrained}"
    if tagged not in known:
        tags = ", ".join(key.split(".", 1)[1] for key in known if "." in key)
        raise ConfigError(
            f"model.pretrained: {config.backbone} has no tag {config.pretrained!r} "
            f"(tags: {tags or 'none'}; null = random weights)"
        )
    return tagged


def fetch_timm(tagged: str) -> Path:
    """Return the weights file of `NAME.TAG`, downloaded if it is not in the cache.

    Raises:
        Exception: as the hub's client, which has many kinds.
    """
    source: Any = timm.get_pretrained_cfg(tagged)
    if not source.hf_hub_id:
        raise FileNotFoundError(f"not on the hub but at {source.url}")
    try:
        return Path(hf_hub_download(source.hf_hub_id, "model.safetensors"))
    except LocalEntryNotFoundError:  # no network
        raise
    except EntryNotFoundError:
        return Path(hf_hub_download(source.hf_hub_id, "pytorch_model.bin"))


def build_timm(config: ModelConfig, weights: Path | None) -> nn.Module:
    """Build the model of timm that `config.backbone` names, without its classifier.

    It takes pictures float [B, 3, S, S], S pixels as timm defines the model, such as 224. Its
    output is what the classifier would receive, [B, width]. `fit_grid` changes the picture size.

    Args:
        config: its `backbone` is `timm/NAME`, with a name that `patch_size` accepts.
        weights: a local file, .safetensors or PyTorch; no code in it is run. None = random weights
            from torch's global generator; nothing is downloaded.

    Raises:
        WeightsError: the file is missing or damaged, lacks a tensor of the model, or holds NaN or
            infinity. Tensors that the model does not have, such as a classifier, are ignored.
        RuntimeError: timm has no model of this name.
    """
    model = timm.create_model(config.backbone.removeprefix(TIMM_PREFIX), num_classes=0)
    if weights is None:
        return model
    try:
        with weights_alone():  # no code is run
            state = timm.models.load_state_dict(str(weights))
        state = sys.modules[type(model).__module__].checkpoint_filter_fn(state, model)
        missing = model.load_state_dict(state, strict=False).missing_keys
    except Exception as error:
        problem = load_problem(weights, error)
        raise WeightsError(f"{weights} does not load as {config.backbone}: {problem}") from None
    if missing:  # further tensors, such as a classifier, are ignored
        raise WeightsError(
            f"{weights} does not load as {config.backbone}: it lacks {len(missing)} tensors "
            f"({', '.join(missing[:3])}, ...)"
        )
    refuse_non_finite(model.state_dict(), str(weights))
    return model


def fit_grid(trunk: nn.Module, height: int, width: int, grid: tuple[int, int], stride: int) -> None:
    """Make a timm ViT take images of height x width pixels as a grid of patches, `stride` apart.

    Positions are interpolated by timm, for the image whose plain grid has as many patches.
    """
    embed: Any = trunk.patch_embed
    patch = embed.patch_size[0]
    trunk.set_input_size((grid[0] * patch, grid[1] * patch))  # type: ignore[operator]
    embed.img_size, embed.strict_img_size = (height, width), True
    embed.proj.stride = (stride, stride)
