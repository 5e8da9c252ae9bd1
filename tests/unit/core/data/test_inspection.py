"""Every kind of bad file gets its reason; none raises."""

import hashlib
import io
import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import dpmpp_core
from dpmpp_core.data import headers, images, inspection
from dpmpp_core.data.headers import ImageError, header_size
from dpmpp_core.data.images import read_image
from dpmpp_core.data.inspection import inspect
from dpmpp_core.data.layouts import Entry
from dpmpp_core.data.manifest import IMAGE_SCHEMA

LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"


def picture(kind: str, size: tuple[int, int] = (32, 64), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def inspected(folder: Path, data: bytes) -> dict:
    (folder / "x.jpg").write_bytes(data)
    return inspect(str(folder), Entry("x.jpg", 7, 2, "train", False))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_a_good_image_becomes_a_full_row(tmp_path: Path, kind: str) -> None:
    data = picture(kind)
    assert inspected(tmp_path, data) == {
        "path": "x.jpg",
        "pid": 7,
        "camid": 2,
        "split": "train",
        "occluded": False,
        "width": 32,
        "height": 64,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "reason": "",
        "detail": "",
    }


def test_the_row_has_the_fields_of_the_schema(tmp_path: Path) -> None:
    assert list(inspected(tmp_path, b""))[:-2] == IMAGE_SCHEMA.names


def test_a_jpeg_without_its_end_mark_is_truncated_even_with_a_thumbnail(tmp_path: Path) -> None:
    thumbnail = b"Exif\0\0" + picture("JPEG", (8, 8))  # holds an end mark of its own
    data = picture("JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert inspected(tmp_path, data)["reason"] == ""
    row = inspected(tmp_path, data[:-2])
    assert row["reason"] == "truncated" and "the end of the picture is missing" in row["detail"]
    assert inspected(tmp_path, data + bytes(100))["reason"] == ""  # padding does no harm


def test_a_jpeg_whose_end_is_zeros_is_truncated_for_every_reader(tmp_path: Path) -> None:
    data = picture("JPEG")
    data = data[: 3 * len(data) // 4] + bytes(len(data) // 4)
    assert inspected(tmp_path, data)["reason"] == "truncated"
    with pytest.raises(ImageError, match=r"x.jpg in .*the end of the picture is missing") as error:
        read_image(str(tmp_path), "x.jpg")
    again = pickle.loads(pickle.dumps(error.value))  # as it arrives from a worker
    assert (again.reason, str(again)) == ("truncated", str(error.value))


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"exif": Image.Exif()}])
def test_webp_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    data = picture("WEBP", (37, 64), **options)
    row = inspected(tmp_path, data)
    assert (row["reason"], row["width"], row["height"]) == ("", 37, 64)
    assert header_size(data) == (37, 64)
    assert inspected(tmp_path, data[:-9])["reason"] == "truncated"


def test_an_animation_is_refused(tmp_path: Path) -> None:
    data = picture("WEBP", save_all=True, append_images=[Image.new("RGB", (32, 64), "red")])
    row = inspected(tmp_path, data)
    assert row["reason"] == "not_an_image" and "animation" in row["detail"]


@pytest.mark.parametrize("tag", [256, 257])
def test_a_tiff_that_states_its_size_twice_is_refused(tmp_path: Path, tag: int) -> None:
    data = picture("TIFF")
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = data[at + 2 : at + 2 + 12 * count]
    entries = struct.pack("<HHII", tag, 4, 1, 20_000) + entries
    data = data[:4] + struct.pack("<I", len(data)) + data[8:]
    data += struct.pack("<H", count + 1) + entries + bytes(4)
    row = inspected(tmp_path, data)
    assert row["reason"] == "not_an_image" and "does not state one size" in row["detail"]


