"""Search with several pictures as one query, and with an exported model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from dpmpp_core.data.sightings import Sighting
from dpmpp_core.errors import ConfigError, DataError, WeightsError
from dpmpp_core.gallery.queries import tile_frames
from dpmpp_core.index import (
    ROW_SCHEMA,
    GalleryIndex,
    ModelVersion,
    RowFilter,
    describe_index,
)
from dpmpp_core.retrieval import fuse, masked_topk
from pipelines.cli.show_search import show_index, show_results
from pipelines.gallery.search import SearchRequest, run_search
from pipelines.inference.onnx_export import export
from pipelines.inference.onnx_model import OnnxModel
from tests.support.models import save_trained_like

COUNT = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and its graph, an index of twelve pictures, five pictures of one person."""
    folder = tmp_path_factory.mktemp("search")
    model, digest = save_trained_like(folder / "model", backbone="timm/test_vit", bands=2)
    export(folder / "model", folder / "model" / "model.onnx")
    rng = np.random.default_rng(0)
    for name, count in (("gallery", COUNT), ("person", 5)):
        (folder / name).mkdir()
        for i in range(count):
            small = rng.integers(0, 256, (8, 4, 3), np.uint8)
            picture = cv2.resize(small, (40, 80), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / name / f"{i:02d}.png"), picture)
    images = sorted(map(str, (folder / "gallery").iterdir()))
    version = ModelVersion(weights_sha256=digest, spaces=model.spaces)
    hashes = [sha256(Path(image).read_bytes()).hexdigest() for image in images]
    rows = {"image": images, "sha256": hashes, "bytes": [1] * COUNT,
            "mtime_ns": [1] * COUNT, "pid": list(range(COUNT)), "camid": [1] * COUNT,
            "time": [None] * COUNT}  # fmt: skip
    index = GalleryIndex.create(folder / "index", version, str(folder / "model"), "float32")
    index.append(version, pa.table(rows, schema=ROW_SCHEMA), model.embed(images).features)
    return folder, model


def hits(result):
    return [(hit["pid"], hit["score"]) for (query,) in [result["queries"]] for hit in query["hits"]]


def expected(folder, model, k):
    images = sorted((folder / "gallery").iterdir())
    person = model.embed(sorted((folder / "person").iterdir()))
    rows = np.arange(5)[None]
    scores, pids = masked_topk(
        *fuse(person.features, person.masks, rows), model.embed(images).features, k
    )
    return list(zip(np.asarray(pids)[0].tolist(), np.asarray(scores)[0].tolist(), strict=True))


def request(folder, **changes):
    return SearchRequest(index=str(folder / "index"), query=str(folder / "person"), **changes)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_folder_of_one_person_is_one_query(place, engine, tmp_path):
    folder, model = place
    page = tmp_path / "page.html"
    asked = request(folder, top=6, tracklet=True, engine=engine, html=str(page))
    found = hits(run_search(asked))
    wanted = expected(folder, model, 6)
    assert [pid for pid, _ in found] == [pid for pid, _ in wanted]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in wanted], atol=1e-4)
    assert page.read_text().count("<img") >= 7  # the frames as one picture, and what was found


def test_both_engines_find_the_same_for_every_picture(place):
    folder, _ = place
    one, other = (run_search(request(folder, engine=engine)) for engine in ("torch", "onnx"))
    assert len(one["queries"]) == len(other["queries"]) == 5
    for a, b in zip(one["queries"], other["queries"], strict=True):
        assert [h["image"] for h in a["hits"]] == [h["image"] for h in b["hits"]]
        scores = [[h["score"] for h in query["hits"]] for query in (a, b)]
        np.testing.assert_allclose(*scores, atol=1e-4)
    assert other["model"].endswith("model/model.onnx")
    json.dumps(other)


