"""The file format of trained models: NAME.safetensors, and its card NAME.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dpmpp_core.config import DataConfig, ModelConfig
from dpmpp_core.config.text import shorten
from dpmpp_core.errors import WeightsError
from dpmpp_core.models.older import upgrade_settings, upgrade_state
from dpmpp_core.models.tensors import read_tensors, refuse_non_finite, write_tensors

FORMAT = 1


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) over name, type, shape and bytes of each tensor, by name."""
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

    The card holds the sections `config` and `data`, from which the model is built again, and
    further JSON-able `facts`. Raises WeightsError, and writes nothing, if a weight is not finite.
    """
    import open_clip  # slow to load, and not needed to read

    state = {key: tensor.contiguous().cpu() for key, tensor in state.items()}
    refuse_non_finite(state, f"the model to be written to {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    digest = weights_sha256(state)
    card = {
        "format": FORMAT,
        "model": config.model_dump(mode="json"),
        "data": data.model_dump(mode="json", exclude={"demo", "layout"}),
        "clip": open_clip.get_model_config(config.backbone),
        "weights_sha256": digest,
        **facts,
    }
    write_tensors(state, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")
    return digest


def read_saved(folder: Path, name: str) -> tuple[ModelConfig, DataConfig, dict[str, Tensor]]:
    """Read the files of `write_saved`.

    Raises:
        WeightsError: as `read_card` and `read_tensors`, or weights whose hash is not the card's.
    """
    card = read_card(folder, name)
    weights_file, card_file = folder / f"{name}.safetensors", f"{name}.json"
    try:
        digest = card["weights_sha256"]
        config = ModelConfig.model_validate(upgrade_settings(card["model"]))
        data = DataConfig.model_validate(card["data"])
    except (KeyError, TypeError, ValidationError) as error:
        problem = " ".join(str(error).split())
        raise WeightsError(f"{folder}/{card_file}: a damaged card: {problem}") from None
    state = read_tensors(weights_file)
    if weights_sha256(state) != digest:
        raise WeightsError(f"{weights_file}: its hash is not the one in {card_file}")
    return config, data, upgrade_state(state)


def read_card(folder: Path, name: str) -> dict[str, Any]:
    """Read the card of a saved model.

    Raises:
        WeightsError: one of the two files is missing, the card is damaged or of another format.
    """
    for file in (f"{name}.json", f"{name}.safetensors"):
        if not (folder / file).is_file():
            raise WeightsError(f"{folder} holds no {file}: not a saved model")
    try:
        card = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{folder}: a damaged model file: {name}.json: {error}") from None
    written = card.get("format") if isinstance(card, dict) else None
    if written != FORMAT:
        raise WeightsError(f"{folder}: model format {written}, this code reads {FORMAT}")
    return card


def fill(model: nn.Module, state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Load the weights of a saved model; WeightsError if its card names another network."""
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        problem = shorten(" ".join(str(error).split()))
        raise WeightsError(f"{folder}: the weights do not fit the card: {problem}") from None
