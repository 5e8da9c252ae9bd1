"""Workers that embed: in one stage and in two, masks without repetitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpmpp_core.models.reid import load_model
from dpmpp_core.retrieval import expand_masks, from_columns
from pipelines.inference.workers import EmbedWithModel, ModelLocation, ReadPictures, compact_masks
from tests.support.models import saved_model


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> ModelLocation:
    return ModelLocation(str(saved_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def batch(small_demo: Path) -> dict[str, np.ndarray]:
    paths = sorted(str(x.relative_to(small_demo)) for x in small_demo.rglob("query/*.jpg"))[:3]
    return {"row": np.arange(3), "path": np.array(paths, object)}


def test_pictures_read_by_another_worker_give_the_same_columns(location, batch, small_demo) -> None:
    worker = EmbedWithModel(str(small_demo), location)
    read = ReadPictures(str(small_demo), location.read_size())(batch)
    assert read["images"].dtype == np.uint8 and read["images"].shape[1:3] == location.read_size()
    ours, theirs = worker(read), worker(batch)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(x, theirs[name]) for name, x in ours.items())


def test_masks_travel_as_one_number_a_band(location, batch, small_demo) -> None:
    features, masks = from_columns(EmbedWithModel(str(small_demo), location)(batch))
    model = load_model(location.storage)
    assert {space: m.shape[1] for space, m in masks.items()} == model.mask_values
    assert sum(m.shape[1] for m in masks.values()) <= model.config.bands + 2
    pictures = [small_demo / path for path in batch["path"]]
    embedded = model.embed(pictures, 3)
    for space, mask in expand_masks(masks, features).items():
        assert np.array_equal(mask, embedded.masks[space])


def test_a_mask_of_all_dimensions_stays_whole() -> None:
    mask = np.random.default_rng(0).random((2, 6), np.float32)
    assert np.array_equal(compact_masks({"visual": mask}, {"visual": 6})["visual"], mask)
