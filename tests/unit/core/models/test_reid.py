"""The whole model: its file format, and pictures in, features and masks out."""

from __future__ import annotations

import json

import cv2
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dpmpp_core.config import DataConfig, ModelConfig, load_config
from dpmpp_core.errors import DataError, WeightsError
from dpmpp_core.models.clip import build_clip
from dpmpp_core.models.reid import ReidModel, load_model, save_model, start_clip
from dpmpp_core.models.saved import weights_sha256

CONFIG = load_config("demo", ["data.height=64", "data.width=32"])
SMALL = ModelConfig(
    backbone="dpmpp-small", pretrained=None, taps=(1, 2, 4, 6), mask_generator="light", bands=2
)
DATA = DataConfig(height=64, width=32)


def lively(model):
    """As after training: masks that vary, necks that shift and scale."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for linear in model.mask_generator.spaces.values():
            linear.weight.normal_(std=0.1)
        for neck in model.necks.values():
            neck.running_mean.normal_()
            neck.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return lively(ReidModel(SMALL, DATA, start_clip(CONFIG)))


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 32, 3), np.uint8)


# --- the saved model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "new" / "model"
    return folder, save_model(model, folder, {"classes": 7})


def copied(saved, tmp_path):
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_saved_model_comes_back_bit_for_bit(model, saved, pictures):
    folder, digest = saved
    card = json.loads((folder / "model.json").read_text())
    assert card["weights_sha256"] == digest and card["classes"] == 7
    assert card["spaces"] == {"visual": 192, "joint": 192, "bands": 384}
    before = torch.random.get_rng_state()
    loaded = load_model(folder)
    assert torch.equal(before, torch.random.get_rng_state())  # no draw from the global generator
    assert not loaded.training and weights_sha256(loaded.state_dict()) == digest
    ours, theirs = model.embed(pictures), loaded.embed(pictures)
    for space in ("visual", "joint", "bands"):
        assert np.array_equal(ours.features[space], theirs.features[space])
        assert np.array_equal(ours.masks[space], theirs.masks[space])
        assert ours.features[space].dtype == ours.masks[space].dtype == np.float32


def test_saved_model_keeps_the_activation_of_its_pretraining(monkeypatch, tmp_path, pictures):
    """OpenAI's weights use another GELU than the same backbone's default."""
    tag, weights = {"url": "somewhere", "quick_gelu": True}, tmp_path / "weights.safetensors"
    save_file(start_clip(CONFIG).state_dict(), weights)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, t: tag if t == "openai" else {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(weights))
    config = SMALL.model_copy(update={"pretrained": "openai"})
    trained = lively(ReidModel(config, DATA, build_clip(config, 64, 32)))
    assert "QuickGELU" in str(trained.encoder.tower)
    save_model(trained, tmp_path / "first")

    def no_network(_):
        raise AssertionError("a saved model needs no download")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    loaded = load_model(tmp_path / "first")
    save_model(loaded, tmp_path / "second")
    for other in (loaded, load_model(tmp_path / "second")):
        expected = trained.embed(pictures).features["joint"]
        assert np.array_equal(other.embed(pictures).features["joint"], expected)


@pytest.mark.parametrize("space", ["", "a tensor's name "])
def test_weights_hash_sees_values_names_types_and_shapes(space):
    base = {f"{space}a": torch.arange(4.0), f"{space}b": torch.tensor(1)}
    digest = weights_sha256(base)
    assert digest == weights_sha256(dict(reversed(base.items())))
    a = f"{space}a"
    changes = [
        {a: base[a] + 1}, {a: base[a].view(torch.int32)}, {a: base[a].view(2, 2)}, {"c": base[a]},
    ]  # fmt: skip
    assert len({weights_sha256({**base, **change}) for change in changes} | {digest}) == 5


def test_flipped_bit_in_the_weights_is_noticed(saved, tmp_path):
    folder = copied(saved, tmp_path)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors: its hash is not the one in"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_absent_and_cut_files_are_named(saved, tmp_path, name):
    folder = copied(saved, tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="damaged"):
        load_model(folder)
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"holds no {name}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda card: card | {"format": 99}, "model format 99, this code reads 1"),
        (lambda card: {}, "model format None"),
        (lambda card: [], "model format None"),
        (lambda card: {"format": 1}, "damaged"),
        (lambda card: card | {"model": {"colour": 1}}, "damaged"),
    ],
)
def test_cards_of_another_kind_are_refused(saved, tmp_path, change, problem):
    folder = copied(saved, tmp_path)
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(change(card)))
    with pytest.raises(WeightsError, match=problem):
        load_model(folder)


# --- embedding pictures -------------------------------------------------------------------------


def test_embedding_takes_arrays_and_paths_and_nothing_else(model, pictures, tmp_path):
    whole = model.embed(pictures)
    assert whole.features["visual"].shape == whole.masks["joint"].shape == (5, 192)
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(paths[-1]), picture[:, :, ::-1])
    for images in (list(pictures), paths, [str(path) for path in paths]):
        again = model.embed(images)
        assert np.array_equal(again.features["joint"], whole.features["joint"])
    one = model.embed(str(paths[2]))
    np.testing.assert_allclose(one.masks["visual"], whole.masks["visual"][2:3], atol=1e-5)
    sizes = [pictures[0], np.full((90, 41, 3), 7, np.uint8), np.full((8, 8, 3), 7, np.uint8)]
    assert model.embed(sizes).features["visual"].shape == (3, 192)
    for empty in ([], pictures[:0]):
        assert model.embed(empty).features["visual"].shape == (0, 192)
    with pytest.raises(DataError, match=r"gone\.png"):
        model.embed([paths[0], tmp_path / "gone.png"])


@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        (np.zeros((64, 32, 3), np.float32), r"float32 \(64, 32, 3\)"),
        (np.zeros((64, 32), np.uint8), r"uint8 \(64, 32\)"),
        (np.zeros((64, 32, 4), np.uint8), r"uint8 \(64, 32, 4\)"),
        (np.zeros((0, 32, 3), np.uint8), r"uint8 \(0, 32, 3\)"),
        (None, "NoneType"),
    ],
)
def test_embedding_names_the_position_of_what_is_no_picture(model, pictures, bad, seen):
    with pytest.raises(ValueError, match=f"image 3: .* not {seen}"):
        model.embed([*pictures[:3], bad], batch=2)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_embedding_does_not_depend_on_the_batch(model, pictures, batch):
    whole, parts = model.embed(pictures, batch=5), model.embed(pictures, batch=batch)
    for space in model.spaces:
        np.testing.assert_allclose(parts.features[space], whole.features[space], atol=1e-5)
        np.testing.assert_allclose(parts.masks[space], whole.masks[space], atol=1e-5)


def test_retrieval_features_are_before_or_after_the_necks(model, pictures):
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reading = model(images)
        after = model.retrieval_features(reading.features)
        model.config = SMALL.model_copy(update={"retrieval_features": "pre_bn"})
        before = model.retrieval_features(reading.features)
        model.config = SMALL
    assert torch.equal(before["visual"], reading.encoded.visual)
    assert torch.equal(before["joint"], reading.encoded.joint)
    for space, neck in model.necks.items():
        expected = (before[space] - neck.running_mean) / (neck.running_var + neck.eps).sqrt()
        torch.testing.assert_close(after[space], expected * neck.weight)
        assert not neck.bias.requires_grad and (neck.bias == 0).all()


def test_embedding_leaves_the_model_as_it_was(pictures):
    fresh = ReidModel(SMALL, DATA, start_clip(CONFIG)).train()
    state = weights_sha256(fresh.state_dict())
    fresh.embed(pictures)
    assert fresh.training and weights_sha256(fresh.state_dict()) == state
