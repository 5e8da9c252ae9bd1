"""Own data: a folder per person, or a table of labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpmpp_core.data.files import list_files
from dpmpp_core.data.layouts import Scan, scan
from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.errors import ConfigError, DataError
from tests.support.bad_input.row import picture

NAMES = ["Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"]


def make(root: Path, *paths: str) -> str:
    for seed, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(seed=seed))
    return str(root)


def folders(root: Path, names: list[str] = NAMES, inner: str = "") -> str:
    return make(root, *(f"{name}/{inner.format(i)}{i}.jpg" for name in names for i in range(4)))


def splits(found: Scan) -> dict[str, set[str]]:
    persons: dict[str, set[str]] = {"train": set(), "query": set(), "gallery": set()}
    for entry in found.entries:
        persons[entry.split].add(found.persons[entry.pid])
    return persons


def test_a_folder_per_person_is_enough(tmp_path: Path) -> None:
    found = scan(folders(tmp_path), "folders")
    assert sorted(found.persons.values()) == NAMES and not found.rejected
    persons = splits(found)
    assert persons["query"] == persons["gallery"] and len(persons["query"]) == 4
    assert persons["train"] == set(NAMES) - persons["query"]
    queries = [entry for entry in found.entries if entry.split == "query"]
    assert len(queries) == 4 and {entry.camid for entry in queries} == {0}
    assert {entry.camid for entry in found.entries if entry.split == "gallery"} == {1}
    manifest = read_manifest(str(tmp_path), "folders")
    assert manifest.warnings == [] and len(manifest.images) == 32


def test_further_persons_move_no_other_into_another_split(tmp_path: Path) -> None:
    before = splits(scan(folders(tmp_path), "folders"))["query"]
    after = splits(scan(folders(tmp_path, [*NAMES, "Ida", "Jo"]), "folders"))["query"]
    assert before <= after or len(before - after) <= 1  # the border moves by a person


@pytest.mark.parametrize(
    ("inner", "camera"), [("cam{}/", None), ("cam{}_", r"cam(\d+)"), ("x/y_c{}_", r"_c(\d)_")]
)
def test_cameras_come_from_the_folder_or_an_expression(
    tmp_path: Path, inner: str, camera: str | None
) -> None:
    found = scan(folders(tmp_path, inner=inner), "folders", camera=camera)
    assert {entry.camid for entry in found.entries} == {0, 1, 2, 3} or camera is None
    assert len({entry.camid for entry in found.entries}) == 4
    for name in splits(found)["query"]:
        of_person = [e for e in found.entries if found.persons[e.pid] == name]
        seen = {split: {e.camid for e in of_person if e.split == split}
                for split in ("query", "gallery")}  # fmt: skip
        assert len(seen["query"]) == 2 and not seen["query"] & seen["gallery"]


def test_numbers_stay_and_what_is_in_no_folder_is_named(tmp_path: Path) -> None:
    root = make(tmp_path, "007/a.jpg", "007/b.jpg", "12/a.jpg", "12/b.jpg", "stray.jpg")
    (tmp_path / "12" / "notes.txt").touch()
    (tmp_path / "photo.raw").touch()
    found = scan(root, "folders")
    assert found.persons == {7: "007", 12: "12"}
    assert {row.path: row.reason for row in found.rejected} == {
        "stray.jpg": "misnamed", "12/notes.txt": "not_an_image_name",
        "photo.raw": "not_an_image_name",
    }  # fmt: skip


@pytest.mark.parametrize("camera", ["cam(", r"cam\d"])
def test_a_wrong_expression_is_named(tmp_path: Path, camera: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.camera"):
        scan(folders(tmp_path), "folders", camera=camera)


def test_folders_are_never_guessed_but_suggested(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"each folder holds one person.*data.layout=folders"):
        scan(folders(tmp_path))


def table(root: Path, *lines: str) -> str:
    make(root, *(f"photos/{i}.jpg" for i in range(8)))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return str(root)


def test_a_table_gives_persons_cameras_and_splits(tmp_path: Path) -> None:
    rows = [f"photos/{i}.jpg,{NAMES[i // 2]},door {i % 2},{'train' if i < 4 else 'test'}"
            for i in range(8)]  # fmt: skip
    found = scan(table(tmp_path, "path,person,camera,split", *rows))
    assert found.layout == "table" and splits(found)["train"] == {"Ann", "Bob"}
    assert splits(found)["query"] == splits(found)["gallery"] == {"Cleo", "Dan"}
    assert {entry.camid for entry in found.entries} == {1, 2}
    assert len(read_manifest(str(tmp_path)).images) == 8


def test_a_table_of_excel_with_what_is_missing(tmp_path: Path) -> None:
    rows = ["photos\\0.jpg; Ann", "photos/0.jpg; Bob", "photos/1.jpg;", "photos/gone.jpg; Ann"]
    found = scan(table(tmp_path, "Path; PID", *rows))
    assert [(entry.path, found.persons[entry.pid]) for entry in found.entries] == [
        ("photos/0.jpg", "Ann")
    ]
    reasons = {row.path: row.reason for row in found.rejected}
    assert reasons["labels.csv:3"] == "listed_twice"
    assert reasons["labels.csv:5"] == "missing_file"
    assert reasons["photos/1.jpg"] == "unlabelled" and reasons["photos/7.jpg"] == "not_listed"


def test_a_wrong_table_is_named_with_its_line(tmp_path: Path) -> None:
    root = table(tmp_path, "path,person,split", "photos/0.jpg,Ann,train", "photos/1.jpg,Ann,val")
    with pytest.raises(DataError, match=r"labels\.csv:3: split 'val' is none of train"):
        scan(root)
    (tmp_path / "labels.csv").write_text("path,person,age\nphotos/0.jpg,Ann,7\n")
    with pytest.raises(DataError, match="must name path and person"):
        scan(root)
    (tmp_path / "labels.csv").write_text("path,time\nphotos/0.jpg,7\n")  # of an index, not ours
    with pytest.raises(DataError, match="no known layout"):
        scan(root)
    assert list_files(root).files
