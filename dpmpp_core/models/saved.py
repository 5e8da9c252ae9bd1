"""The file format of trained models: NAME.safetensors, and NAME.json that tells what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpmpp_core.config import DataConfig, ModelConfig
from dpmpp_core.errors import WeightsError

FORMAT = 1


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over name, type, shape and bytes of each tensor, in name order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_saved(
    folder: Path,
    name: str,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    data: DataConfig,
    facts: Mapping[str, Any],
) -> str:
    """Write both files into `folder`; return the weights' SHA-256.

    Args:
        state: the weights.
        config, data: sections that the model is built from again.
        facts: further JSON-able facts for the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.contiguous().cpu() for key, tensor in state.items()}
    digest = weights_sha256(state)
    card = {
        "format": FORMAT,
        "model": config.model_dump(mode="json"),
        "data": data.model_dump(mode="json", exclude={"demo", "layout"}),
        "clip": open_clip.get_model_config(config.backbone),
        "weights_sha256": digest,
        **facts,
    }
    save_file(state, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")
    return digest


def read_saved(folder: Path, name: str) -> tuple[ModelConfig, DataConfig, dict[str, Tensor]]:
    """What `write_saved` wrote.

    Raises:
        WeightsError: files missing or damaged, another format, or weights whose hash is not the
            card's.
    """
    weights_file, card_file = f"{name}.safetensors", f"{name}.json"
    for file in (card_file, weights_file):
        if not (folder / file).is_file():
            raise WeightsError(f"{folder} holds no {file}: not a saved model")
    try:
        card = json.loads((folder / card_file).read_text())
        state = load_file(folder / weights_file)
    except (json.JSONDecodeError, SafetensorError, UnicodeDecodeError) as error:
        raise WeightsError(f"{folder}: a damaged model file: {error}") from None
    written = card.get("format") if isinstance(card, dict) else None
    if written != FORMAT:
        raise WeightsError(f"{folder}: model format {written}, this code reads {FORMAT}")
    try:
        digest = card["weights_sha256"]
        config = ModelConfig.model_validate(card["model"])
        data = DataConfig.model_validate(card["data"])
    except (KeyError, ValidationError) as error:
        problem = " ".join(str(error).split())
        raise WeightsError(f"{folder}/{card_file}: a damaged card: {problem}") from None
    if weights_sha256(state) != digest:
        raise WeightsError(f"{folder}/{weights_file}: its hash is not the one in {card_file}")
    return config, data, state
