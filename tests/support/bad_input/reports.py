"""Files as cameras, phones, systems and table programs write them.

What public reports of users tell, and what was tried beyond them.
"""

from __future__ import annotations

import io
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from dpmpp_core.config import load_config
from dpmpp_core.data.files import FileListing, FileStat
from dpmpp_core.data.sightings import find_sightings, read_labels
from tests.support.bad_input.pictures import NAME
from tests.support.bad_input.row import (
    ALL_GOOD,
    Outcome,
    Row,
    good_market,
    look,
    picture,
    refusal,
)

CAFE_NFC = unicodedata.normalize("NFC", "café.jpg")
CAFE_NFD = unicodedata.normalize("NFD", CAFE_NFC)
USED = r"0002_c9\.jpg: used, 32x64$"
LITTER = (
    "@eaDir/0001_c9.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/0001_c9.jpg", "$RECYCLE.BIN/0001_c9.jpg",
    ".Trash-1000/0001_c9.jpg", ".ipynb_checkpoints/0001_c9.jpg", "__MACOSX/0001_c9.jpg",
    "System Volume Information/0001_c9.jpg", "@Recently-Snapshot/0001_c9.jpg", ".0001_c9.jpg.Ab12",
    "._0001_c9.jpg", "desktop.ini", "ehthumbs_vista.db",
)  # fmt: skip


