"""`dpmpp pretrain` on real Ray, and its weights as the start of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dpmpp_core
from dpmpp_core.config import load_config
from dpmpp_core.models.reid import start_clip
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline

SMALL = [
    "data.height=128",
    "data.width=64",
    "pretrain.identities=4",
    "pretrain.images=2",
    "pretrain.epochs=2",
    "pretrain.whole_epochs=1",
    "augment.pad=4",
]


@pytest.mark.slow
def test_pretraining_leaves_weights_that_a_model_can_start_from(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    options = Options(
        data=str(small_demo), config="pretrain", overrides=SMALL, storage=str(tmp_path)
    )
    result = run_pipeline(options, until="captions")
    names = [stage["name"] for stage in result["stages"]]
    assert names == ["prepare", "saliency", "pretrain", "evaluate", "captions"]
    weights = Path(result["weights"])
    state = load_file(weights)
    assert all(value.dtype == torch.float16 for value in state.values())
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["weights_sha256"] == result["weights_sha256"]
    assert "no real person" in card["trained_on"]
    for direction in ("caption_to_image", "image_to_caption"):
        assert 0 <= result["captions"][direction]["recall1"] <= 1

    config = load_config("pretrain", [*SMALL, f"model.checkpoint={weights}"])
    visual = start_clip(config).visual
    torch.testing.assert_close(visual.proj, state["visual.proj"].float())
    zero_shot = dpmpp_core.load_model(result["model"])
    image = next((small_demo / "query").glob("*.jpg"))
    embedded = zero_shot.embed([image])
    assert all((mask == 0.5).all() for mask in embedded.masks.values())

    again = run_pipeline(options, until="captions")
    assert all(stage["reused"] for stage in again["stages"])
