"""Indexes made by Ray Data, searched over shards: nothing lost, nothing twice, the same order."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from mlflow.tracking import MlflowClient

import pipelines.gallery.index
from dpmpp_core.errors import ConfigError, DataError, WeightsError
from dpmpp_core.index import ROW_SCHEMA, GalleryIndex, ModelVersion, RowFilter, search
from dpmpp_core.models.reid import CARD_FILE, load_model
from pipelines.gallery.calibration import calibrate_index, read_calibration
from pipelines.gallery.index import (
    ImageSource,
    add_images,
    build_index,
    compact_index,
    delete_images,
    fetch_model,
)
from pipelines.gallery.search import Searcher, SearchRequest, run_search
from pipelines.gallery.shards import Shards
from pipelines.inference.queries import QueryEmbeddings
from pipelines.registry.client import FILES, hash_files
from pipelines.runtime.tracking import open_client
from tests.integration.gallery import saved_model
from tests.s3_server import S3Server

DPMPP = str(Path(sys.executable).with_name("dpmpp"))


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
    assert (again["added"], again["known"]) == (0, 10)


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
    assert not list((tmp_path / "dpmpp-cache" / "models").iterdir())


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


KILLED = """
import os, signal, sys
import pipelines.gallery.index as job
from dpmpp_core.index import GalleryIndex

job.COMMIT_ROWS, job.BATCH = 8, 4
append, left = GalleryIndex.append, [2]

def dying(self, *arguments):
    left[0] -= 1
    replace = os.replace
    def die(source, target):
        if left[0] == 0 and str(target).endswith("index.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    os.replace = die
    try:
        return append(self, *arguments)
    finally:
        os.replace = replace

GalleryIndex.append = dying
job.add(sys.argv[1], job.Images(sys.argv[2], "gallery", None, sys.argv[3]))
"""


def test_a_killed_add_leaves_the_old_index_and_the_same_command_ends_it(
    cluster: None, model: Path, small_demo: Path, tmp_path: Path
) -> None:
    """Killed as its second lot is about to be named; the first one counts."""
    folder = tmp_path / "index"
    build_index(str(folder), str(model), "float32", ImageSource(str(small_demo), "query"))
    before = len(GalleryIndex.open(folder))
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(small_demo), address],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    left = GalleryIndex.open(folder)
    assert len(left) - before == 8
    features = {
        space: np.ones((1, d), np.float32) for space, d in left.manifest.model.spaces.items()
    }
    assert (search(left, features, None, before).positions >= 0).all()

    ended = add_images(str(folder), ImageSource(str(small_demo), "gallery"))
    assert ended["known"] == 8
    names = GalleryIndex.open(folder).images()["image"].to_pylist()
    gallery = list((small_demo / "bounding_box_test").glob("*.jpg"))
    assert len(names) == len(set(names)) == before + len(gallery)
    files = {file.name for file in (folder / "segments").iterdir()}
    assert files == {s.file for s in GalleryIndex.open(folder).manifest.segments}


MODEL = ModelVersion(weights_sha256="a" * 64, spaces={"visual": 64, "bands": 256})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> GalleryIndex:
    """Seven segments of 14,000 rows, many of them equal, some deleted."""
    index = GalleryIndex.create(tmp_path_factory.mktemp("large") / "index", MODEL, "m")
    rng = np.random.default_rng(0)
    for segment in range(7):
        count = 2000
        names = [f"{segment}-{i}.jpg" for i in range(count)]
        columns = {
            "image": names, "sha256": names, "bytes": [1] * count, "mtime_ns": [1] * count,
            "pid": rng.integers(0, 50, count), "camid": rng.integers(0, 4, count),
            "time": rng.integers(0, 1000, count),
        }  # fmt: skip
        distinct = rng.integers(0, 300, count)
        features = {
            space: np.random.default_rng(1).normal(size=(300, d)).astype(np.float32)[distinct]
            for space, d in MODEL.spaces.items()
        }
        index, _ = index.append(MODEL, pa.table(columns, schema=ROW_SCHEMA), features)
    return index.delete(images=["3-7.jpg", "6-1999.jpg"])[0]


def questions(count: int) -> QueryEmbeddings:
    rng = np.random.default_rng(5)
    features, masks = (
        {
            space: rng.uniform(0.01, 1, (count, d)).astype(np.float32)
            for space, d in MODEL.spaces.items()
        }
        for _ in range(2)
    )
    return QueryEmbeddings(features, masks, None, None)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_find_what_one_machine_finds(count: int, large: GalleryIndex, cluster: None) -> None:
    asked = questions(20)
    shards = Shards(str(large.folder), large, count, None)
    for where in (RowFilter(), RowFilter(cameras=[1, 3], since=100, until=900)):
        here = search(large, asked.features, asked.masks, 30, where)
        found, rows = shards.search(asked, 30, where)
        assert np.array_equal(found.positions, here.positions)
        assert np.abs(found.scores - here.scores).max() <= 1e-6
        assert rows.equals(large.take(here.positions.ravel()))


def test_a_shard_killed_while_it_searches_is_started_again(
    large: GalleryIndex, cluster: None
) -> None:
    asked = questions(500)
    here = search(large, asked.features, asked.masks, 10)
    shards = Shards(str(large.folder), large, 2, None)
    victim = shards._workers[0]
    pid = ray.get(victim.__ray_call__.remote(lambda worker: os.getpid()))
    answers: list = []
    thread = threading.Thread(target=lambda: answers.append(shards.search(asked, 10, RowFilter())))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive() and not answers, "it was over before the kill"
    os.kill(pid, signal.SIGKILL)
    thread.join(timeout=120)
    found, _ = answers[0]
    assert np.array_equal(found.positions, here.positions)
    assert np.abs(found.scores - here.scores).max() <= 1e-6
    assert ray.get(victim.__ray_call__.remote(lambda worker: os.getpid())) != pid


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
    assert page.read_text().count('class="hit"') == 5
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
    command = [DPMPP, "index", "compact", "--index", str(folder), "--approximate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
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


def test_an_index_on_s3_is_searched_by_shards(
    index: Path, small_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server_folder = tmp_path_factory.mktemp("weed")
    server = S3Server(server_folder)
    server.start()
    try:
        folder = shutil.copytree(index, server_folder / "index")
        compact_index(str(folder), approximate=True)
        for file in [*folder.glob("*.json"), *folder.glob("segments/*")]:
            key = f"people/{file.relative_to(folder)}"
            server.client().upload_file(str(file), "results", key)
        query = str(next((small_demo / "query").glob("*.jpg")))
        command = [DPMPP, "search", "--query", query, "--index", "s3://results/people", "--json"]
        done = subprocess.run(
            [*command, "--shards", "2", "--approximate"], env=os.environ | server.environment,
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        server.stop()
    found = json.loads(done.stdout.splitlines()[-1])["queries"]
    assert found == run_search(SearchRequest(index=str(index), query=query))["queries"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["search", "--index", "/nowhere", "--query", "x.jpg"], "x.jpg"),
        (["index", "info", "--index", "/nowhere"], "not an index"),
    ],
)
def test_a_mistake_exits_2_with_one_line(command: list[str], says: str) -> None:
    done = subprocess.run(
        [DPMPP, *command], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1
