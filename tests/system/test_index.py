"""Indexes when processes are killed, and on S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import ray

from dpmpp_core.index import GalleryIndex, RowFilter, search
from pipelines.gallery.index import ImageSource, add_images, build_index, compact_index
from pipelines.gallery.search import SearchRequest, run_search
from pipelines.gallery.shards import Shards
from tests.support.cli import TIMEOUT_S, run_dpmpp
from tests.support.indexes import build_large_index, draw_queries
from tests.support.models import saved_model
from tests.support.s3_server import S3Server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "model")


KILLED = """
import os, signal, sys
import dpmpp_core.gallery.adding as adding
import pipelines.gallery.index as job
from dpmpp_core.index import GalleryIndex

adding.COMMIT_ROWS, job.BATCH_IMAGES = 8, 4
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
source = job.ImageSource(sys.argv[2], "gallery", address=sys.argv[3])
job.add_images(sys.argv[1], source)
"""


@pytest.mark.long
def test_a_killed_add_leaves_the_old_index_and_the_same_command_ends_it(
    cluster: None, model: Path, small_demo: Path, tmp_path: Path
) -> None:
    """Killed as its second segment is about to be named; the first one counts.

    A segment has eight rows, or fewer on a slow machine: the job commits by time too.
    """
    folder = tmp_path / "index"
    build_index(str(folder), str(model), "float32", ImageSource(str(small_demo), "query"))
    before = len(GalleryIndex.open(folder))
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(small_demo), address],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    left = GalleryIndex.open(folder)
    gallery = list((small_demo / "bounding_box_test").glob("*.jpg"))
    committed = len(left) - before
    assert 0 < committed < len(gallery) and len(left.manifest.segments) == 2
    features = {
        space: np.ones((1, d), np.float32) for space, d in left.manifest.model.spaces.items()
    }
    assert (search(left, features, None, before).positions >= 0).all()

    ended = add_images(str(folder), ImageSource(str(small_demo), "gallery"))
    assert ended["known"] == committed
    names = GalleryIndex.open(folder).images()["image"].to_pylist()
    assert len(names) == len(set(names)) == before + len(gallery)
    files = {file.name for file in (folder / "segments").iterdir()}
    assert files == {s.file for s in GalleryIndex.open(folder).manifest.segments}


@pytest.mark.long
def test_a_shard_killed_while_it_searches_is_started_again(cluster: None, tmp_path: Path) -> None:
    large = build_large_index(tmp_path / "index")
    asked = draw_queries(500)
    here = search(large, asked.features, asked.masks, 10)
    shards = Shards(str(large.folder), large, 2, None)
    victim = shards._workers[0]
    pid = ray.get(victim.__ray_call__.remote(lambda worker: os.getpid()))
    answers: list = []
    thread = threading.Thread(target=lambda: answers.append(shards.search(asked, 10, RowFilter())))
    os.kill(pid, signal.SIGSTOP)  # or the search might be over before the kill
    thread.start()
    thread.join(timeout=1)
    assert not answers
    os.kill(pid, signal.SIGKILL)
    thread.join()
    found, _ = answers[0]
    assert np.array_equal(found.positions, here.positions)
    assert np.abs(found.scores - here.scores).max() <= 1e-6
    assert ray.get(victim.__ray_call__.remote(lambda worker: os.getpid())) != pid


@pytest.mark.long
def test_an_index_on_s3_is_searched_by_shards(
    cluster: None, model: Path, small_demo: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    build_index(str(folder), str(model), "float32", ImageSource(str(small_demo), "gallery"))
    server = S3Server(tmp_path)
    server.start()
    try:
        compact_index(str(folder), approximate=True)
        for file in [*folder.glob("*.json"), *folder.glob("segments/*")]:
            key = f"people/{file.relative_to(folder)}"
            server.client().upload_file(str(file), "results", key)
        query = str(next((small_demo / "query").glob("*.jpg")))
        command = ["search", "--query", query, "--index", "s3://results/people", "--json"]
        environment = os.environ | server.environment
        done = run_dpmpp(
            *command, "--shards", "2", "--approximate", "--camera", "1", env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        server.stop()
    found = json.loads(done.stdout.splitlines()[-1])["queries"]
    where = RowFilter(cameras=[1])  # whose rows the shards alone have
    assert (
        found == run_search(SearchRequest(index=str(folder), query=query, where=where))["queries"]
    )
