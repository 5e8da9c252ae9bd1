"""A model as ONNX: the numbers of torch, for any number of pictures, or no file."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import onnx
import pytest

import pipelines.inference.onnx_export
from dpmpp_core.errors import ArgumentError, ConfigError, DataError, WeightsError
from dpmpp_core.models.clip import build_clip
from dpmpp_core.models.reid import ReidModel
from pipelines.inference.onnx_export import TOLERANCE, export
from pipelines.inference.onnx_model import OnnxModel
from tests.support import families
from tests.support.models import DATA, save_trained_like

# Mean and std of OpenAI's CLIP: a graph that normalised twice, or not at all, would be far off.
VARIANTS = {
    "bands": {"backbone": "test-clip", "bands": 2, "mask_generator": "light"},
    "plain": {"backbone": "test-clip", "bands": 0, "mask_generator": "full",
              "retrieval_features": "pre_bn", "stride": 12},
    "textless": {"backbone": "timm/test_vit", "bands": 3, "mask_generator": "none"},
}  # fmt: skip


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 32, 3), np.uint8)


def apart(one, other):
    """Largest difference over all features and masks."""
    assert list(one.features) == list(other.features) == list(one.masks) == list(other.masks)
    pairs = [(a[s], b[s]) for a, b in
             ((one.features, other.features), (one.masks, other.masks)) for s in a]  # fmt: skip
    assert all(a.dtype == b.dtype == np.float32 and a.shape == b.shape for a, b in pairs)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """variant -> model, digest, what `export` said, its file; each made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model, digest = save_trained_like(folder / "model", **VARIANTS[name])
            out = folder / "deep" / "model.onnx"
            made[name] = model, digest, export(folder / "model", out), out
        return made[name]

    return get


@pytest.fixture(params=VARIANTS)
def exported(request, variants):
    return variants(request.param)


@pytest.mark.parametrize("count", [1, 3, 64])
def test_any_number_of_pictures_gives_what_torch_gives(exported, count):
    model, _, _, path = exported
    images = pictures(count)
    assert apart(OnnxModel(path).embed(images), model.embed(images)) <= TOLERANCE


def test_the_file_says_what_it_is(exported):
    model, digest, result, path = exported
    loaded = OnnxModel(path, threads=1)
    assert loaded.weights_sha256 == digest == result["weights_sha256"]
    assert loaded.spaces == model.spaces == result["spaces"]
    assert (loaded.data.height, loaded.data.width) == (64, 32)
    assert result["images"] == 100 and 0 < result["max_abs_difference"] <= TOLERANCE
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    graph = onnx.load(path).graph
    (given,) = graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [0, 64, 32, 3]  # 0 = free


@pytest.fixture
def one(variants):
    """A model, its folder, its file."""
    model, _, _, path = variants("textless")
    return model, path.parents[1] / "model", path


def test_pictures_of_any_size_and_paths_are_embedded_as_by_the_model(one, tmp_path):
    import cv2

    model, _, path = one
    other = OnnxModel(path)
    large = np.random.default_rng(1).integers(0, 256, (90, 50, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), large)
    mixed = [large, pictures(1)[0], tmp_path / "a.png"]
    assert apart(other.embed(mixed, batch=2), model.embed(mixed, batch=2)) <= TOLERANCE
    assert other.embed([]).masks["bands"].shape == (0, model.spaces["bands"])
    one_path = str(tmp_path / "a.png")
    assert apart(other.embed(one_path), model.embed(one_path)) <= TOLERANCE
    with pytest.raises(ValueError, match=r"image 1: .*not float64 \(4, 4, 3\)"):
        other.embed([large, np.zeros((4, 4, 3))])
    with pytest.raises(DataError, match=r"none\.png"):
        other.embed([tmp_path / "none.png"])


def test_another_models_graph_is_refused_and_the_difference_named(one, tmp_path, monkeypatch):
    _, folder, path = one
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the one before")
    monkeypatch.setattr(
        pipelines.inference.onnx_export, "TOLERANCE", 0.0
    )  # less than any graph can do
    monkeypatch.setattr(
        pipelines.inference.onnx_export, "_write", lambda _, to, facts: shutil.copy(path, to)
    )
    with pytest.raises(WeightsError, match=r"not written: its \w+ differs .* by \d\.\de-0\d in a"):
        export(folder, out)
    assert out.read_bytes() == b"the one before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_normalisation_done_twice_is_refused(one):
    model, _, path = one
    moved = model.data.model_copy(update={"mean": (0.9, 0.9, 0.9)})
    twice = ReidModel(model.config, moved, build_clip(model.config, 64, 32)).eval()
    twice.load_state_dict(model.state_dict())
    with pytest.raises(WeightsError, match="differs"):
        pipelines.inference.onnx_export._compare_outputs(twice, OnnxModel(path), path)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(one, tmp_path, monkeypatch, package):
    _, folder, _ = one
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}, .* pip install 'dpmpp\[onnx\]'"):
        export(folder, tmp_path / "model.onnx")


def test_bad_files_and_names_are_refused(one, tmp_path):
    _, folder, path = one
    for name in ("model", "model.pt", ""):
        with pytest.raises(ArgumentError, match=r"name the file to be written, NAME\.onnx"):
            export(folder, tmp_path / name)
    with pytest.raises(WeightsError, match="not a saved model"):
        export(tmp_path, tmp_path / "model.onnx")
    with pytest.raises(WeightsError, match="no file"):
        OnnxModel(tmp_path / "model.onnx")
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"half\.onnx does not load"):
        OnnxModel(tmp_path / "half.onnx")
    for key, value, said in (
        ("spaces", "[1", "damaged metadata"),
        ("spaces", '{"visual": 64}', "outputs are not those"),
        ("height", "tall", "damaged metadata"),
    ):
        changed = onnx.load(path)
        next(fact for fact in changed.metadata_props if fact.key == key).value = value
        onnx.save(changed, tmp_path / "changed.onnx")
        with pytest.raises(WeightsError, match=said):
            OnnxModel(tmp_path / "changed.onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "other", [value], [result])
    other = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match="no model of `dpmpp export`"):
        OnnxModel(tmp_path / "other.onnx")


@pytest.mark.long
@pytest.mark.parametrize("backbone", families.BACKBONES)
def test_every_family_of_backbones_is_exported(backbone, tmp_path):
    size = (70, 42) if backbone == "timm/dpmpp_test_dinov2" else (64, 32)
    data = DATA.model_copy(update={"height": size[0], "width": size[1]})
    save_trained_like(tmp_path / "model", data, backbone=backbone, bands=2, mask_generator="light")
    assert export(tmp_path / "model", tmp_path / "model.onnx")["max_abs_difference"] <= TOLERANCE
