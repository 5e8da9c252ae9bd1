"""Own data: a folder per person, or a table of labels; splits are drawn where there are none.

Persons and cameras may have any names. They are numbered in the order of the names; names that are
all numbers keep them. Half of the persons that can be found again are for testing (ours): those
whose names have the smallest hashes, so that further persons move few others to another split.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dpmpp_core.data.files import FileListing, Rejected, read_bytes
from dpmpp_core.data.headers import IMAGE_NAME, NOT_AN_IMAGE_NAME
from dpmpp_core.data.names import match_names
from dpmpp_core.data.tables import read_table
from dpmpp_core.errors import ConfigError, DataError

TABLE = "labels.csv"
COLUMNS = {"path", "person", "camera", "split", "occluded", "time"}
ALIASES = {"pid": "person", "camid": "camera", "file": "path", "image": "path"}
SPLITS = ("train", "test", "query", "gallery")
TEST_SHARE = 0.5


class Labelled(NamedTuple):
    """One image with labels as its owner writes them; empty = not known, or to be drawn."""

    path: str
    person: str
    camera: str = ""
    split: str = ""
    occluded: bool = False


class Assigned(NamedTuple):
    """One image with numbers and a split."""

    path: str
    pid: int
    camid: int
    split: str
    occluded: bool


def read_person_folders(
    listing: FileListing, camera: str | None
) -> tuple[list[Labelled], list[Rejected]]:
    """Read `PERSON/.../IMAGE`: the first folder names the person.

    Args:
        listing: of the data folder.
        camera: regular expression whose first group, found in the path below the person's folder,
            is the camera; None = the folder between the person's and the image, if there is one.

    Raises:
        ConfigError: no regular expression with a group.
    """
    pattern = _compile(camera)
    labelled: list[Labelled] = []
    rejected = [p for p in listing.problems if p.reason != "empty_folder"]
    for file in listing.files:
        person, inside, rest = file.path.partition("/")
        if not IMAGE_NAME.search(file.path):
            rejected.append(Rejected(file.path, "not_an_image_name", NOT_AN_IMAGE_NAME))
        elif not inside:
            rejected.append(Rejected(file.path, "misnamed", "in no person's folder"))
        else:
            found = pattern.search(rest) if pattern else None
            folder = rest.rpartition("/")[0] if pattern is None else ""
            labelled.append(Labelled(file.path, person, found[1] if found else folder))
    return labelled, rejected


def read_label_table(listing: FileListing) -> tuple[list[Labelled], list[Rejected]]:
    """Read `labels.csv` of the data folder: `path`, `person`, and any of the other COLUMNS.

    Raises:
        DataError: a missing or unknown column, or a value that is none; with the line.
    """
    rows = read_table(read_bytes(listing.root, TABLE), TABLE, {"path", "person"}, COLUMNS, ALIASES)
    paths = {file.path for file in listing.files}
    matched = match_names([row["path"] for row in rows.values()], paths)
    labelled: list[Labelled] = []
    rejected = [p for p in listing.problems if p.reason != "empty_folder"]
    seen: set[str] = set()
    for number, row in rows.items():
        where, path = f"{TABLE}:{number}", matched[row["path"]]
        split = row.get("split", "").strip().lower()
        if split and split not in SPLITS:
            raise DataError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
        if path is None:
            rejected.append(Rejected(where, "missing_file", f"{row['path']} is not in the folder"))
        elif path in seen:
            rejected.append(Rejected(where, "listed_twice", f"{path} stands there before"))
        elif not row["person"].strip():
            rejected.append(Rejected(path, "unlabelled", f"{where} names no person"))
        elif not IMAGE_NAME.search(path):
            rejected.append(Rejected(path, "not_an_image_name", NOT_AN_IMAGE_NAME))
        else:
            seen.add(path)
            occluded = row.get("occluded", "").strip().lower() in ("1", "true", "yes")
            person, camera = row["person"].strip(), row.get("camera", "").strip()
            labelled.append(Labelled(path, person, camera, split, occluded))
    for path in sorted(paths - {x.path for x in labelled} - {row.path for row in rejected}):
        if IMAGE_NAME.search(path):
            rejected.append(Rejected(path, "not_listed", f"{TABLE} does not name this image"))
    return labelled, rejected


def assign(
    images: Iterable[Labelled],
) -> tuple[list[Assigned], dict[int, str], dict[int, str]]:
    """Give numbers to persons and cameras, and draw the splits that are not stated.

    Returns:
        the images, and the names of the persons and of the known cameras by number.
    """
    persons: dict[str, list[Labelled]] = defaultdict(list)
    for image in sorted(images):
        persons[image.person].append(image)
    numbers = _number(persons)
    cameras = _number({x.camera for of_person in persons.values() for x in of_person} - {""})
    # An unknown camera of a query is another one than that of the gallery: no pair is left out.
    unknown = max(cameras.values(), default=-1) + 1
    tested = _draw_test_persons(persons)
    assigned = []
    for person, of_person in persons.items():
        queries = _draw_queries(of_person)
        for image in of_person:
            split = image.split or ("test" if person in tested else "train")
            if split == "test":
                split = "query" if image.path in queries else "gallery"
            camid = cameras.get(image.camera, unknown + (split != "query"))
            occluded = image.occluded
            assigned.append(Assigned(image.path, numbers[person], camid, split, occluded))
    persons_of, cameras_of = ({n: name for name, n in x.items()} for x in (numbers, cameras))
    return assigned, persons_of, cameras_of


def _compile(camera: str | None) -> re.Pattern[str] | None:
    if camera is None:
        return None
    try:
        pattern = re.compile(camera)
    except re.error as error:
        raise ConfigError(f"data.camera {camera!r} is no regular expression: {error}") from None
    if not pattern.groups:
        raise ConfigError(f"data.camera {camera!r} needs a group, as in cam(\\d+)")
    return pattern


def _number(names: Iterable[str]) -> dict[str, int]:
    """Give numbers to names, in their order from 1 on; names that are all numbers keep them."""
    ordered = sorted(names)
    if all(name.isascii() and name.isdigit() and len(name) < 10 for name in ordered):
        kept = {name: int(name) for name in ordered}
        if len(set(kept.values())) == len(kept):
            return kept
    return {name: number for number, name in enumerate(ordered, 1)}


def _draw_test_persons(persons: Mapping[str, Sequence[Labelled]]) -> set[str]:
    """Return the persons for testing, among those without a stated split."""
    findable = [name for name, images in persons.items() if _draw_queries(images)]
    free = [name for name in findable if not any(x.split for x in persons[name])]
    free.sort(key=_hash)
    return set(free[: round(TEST_SHARE * len(free))])


def _draw_queries(images: Sequence[Labelled]) -> set[str]:
    """Return an image of every second camera; one of all where no camera is known.

    None where the person would not be found again: a single image, or a single camera.
    """
    by_camera: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_camera[image.camera].append(image.path)
    if set(by_camera) == {""}:
        by_camera = defaultdict(list, {image.path: [image.path] for image in images})
        chosen = sorted(by_camera, key=_hash)[: len(by_camera) > 1]
    else:
        chosen = sorted(by_camera, key=_hash)[: len(by_camera) // 2]
    return {min(by_camera[camera], key=_hash) for camera in chosen}


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
