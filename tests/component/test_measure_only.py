"""A folder with queries and gallery alone: a saved model is measured on it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.cli import assert_mistake, invoke_dpmpp
from tests.support.models import saved_model

SIZE = ("data.height=128", "data.width=64")


@pytest.fixture(scope="module")
def folder(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data without training images, and pictures without people."""
    folder = tmp_path_factory.mktemp("measured")
    saved_model(folder / "model")
    (folder / "data").mkdir()
    for name in ("query", "query_holistic", "bounding_box_test"):
        (folder / "data" / name).symlink_to(small_demo / name)
    (folder / "streets").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        street = rng.integers(0, 256, (96, 192, 3), np.uint8)
        cv2.imwrite(str(folder / "streets" / f"{number}.png"), street)
    return folder


def test_a_model_is_evaluated_and_hidden_behind_backgrounds(cluster: None, folder: Path) -> None:
    place = ("--data", str(folder / "data"), "--storage", str(folder / "runs"))
    command = ("robustness", *place, "--model", str(folder / "model"), *SIZE)
    refused = invoke_dpmpp(*command)
    assert_mistake(refused, "has no training images, whose scenes hide the queries", lines=None)
    assert "occlusion.backgrounds=DIR" in refused.stderr

    streets = f"occlusion.backgrounds={folder / 'streets'}"
    words = ("--bands", "20-60", "--parts", "any,top", "--json")
    done = invoke_dpmpp(*command, *words, streets)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["counts"]["train"]["images"] == 0
    assert result["metrics"]["occluded"]["masked"]["mAP"] > 0
    clean = result["robustness"]["clean"]["queries"]
    for part in ("any", "top"):
        band = result["robustness"][part]["20-60"]
        assert band["queries"] > 0.8 * clean and 0.2 <= band["hidden"] < 0.6
