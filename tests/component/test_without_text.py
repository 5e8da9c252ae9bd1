"""The pipeline on a backbone without text: the recipe `market1501_vit`, at the size of a test."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

import dpmpp_core
from dpmpp_core.errors import ConfigError
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline
from tests.support.configs import TEXTLESS, TEXTLESS_CONFIG


@pytest.mark.long
def test_one_space_goes_from_images_to_the_registry(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    options = Options(
        data=str(small_demo),
        config=TEXTLESS_CONFIG,
        overrides=TEXTLESS,
        storage=str(tmp_path),
    )
    result = run_pipeline(options)
    names = [stage["name"] for stage in result["stages"]]
    assert names == ["prepare", "saliency", "metric", "evaluate", "report", "register"]
    assert set(result["masks"]["occluded"]) == {"visual"}
    assert 0 < result["metrics"]["holistic"]["masked"]["mAP"] <= 1
    card = json.loads((Path(result["model"]) / "model.json").read_text())
    assert card["spaces"] == {"visual": 64} and card["identities"] == 8
    assert "timm/test_vit" in Path(result["report"]).read_text()

    paths = sorted((small_demo / "query").glob("*.jpg"))[:3]
    images = pd.DataFrame({"image": [path.read_bytes() for path in paths]})
    mlflow.set_tracking_uri(result["tracking_uri"])
    served = mlflow.pyfunc.load_model(result["model_uri"]).predict(images)
    assert sorted(served) == ["feature_visual", "mask_visual"]
    direct = dpmpp_core.load_model(result["model"]).embed(paths)
    np.testing.assert_allclose(
        np.stack(served["feature_visual"]), direct.features["visual"], atol=1e-5
    )
    measured = run_pipeline(
        Options(data=str(small_demo), storage=str(tmp_path / "other"), model=result["model"]),
        until="evaluate",
    )
    assert measured["metrics"]["occluded"] == result["metrics"]["occluded"]


def test_prompts_without_a_text_tower_are_refused_at_once(small_demo: Path, tmp_path: Path) -> None:
    options = Options(
        data=str(small_demo),
        config=TEXTLESS_CONFIG,
        overrides=TEXTLESS,
        storage=str(tmp_path / "runs"),
    )
    with pytest.raises(ConfigError, match=r"timm/test_vit has no text tower, .*dpmpp train"):
        run_pipeline(options, until="prompts")
    assert not (tmp_path / "runs").exists()
