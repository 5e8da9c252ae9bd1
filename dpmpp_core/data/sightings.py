"""Images of any folder for an index: person, camera and time, as far as they are known.

A known layout gives persons and cameras, and so do names like those of Market-1501. Anything else,
and times, comes from a CSV file of labels. A person or camera is a number, or a name.
"""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from dpmpp_core.data.files import FileListing, Rejected
from dpmpp_core.data.headers import IMAGE_NAME, NOT_AN_IMAGE_NAME
from dpmpp_core.data.layouts import MARKET_NAME, OWN, fitting_layouts, scan
from dpmpp_core.data.names import match_names
from dpmpp_core.data.own_data import TABLE
from dpmpp_core.data.tables import read_table
from dpmpp_core.errors import DataError

ANY = "any"  # a folder without a layout
Label = int | str  # of a person or a camera: a number >= 0, or a name
LABELS = ("pid", "camid", "time")
ALIASES = {"person": "pid", "camera": "camid"}
MAX_DIGITS = 18  # of a number, so that it fits in int64
COMPACT_LENGTHS = len("20261127"), len("20261127140500")
END_OF_TIME_S = 4_102_444_800  # seconds from 1970 to 2100


class Sighting(NamedTuple):
    """One image, not yet opened; None = not known."""

    path: str  # relative to the root
    pid: Label | None = None  # person
    camid: Label | None = None  # camera
    time: int | None = None  # seconds since 1970, UTC
    split: str = ""  # train, query or gallery, where the layout defines it


class Sightings(NamedTuple):
    """A folder's layout (ANY if none), its images by path, and what is no image."""

    layout: str
    images: list[Sighting]
    rejected: list[Rejected]


def find_sightings(
    listing: FileListing,
    split: str = "all",
    labels: Mapping[str, Sighting] | None = None,
    layout: str = "auto",
    camera: str | None = None,
) -> Sightings:
    """List the images of a folder with their labels.

    Args:
        listing: of the folder.
        split: train, query or gallery: this part of a known layout only; all = every part.
        labels: path -> labels that override those of names, see `read_labels`.
        layout: of the folder; auto = the one that it fits, or none.
        camera: of the layout `folders`, see `read_person_folders`.

    Raises:
        DataError: a folder that fits several layouts, or lacks the named one or the split; labels
            of an image that does not exist.
    """
    if layout == "auto" and not fitting_layouts(listing):
        sightings = _of_any(listing, split)
    else:
        sightings = _of_layout(listing, split, layout, camera)
    if not labels:
        return sightings
    images = {sighting.path: sighting for sighting in sightings.images}
    missing = []
    named: dict[str, str] = {}  # path -> how its label names it
    for name, path in match_names(labels, images).items():
        if path is None:
            missing.append(name)
        elif path in named:
            raise DataError(f"two labels are of one image: those of {named[path]} and {name}")
        else:
            named[path] = name
    if missing:
        raise DataError(
            f"{len(missing)} labels are of no image of the folder, as that of {min(missing)}"
        )
    for path, name in named.items():
        label = labels[name]
        known = {name: value for name in LABELS if (value := getattr(label, name)) is not None}
        images[path] = images[path]._replace(**known)
    return sightings._replace(images=list(images.values()))


def _of_layout(listing: FileListing, split: str, layout: str, camera: str | None) -> Sightings:
    scanned = scan(listing.root, layout, listing=listing, camera=camera)
    layout = scanned.layout
    persons, cameras = _to_labels(scanned.persons), _to_labels(scanned.cameras)
    images = []
    for entry in scanned.entries:
        pid: Label | None = entry.pid
        camid: Label | None = entry.camid
        if layout in OWN:
            pid, camid = persons[entry.pid], cameras.get(entry.camid)
        elif layout == "market1501" and pid == 0:  # a distractor, whose identity is not known
            pid = None
        if split in ("all", entry.split):
            images.append(Sighting(entry.path, pid, camid, split=entry.split))
    if not images:
        raise DataError(f"{listing.root} ({layout}) has no {split} images")
    return Sightings(layout, images, scanned.rejected)


def _to_labels(names: Mapping[int, str]) -> dict[int, Label]:
    """Return the labels that names mean; DataError if two names mean one."""
    meant: dict[Label, str] = {}
    for name in names.values():
        other = meant.setdefault(to_label(name), name)
        if other != name:
            raise DataError(f"{TABLE}: {other!r} and {name!r} are one label in an index")
    return {number: to_label(name) for number, name in names.items()}


