"""Indexes made by Ray Data, searched over shards: nothing lost, nothing twice, the same order."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

import dpmpp_core
import pipelines.gallery.index
from dpmpp_core.errors import ConfigError, DataError, WeightsError
from dpmpp_core.index import GalleryIndex, RowFilter, search
from dpmpp_core.models.reid import load_model
from dpmpp_core.models.saved import weights_sha256
from dpmpp_core.models.sources import CARD_FILE, SHIPPED, SHIPPED_WORTH, WEIGHTS_FILE
from pipelines.gallery.calibration import calibrate_index, read_calibration
from pipelines.gallery.index import (
    ImageSource,
    add_images,
    build_index,
    compact_index,
    delete_images,
)
from pipelines.gallery.search import Searcher, SearchRequest, run_search
from pipelines.gallery.shards import Shards
from pipelines.registry.client import FILES, hash_files
from pipelines.registry.models import fetch_model
from pipelines.runtime.tracking import open_client
from tests.support.cli import invoke_dpmpp
from tests.support.indexes import build_large_index, draw_queries
from tests.support.models import resolve_by_commands, saved_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def index(
    cluster: None, model: Path, small_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The gallery of the small demo set, calibrated on its queries."""
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(str(folder), str(model), "float32", ImageSource(str(small_demo), "gallery"))
    calibrate_index(str(folder), ImageSource(str(small_demo)), 0.05)
    return folder