@pytest.mark.parametrize("side", ["width", "height"])
def test_a_decoder_that_finds_another_size_than_the_header_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    data = picture("PNG")
    pixels = np.zeros((64, 33, 3) if side == "width" else (65, 32, 3), np.uint8)
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pixels)
    row = inspected(tmp_path, data)
    assert row["reason"] == "not_an_image" and "but 32x64 in its header" in row["detail"]
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: np.zeros((32, 64, 3), np.uint8))
    assert images.decode(data).shape == (32, 64, 3)  # turned by its EXIF orientation


def test_a_tiff_of_two_pictures_is_the_size_of_its_first(tmp_path: Path) -> None:
    data = picture("TIFF", save_all=True, append_images=[Image.new("RGB", (400, 300), "red")])
    assert (inspected(tmp_path, data)["width"], images.decode(data).shape) == (32, (64, 32, 3))


@pytest.mark.parametrize("given", ["", "1099511627776", "1000", "many"])
def test_opencv_has_the_same_limit_of_pixels_or_a_lower_one(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    assert 0 < int(os.environ[LIMIT]) <= headers.MAX_PIXELS  # before OpenCV was imported
    monkeypatch.setenv(LIMIT, given)
    dpmpp_core._limit_opencv()
    expected = given if given == "1000" else str(headers.MAX_PIXELS)
    assert os.environ[LIMIT] == expected


def test_a_png_without_its_end_mark_is_truncated(tmp_path: Path) -> None:
    row = inspected(tmp_path, picture("PNG")[:-12])
    assert row["reason"] == "truncated" and "the end of the picture is missing" in row["detail"]


def test_a_progressive_jpeg_is_good_until_it_is_cut(tmp_path: Path) -> None:
    data = picture("JPEG", progressive=True)
    assert inspected(tmp_path, data)["reason"] == ""
    assert inspected(tmp_path, data[: len(data) // 2])["reason"] == "truncated"


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    data = bytearray(picture("PNG"))
    data[len(data) // 2] ^= 0xFF
    assert inspected(tmp_path, bytes(data))["reason"] == "truncated"


def announcing(width: int, height: int) -> dict[str, bytes]:
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(9)
    bmp = b"BM" + bytes(12) + struct.pack("<Iii", 40, width, -height) + bytes(28)
    tags = [struct.pack(">HHII", 256, 4, 1, width), struct.pack(">HHII", 257, 4, 1, height)]
    tiff = b"MM\0*" + struct.pack(">IH", 8, 2) + b"".join(tags)
    return {"PNG": png, "BMP": bmp, "TIFF": tiff}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, kind: str) -> None:
    start = time.perf_counter()
    row = inspected(tmp_path, announcing(100_000, 100_000)[kind])
    assert row["reason"] == "too_large" and "100000x100000" in row["detail"]
    assert time.perf_counter() - start < 0.1


def test_a_huge_file_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (headers, inspection):
        monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    (tmp_path / "x.jpg").write_bytes(b"")
    os.truncate(tmp_path / "x.jpg", 2**40)
    row = inspect(str(tmp_path), Entry("x.jpg", 7, 2, "train", False))
    assert row["reason"] == "too_large"


@pytest.mark.parametrize(
    ("size", "reason"), [((1, 1), "too_small"), ((7, 200), "too_small"), ((8, 8), "")]
)
def test_small_images_are_refused(tmp_path: Path, size: tuple[int, int], reason: str) -> None:
    assert inspected(tmp_path, picture("PNG", size))["reason"] == reason


def test_a_file_that_is_gone_is_unreadable(tmp_path: Path) -> None:
    row = inspect(str(tmp_path), Entry("gone.jpg", 7, 2, "train", False))
    assert row["reason"] == "unreadable" and "gone.jpg" in row["detail"]


@given(
    head=st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b""]),
    body=st.binary(max_size=200),
)
def test_no_bytes_make_it_raise(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, body: bytes
) -> None:
    row = inspected(tmp_path_factory.getbasetemp(), head + body)
    assert row["reason"] and row["detail"]
