"""Stage 0 on real Ray: learned by Ray Train, applied by Ray Data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dpmpp_core.config import load_config
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.models.person_masks import LearnedMasks
from dpmpp_core.models.saliency import load_saliency
from pipelines.training.masks import load_masks, transfer_grid
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline
from tests.support.configs import SMALL

LEARNED = [
    *SMALL,
    "saliency.provider=sps",
    "saliency.identities=4",
    "saliency.images=2",
    "saliency.epochs=2",
    "saliency.triplet_weight=0",
]


@pytest.mark.long
def test_learned_masks_are_made_for_every_image_and_reused(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    options = Options(data=str(small_demo), overrides=LEARNED, storage=str(tmp_path))
    result = run_pipeline(options, until="saliency")
    prepared, stage = result["stages"]
    folder = tmp_path / stage["key"]
    summary = json.loads((folder / "stage.json").read_text())["summary"]
    paths = pq.read_table(tmp_path / prepared["key"] / "images.parquet")["path"].to_pylist()
    assert summary["images"] == len(paths) and summary["provider"] == "sps"
    assert 0 <= summary["iou_with_truth"] <= 1
    assert [epoch["epoch"] for epoch in summary["history"]] == [1, 2]
    assert not (tmp_path / stage["key"].replace("stages/", "training/")).exists()

    config = load_config("demo", LEARNED)
    grid = transfer_grid(config)
    masks = load_masks(folder, paths, grid)
    find = LearnedMasks(load_saliency(folder / "model"), grid)
    some = paths[:: len(paths) // 8]
    images = np.stack([resize(read_image(str(small_demo), path), 128, 64) for path in some])
    assert (find(images, some) == masks[:: len(paths) // 8]).mean() > 0.99

    again = run_pipeline(options, until="saliency")
    assert all(stage["reused"] for stage in again["stages"])


def test_masks_that_come_with_the_data_are_the_truth(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    given = [*SMALL, "saliency.provider=given"]
    options = Options(data=str(small_demo), overrides=given, storage=str(tmp_path))
    result = run_pipeline(options, until="saliency")
    marker = tmp_path / result["stages"][-1]["key"] / "stage.json"
    summary = json.loads(marker.read_text())["summary"]
    assert summary["iou_with_truth"] == 1 and summary["empty_masks"] == 0
    assert 0.2 < summary["person_share_mean"] < 0.6