def _of_any(listing: FileListing, split: str) -> Sightings:
    if split != "all":
        raise DataError(f"{listing.root} has no known layout, so no split {split}: take all of it")
    paths, rejected = [], [p for p in listing.problems if p.reason != "empty_folder"]
    for file in listing.files:
        if IMAGE_NAME.search(file.path):
            paths.append(file.path)
        elif file.path != TABLE:  # which `dpmpp crop` writes next to the pictures
            rejected.append(Rejected(file.path, "not_an_image_name", NOT_AN_IMAGE_NAME))
    if not paths:
        raise DataError(f"{listing.root} holds no image: {len(listing.files)} files, none by name")
    names = [MARKET_NAME.match(path.rpartition("/")[2]) for path in paths]
    images = [Sighting(path) for path in paths]
    if all(names):  # a single name of this form may be a coincidence
        images = [
            Sighting(path, int(name[1]) if int(name[1]) > 0 else None, int(name[2]))
            for path, name in zip(paths, names, strict=True)
            if name is not None
        ]
    return Sightings(ANY, images, rejected)


def read_labels(data: bytes, name: str) -> dict[str, Sighting]:
    """Read labels by path from CSV with the column `path` and any of `pid`, `camid`, `time`.

    Paths are relative to the data folder, see `match_names`; an empty cell is not known; persons
    and cameras as `to_label`; times as `parse_time`.

    Raises:
        DataError: another column, a path twice, an invalid value, as -1; with `name` and line.
    """
    labels: dict[str, Sighting] = {}
    rows = read_table(data, name, {"path"}, {"path", *LABELS}, ALIASES)
    for number, row in rows.items():
        where, path = f"{name}:{number}", row["path"]
        if not path:
            raise DataError(f"{where}: the path is missing")
        if path in labels:
            raise DataError(f"{where}: {path} stands there twice")
        pid, camid = (_read_label(row.get(key, ""), where, key) for key in ("pid", "camid"))
        time = row.get("time", "").strip()
        try:
            labels[path] = Sighting(path, pid, camid, parse_time(time) if time else None)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return labels


def to_label(text: str) -> Label:
    """Return the number or the name that a text is; `5`, `05` and `5.0` are the number 5.

    A name is in Unicode form NFC, with single spaces in it and none around.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    digits = _drop_zeros(name)
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
    return int(digits) if is_number else name


def _read_label(text: str, where: str, key: str) -> Label | None:
    label = to_label(text)
    if isinstance(label, str):
        try:
            float(label)  # as -1, 1e3 or nan: a mistake rather than a name
        except ValueError:
            return label or None
        raise DataError(f"{where}: {key} {label!r} is no number from 0 on, and no name")
    return label


def _drop_zeros(text: str) -> str:
    """Return a number without the zeros behind its point: a table with empty cells has 5.0."""
    whole, point, fraction = text.partition(".")
    return whole if point and not fraction.strip("0") else text


def parse_time(text: str) -> int:
    """Return the seconds since 1970 of a time: ISO 8601, with or without dashes, or seconds.

    `20261127` and `20261127140500` are dates, as cameras write them. A time without a zone is UTC.
    `1795784700.0` is 1795784700.

    Raises:
        DataError: anything else; milliseconds, or seconds outside the years 1970 to 2100.
    """
    text = _drop_zeros(text)
    is_number = text.isascii() and text.removeprefix("-").isdigit()
    if not is_number or len(text) in COMPACT_LENGTHS:  # 8 digits of seconds are of before 1974
        iso = f"{text[:8]}T{text[8:]}" if is_number and len(text) > 8 else text
        try:
            when = datetime.datetime.fromisoformat(iso)
            when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
            return int(when.timestamp())
        except (ValueError, OverflowError):
            raise DataError(
                f"{text!r} is no time: write 2026-11-27T14:05, with +01:00 behind it if not UTC"
            ) from None
    number = int(text)
    if 0 <= number < END_OF_TIME_S:
        return number
    if 0 <= number < 1000 * END_OF_TIME_S:
        raise DataError(f"{text} seconds are after 2100: divide milliseconds by 1000")
    raise DataError(f"{text} seconds are not in the years 1970 to 2100")


def show_time(seconds: int | None) -> str:
    """Format a time in UTC; empty if it is not known."""
    if seconds is None:
        return ""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s"
