"""Pre-training: some patches, two contrasts, captions."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from dpmpp_core.config import load_config
from dpmpp_core.data.captions import read_captions
from dpmpp_core.errors import ConfigError, DataError
from dpmpp_core.models.clip import check_weights, weights_fingerprint
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.reid import start_clip
from dpmpp_core.models.saved import weights_sha256
from dpmpp_core.retrieval.captions import caption_retrieval
from dpmpp_core.tasks.pretrain import PretrainTask, encode_captions, encode_patches

CAPTIONS = ["a person in red", "a person in blue", "a person in green", "a person in red"]


@pytest.fixture(scope="module")
def task():
    config = load_config(
        "pretrain", ["data.height=64", "data.width=32", "pretrain.epochs=3",
                     "pretrain.whole_epochs=1"]
    )  # fmt: skip
    return PretrainTask(config, CAPTIONS, steps_per_epoch=5)


def batch(step=0):
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 32, 3), np.uint8)
    labels = torch.arange(4).repeat_interleave(2)
    return {"images": torch.from_numpy(images), "labels": labels, "step": torch.tensor(step)}


def encode(task, images, kept):
    return encode_patches(task.clip.visual, task._select_patches(images, kept), kept)


def test_all_patches_are_what_the_encoder_sees(task):
    images = batch()["images"]
    encoder = ImageEncoder(task.clip.visual, (1, 2, 4, 6)).eval()
    everything = torch.arange(8).expand(len(images), -1)
    with torch.inference_mode():
        visual, joint = encode(task, images, everything)
        whole = encoder(task.normalise(images))
        again, _ = encode(task, images, everything[:, torch.randperm(8)])
    torch.testing.assert_close(visual, whole.visual, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(joint, whole.joint, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(again, visual, atol=2e-5, rtol=1e-4)


def test_hidden_patches_are_not_seen(task):
    images = batch()["images"]
    kept = torch.tensor([[0, 3, 5]]).expand(len(images), -1)
    changed = images.clone()
    changed[:, 0:16, 16:32] = 0  # patch 1
    with torch.inference_mode():
        before, _ = encode(task, images, kept)
        after, _ = encode(task, changed, kept)
    assert torch.equal(before, after)


def test_patches_are_drawn_by_the_step_and_all_are_shown_at_the_end(task):
    shares = [task._draw_patches(step, 4).shape[1] for step in (0, 9, 10, 14)]
    assert shares == [2, 2, 8, 8]
    assert torch.equal(task._draw_patches(3, 4), task._draw_patches(3, 4))
    assert not torch.equal(task._draw_patches(10, 4), task._draw_patches(11, 4))
    assert all(len(set(row)) == 8 for row in task._draw_patches(12, 4).tolist())


def test_losses_fall_and_a_checkpoint_gives_the_same_task(task):
    optimiser = task.optimiser()
    first = None
    for _ in range(12):
        losses, report = task(batch())
        total = sum(losses.values())
        first = first or total.item()
        optimiser.zero_grad()
        total.backward()
        task.filter_gradients("joint")
        optimiser.step()
    assert set(losses) == {"image_visual", "image_joint", "text"}
    assert total.item() < first
    assert 0 <= report["caption_accuracy"] <= 1
    other = PretrainTask(task.config, CAPTIONS, 5)
    other.load_trained_state(task.trained_state())
    with torch.no_grad():
        expected, _ = task(batch(7))
        found, _ = other(batch(7))
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}


def test_captions_are_unit_vectors_and_equal_ones_agree(task):
    features = encode_captions(task.clip, "dpmpp-small", CAPTIONS)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(features[0], features[3])
    assert not torch.allclose(features[0], features[1])


def test_caption_retrieval_counts_right_answers_among_the_first():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8]], np.float32)
    right = np.array([[True, False, False], [False, True, False]])
    right[1, 2] = False
    found = caption_retrieval(scores, right | np.array([[False, False, True], [False] * 3]))
    assert found["caption_to_image"]["recall1"] == 0.5
    assert found["caption_to_image"]["recall5"] == 1.0
    assert found["image_to_caption"]["recall1"] == pytest.approx(2 / 3)
    assert found["caption_to_image"]["chance1"] == pytest.approx(0.5)


def test_captions_are_read_by_path_and_missing_ones_are_named(tmp_path):
    rows = {"path": ["a.jpg", "b.jpg"], "caption": ["red", ""]}
    pq.write_table(pa.table(rows), tmp_path / "annotations.parquet")
    assert read_captions(str(tmp_path), ["a.jpg"]) == ["red"]
    with pytest.raises(DataError, match=r"no caption for b\.jpg"):
        read_captions(str(tmp_path), ["a.jpg", "b.jpg"])
    pq.write_table(pa.table({"path": ["a.jpg"]}), tmp_path / "annotations.parquet")
    with pytest.raises(
        DataError, match=r"no annotations\.parquet with the columns path and caption"
    ):
        read_captions(str(tmp_path), ["a.jpg"])


def test_the_package_has_the_weights_that_its_card_names():
    config = load_config("demo").model
    path = check_weights(config)
    assert path is not None and path.stat().st_size <= 20e6
    card = json.loads(path.with_suffix(".json").read_text())
    assert weights_sha256(load_file(path)) == card["weights_sha256"]
    other = config.model_copy(update={"checkpoint": str(path), "pretrained": None})
    assert weights_fingerprint(config) == weights_fingerprint(other)
    assert weights_fingerprint(load_config("market1501").model) == "openai"
    with pytest.raises(ConfigError, match="such weights for dpmpp-small, not for ViT-B-16"):
        check_weights(config.model_copy(update={"backbone": "ViT-B-16"}))


def test_oblong_positions_are_fitted_to_other_grids():
    whole = start_clip(load_config("demo")).visual.positional_embedding
    card = load_file(check_weights(load_config("demo").model))["visual.positional_embedding"]
    torch.testing.assert_close(whole, card.float(), atol=1e-6, rtol=0)
    small = start_clip(load_config("demo", ["data.height=128", "data.width=64"])).visual
    assert small.positional_embedding.shape == (1 + 8 * 4, 192)
    fine, coarse = (p[1:].detach() for p in (whole, small.positional_embedding))
    means = fine.T.unflatten(1, (8, 2, 4, 2)).mean(dim=(2, 4)).flatten(1).T
    alike = torch.nn.functional.cosine_similarity(coarse, means)
    other = torch.nn.functional.cosine_similarity(coarse, means.flip(0))
    assert alike.mean() > 0.9 > other.mean()
    strided = start_clip(load_config("demo", ["model.stride=12"])).visual
    assert strided.positional_embedding.shape == (1 + 21 * 10, 192)
