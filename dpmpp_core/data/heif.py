"""HEIC and AVIF, which keep a picture in the boxes of ISO/IEC 23008-12: its size, its decoding.

OpenCV reads AVIF without turning it upright, and no HEIC: Pillow decodes AVIF, pi-heif HEIC.
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

AVIF, HEIC = "AVIF", "HEIC"
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1"}
_MOVING = {b"avis", b"msf1", b"hevc", b"hevx"}


def heif_kind(data: bytes) -> str:
    """Return AVIF or HEIC by the first box of a file; empty for anything else, also a video."""
    if data[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(data[:4], "big"), len(data))
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if data[8:12] in _MOVING or not brands & (_HEIC_BRANDS | {b"avif"}):
        return ""
    return AVIF if b"avif" in brands else HEIC


def heif_size(data: bytes) -> tuple[int, int]:
    """Return width and height of the primary picture, before it is turned upright.

    Raises struct.error or IndexError where the header is cut or states no size.
    """
    meta = dict(_boxes(data))[b"meta"][4:]  # a full box: version and flags come first
    parts = dict(_boxes(meta))
    (version,) = parts[b"pitm"][:1]
    (primary,) = struct.unpack_from(">I" if version else ">H", parts[b"pitm"], 4)
    properties = dict(_boxes(parts[b"iprp"]))
    values = list(_boxes(properties[b"ipco"]))
    for place in _property_places(properties[b"ipma"], primary):
        kind, value = values[place - 1]
        if kind == b"ispe":
            width, height = struct.unpack_from(">II", value, 4)
            return width, height
    raise IndexError("no size of the primary picture")


def is_heif_whole(data: bytes) -> bool:
    """Return whether every box of a file ends inside it, the one with the picture among them."""
    at, coded = 0, b"idat" in data
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        coded |= data[at + 4 : at + 8] == b"mdat"
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size == 0:
            return coded
        if size < 8:
            return False
        at += size
    return coded and at == len(data)


def decode_heif(data: bytes, kind: str) -> NDArray[np.uint8]:
    """Decode a whole file to uint8 [H, W, 3] RGB, turned upright.

    Raises:
        ImportError: pi-heif, which HEIC needs, is not installed.
        Exception: of many types, where the file does not decode.
    """
    from PIL import Image, ImageOps

    if kind == AVIF:
        with Image.open(io.BytesIO(data), formats=["AVIF"]) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    heif: Any = importlib.import_module("pi_heif")
    picture = heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True).to_pillow()
    return np.asarray(picture.convert("RGB"))


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each box."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        size = size or len(data) - at
        if size < head:
            raise IndexError("a box ends before it starts")
        yield kind, data[at + head : at + size]
        at += size


def _property_places(table: bytes, item: int) -> list[int]:
    """Return the places, from 1 on, of the properties of an item, from the content of `ipma`."""
    version, wide = table[0], table[3] & 1
    (entries,) = struct.unpack_from(">I", table, 4)
    at = 8
    for _ in range(entries):
        (number,) = struct.unpack_from(">I" if version else ">H", table, at)
        at += 4 if version else 2
        count, at = table[at], at + 1
        step = 2 if wide else 1
        if number == item:
            raw = [
                int.from_bytes(table[i : i + step], "big")
                for i in range(at, at + step * count, step)
            ]
            return [value & (0x7FFF if wide else 0x7F) for value in raw]
        at += step * count
    return []
