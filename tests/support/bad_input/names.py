"""Names, links, folders and things that are no files, in a training folder beside good images."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from dpmpp_core.data.files import read_bytes
from dpmpp_core.data.manifest import read_manifest
from tests.support.bad_input.row import (
    ALL_GOOD,
    Outcome,
    Row,
    as_nobody,
    good_market,
    look,
    picture,
    refusal,
)

TRAIN = "bounding_box_train"


def row(given: str, make: Callable[[Path], object], says: str) -> Row:
    """`make` gets the training folder; beside the data folder lies `outside/0002_c9.jpg`."""

    def attempt(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        (folder / "outside").mkdir()
        (folder / "outside/0002_c9.jpg").write_bytes(picture(seed=50))
        make(root / TRAIN)
        return look(root)

    return Row(given, attempt, says, ALL_GOOD)


def named(given: str, name: str | bytes, says: str) -> Row:
    def make(train: Path) -> None:
        Path(os.fsdecode(os.fsencode(train) + b"/" + os.fsencode(name))).write_bytes(picture())

    return row(given, make, says)


def shut(what: str) -> Callable[[Path], Outcome]:
    """An image, or the folder `more`, without permission to read."""

    def attempt(_: Path) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others as a whole
            os.chmod(folder, 0o755)
            root = good_market(Path(folder) / "data")
            (root / TRAIN / "more").mkdir()
            (root / TRAIN / "more/0002_c8.jpg").write_bytes(picture(seed=50))
            (root / TRAIN / "0002_c9.jpg").write_bytes(picture())
            os.chmod(root / TRAIN / what, 0)
            try:
                with as_nobody():
                    said, kept = look(root)
            finally:
                os.chmod(root / TRAIN / what, 0o700)
            return Outcome(said.replace(folder, "FOLDER"), kept)

    return attempt


def colliding(train: Path) -> None:
    for seed, name in enumerate(("0002_c8.jpg", "0002_c8.JPG")):
        (train / name).write_bytes(picture(seed=50 + seed))


def listening(train: Path) -> None:
    """A socket; its address must be short, so it is made from inside the folder."""
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(train)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("0002_c9.jpg")
    finally:
        os.fchdir(before)
        os.close(before)


def folder_like_a_picture(train: Path) -> None:
    (train / "0002_c9.jpg").mkdir()


def folder_with_a_picture(train: Path) -> None:
    (train / "0002_c8.jpg").mkdir()
    (train / "0002_c8.jpg/0001_c3.jpg").write_bytes(picture())


def two_labels(train: Path) -> None:
    for name in ("0001_c8.jpg", "0002_c8.jpg"):
        (train / name).write_bytes(picture())


def query_in_gallery(train: Path) -> None:
    (train.parent / "query/0003_c3.jpg").write_bytes(picture())
    (train.parent / "bounding_box_test/0004_c3.jpg").write_bytes(picture())


def pipe_is_not_opened(folder: Path) -> Outcome:
    os.mkfifo(folder / "annotations.parquet")
    return Outcome(refusal(read_bytes, str(folder), "annotations.parquet"), "")


def root_not_utf8(folder: Path) -> Outcome:
    root = os.fsdecode(os.fsencode(folder) + b"/\xff")
    good_market(Path(root))
    said = refusal(read_manifest, root)
    return Outcome(said, f"{sum(len(names) for *_, names in os.walk(root))} files")


ROWS = [
    named("spaces in the name", "0002_c9_in the park.jpg", "in the park.jpg: used"),
    named("accents and Chinese in the name", "0002_c9_é人.jpg", "é人.jpg: used"),
    named("line end inside the name", "0002_c9_\n.jpg", "misnamed"),
    named("line end after the name", "0002_c9.jpg\n", "0002_c9.jpg\n: used"),
    named("leading dash", "--help_c9.jpg", "--help_c9.jpg: misnamed"),
    named("name of 255 bytes", f"0002_c9_{'x' * 243}.jpg", "x.jpg: used"),
    named("escape codes of a terminal in the name", "0002_c9_\x1b[2J.jpg", "used"),
    named("letters that turn the direction of writing", "0002_c9_\u202egpj.jpg", "used"),
    named("mark-up in the name", "0002_c9_<b>[red].jpg", "used"),
    named("name that is not UTF-8", b"0002_c9_\xff.jpg", r"0002_c9_\\xff.jpg: not_utf8"),
    named("Arabic digits", "٠٠٠٢_c9.jpg", "misnamed"),
    named("person number of 20 digits", f"{'9' * 20}_c9.jpg", "misnamed"),
    row("two names that differ in case", colliding, "c8.JPG: used.*c8.jpg: used"),
    row("link to itself", lambda t: (t / "x.jpg").symlink_to(t / "x.jpg"), "symlink_loop"),
    row("link to a folder around it", lambda t: (t / "up").symlink_to(t.parent), "symlink_loop"),
    row("link to nothing", lambda t: (t / "x.jpg").symlink_to("nothing"), "broken_link"),
    row(
        "link to a picture outside of the root (links are followed)",
        lambda t: (t / "0002_c9.jpg").symlink_to("../../outside/0002_c9.jpg"),
        "0002_c9.jpg: used",
    ),
    row(
        "link to a text outside of the root",
        lambda t: (t / "0002_c9.jpg").symlink_to("/etc/hostname"),
        "0002_c9.jpg: (not_an_image|empty_file)",
    ),
    row("link to /dev/zero", lambda t: (t / "0002_c9.jpg").symlink_to("/dev/zero"), "not_a_file"),
    row("pipe", lambda t: os.mkfifo(t / "0002_c9.jpg"), "not_a_file"),
    row("socket", listening, "not_a_file"),
    Row("pipe in the place of a file that is read by name", pipe_is_not_opened, "not a file", ""),
    Row("image without permission", shut("0002_c9.jpg"), "unreadable .*Permission", ALL_GOOD),
    Row("folder without permission", shut("more"), "more: unreadable_folder", ALL_GOOD),
    row("empty folder named like an image", folder_like_a_picture, "empty_folder"),
    row("folder named like an image, holding one", folder_with_a_picture, "0001_c3.jpg: used"),
    row("the same picture as two persons", two_labels, "conflicting_label .*persons 1, 2"),
    row("query that is a gallery image of somebody else", query_in_gallery, "labels is wrong"),
    Row("root whose name is not UTF-8", root_not_utf8, "DataError.*not UTF-8; rename", "8 files"),
]
