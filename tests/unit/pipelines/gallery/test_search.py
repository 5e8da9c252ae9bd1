"""A search as a user gives it: times and cameras, the table, the page; without Ray."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import dpmpp_core.gallery.pages
import pipelines.gallery.app
from dpmpp_core.data.headers import IMAGE_NAME
from dpmpp_core.errors import DataError
from dpmpp_core.gallery.index import Index
from dpmpp_core.index import RowFilter
from tests.support.cli import assert_mistake, invoke_dpmpp
from tests.support.models import saved_model

# Four pictures of 27 November 2026, each with its time in another form, and one of the next day.
TIMES = {
    "camA/1.jpg": ("3", "20261127"),
    "camA/2.jpg": ("3", "2026-11-27T14:05:00+01:00"),
    "camB/1.jpg": ("4", "20261127140500"),
    "camB/2.jpg": ("4", "1795784700.0"),
    "camB/3.jpg": ("4", "2026-11-28"),
}
OF_THE_DAY = set(list(TIMES)[:4])


@pytest.fixture(scope="module")
def photos(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    pictures = sorted((small_demo / "bounding_box_test").glob("*.jpg"))
    for name, picture in zip(TIMES, pictures, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, folder / name)
    return folder


@pytest.fixture(scope="module")
def index(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    place = tmp_path_factory.mktemp("index")
    model, labels = saved_model(place / "model"), place / "labels.csv"
    rows = [f"{name},{camera},{time}" for name, (camera, time) in TIMES.items()]
    labels.write_text("\n".join(["path,camid,time", *rows]))
    return Index.build(photos, model, place / "index", labels)


@pytest.fixture
def zero_tailed(photos: Path) -> bytes:
    """A JPEG whose second half was never written."""
    data = (photos / "camA" / "1.jpg").read_bytes()
    return data[: len(data) // 2] + bytes(len(data) // 2)


def search(index: Index, photos: Path, *options: str) -> Any:
    query = ("--query", str(photos / "camA" / "1.jpg"))
    return invoke_dpmpp("search", "--index", str(index.gallery.folder), *query, *options)


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("20261127", "20261128"),
        ("2026-11-27", "2026-11-28T00:00"),
        ("1795737600", "1795824000.0"),
    ],
)
def test_a_days_window_finds_the_pictures_of_the_day(
    index: Index, photos: Path, since: str, until: str
) -> None:
    done = search(index, photos, "--from", since, "--until", until, "--json")
    assert done.returncode == 0, done.stderr
    (query,) = json.loads(done.stdout)["queries"]
    found = {hit["image"].removeprefix(f"{photos}/") for hit in query["hits"]}
    assert found == OF_THE_DAY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "1795737600000"], "divide milliseconds by 1000"),
        (["--camera", "9"], "--camera 9: the index has no image of it; it has of 3, 4"),
        (["--camera", "3", "--from", "2026-11-28"],
         "no image of camera 3, from 2026-11-28 00:00:00 UTC on; its cameras: 3, 4; its times: "
         "2026-11-27 00:00:00 to 2026-11-28 00:00:00"),
        (["--until", "2020-01-01"], "no image before 2020-01-01 00:00:00 UTC;"),
    ],
)  # fmt: skip
def test_a_filter_that_no_picture_passes_is_refused(
    index: Index, photos: Path, options: list[str], message: str
) -> None:
    assert_mistake(search(index, photos, *options), message)


def test_a_filter_that_no_picture_passes_is_refused_in_python(index: Index, photos: Path) -> None:
    with pytest.raises(DataError, match="no image of camera 9; its cameras: 3, 4"):
        index.search(photos / "camA" / "1.jpg", where=RowFilter(cameras=[9]))
    with pytest.raises(DataError, match="no image before 2020-01-01"):
        index.search(photos / "camA" / "1.jpg", where=RowFilter(until=1_577_836_800))


def test_the_table_tells_hits_of_one_name_apart(index: Index, photos: Path) -> None:
    done = search(index, photos)
    assert done.returncode == 0, done.stderr
    for shown in ("camA/1.jpg", "camB/1.jpg", "camA/2.jpg", "camB/2.jpg"):
        assert shown in done.stdout
    assert " 3.jpg" in done.stdout  # the only one of its name
    matches = index.search(photos / "camB" / "1.jpg")
    assert repr(matches).endswith("camB/1.jpg)")


def test_the_answers_are_printed_where_the_page_cannot_be_written(
    index: Index,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    assert_mistake(search(index, photos, "--html", str(tmp_path / "file" / "page.html")), "file")
    assert_mistake(search(index, photos, "--html", str(tmp_path)), "is a folder")

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dpmpp_core.gallery.pages, "write_search_page", fail)
    done = search(index, photos, "--html", str(tmp_path / "page.html"))
    assert done.returncode == 1 and "camA/1.jpg" in done.stdout
    assert "page.html is not written: No space left on device" in caplog.text


def test_a_page_in_the_home_folder_is_written_there(
    index: Index, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = search(index, photos, "--html=~/page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").is_file()


def test_the_app_reads_pictures_as_every_other_reader(
    index: Index, photos: Path, zero_tailed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamlit = pytest.importorskip("streamlit.testing.v1", reason="no Streamlit")
    monkeypatch.setattr(
        sys, "argv", ["app", str(index.gallery.folder), index.gallery.manifest.source]
    )
    app = streamlit.AppTest.from_file(pipelines.gallery.app.PAGE, default_timeout=500).run()
    (uploader,) = app.file_uploader
    assert ".jfif" in uploader.allowed_type
    assert all(IMAGE_NAME.search(f"x{ending}") for ending in uploader.allowed_type)
    uploader.set_value([("cut.jpg", zero_tailed, "image/jpeg")]).run()
    (error,) = app.error
    assert "the end of the picture is missing" in error.value and not app.exception
