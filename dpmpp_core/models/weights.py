"""Which files a training starts from; loads neither torch nor a network's library."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources
from pathlib import Path

from dpmpp_core.config import Config, ModelConfig
from dpmpp_core.errors import WeightsError

RECIPES = Path(str(resources.files("dpmpp_core"))) / "recipes"
GENERATED = "generated"  # the tag of weights in the package, written by `dpmpp pretrain`
TIMM_PREFIX = "timm/"
TAUGHT_FACTOR = 0.1
"""On the learning rate of a head that has learnt before: it adapts to other images (ours)."""


def is_timm(backbone: str) -> bool:
    """Return whether `model.backbone` names a model of timm, which has no text tower."""
    return backbone.startswith(TIMM_PREFIX)


def has_text(config: ModelConfig) -> bool:
    """Return whether the backbone has a text tower: open_clip's have, timm's have not."""
    return not is_timm(config.backbone)


def unit_text(config: ModelConfig) -> bool:
    """Return whether image and text are compared as unit vectors, at the model's logit scale.

    By default for all weights but OpenAI's, whose raw features are as long as their scale
    (CLIP-ReID).
    """
    if config.normalise_text is None:
        return config.pretrained != "openai"
    return config.normalise_text


def head_fingerprint(config: ModelConfig) -> str | None:
    """Return the SHA-256 (hex) of the visibility head that training starts from; None = random."""
    path = find_head(config)
    return None if path is None else hash_file(path)


def starts_with_head(config: ModelConfig) -> bool:
    """Return whether training starts from a visibility head that has learnt before."""
    return config.attention_mask_depth is not None and find_head(config) is not None


def find_head_lr(config: Config) -> float:
    """Return the head's learning rate in stage 2; 0 = it stays as it starts."""
    if config.metric.head_lr is not None:
        return config.metric.head_lr
    return config.metric.lr * (TAUGHT_FACTOR if starts_with_head(config.model) else 1.0)


def find_head(config: ModelConfig) -> Path | None:
    """Return the file of the visibility head that training starts from; None = random weights.

    Raises:
        WeightsError: there is no such file.
    """
    if config.visibility_head == "none":
        return None
    if config.visibility_head != "auto":
        path = Path(config.visibility_head).expanduser()
        if not path.is_file():
            raise WeightsError(f"model.visibility_head: no file {path}")
        return path
    packaged = RECIPES / "weights" / f"{config.backbone}.visibility.safetensors"
    own = config.pretrained == GENERATED and config.checkpoint is None
    return packaged if own and packaged.is_file() else None


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file; read once while it is unchanged, as it may be large."""
    return _hash_file(path, path.stat().st_mtime_ns)


@lru_cache
def _hash_file(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