def bytes_of(given: str, data: Callable[[], bytes], says: str, name: str = NAME) -> Row:
    """One more file in a folder with eight good images."""

    def attempt(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        (root / name).write_bytes(data())
        return look(root)

    return Row(given, attempt, says, ALL_GOOD)


def litter(folder: Path) -> Outcome:
    root = good_market(folder / "data")
    for name in LITTER:
        for part in ("bounding_box_train", "query"):
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            (root / part / name).write_bytes(picture(seed=7))
    return look(root)


def only_to_measure(folder: Path) -> Outcome:
    root = good_market(folder / "data")
    for path in (root / "bounding_box_train").iterdir():
        path.unlink()
    (root / "bounding_box_train").rmdir()
    said, kept = look(root)
    return Outcome(said, kept)


def both_sides(folder: Path) -> Outcome:
    root = good_market(folder / "data")
    for camera in (1, 2):
        (root / f"bounding_box_train/0003_c{camera}.jpg").write_bytes(picture(seed=50 + camera))
    return look(root)


def labels(given: str, text: bytes, says: str, *paths: str) -> Row:
    """A CSV file of labels for a folder with these images: what they are labelled as."""

    def read() -> str:
        listing = FileListing("/data", [FileStat(path, 1, 2) for path in paths], [])
        found = find_sightings(listing, labels=read_labels(text, "labels.csv")).images
        told = (f"{x.path}: person {x.pid}, camera {x.camid}, time {x.time}" for x in found)
        return "; ".join(told)

    return Row(given, lambda folder: Outcome(refusal(read), ""), says, "")


def override(text: str, says: str) -> Row:
    def read() -> int:
        return load_config("demo", [text]).seed

    return Row(f"override {text}", lambda folder: Outcome(refusal(read), ""), says, "")


def zero_tail() -> bytes:
    data = picture()
    return data[: len(data) // 2] + bytes(len(data) // 2)


def two_pictures() -> bytes:
    """MPO, as of stereo cameras and some phones."""
    first, second = (Image.open(io.BytesIO(picture(seed=seed))) for seed in (1, 2))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


def size_twice() -> bytes:
    """A TIFF that states its width as 32, and before that as 20,000."""
    data = picture("TIFF")
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = struct.pack("<HHII", 256, 4, 1, 20_000) + data[at + 2 : at + 2 + 12 * count]
    head = data[:4] + struct.pack("<I", len(data)) + data[8:]
    return head + struct.pack("<H", count + 1) + entries + bytes(4)


def size_elsewhere() -> bytes:
    """A TIFF whose width is of 8 bytes (LONG8), and so stands at another place."""
    data = bytearray(picture("TIFF"))
    (at,) = struct.unpack_from("<I", data, 4)
    data[at + 2 : at + 14] = struct.pack("<HHII", 256, 16, 1, len(data))
    return bytes(data) + struct.pack("<Q", 20_000)


def text_bomb() -> bytes:
    """A PNG with a compressed text of 100 MB."""
    data, body = picture("PNG"), b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    crc = struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return data[:33] + struct.pack(">I", len(body)) + b"zTXt" + body + crc + data[33:]


def orientation_nine() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 9
    return picture(exif=exif)


NOT_AN_IMAGE = r"0002_c9\.jpg: not_an_image \("

# Reported by users, see the change log.
ROWS = [
    Row("litter of storages, systems and programs: 24 files", litter, "^nothing$", ALL_GOOD),
    Row("a folder to measure on, without training images", only_to_measure, "^nothing$",
        "4 of 8 good images; nothing changed"),
    Row("persons in the training split and in the gallery", both_sides,
        "1 persons are in the training split and in query or gallery.*: 3$", ALL_GOOD),
    bytes_of("WebP", lambda: picture("WEBP"), USED),
    bytes_of("WebP, lossless", lambda: picture("WEBP", lossless=True), USED),
    bytes_of("WebP named so", lambda: picture("WEBP"), "used, 32x64$",
             "bounding_box_train/0002_c9.webp"),
    bytes_of("WebP, cut", lambda: picture("WEBP")[:-40], "truncated"),
    bytes_of("JPEG whose second half is zeros", zero_tail, "truncated .the end of the picture"),
    bytes_of("TIFF that states its width twice", size_twice, "does not state one size"),
    labels("labels with backslashes", b"path,pid\nsub\\x.jpg,5\n", "sub/x.jpg: person 5",
           "sub/x.jpg"),
    labels("labels with NFC names of NFD files", f"path,pid\n{CAFE_NFC},5\n".encode(),
           "person 5", CAFE_NFD),
    labels("labels as pandas writes them: 5.0", b"path,pid,camid\nx.jpg,5.0,1.0\n",
           "x.jpg: person 5, camera 1", "x.jpg"),
    labels("labels in milliseconds", b"path,time\nx.jpg,1795788300000\n", "divide milliseconds",
           "x.jpg"),
    labels("labels with dates without dashes", b"path,time\nx.jpg,20261127140500\n",
           "time 1795788300", "x.jpg"),
]  # fmt: skip

# In no list and no report that was at hand: other files that cameras, programs and people write.
BEYOND_ROWS = [
    bytes_of("phone's motion photo: a film behind the picture",
             lambda: picture() + b"\0\0\0\x18ftypmp42" + bytes(5000), USED),
    bytes_of("MPO: two pictures in one file", two_pictures, USED),
    bytes_of("web server's byte order mark before a JPEG",
             lambda: b"\xef\xbb\xbf" + picture(), NOT_AN_IMAGE),
    bytes_of("grey PNG with alpha", lambda: picture("PNG", mode="LA"), USED),
    bytes_of("PNG of one bit", lambda: picture("PNG", mode="1"), USED),
    bytes_of("fax: TIFF of group 4", lambda: picture("TIFF", mode="1", compression="group4"), USED),
    bytes_of("TIFF with a JPEG inside", lambda: picture("TIFF", compression="jpeg"), USED),
    bytes_of("TIFF whose width is of eight bytes", size_elsewhere, "does not state one size"),
    bytes_of("PNG with a text of 100 MB", text_bomb, USED),
    bytes_of("EXIF orientation 9", orientation_nine, USED),
    bytes_of("start of a HEIC", lambda: b"\0\0\0 ftypheic" + bytes(100), "states no size"),
    bytes_of("JPEG XL named .jpg", lambda: b"\xff\x0a" + bytes(100), NOT_AN_IMAGE),
    bytes_of("SVG named .jpg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", NOT_AN_IMAGE),
    bytes_of("pointer of Git LFS", lambda: b"version https://git-lfs.github.com/spec/v1\n",
             NOT_AN_IMAGE),
    bytes_of("hole of a copy on a full disk", lambda: bytes(10_000), NOT_AN_IMAGE),
    bytes_of("download of a browser that has not ended", picture, "not_an_image_name",
             "bounding_box_train/0002_c9.jpg.crdownload"),
    bytes_of("browser's .jfif", picture, "used, 32x64$", "bounding_box_train/0002_c9.jfif"),
    bytes_of("Windows' copy: (1)", picture, "misnamed", "bounding_box_train/0002_c9 (1).jpg"),
    bytes_of("zero-width space in the name", picture, "misnamed",
             "bounding_box_train/0002_c9\u200b.jpg"),
    labels("labels from Excel: semicolons, capitals, blanks", b"Path; PID\r\nx.jpg; 5\r\n",
           "x.jpg: person 5", "x.jpg"),
    labels("labels with tabs", b"path\tpid\nx.jpg\t5\n", "x.jpg: person 5", "x.jpg"),
    labels("labels with a column twice", b"path,pid,pid\nx.jpg,5,6\n", "each once", "x.jpg"),
    labels("labels in UTF-16", "path,pid\nx.jpg,5\n".encode("utf-16"), "no CSV file in UTF-8",
           "x.jpg"),
    labels("labels with the index of a data frame", b",path,pid\n0,x.jpg,5\n", "it names , path",
           "x.jpg"),
    labels("labels with nan", b"path,pid\nx.jpg,nan\n", "pid 'nan' is no number", "x.jpg"),
    override("seed=010", "accepted: 10"),
    override("seed=1:30", "valid integer"),
    override("seed=0x10", "valid integer"),
]  # fmt: skip