def test_a_folder_is_indexed_and_only_what_is_new_is_added_later(
    cluster: None, model: Path, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "pictures"
    data.mkdir()
    pictures = sorted((small_demo / "bounding_box_test").glob("*.jpg"))
    for i, picture in enumerate(pictures[:9]):
        (data / f"{i}.jpg").write_bytes(picture.read_bytes())
    (data / "cut.jpg").write_bytes(pictures[9].read_bytes()[:2000])
    (data / "notes.txt").write_text("not a picture")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,camid,time\n3.jpg,7,2026-11-27\n")
    folder = tmp_path / "index"
    made = build_index(
        str(folder), str(model), "float32", ImageSource(str(data), labels=str(labels))
    )
    assert (made["added"], made["images"], made["cameras"]) == (9, 9, [7])
    reasons = {row["path"]: row["reason"] for row in made["quarantined"]}
    assert reasons == {"cut.jpg": "truncated", "notes.txt": "not_an_image_name"}

    own = load_model(model).embed([data / "4.jpg"])
    opened = GalleryIndex.open(folder)
    found = search(opened, own.features, own.masks, 1)
    taken = opened.take(found.positions[0]).to_pylist()[0]
    assert taken["image"] == str(data / "4.jpg")
    assert found.scores[0, 0] == pytest.approx(1, abs=0.2)  # its mask still weighs it

    (data / "cut.jpg").write_bytes(pictures[9].read_bytes())
    (data / "4.jpg").write_bytes(pictures[10].read_bytes())
    grown = add_images(str(folder), ImageSource(str(data)))
    assert (grown["added"], grown["replaced"], grown["known"], grown["images"]) == (2, 1, 8, 10)
    monkeypatch.setattr(
        pipelines.gallery.index, "stream_embeddings", None
    )  # nothing is opened any more
    again = add_images(str(folder), ImageSource(str(data)))
    assert (again["added"], again["known"], again["relabelled"]) == (0, 10, 0)
    (tmp_path / "link").symlink_to(data)
    for other in (tmp_path / "link", data / ".." / "pictures"):
        assert add_images(str(folder), ImageSource(str(other)))["known"] == 10
    labels.write_text("path,pid,camid\n3.jpg,5,8\n4.jpg,6,8\n")
    told = add_images(str(folder), ImageSource(str(data), labels=str(labels)))
    assert (told["added"], told["relabelled"], told["persons"], told["cameras"]) == (0, 2, 2, [8])


def test_without_a_model_the_packages_own_is_taken_and_its_worth_stated_first(
    cluster: None, small_demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, folder = tmp_path / "photos", str(tmp_path / "index")
    photos.mkdir()
    pictures = sorted((small_demo / "bounding_box_test").glob("*.jpg"))
    for i, picture in enumerate(pictures[:6]):
        (photos / f"holiday-{i}.jpg").write_bytes(picture.read_bytes())
    caplog.set_level(logging.INFO, logger="pipelines")
    done = invoke_dpmpp("index", "build", "--index", folder, "--data", str(photos))
    assert done.returncode == 0, done.stderr
    first = next(record for record in caplog.records if record.name.startswith("pipelines"))
    assert first.message == f"model: {SHIPPED_WORTH}"
    assert GalleryIndex.open(Path(folder)).manifest.source == SHIPPED

    query = str(photos / "holiday-3.jpg")
    done = invoke_dpmpp("search", "--index", folder, "--query", query, "--top", "1", "--json")
    (hit,) = json.loads(done.stdout)["queries"][0]["hits"]
    assert hit["image"] == query
    (photos / "new.jpg").write_bytes(pictures[6].read_bytes())
    done = invoke_dpmpp("index", "add", "--index", folder, "--data", str(photos), "--json")
    assert json.loads(done.stdout)["added"] == 1


def test_a_search_of_many_survives_files_that_are_no_pictures(
    index: Path, small_demo: Path, tmp_path: Path
) -> None:
    picture = next((small_demo / "query").glob("*.jpg"))
    queries = tmp_path / "queries"
    queries.mkdir()
    (queries / "good.jpg").write_bytes(picture.read_bytes())
    half = picture.read_bytes()[:1500]
    (queries / "cut.jpg").write_bytes(half)
    (queries / "zerotail.jpg").write_bytes(half + bytes(1500))
    (queries / "photo.heic").write_bytes(b"ftypheic")
    asked = SearchRequest(index=str(index), query=str(queries), html=str(tmp_path / "page.html"))
    for tracklet in (False, True):
        found = run_search(replace(asked, tracklet=tracklet))
        assert len(found["queries"]) == 1 and found["queries"][0]["hits"]
        assert {Path(row["path"]).name: row["reason"] for row in found["quarantined"]} == {
            "cut.jpg": "truncated", "zerotail.jpg": "truncated", "photo.heic": "not_an_image",
        }  # fmt: skip
    assert Path(asked.html or "").exists()
    (queries / "good.jpg").unlink()
    for tracklet in (False, True):
        with pytest.raises(DataError, match=r"no picture to search for.*cut\.jpg: the end of"):
            run_search(replace(asked, tracklet=tracklet))
    with pytest.raises(DataError, match="zerotail"):
        run_search(replace(asked, query=str(queries / "zerotail.jpg")))


def registered(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A registry whose `people` has one version, the champion: this model."""
    files = folder / "version"
    shutil.copytree(model, files / "artifacts" / "model")
    monkeypatch.setenv("DPMPP_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    client = open_client(f"sqlite:///{folder}/mlflow.db")
    client.create_registered_model("people")
    client.create_model_version("people", str(files), tags={FILES: hash_files(files)})
    client.set_registered_model_alias("people", "champion", "1")
    return client


def test_a_model_of_the_registry_is_named_by_its_alias_and_kept_by_its_version(
    cluster: None, model: Path, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = registered(model, tmp_path, monkeypatch)
    pictures = ImageSource(str(small_demo), "query")
    made = build_index(str(tmp_path / "index"), "models:/people@champion", "float32", pictures)
    assert made["model"] == "models:/people/1" and made["added"] > 0
    client.set_registered_model_alias("people", "champion", "1")
    query = str(next((small_demo / "query").glob("*.jpg")))
    asked = SearchRequest(index=str(tmp_path / "index"), query=query, top=1)
    found = run_search(asked)["queries"][0]["hits"][0]["image"]
    assert found == query
    moved = replace(asked, model=str(model))
    assert run_search(moved)["queries"][0]["hits"][0]["image"] == query
    with pytest.raises(ConfigError, match="no alias 'best'; it has: champion"):
        run_search(replace(asked, model="models:/people@best"))
    with pytest.raises(ConfigError, match=r"models:/NAME@ALIAS or models:/NAME/VERSION"):
        run_search(replace(asked, model="models:/people"))
    with pytest.raises(ConfigError, match="no graph"):
        run_search(replace(asked, engine="onnx"))


def test_files_of_the_registry_that_were_changed_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(model, tmp_path, monkeypatch)
    card = tmp_path / "version" / "artifacts" / "model" / CARD_FILE
    card.write_text(card.read_text() + " ")
    with pytest.raises(WeightsError, match=r"models:/people/1: .* not those that were registered"):
        fetch_model("models:/people/1")
    assert not list((tmp_path / f"dpmpp-cache-{os.geteuid()}" / "models").iterdir())


def test_a_copy_of_a_registered_model_that_was_changed_is_fetched_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(model, tmp_path, monkeypatch)
    copy = fetch_model("models:/people/1") / WEIGHTS_FILE
    other = saved_model(tmp_path / "other", seed=1) / WEIGHTS_FILE
    copy.write_bytes(other.read_bytes())
    assert fetch_model("models:/people/1") / WEIGHTS_FILE == copy
    assert copy.read_bytes() == (model / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("name", ["models:/people@champion", "models:/people/1"])
def test_every_command_and_python_take_a_name_of_the_registry(
    model: Path, small_demo: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(model, tmp_path, monkeypatch)
    loaded = weights_sha256(dpmpp_core.load_model(name).state_dict())
    assert loaded == weights_sha256(load_model(model).state_dict())
    copy = fetch_model("models:/people/1")
    assert resolve_by_commands(name, small_demo, monkeypatch) == [copy] * 3


def test_another_model_is_refused_by_name(index: Path, small_demo: Path, tmp_path: Path) -> None:
    other = saved_model(tmp_path / "other", seed=1)
    sha256 = json.loads((other / "model.json").read_text())["weights_sha256"][:12]
    images = ImageSource(str(small_demo), "query")
    with pytest.raises(WeightsError, match=sha256):
        add_images(str(index), images, str(other))
    with pytest.raises(WeightsError, match=sha256):
        build_index(str(index), str(other), "float32", images)
    with pytest.raises(WeightsError, match=sha256):
        Searcher(str(index), str(other))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> GalleryIndex:
    return build_large_index(tmp_path_factory.mktemp("large") / "index")


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 5))])
def test_shards_find_what_one_machine_finds(count: int, large: GalleryIndex, cluster: None) -> None:
    asked = draw_queries(20)
    shards = Shards(str(large.folder), large, count, None)
    for where in (RowFilter(), RowFilter(cameras=[1, 3], since=100, until=900)):
        here = search(large, asked.features, asked.masks, 30, where)
        found, rows = shards.search(asked, 30, where)
        assert np.array_equal(found.positions, here.positions)
        assert np.abs(found.scores - here.scores).max() <= 1e-6
        assert rows.equals(large.take(here.positions.ravel()))


def test_a_person_is_searched_for_with_filters_and_a_page(
    index: Path, small_demo: Path, tmp_path: Path
) -> None:
    query = next((small_demo / "query_holistic").glob("*.jpg"))
    page = tmp_path / "page.html"
    result = run_search(SearchRequest(index=str(index), query=str(query), top=5, html=str(page)))
    (asked,) = result["queries"]
    scores = [hit["score"] for hit in asked["hits"]]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert all(0 < hit["probability"] < 1 for hit in asked["hits"])
    assert len(re.findall(r'<figure class="hit\b', page.read_text())) == 5
    other = run_search(
        SearchRequest(
            index=str(index), query=str(query), base_rate=0.5, where=RowFilter(cameras=[2])
        )
    )
    assert {hit["camid"] for hit in other["queries"][0]["hits"]} == {2}
    assert other["base_rate"] == 0.5
    same = [h for h in other["queries"][0]["hits"] if h["image"] == asked["hits"][0]["image"]]
    assert all(hit["probability"] > asked["hits"][0]["probability"] for hit in same)
    several = run_search(SearchRequest(index=str(index), query=str(small_demo / "query"), top=3))
    assert len(several["queries"]) == len(list((small_demo / "query").glob("*.jpg")))


def test_an_approximate_search_is_made_ready_by_compaction_and_says_what_it_scored(
    cluster: None, index: Path, small_demo: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(index, tmp_path / "index")
    asked = SearchRequest(
        index=str(folder), query=str(small_demo / "query"), top=5, approximate=True
    )
    with pytest.raises(DataError, match="`dpmpp index compact --approximate` writes them"):
        run_search(asked)
    done = invoke_dpmpp("index", "compact", "--index", str(folder), "--approximate")
    assert done.returncode == 0, done.stderr
    images = len(GalleryIndex.open(folder))
    assert f"sketches: of {images} images" in done.stdout
    page = tmp_path / "page.html"
    found = run_search(replace(asked, html=str(page)))
    exact = run_search(replace(asked, approximate=False))
    assert (found["approximate"], exact["approximate"]) == (True, False)
    assert found["images"] == exact["scored"] == images
    assert found["scored"] <= images
    assert f"approximate: {found['scored']} images scored" in page.read_text()
    best = [query["hits"][0] for query in exact["queries"]]
    assert [query["hits"][0] for query in found["queries"]] == best
    both = {shards: run_search(replace(asked, shards=shards))["queries"] for shards in (0, 2)}
    assert both[0] == both[2]
    tracklet = str(small_demo / "query")
    one = run_search(replace(asked, query=tracklet, tracklet=True, where=RowFilter(cameras=[2])))
    assert {hit["camid"] for hit in one["queries"][0]["hits"]} == {2}


def test_the_calibration_says_what_it_was_made_of(index: Path) -> None:
    sha256 = GalleryIndex.open(index).manifest.model.weights_sha256
    made = read_calibration(str(index), sha256)
    assert made is not None
    assert (made.persons, made.base_rate) == (4, 0.05)
    assert made.same > 0 and made.different > 0
    assert (index / "calibration.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="of another model"):
        read_calibration(str(index), "b" * 64)


def test_an_open_search_sees_what_is_added_and_deleted(index: Path, small_demo: Path) -> None:
    searcher = Searcher(str(index))
    picture = np.zeros((128, 64, 3), np.uint8)
    asked = searcher.embed([picture], ["black"])
    first = searcher.find(asked, 1, RowFilter()).hits[0][0]
    delete_images(str(index), [first.image], [])
    assert searcher.find(asked, 1, RowFilter()).hits[0][0].image != first.image
    add_images(str(index), ImageSource(str(small_demo), "gallery"))
    assert searcher.find(asked, 1, RowFilter()).hits[0][0].image == first.image


@pytest.mark.long
def test_shards_search_an_index_that_is_compacted_meanwhile(
    cluster: None, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(index, tmp_path / "index")
    searcher = Searcher(str(folder), shards=2)
    asked = searcher.embed([np.zeros((128, 64, 3), np.uint8)], ["black"])
    first, second, third = searcher.find(asked, 3, RowFilter()).hits[0]
    stale = searcher.index
    delete_images(str(folder), [first.image], [])
    compact_index(str(folder))
    # Workers are started on what is gone once they look for it.
    states = iter([stale])
    real = GalleryIndex.open
    monkeypatch.setattr(GalleryIndex, "open", lambda folder: next(states, None) or real(folder))
    searcher._shards = searcher._start_shards()
    assert searcher.find(asked, 2, RowFilter()).hits[0] == [second, third]
    assert searcher.index.deleted == 0 and searcher.index != stale
