"""Images of any folder for an index: person, camera and time, as far as they are known.

A known layout gives persons and cameras, and so do names like those of Market-1501. Anything else,
and times, comes from a CSV file of labels.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import NamedTuple

from dpmpp_core.data.files import FileListing, Rejected
from dpmpp_core.data.headers import IMAGE_NAME, NOT_AN_IMAGE_NAME
from dpmpp_core.data.layouts import MARKET_NAME, detect_layout, fitting_layouts, scan
from dpmpp_core.data.names import match_names
from dpmpp_core.data.own_data import TABLE
from dpmpp_core.data.tables import read_table
from dpmpp_core.errors import DataError

ANY = "any"  # a folder without a layout
LABELS = ("pid", "camid", "time")
ALIASES = {"person": "pid", "camera": "camid"}
COMPACT_LENGTHS = len("20261127"), len("20261127140500")
END_OF_TIME_S = 4_102_444_800  # seconds from 1970 to 2100


class Sighting(NamedTuple):
    """One image, not yet opened; None = not known."""

    path: str  # relative to the root
    pid: int | None = None  # person, >= 0
    camid: int | None = None  # camera, >= 0
    time: int | None = None  # seconds since 1970, UTC
    split: str = ""  # train, query or gallery, where the layout defines it


class Sightings(NamedTuple):
    """A folder's layout (ANY if none), its images by path, and what is no image."""

    layout: str
    images: list[Sighting]
    rejected: list[Rejected]


def find_sightings(
    listing: FileListing, split: str = "all", labels: Mapping[str, Sighting] | None = None
) -> Sightings:
    """List the images of a folder with their labels.

    Args:
        listing: of the folder.
        split: train, query or gallery: this part of a known layout only; all = every part.
        labels: path -> labels that override those of names, see `read_labels`.

    Raises:
        DataError: a folder that fits several layouts, or lacks the split; labels of an image that
            does not exist.
    """
    sightings = _of_layout(listing, split) if fitting_layouts(listing) else _of_any(listing, split)
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


def _of_layout(listing: FileListing, split: str) -> Sightings:
    layout = detect_layout(listing)
    scanned = scan(listing.root, layout, listing=listing)
    images = []
    for entry in scanned.entries:
        # Person 0 of Market-1501 is a distractor, whose identity is not known.
        pid = None if layout == "market1501" and entry.pid == 0 else entry.pid
        if split in ("all", entry.split):
            images.append(Sighting(entry.path, pid, entry.camid, split=entry.split))
    if not images:
        raise DataError(f"{listing.root} ({layout}) has no {split} images")
    return Sightings(layout, images, scanned.rejected)


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

    Paths are relative to the data folder, see `match_names`; an empty cell is not known; `5.0` is
    5; times as `parse_time`.

    Raises:
        DataError: another column, a path twice, an invalid value; with `name` and line.
    """
    labels: dict[str, Sighting] = {}
    rows = read_table(data, name, {"path"}, {"path", *LABELS}, ALIASES)
    for number, row in rows.items():
        where, path = f"{name}:{number}", row["path"]
        if not path:
            raise DataError(f"{where}: the path is missing")
        if path in labels:
            raise DataError(f"{where}: {path} stands there twice")
        pid, camid = (_number(row.get(key, ""), where, key) for key in ("pid", "camid"))
        time = row.get("time", "").strip()
        try:
            labels[path] = Sighting(path, pid, camid, parse_time(time) if time else None)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return labels


def _number(text: str, where: str, key: str) -> int | None:
    text = _drop_zeros(text.strip())
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise DataError(f"{where}: {key} {text!r} is no number from 0 on")
    return int(text)


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
