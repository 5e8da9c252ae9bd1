"""Readers of the public data-set layouts: from a listing to persons, cameras and splits.

`market1501`: Market-1501, DukeMTMC-reID, Occluded-Duke and own data named like them; without
`bounding_box_train/` there is nothing to train on.
`msmt17`: MSMT17 V1 and V2. `occluded_reid`, `partial_reid` (no training split, no cameras) and
`p_duke` (P-DukeMTMC-reID). Persons and cameras keep the numbers of the files.
`table` and `folders`: own data of any names, see `own_data`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dpmpp_core.data.files import FileListing, Rejected, is_inside, list_files, read_bytes
from dpmpp_core.data.headers import IMAGE_NAME, NOT_AN_IMAGE_NAME
from dpmpp_core.data.own_data import TABLE, assign, read_label_table, read_person_folders
from dpmpp_core.errors import DataError


class Entry(NamedTuple):
    """One image by its name and folder, not yet opened."""

    path: str  # relative to the root
    pid: int  # person, >= 0
    camid: int  # camera, >= 0
    split: str  # train, query or gallery
    occluded: bool  # known to be occluded; of queries: belongs to the occluded query set


@dataclass(frozen=True)
class Scan:
    """Everything that a data folder lists: images by path, and what was refused, with reasons."""

    layout: str
    entries: list[Entry]
    rejected: list[Rejected]
    persons: dict[int, str] = field(default_factory=dict)
    """Names of persons by number, of own data."""
    cameras: dict[int, str] = field(default_factory=dict)
    """Names of the known cameras by number, of own data."""


class Folder(NamedTuple):
    """A folder whose images all belong to one split and one camera."""

    path: str
    split: str
    camid: int
    occluded: bool


# Required files and folders (with a slash); errors list them like this.
REQUIRED: dict[str, tuple[str, ...]] = {
    "market1501": ("query/", "bounding_box_test/"),
    "msmt17": ("list_train.txt", "list_query.txt", "list_gallery.txt"),
    "p_duke": ("train/whole_body_images/", "test/occluded_body_images/", "test/whole_body_images/"),
    "occluded_reid": ("occluded_body_images/<person>/", "whole_body_images/<person>/"),
    "partial_reid": ("partial_body_images/", "whole_body_images/"),
    "table": (TABLE,),
    "folders": ("<person>/",),
}
OWN = ("table", "folders")  # of own data, which fit nearly any folder

_NUMBER = re.compile(r"[0-9]{1,9}")
# 0002_c1s1_000451_03.jpg (Market), 0001_c2_f0046182.jpg (Duke), -1_c3s2_....jpg (junk)
MARKET_NAME = re.compile(r"(-1|[0-9]{1,9})_c([0-9]{1,9})(s[0-9]+)?([_.].*)?\.[^.]+$")
_MSMT_NAME = re.compile(r"[0-9]+_[0-9]+_([0-9]{1,9})(_|\.)")  # 0000_000_01_0303morning_....jpg
_FLAT_NAME = re.compile(r"([0-9]{1,9})(_|\.)")  # 001_02.jpg, where no folder names the person


def scan(
    root: str,
    layout: str = "auto",
    occluded_queries: bool = False,
    listing: FileListing | None = None,
    camera: str | None = None,
) -> Scan:
    """Read a data folder in a known layout (`auto`: detect which).

    occluded_queries: the queries of a `market1501` folder are known to be occluded, as in
    Occluded-Duke; implied by a folder `query_holistic/` next to `query/`.
    listing: of the same root, if it was listed before.
    camera: of the layout `folders`, see `read_person_folders`.
    Raises DataError if the folder cannot be listed or does not have the layout.
    """
    listing = listing or list_files(root)
    if layout == "auto":
        layout = detect_layout(listing)
    elif layout not in REQUIRED:
        raise DataError(f"unknown layout {layout!r}; known are {', '.join(REQUIRED)}")
    elif layout != "folders" and not _fits(layout, _present(listing)):
        raise DataError(_describe_unknown_layout(listing, [layout]))
    if layout in OWN:
        return _scan_own(listing, layout, camera)
    if layout == "market1501":
        items = list(_market(listing, occluded_queries))
    elif layout == "msmt17":
        items = list(_msmt(listing))
    else:
        items = list(_person_folders(listing, _body_folders(listing, layout)))
    entries = sorted(item for item in items if isinstance(item, Entry))
    rejected = sorted(item for item in items if isinstance(item, Rejected))
    return Scan(layout, entries, rejected)


def _scan_own(listing: FileListing, layout: str, camera: str | None) -> Scan:
    if layout == "table":
        labelled, rejected = read_label_table(listing)
    else:
        labelled, rejected = read_person_folders(listing, camera)
    assigned, persons, cameras = assign(labelled)
    entries = sorted(Entry(*image) for image in assigned)
    return Scan(layout, entries, sorted(rejected), persons, cameras)


def detect_layout(listing: FileListing) -> str:
    """Return the name of the layout that a listing has; DataError if none or several."""
    fitting = fitting_layouts(listing)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(fitting)
        raise DataError(f"{listing.root} fits the layouts {names}; choose one with data.layout")
    raise DataError(_describe_unknown_layout(listing, list(REQUIRED)))


def fitting_layouts(listing: FileListing) -> list[str]:
    """Return the names of all layouts that a listing has."""
    present = _present(listing)
    fitting = [layout for layout in REQUIRED if layout not in OWN and _fits(layout, present)]
    if fitting or TABLE not in present:
        return fitting
    head = read_bytes(listing.root, TABLE, 4096).partition(b"\n")[0].lower()
    return ["table"] if b"person" in head or b"pid" in head else []


def _present(listing: FileListing) -> set[str]:
    """Return all top-level files, all folders, and `X/<person>/` for a folder X with subfolders."""
    present = {file.path for file in listing.files if "/" not in file.path}
    folders = {file.path.rpartition("/")[0] for file in listing.files}
    folders |= {p.path for p in listing.problems if p.reason.endswith("_folder")}
    for folder in folders - {""}:
        parts = folder.split("/")
        for depth in range(1, len(parts) + 1):
            present.add("/".join(parts[:depth]) + "/")
            if depth > 1:
                present.add("/".join(parts[: depth - 1]) + "/<person>/")
    return present


def _fits(layout: str, present: set[str]) -> bool:
    if layout == "partial_reid" and "partial_body_images/" not in present:
        # The release without the partial pictures: flat occluded_body_images.
        flat = "occluded_body_images/<person>/" not in present
        return flat and {"occluded_body_images/", "whole_body_images/"} <= present
    if layout == "occluded_reid" and "partial_body_images/" in present:
        return False
    return present.issuperset(REQUIRED[layout])


def _describe_unknown_layout(listing: FileListing, layouts: list[str]) -> str:
    """Return the message of a folder without any of `layouts`: what is required, what it holds."""
    present = _present(listing)
    top = sorted(name for name in present if "/" not in name.removesuffix("/"))
    holds = ", ".join(top[:12]) + (f" and {len(top) - 12} more" if len(top) > 12 else "")
    layouts = [layout for layout in layouts if layout != "folders"]
    required = "; ".join(f"{layout} needs {', '.join(REQUIRED[layout])}" for layout in layouts)
    paths = present | {file.path for file in listing.files}
    hint = ""
    for name in [name for name in top if name.endswith("/")][:12]:
        inner = {path.removeprefix(name) for path in paths if path.startswith(name)}
        fitting = [layout for layout in REQUIRED if layout not in OWN and _fits(layout, inner)]
        hint = hint or (f" But {name} looks like {fitting[0]}: give that path." if fitting else "")
    holding = {file.path.partition("/")[0] for file in listing.files if "/" in file.path}
    if not hint and len(holding) > 1:
        hint = " If each folder holds one person, say so: data.layout=folders."
    return (
        f"{listing.root} has no known layout: {required}. It holds {holds or 'nothing'}.{hint} "
        f"Known layouts: {', '.join(REQUIRED)}."
    )


def _market(listing: FileListing, occluded_queries: bool) -> Iterator[Entry | Rejected]:
    """Read Market-1501: flat folders, person and camera in the name (Zheng et al., ICCV 2015).

    Person -1 is a junk detection and never used. Person 0 is a distractor: kept in the gallery,
    where it matches no query, and refused elsewhere.
    """
    holistic = "query_holistic/" in _present(listing)
    folders = [
        Folder("bounding_box_train", "train", 0, False),
        Folder("bounding_box_test", "gallery", 0, False),
        Folder("query", "query", 0, occluded_queries or holistic),
        Folder("query_holistic", "query", 0, False),
    ]
    yield from _problems(listing, folders)
    for folder, path in _images(listing, folders):
        if isinstance(path, Rejected):
            yield path
            continue
        name = MARKET_NAME.match(path.rpartition("/")[2])
        if name is None:
            yield Rejected(path, "misnamed", "expected <person>_c<camera>..., as 0002_c1s1_03.jpg")
            continue
        pid, camid = int(name[1]), int(name[2])
        if pid == -1 or (pid == 0 and folder.split != "gallery"):
            meaning = "a junk detection" if pid else "a distractor, so number persons from 1"
            yield Rejected(path, "junk_pid", f"person {pid} means {meaning}")
        else:
            yield Entry(path, pid, camid, folder.split, folder.occluded)


def _msmt(listing: FileListing) -> Iterator[Entry | Rejected]:
    """Read MSMT17: list files of `path person`, camera in the name (Wei et al., CVPR 2018).

    V1 has the folders train, test; V2 mask_train_v2, mask_test_v2. `list_val.txt` is training
    data too, as in the published protocol (32,621 images of 1,041 persons). Training and test
    persons are numbered separately: person 7 of train is not person 7 of query.
    """
    files = {file.path for file in listing.files}
    top = sorted({path.split("/")[0] for path in files if "/" in path})
    places = {}
    for kind in ("train", "test"):
        known = (kind, f"mask_{kind}_v2")
        places[kind] = next((name for name in top if name.lower() in known), kind)
    folders = [Folder(place, "", 0, False) for place in places.values()]
    yield from _problems(listing, folders)
    listed: dict[str, set[int]] = {}  # path -> the persons that the lists name
    items: list[Entry | Rejected] = []
    for part in ("train", "val", "query", "gallery"):
        name = f"list_{part}.txt"
        if name not in files:
            continue
        split = "train" if part == "val" else part
        place = places["train" if split == "train" else "test"]
        text = read_bytes(listing.root, name).decode("utf-8-sig", "replace")
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                items.append(_msmt_line(line, f"{name}:{number}", place, split, files, listed))
    for item in items:
        if isinstance(item, Entry) and len(listed[item.path]) > 1:
            persons = " and ".join(map(str, sorted(listed[item.path])))
            item = Rejected(item.path, "conflicting_label", f"the lists name persons {persons}")
        yield item
    for _, path in _images(listing, folders):
        if isinstance(path, Rejected):
            if path.path not in listed:
                yield path
        elif path not in listed:
            yield Rejected(path, "not_listed", "no list file names this image")


def _msmt_line(
    line: str, where: str, place: str, split: str, files: set[str], listed: dict[str, set[int]]
) -> Entry | Rejected:
    """Read one line of a list file; add its path and person to `listed`."""
    relative, *person = line.strip().replace("\\", "/").rsplit(None, 1)
    if not person or not _NUMBER.fullmatch(person[0]):
        return Rejected(where, "bad_list_line", f"expected `path person`, not {line[:80]!r}")
    if not is_inside(relative):
        named = f"{relative[:80]!r}"
        return Rejected(where, "outside_root", f"{named} is no path inside the folder {place}/")
    path = f"{place}/{relative}"
    if path in listed:
        listed[path].add(int(person[0]))
        return Rejected(where, "listed_twice", f"{path} stands in the lists before")
    listed[path] = {int(person[0])}
    if path not in files:
        return Rejected(path, "missing_file", f"named in {where}, but not in the folder")
    if not IMAGE_NAME.search(path):
        return Rejected(path, "not_an_image_name", f"named in {where}, but no image by its ending")
    camera = _MSMT_NAME.match(path.rpartition("/")[2])
    if camera is None:
        return Rejected(path, "misnamed", "expected <person>_<count>_<camera>_..., camera third")
    return Entry(path, int(person[0]), int(camera[1]), split, False)


def _body_folders(listing: FileListing, layout: str) -> list[Folder]:
    """Return the folders of the layouts that sort images by whole and occluded bodies.

    They have no cameras: queries count as camera 0 and gallery as camera 1 (the published
    protocol), so the evaluation's same-camera rule removes nothing. Training images of
    P-DukeMTMC-reID get the same numbers: occluded 0, whole 1 (ours).
    """
    if layout == "p_duke":
        return [
            Folder("train/occluded_body_images", "train", 0, True),
            Folder("train/whole_body_images", "train", 1, False),
            Folder("test/occluded_body_images", "query", 0, True),
            Folder("test/whole_body_images", "gallery", 1, False),
        ]
    # Partial-REID has both kinds of query; papers use the partial ones (DSR, CVPR 2018).
    partial = layout == "partial_reid" and "partial_body_images/" in _present(listing)
    queries = "partial_body_images" if partial else "occluded_body_images"
    return [Folder(queries, "query", 0, True), Folder("whole_body_images", "gallery", 1, False)]


def _person_folders(listing: FileListing, folders: list[Folder]) -> Iterator[Entry | Rejected]:
    """Read images whose person is the number of their folder, or else at the start of the name."""
    persons: set[str] = set()  # folders that name a person
    used: set[str] = set()
    for problem in _problems(listing, folders):
        if problem.reason == "empty_folder" and problem.path not in {f.path for f in folders}:
            problem = Rejected(problem.path, "empty_identity", "the person's folder holds nothing")
        yield problem
    for folder, path in _images(listing, folders):
        where = path.path if isinstance(path, Rejected) else path
        person, inside, _ = where.removeprefix(folder.path + "/").partition("/")
        holder = f"{folder.path}/{person}"
        if inside:
            persons.add(holder)
        if isinstance(path, Rejected):
            yield path
            continue
        number = _NUMBER.fullmatch(person) if inside else _FLAT_NAME.match(person)
        if number is None:
            what = f"the folder {person!r} is no person's number" if inside else "no number first"
            yield Rejected(path, "misnamed", f"{what}; expected <person>/... or <person>_....jpg")
            continue
        used.add(holder)
        pid = int(number[0] if inside else number[1])
        yield Entry(path, pid, folder.camid, folder.split, folder.occluded)
    for holder in persons - used:
        yield Rejected(holder, "empty_identity", "no image of this person has a usable name")


def _images(listing: FileListing, folders: list[Folder]) -> Iterator[tuple[Folder, str | Rejected]]:
    """Yield files in the folders: images by their ending, or a problem."""
    for file in listing.files:
        for folder in folders:
            if not file.path.startswith(folder.path + "/"):
                continue
            if IMAGE_NAME.search(file.path):
                yield folder, file.path
            else:
                yield folder, Rejected(file.path, "not_an_image_name", NOT_AN_IMAGE_NAME)


def _problems(listing: FileListing, folders: list[Folder]) -> Iterator[Rejected]:
    """Yield problems of the listing; of empty folders only those where images were expected."""
    for problem in listing.problems:
        inside = any(f"{problem.path}/".startswith(f"{folder.path}/") for folder in folders)
        if inside or problem.reason != "empty_folder":
            yield problem
