"""Persons and cameras by name: a name keeps its number, and no label means two things."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dpmpp_core.data.sightings import Sighting
from dpmpp_core.errors import DataError
from dpmpp_core.index import (
    ROW_SCHEMA,
    GalleryIndex,
    ModelVersion,
    RowFilter,
    describe_index,
    find_number,
    number_names,
    search,
)
from dpmpp_core.index.names import FIRST_NUMBER

MODEL = ModelVersion(weights_sha256="a" * 64, spaces={"visual": 4})


@pytest.fixture
def index(tmp_path: Path) -> GalleryIndex:
    """Two images: of person 7 by camera 2, and of nobody known."""
    empty = GalleryIndex.create(tmp_path / "index", MODEL, "m")
    columns = {
        "image": ["a", "b"], "sha256": ["a", "b"], "bytes": [1, 1], "mtime_ns": [1, 1],
        "pid": [7, None], "camid": [2, None], "time": [None, None],
    }  # fmt: skip
    rows = pa.table(columns, schema=ROW_SCHEMA)
    return empty.append(MODEL, rows, {"visual": np.eye(2, 4, dtype=np.float32)})[0]


def test_a_name_keeps_its_number_and_a_new_one_gets_another(index: GalleryIndex) -> None:
    index = index.add_names([Sighting("x", "ben", "door"), Sighting("y", "anna", 3)])
    names = GalleryIndex.open(index.folder).manifest.names
    assert names == index.manifest.names
    assert names.persons == {"anna": FIRST_NUMBER, "ben": FIRST_NUMBER + 1}
    assert names.cameras == {"door": FIRST_NUMBER}
    more = index.add_names([Sighting("z", "aaron", "door"), Sighting("y", "anna")]).manifest.names
    assert more.persons == {**names.persons, "aaron": FIRST_NUMBER + 2}
    assert more.cameras == names.cameras


def test_no_row_and_no_label_has_the_number_of_a_new_name() -> None:
    used, given = FIRST_NUMBER + 5, FIRST_NUMBER + 9
    assert number_names({}, ["anna", given, None], [used]) == {"anna": given + 1}
    assert number_names({"ben": given + 2}, ["anna"], [used])["anna"] == given + 3


def test_a_number_that_a_name_has_is_refused_and_nothing_changes(index: GalleryIndex) -> None:
    index = index.add_names([Sighting("x", "anna")])
    before = (index.folder / "index.json").read_text()
    with pytest.raises(
        DataError, match="person 1000000000 of the data is the number of 'anna' in the index"
    ):
        index.add_names([Sighting("y", FIRST_NUMBER), Sighting("z", "ben")])
    assert (index.folder / "index.json").read_text() == before


def test_without_names_the_file_is_that_of_older_code(index: GalleryIndex) -> None:
    file = index.folder / "index.json"
    before = file.read_text()
    assert json.loads(before)["format"] == 1 and "names" not in json.loads(before)
    index.add_names([Sighting("x", 3, 4)])
    assert file.read_text() == before
    index.add_names([Sighting("x", "anna")])
    assert json.loads(file.read_text())["format"] == 2  # which older code refuses as such


def test_names_outlive_every_other_change(index: GalleryIndex) -> None:
    index = index.add_names([Sighting("a", "anna", "door")])
    names = index.manifest.names
    labels = pa.table({"image": ["a"], "pid": [names.persons["anna"]], "camid": [None],
                       "time": [None]}, schema=pa.schema([ROW_SCHEMA.field(n) for n in
                       ("image", "pid", "camid", "time")]))  # fmt: skip
    index, changed = index.relabel(labels)
    index, _ = index.delete(images=["b"])
    index = index.compact()
    assert changed == 1 and GalleryIndex.open(index.folder).manifest.names == names
    facts = describe_index(index)
    assert facts["names"] == {"persons": {"anna": FIRST_NUMBER}, "cameras": {}}  # none at the door
    assert "names" not in describe_index(index.delete(images=["a"])[0])


def test_a_camera_is_filtered_by_its_name(index: GalleryIndex) -> None:
    index = index.add_names([Sighting("b", None, "door")])
    query = {"visual": np.eye(1, 4, dtype=np.float32)}
    for camera in (2, "2", "2.0"):
        found = search(index, query, None, 2, RowFilter(cameras=[camera]))
        assert found.positions.tolist() == [[0, -1]]
    assert search(index, query, None, 2, RowFilter(cameras=["door"])).scored == 0
    with pytest.raises(DataError, match=r"camera Doors: .*no such name; did you mean 'door'"):
        search(index, query, None, 2, RowFilter(cameras=["Doors"]))


def test_a_label_is_found_as_a_user_writes_it() -> None:
    names = {"café 2": 5}
    assert find_number(" cafe\u0301  2", names, "--camera") == 5
    assert find_number("007", names, "--camera") == 7
    assert find_number(np.int64(3), names, "--camera") == 3  # type: ignore[arg-type]
