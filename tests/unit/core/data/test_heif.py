"""AVIF and HEIC: size before decoding, upright, whole; a missing decoder is named."""

from __future__ import annotations

import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image

from dpmpp_core.data.headers import ImageError, check_image, header_size
from dpmpp_core.data.images import decode

TURNED = 6  # EXIF: the first row is the right side
# Written by pillow-heif: 48 wide, 64 high, red at the top, green at the left, turned by 90 degrees.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    "AAAAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAG8AAgAAAAACWwABAAAAAAAAACQAAAA4aWlu"
    "ZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAB"
    "B2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA"
    "AAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAADAAAAABAAAAQAAAAAH////w"
    "AAAAAgAAAAAAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAa"
    "aXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAJttZGF0AAAAaygBrwngd6B4Nv76b/yhP/jQWmjD9ZEd0e6KC6HOrvrh"
    "Axj6vbpV7QUD7tMyvyYaImiSXhkKuGUkfOFrv55nW8hwhy6UcNwS9J9TBiHt+jkrU8BrTNfbUwF78LSNQZHp+/JO"
    "gkg/wt/oDdPvAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)


def avif(**options: object) -> bytes:
    pixels = np.zeros((64, 48, 3), np.uint8)
    pixels[:20], pixels[:, :10] = (200, 30, 30), (20, 180, 40)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "AVIF", quality=90, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = TURNED
    return avif(exif=exif.tobytes())


def test_avif_is_decoded_upright_and_its_size_is_known_before() -> None:
    assert header_size(avif()) == header_size(turned()) == (48, 64)
    upright, on_its_side = decode(avif()), decode(turned())
    assert upright.shape == (64, 48, 3) and on_its_side.shape == (48, 64, 3)
    np.testing.assert_allclose(np.rot90(upright, -1), on_its_side, atol=2)
    assert upright[40, 4, 1] > 120 > upright[40, 4, 0] and upright[4, 40, 0] > 150


def test_heic_is_decoded_upright_where_its_decoder_is_installed() -> None:
    pytest.importorskip("pi_heif")
    picture = decode(HEIC)
    assert header_size(HEIC) == (64, 64)  # as coded; the picture is a part of it
    assert picture.shape == (48, 64, 3)
    assert picture[4, 20, 1] > 120 > picture[4, 20, 0]  # green is now at the top
    assert picture[40, 60, 0] > 150  # and red at the right


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(ImageError, match=r"pip install 'dpmpp\[heic\]'") as caught:
        decode(HEIC)
    assert caught.value.reason == "no_decoder"


@pytest.mark.parametrize("data", [HEIC, avif()], ids=["HEIC", "AVIF"])
def test_cut_files_of_any_length_are_refused(data: bytes) -> None:
    for length in range(1, len(data) - 1):
        with pytest.raises(ImageError):
            check_image(data[:length])


def test_a_size_that_would_fill_the_memory_is_refused_before_decoding() -> None:
    at = HEIC.index(b"ispe") + 8
    huge = HEIC[:at] + (60_000).to_bytes(4, "big") * 2 + HEIC[at + 8 :]
    with pytest.raises(ImageError, match="more than the"):
        decode(huge)


def test_films_are_no_pictures() -> None:
    film = b"\0\0\0\x1cftypavis" + HEIC[12:]
    with pytest.raises(ImageError, match="starts with"):
        check_image(film)
