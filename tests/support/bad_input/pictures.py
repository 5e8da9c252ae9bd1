"""Files that are no pictures, or odd ones, in a training folder beside good ones."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dpmpp_core.data.headers import MAX_BYTES
from dpmpp_core.data.images import read_image
from dpmpp_core.data.manifest import read_manifest
from tests.support.bad_input.row import ALL_GOOD, Outcome, Row, good_market, look, picture

NAME = "bounding_box_train/0002_c9.jpg"


def row(given: str, make: Callable[[], bytes], says: str) -> Row:
    def attempt(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        (root / NAME).write_bytes(make())
        return look(root)

    return Row(given, attempt, rf"0002_c9\.jpg: {says}", ALL_GOOD)


def frames(kind: str) -> bytes:
    """Two frames, dark and light."""
    shown = [Image.fromarray(np.full((64, 32, 3), shade, np.uint8)) for shade in (50, 200)]
    buffer = io.BytesIO()
    shown[0].save(buffer, kind, save_all=True, append_images=shown[1:], duration=10)
    return buffer.getvalue()


def first_frame(kind: str) -> Row:
    def attempt(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        (root / NAME).write_bytes(frames(kind))
        said, kept = look(root)
        shade = int(read_image(str(root), NAME)[0, 0, 0])
        return Outcome(f"{said}, {'first' if shade == 50 else 'another'} frame", kept)

    return Row(
        f"{'animated PNG' if kind == 'PNG' else 'TIFF of two pages'}",
        attempt,
        "used, 32x64, first frame",
        ALL_GOOD,
    )


def turned(orientation: int, side: str) -> Row:
    """Red above blue, and a note in the file how to turn it."""

    def attempt(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        pixels = np.zeros((64, 32, 3), np.uint8)
        pixels[:32, :, 0], pixels[32:, :, 2] = 250, 250
        exif = Image.Exif()
        exif[0x112] = orientation
        Image.fromarray(pixels).save(root / NAME, exif=exif)
        said, kept = look(root)
        shown = read_image(str(root), NAME)[..., 0] > 125
        height, width = shown.shape
        edges = {
            "top": shown[2, width // 2], "bottom": shown[-3, width // 2],
            "left": shown[height // 2, 2], "right": shown[height // 2, -3],
        }  # fmt: skip
        where = [name for name in ("top", "bottom") if edges[name]] if height > width else [
            name for name in ("left", "right") if edges[name]
        ]  # fmt: skip
        return Outcome(f"{said}, red at the {' and '.join(where)}", kept)

    size = "32x64" if side in ("top", "bottom") else "64x32"
    says = rf"used, {size}, red at the {side}$"
    return Row(f"EXIF orientation {orientation}, red above blue", attempt, says, ALL_GOOD)


def cut(kind: str) -> Row:
    def attempt(folder: Path) -> Outcome:
        root = good_market(folder / "data")
        whole = picture(kind)
        for i in range(1, 50):
            name = root / f"bounding_box_train/0002_c{10 + i}.jpg"
            name.write_bytes(whole[: len(whole) * i // 50])
        kept = look(root).kept
        reasons = Counter(read_manifest(str(root)).quarantine["reason"].to_pylist())
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        return Outcome(said, kept)

    return Row(f"{kind} cut at 49 places", attempt, "^49 truncated$", ALL_GOOD)


def sparse(folder: Path) -> Outcome:
    root = good_market(folder / "data")
    (root / NAME).touch()
    os.truncate(root / NAME, MAX_BYTES + 1)
    return look(root)


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(9)


def png_bomb(width: int, height: int) -> bytes:
    """A real picture, black, a bit a pixel: a thousand times larger than its file."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width // 8 + 1) * height, 9)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def lying_jpeg(width: int, height: int) -> bytes:
    """32x64 pixels behind a header that announces others."""
    data = bytearray(picture())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def deep_png() -> bytes:
    return cv2.imencode(".png", np.full((64, 32, 3), 40_000, np.uint16))[1].tobytes()


def nan_tiff() -> bytes:
    return cv2.imencode(".tif", np.full((64, 32, 3), np.nan, np.float32))[1].tobytes()


ROWS = [
    row("grey JPEG", lambda: picture(mode="L"), "used, 32x64"),
    row("CMYK JPEG", lambda: picture(mode="CMYK"), "used, 32x64"),
    row("16-bit PNG", deep_png, "used, 32x64"),
    row("float TIFF of NaN", nan_tiff, r"truncated \(the image does not decode\)"),
    row("PNG with a palette", lambda: picture("PNG", mode="P"), "used, 32x64"),
    row("PNG, palette, one colour clear", lambda: picture("PNG", mode="P", transparency=0), "used"),
    row("PNG with alpha", lambda: picture("PNG", mode="RGBA"), "used, 32x64"),
    *(
        turned(orientation, side)
        for orientation, side in enumerate(
            ("top", "top", "bottom", "bottom", "left", "right", "right", "left"), 1
        )
    ),
    row("animated GIF", lambda: frames("GIF"), "not_an_image"),
    row("animated WebP", lambda: frames("WEBP"), "not_an_image"),
    first_frame("PNG"),
    first_frame("TIFF"),
    row("JPEG, 30,000 pixels wide", lambda: picture(size=(30_000, 16)), "used, 30000x16"),
    row("PNG, 30,000 pixels high", lambda: picture("PNG", (16, 30_000)), "used, 16x30000"),
    row("PNG that announces 30,000 x 30,000", lambda: png_header(30_000, 30_000), "too_large"),
    row("PNG bomb: 8 kB, 64 million pixels", lambda: png_bomb(8000, 8000), "too_large"),
    row("JPEG that announces 65,000 x 65,000", lambda: lying_jpeg(65_000, 65_000), "too_large"),
    row(
        "JPEG that announces more than its bytes can hold",
        lambda: lying_jpeg(3200, 6400),
        r"truncated \([\d,]+ bytes cannot hold the 3200x6400 pixels of the header\)",
    ),
    row("JPEG that announces no height", lambda: lying_jpeg(32, 0), r"too_small \(32x0"),
    row("PNG that announces 7000 x 7000 and ends", lambda: png_header(7000, 7000), "truncated"),
    Row("file of more than 64 MiB", sparse, "too_large", ALL_GOOD),
    row("no bytes at all", lambda: b"", "empty_file"),
    *(cut(kind) for kind in ("JPEG", "PNG", "BMP", "TIFF")),
    row("PNG named .jpg", lambda: picture("PNG"), "used, 32x64"),
    row("text named .jpg", lambda: b"this is text\n", "not_an_image .*starts with b'this is '"),
    row("web page named .jpg", lambda: b"<!DOCTYPE html><html>", "not_an_image"),
    row("ZIP archive named .jpg", lambda: b"PK\x03\x04" + bytes(99), "not_an_image"),
    row("one pixel", lambda: picture("PNG", (1, 1)), "too_small"),
]
