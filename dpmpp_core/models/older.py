"""Saved models of version 0.1, read as they were: no attention mask, and other names.

This is the only place that knows the old names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

OLD_HEAD, HEAD = "bands.patches.", "visibility.patches."


def upgrade_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the section `model` of a card.

    Version 0.1 masked no patches, and its bands pooled the tokens of the last tap but one.
    """
    if "attention_mask_depth" in model:
        return dict(model)
    taps = model["taps"]
    depth = taps[-2:][0] / max(taps)
    return {**model, "attention_mask_depth": None, "bands_depth": depth}


def upgrade_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors: the visibility head was a part of the bands."""
    return {
        HEAD + name.removeprefix(OLD_HEAD) if name.startswith(OLD_HEAD) else name: tensor
        for name, tensor in state.items()
    }
