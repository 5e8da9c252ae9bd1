"""Photos to matches in Python: every public example runs, and what it returns is right."""

from __future__ import annotations

import doctest
import shutil
from functools import cache
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest

import dpmpp_core
from dpmpp_core.errors import ArgumentError, DataError, WeightsError
from dpmpp_core.gallery.index import Index
from dpmpp_core.index import RowFilter
from dpmpp_core.models import reid
from dpmpp_core.models.reid import ReidModel
from dpmpp_core.retrieval import fuse, masked_similarity
from tests.support.models import saved_model

EXAMPLES = ("models.embedded", "models.reid", "gallery.index", "gallery.matches")


@pytest.fixture(scope="module")
def model() -> ReidModel:
    return reid.shipped_model()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/a.jpg, b.jpg, c.jpg, and the first two again next to it."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        small = rng.integers(0, 256, (8, 4, 3), np.uint8)
        picture = cv2.resize(small, (64, 128), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "photos" / name), picture)
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(folder / "photos" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def index(photos: Path, model: ReidModel) -> Index:
    return Index.build(photos / "photos", model)


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_of_public_names_run(
    module: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reid, "shipped_model", cache(reid.shipped_model))
    result = doctest.testmod(import_module(f"dpmpp_core.{module}"))
    assert result.attempted and not result.failed


def test_public_names_exist_and_have_examples() -> None:
    for name in dpmpp_core.__all__:
        assert getattr(dpmpp_core, name).__name__ == name
    assert set(dpmpp_core.__all__) <= set(dir(dpmpp_core))
    for made in (Index.build, Index.open, Index.add, Index.search, ReidModel.embed):
        assert ">>>" in (made.__doc__ or "")


def test_hits_are_those_of_the_masked_metric(index: Index, photos: Path) -> None:
    names = sorted((photos / "photos").iterdir())
    query, gallery = index.model.embed(names[0]), index.model.embed(names)
    scores = query.similarity(gallery)[0]
    expected = masked_similarity(query.features, query.masks, gallery.features).numpy()[0]
    assert np.array_equal(scores, expected)
    matches = index.search(photos / "a.jpg")
    order = np.argsort(-scores)
    assert [hit.image for hit in matches] == [str(names[i]) for i in order]
    np.testing.assert_allclose([hit.score for hit in matches], scores[order], atol=1e-5)
    middle = matches[1].score
    assert len(index.search(photos / "a.jpg", min_score=middle)) == 2


def test_several_pictures_are_one_person(index: Index, photos: Path) -> None:
    names = [photos / "a.jpg", photos / "b.jpg"]
    both = index.model.embed(names)
    fused = fuse(both.features, both.masks, np.arange(2)[None])
    gallery = index.model.embed(sorted((photos / "photos").iterdir()))
    expected = np.sort(masked_similarity(*fused, gallery.features).numpy()[0])[::-1]
    matches = index.search(names)
    np.testing.assert_allclose([hit.score for hit in matches], expected, atol=1e-5)
    assert "a.jpg and 1 more" in matches.answer.image


def test_a_page_marks_right_and_wrong_and_states_the_search(
    photos: Path, model: ReidModel, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,person,camera\na.jpg,1,1\nb.jpg,2,1\n")
    index = Index.build(photos / "photos", model, tmp_path / "index", labels)
    assert repr(index) == "Index(3 images, 2 persons; model in memory)"
    matches = index.search(photos / "a.jpg", masked=False, min_score=-1, person=1)
    page = matches.save_html(tmp_path / "page.html").read_text()
    assert page.count('class="hit right"') == page.count('class="hit wrong"') == 1
    assert page.count('class="hit"') == 1  # its person is not known
    for text in ("the whole picture is trusted", "-1 or more", "in memory ("):
        assert text in page
    only = index.search(photos / "a.jpg", where=RowFilter(cameras={1}))
    assert len(only) == 2 and 'class="hit"' in only._repr_html_()
    frame = only.to_pandas()
    assert frame["pid"].tolist() == [hit.pid for hit in only]


def test_names_of_labels_are_kept_and_shown(
    photos: Path, model: ReidModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,person,camera\na.jpg,<anna>,entrance\nb.jpg,12,2\n")
    index = Index.build(photos / "photos", model, tmp_path / "index", labels)
    numbers = {hit.person: hit.pid for hit in index.search(photos / "a.jpg")}
    labels.write_text("path,person,camera\nb.jpg,<anna>,roof\nc.jpg,ben,entrance\n")
    index.add(photos / "photos", labels)
    matches = index.search(photos / "a.jpg", person="<anna>")
    found = {Path(hit.image).name: hit for hit in matches}
    assert [found[name].camera for name in ("a.jpg", "b.jpg", "c.jpg")] == [
        "entrance", "roof", "entrance",
    ]  # fmt: skip
    assert found["a.jpg"].pid == found["b.jpg"].pid == numbers["<anna>"] != found["c.jpg"].pid
    matches.show()
    table = capsys.readouterr().out
    assert all(name in table for name in ("<anna>", "ben", "roof"))
    frame = matches.to_pandas()
    assert set(frame["person"]) == {"<anna>", "ben"} and set(frame["camera"]) == {
        "entrance",
        "roof",
    }
    page = matches.save_html(tmp_path / "page.html").read_text()
    assert page.count("person &lt;anna&gt;") == 3 and page.count("camera entrance") == 2
    assert page.count('class="hit right"') == 2 and "<anna>" not in page
    where = RowFilter(cameras=["roof"])
    assert [Path(hit.image).name for hit in index.search(photos / "a.jpg", where=where)] == [
        "b.jpg"
    ]
    with pytest.raises(DataError, match=r"person anna: .*no such name; did you mean '<anna>'"):
        index.search(photos / "a.jpg", person="anna")


def test_an_index_is_kept_continued_and_bound_to_its_model(
    photos: Path, model: ReidModel, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    assert len(Index.build(photos / "photos", model, folder)) == 3
    again = Index.build(photos / "photos", model, folder)
    assert len(again) == 3 and len(Index.open(folder, model)) == 3
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:200])
    shutil.copy(photos / "b.jpg", tmp_path / "more" / "d.jpg")
    assert len(again.add(tmp_path / "more")) == 4
    assert [row.reason for row in again.rejected] == ["truncated"]
    with pytest.raises(WeightsError, match="name the model of the index"):
        Index.open(folder)
    with pytest.raises(WeightsError, match="features of two models cannot be compared"):
        Index.open(folder, saved_model(tmp_path / "other"))


def test_wrong_arguments_are_refused(index: Index, photos: Path) -> None:
    with pytest.raises(ArgumentError, match="k=0: at least 1"):
        index.search(photos / "a.jpg", k=0)
    with pytest.raises(ArgumentError, match="no picture to search for"):
        index.search([])
    with pytest.raises(DataError, match=r"gone\.jpg"):
        index.search(photos / "gone.jpg")
    with pytest.raises(ValueError, match="image 0: uint8"):
        index.search([7])  # type: ignore[list-item]
