"""What is named and not there is refused; a path may be named by its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dpmpp_core.data.sightings import Sighting
from dpmpp_core.errors import DataError
from dpmpp_core.index import ROW_SCHEMA, GalleryIndex, RowFilter
from pipelines.gallery.calibration import split_queries_and_gallery
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


def test_a_person_is_deleted_by_name_or_number(index: GalleryIndex) -> None:
    number = index.add_names([Sighting("", "anna")]).manifest.names.persons["anna"]
    labels = {
        "image": ["/d/camB/1.jpg", "/d/camB/2.jpg"],
        "pid": [number] * 2,
        "camid": [None] * 2,
        "time": [None] * 2,
    }
    schema = pa.schema([ROW_SCHEMA.field(name) for name in labels])
    index.relabel(pa.table(labels, schema=schema))
    with pytest.raises(DataError, match="--pid Ana: the index has no such name; did you mean 'an"):
        delete_images(str(index.folder), [], ["anna", "Ana"])
    assert delete_images(str(index.folder), [], ["anna", "1"])["gone"] == 3
    with pytest.raises(DataError, match="--pid anna: no such person in the index; nothing is"):
        delete_images(str(index.folder), [], ["anna"])


def test_a_camera_by_name_is_resolved_and_the_nearest_suggested(index: GalleryIndex) -> None:
    index = index.add_names([Sighting("", None, "entrance")])
    require_cameras(index, RowFilter(cameras=["3", 4]))
    with pytest.raises(DataError, match=r"--camera exit: the index has no such name$"):
        require_cameras(index, RowFilter(cameras=["exit"]))
    with pytest.raises(DataError, match="--camera entrance: the index has no image of it; it has"):
        require_cameras(index, RowFilter(cameras=["entrance"]))


def test_names_calibrate_as_numbers_do() -> None:
    values = {"feature_visual": np.eye(4, 8, dtype=np.float32)}
    values["mask_visual"] = np.ones((4, 8), np.float32)
    both = [
        split_queries_and_gallery(
            [Sighting("a", p, 1), Sighting("b", p, c), Sighting("c", q, c), Sighting("d", q)],
            values,
        )[0]
        for p, q, c in ((3, 4, 2), ("anna", 4, "door"), ("anna", "ben", "door"))
    ]
    for part in both:
        assert [len(set(part.pids)), len(set(part.camids))] == [2, 3]
        assert part.pids[0] == part.pids[1] != part.pids[2] == part.pids[3]
        assert part.camids[1] == part.camids[2]


def test_a_camera_without_images_is_named(index: GalleryIndex) -> None:
    require_cameras(index, RowFilter(cameras=[3, 4]))
    require_cameras(index, RowFilter())
    with pytest.raises(DataError, match="--camera 9: the index has no image of it; it has of 3, 4"):
        require_cameras(index, RowFilter(cameras=[3, 9]))
