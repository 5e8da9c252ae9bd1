"""Without the query's mask, the scores are those of the whole picture: command line and app."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from dpmpp_core.data.images import read_image
from dpmpp_core.gallery.index import Index
from dpmpp_core.index import RowFilter
from dpmpp_core.models.reid import ReidModel, shipped_model
from dpmpp_core.retrieval import masked_similarity
from pipelines.gallery.search import Searcher
from tests.support.cli import invoke_dpmpp

NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture(scope="module")
def model() -> ReidModel:
    return shipped_model()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in NAMES:
        small = rng.integers(0, 256, (8, 4, 3), np.uint8)
        picture = cv2.resize(small, (64, 128), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / name), picture)
    return folder


@pytest.fixture(scope="module")
def index(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("index") / "index"
    Index.build(photos, "shipped", folder)
    return str(folder)


@pytest.fixture(scope="module")
def expected(model: ReidModel, photos: Path) -> dict[bool, dict[str, float]]:
    """By whether the mask is used: the score of every picture for the first, from features."""
    gallery = model.embed([photos / name for name in NAMES])
    query = model.embed([photos / NAMES[0]])
    grid = (1, *query.occluded.shape[1:]) if query.occluded is not None else None
    whole = query if grid is None else model.embed([photos / NAMES[0]], masked=np.zeros(grid, bool))
    ones = {space: np.ones_like(x) for space, x in whole.features.items()}
    return {
        used: dict(zip(NAMES, masked_similarity(features, masks, gallery.features)[0].tolist(),
                       strict=True))
        for used, features, masks in (
            (True, query.features, query.masks), (False, whole.features, ones)
        )
    }  # fmt: skip


def assert_scores(hits: list[tuple[str, float]], expected: dict[str, float]) -> None:
    found = {Path(image).name: score for image, score in hits}
    assert found == pytest.approx(expected, abs=1e-5)
    assert [score for _, score in hits] == sorted(found.values(), reverse=True)


def test_the_mask_makes_a_difference(expected: dict[bool, dict[str, float]]) -> None:
    change = [abs(expected[True][name] - expected[False][name]) for name in NAMES[1:]]
    assert max(change) > 1e-3


@pytest.mark.parametrize("options", [[], ["--no-mask"], ["--no-mask", "--tracklet"]])
def test_a_search_without_mask_scores_the_whole_picture(
    index: str, photos: Path, tmp_path: Path, options: list[str],
    expected: dict[bool, dict[str, float]],
) -> None:  # fmt: skip
    query = photos / NAMES[0]
    if "--tracklet" in options:
        (tmp_path / "person").mkdir()
        query = tmp_path / "person" / NAMES[0]
        query.write_bytes((photos / NAMES[0]).read_bytes())
        query = query.parent
    arguments = ["--index", index, "--query", str(query), "--json", *options]
    done = invoke_dpmpp("search", *arguments)
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout.splitlines()[-1])["queries"]
    hits = [(hit["image"], hit["score"]) for hit in answer["hits"]]
    assert_scores(hits, expected["--no-mask" not in options])


@pytest.mark.parametrize("used", [True, False])
def test_the_apps_checkbox_switches_the_mask(
    index: str, photos: Path, used: bool, monkeypatch: pytest.MonkeyPatch,
    expected: dict[bool, dict[str, float]],
) -> None:  # fmt: skip
    pytest.importorskip("streamlit", reason="no Streamlit: pip install 'dpmpp[app]'")
    from pipelines.gallery import app_page

    form: Any = SimpleNamespace(
        caption=lambda text: None, number_input=lambda *a, **k: 20, slider=lambda *a: -1.0,
        multiselect=lambda *a, **k: [], text_input=lambda *a, **k: "",
        checkbox=lambda label, value, help: used if label == "Use the mask" else value,
        sidebar=nullcontext(),
    )  # fmt: skip
    monkeypatch.setattr(app_page, "st", form)
    searcher = Searcher(index)
    choices = app_page.ask_choices(searcher)
    assert choices == app_page.Choices(20, RowFilter(), used, None, None)
    pictures = [read_image(str(photos), NAMES[0])]
    answer, facts = app_page.find(searcher, pictures, [NAMES[0]], choices)
    assert_scores([(hit.image, hit.score) for hit in answer.hits], expected[used])
    assert facts["mask of the query"].startswith("used" if used else "not used")
