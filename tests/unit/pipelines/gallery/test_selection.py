"""What is named and not there is refused; a path may be named by its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpmpp_core.errors import DataError
from dpmpp_core.index import GalleryIndex, RowFilter
from pipelines.gallery.index import delete_images
from pipelines.gallery.selection import require_cameras
from tests.support.indexes import build_small_index


@pytest.fixture
def index(tmp_path: Path) -> GalleryIndex:
    return build_small_index(tmp_path / "index")


@pytest.mark.parametrize("name", ["/d/camB/2.jpg", "camB/2.jpg", "2.jpg"])
def test_an_image_is_deleted_by_the_end_of_its_path(index: GalleryIndex, name: str) -> None:
    assert delete_images(str(index.folder), [name], [])["gone"] == 1
    with pytest.raises(DataError, match=r"no such image in the index; nothing is deleted"):
        delete_images(str(index.folder), [name], [])


@pytest.mark.parametrize(
    ("images", "pids", "message"),
    [
        (["2.jpg", "b.jpg"], [], r"--image b\.jpg: no such image"),
        (["1.jpg"], [], r"2 images end like that, as /d/camA/1\.jpg and /d/camB/1\.jpg"),
        (["2.jpg"], [7], "--pid 7: no such person"),
        (["g"], [], "no such image"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_deleted(
    index: GalleryIndex, images: list[str], pids: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        delete_images(str(index.folder), images, pids)
    assert len(GalleryIndex.open(index.folder)) == 3


def test_a_camera_without_images_is_named(index: GalleryIndex) -> None:
    require_cameras(index, RowFilter(cameras=[3, 4]))
    require_cameras(index, RowFilter())
    with pytest.raises(DataError, match="--camera 9: the index has no image of it; it has of 3, 4"):
        require_cameras(index, RowFilter(cameras=[3, 9]))