def test_names_of_an_index_are_taken_and_shown(place, tmp_path, capsys):
    folder, _ = place
    index = GalleryIndex.open(shutil.copytree(folder / "index", tmp_path / "index"))
    index = index.add_names([Sighting("", "[b]anna", "entrance")])
    images = sorted(map(str, (folder / "gallery").iterdir()))[:2]
    anna, entrance = index.manifest.names.persons["[b]anna"], index.manifest.names.cameras
    labels = {"image": images, "pid": [anna] * 2, "camid": [None, entrance["entrance"]],
              "time": [None] * 2}  # fmt: skip
    schema = pa.schema([ROW_SCHEMA.field(name) for name in labels])
    index.relabel(pa.table(labels, schema=schema))
    asked = request(folder, tracklet=True, html=str(tmp_path / "page.html"), person="[b]anna")
    asked = replace(asked, index=str(index.folder))
    (query,) = run_search(asked)["queries"]
    named = {hit["image"]: hit for hit in query["hits"] if "person" in hit}
    assert set(named) == set(images) and all(type(hit["pid"]) is int for hit in query["hits"])
    assert ["camera" in named[image] for image in images] == [False, True]
    page = (tmp_path / "page.html").read_text()
    assert page.count("person [b]anna") == 3 and page.count('class="hit right"') == 2
    assert page.count("camera entrance") == 1 and page.count("camera 1<") == COUNT - 1
    only = run_search(replace(asked, where=RowFilter(cameras=["entrance"])))
    assert [hit["image"] for hit in only["queries"][0]["hits"]] == images[1:]
    assert "<th>cameras</th><td>entrance</td>" in (tmp_path / "page.html").read_text()
    show_results(only)
    show_index(describe_index(GalleryIndex.open(index.folder)))
    shown = capsys.readouterr().out
    assert "[b]anna" in shown and "cameras: 1, entrance" in shown
    assert "camera " in shown and "same person" not in shown  # a column that would be empty
    with pytest.raises(DataError, match=r"--person Anna: .*did you mean '\[b\]anna'"):
        run_search(replace(asked, person="Anna"))


def test_a_file_can_be_named_and_the_wrong_ones_are_refused(place, tmp_path):
    folder, _ = place
    graph = (folder / "model" / "model.onnx").read_bytes()
    (tmp_path / "moved.onnx").write_bytes(graph)
    moved = run_search(request(folder, model=str(tmp_path / "moved.onnx"), tracklet=True))
    assert hits(moved) == hits(run_search(request(folder, engine="onnx", tracklet=True)))
    with pytest.raises(ConfigError, match="--engine tensorrt: one of torch, onnx"):
        run_search(request(folder, engine="tensorrt"))
    with pytest.raises(WeightsError, match=r"holds no model\.json: not a saved model"):
        run_search(request(folder, engine="onnx", model=str(tmp_path)))


@pytest.mark.parametrize("location", ["../secret.bin", "{folder}/secret.bin", "link.bin"])
def test_a_graph_that_reads_files_outside_its_folder_is_refused(place, tmp_path, location):
    import onnx

    folder, _ = place
    (tmp_path / "graphs").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(2**20))
    (tmp_path / "graphs" / "link.bin").symlink_to(tmp_path / "secret.bin")
    hostile = onnx.load(folder / "model" / "model.onnx")
    weight = max(hostile.graph.initializer, key=lambda x: len(x.raw_data))
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location.format(folder=tmp_path)), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    path = tmp_path / "graphs" / "hostile.onnx"
    path.write_bytes(hostile.SerializeToString())
    with pytest.raises(WeightsError, match=r"hostile\.onnx"):
        OnnxModel(path).embed(np.zeros((1, 64, 32, 3), np.uint8))


def test_another_models_graph_is_refused(place, tmp_path):
    import onnx

    folder, _ = place
    other = onnx.load(folder / "model" / "model.onnx")
    for fact in other.metadata_props:
        if fact.key == "weights_sha256":
            fact.value = "0" * 64
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match="0000"):
        run_search(request(folder, model=str(tmp_path / "other.onnx")))


@pytest.mark.parametrize(("count", "across"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4)])
def test_frames_stand_side_by_side(count, across):
    frames = [np.full((50, 30, 3), 10 * i, np.uint8) for i in range(count)]
    made = tile_frames(frames)
    assert made.shape == (128 * across, 64 * across, 3)
    for i in range(count):
        row, column = divmod(i, across)
        cell = made[128 * row : 128 * (row + 1), 64 * column : 64 * (column + 1)]
        assert (cell == 10 * i).all()
    if count < across**2:
        assert (made[-1, -1] == 255).all()
