"""A small model to index and search with: the weights of the package, not trained further."""

from __future__ import annotations

from pathlib import Path

import torch

from dpmpp_core.config import load_config
from dpmpp_core.models.reid import ReidModel, save_model, start_clip


def saved_model(folder: Path, seed: int = 0) -> Path:
    """Its folder; what is new in it is drawn from `seed`."""
    config = load_config("demo", ["data.height=128", "data.width=64"])
    clip = start_clip(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_model(ReidModel(config.model, config.data, clip), folder)
    return folder
