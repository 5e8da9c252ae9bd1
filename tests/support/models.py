"""Saved models of the smallest size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dpmpp_core.config import DataConfig, ModelConfig, load_config
from dpmpp_core.errors import DataError
from dpmpp_core.models.clip import build_clip
from dpmpp_core.models.reid import ReidModel, save_model, start_clip
from tests.support.cli import invoke_dpmpp

DATA = DataConfig(
    height=64, width=32, mean=(0.481, 0.458, 0.408), std=(0.269, 0.261, 0.276)
)  # fmt: skip


def saved_model(folder: Path, seed: int = 0) -> Path:
    """Save a model with the weights of the package; its other weights are drawn from `seed`."""
    config = load_config("demo", ["data.height=128", "data.width=64"])
    clip = start_clip(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_model(ReidModel(config.model, config.data, clip), folder)
    return folder


def save_trained_like(folder, data=DATA, **model):
    """A model as after training: masks that vary, necks that shift and scale."""
    config = ModelConfig(**{"pretrained": None, "taps": (1, 2), **model})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = ReidModel(config, data, build_clip(config, data.height, data.width))
        for linear in made.mask_generator.spaces.values():
            linear.weight.normal_(std=0.1)
        for neck in made.necks.values():
            neck.running_mean.normal_()
            neck.running_var.uniform_(0.5, 2)
    return made.eval(), save_model(made, folder)


def resolve_by_commands(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The model folders that `evaluate`, `robustness` and `export` take for a name; no work."""
    taken: list[Path] = []

    def open_session(options: Any, *_: Any) -> None:
        taken.append(Path(options.model))
        raise DataError("stopped before the work")

    def export(folder: Path, out: Path) -> dict[str, Any]:
        taken.append(folder)
        return {}

    monkeypatch.setattr("pipelines.workflows.session.open_session", open_session)
    monkeypatch.setattr("pipelines.inference.onnx_export.export", export)
    for command in ("evaluate", "robustness"):
        done = invoke_dpmpp(command, "--data", str(data), "--model", name)
        assert "stopped before the work" in done.stderr, done.stderr
    done = invoke_dpmpp("export", "--model", name, "--out", "model.onnx", "--json")
    assert done.returncode == 0, done.stderr
    return taken
