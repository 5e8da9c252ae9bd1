"""Decoding: whatever a camera or an editor wrote becomes 8-bit RGB, upright."""

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dpmpp_core.data.headers import header_size
from dpmpp_core.data.images import decode, read_image, resize
from dpmpp_core.errors import DataError
from dpmpp_core.models.pixels import to_tensor_batch

RED, BLUE = (250, 10, 10), (10, 10, 250)


def red_over_blue() -> Image.Image:
    """40 x 20 (height x width), red above, blue below."""
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:20], pixels[20:] = RED, BLUE
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def near(pixel: np.ndarray, colour: tuple[int, ...]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= 3)


MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "L", "RGBA", "LA", "P", "1"],
    "BMP": ["RGB", "L", "P", "1"],
    "TIFF": ["RGB", "L", "RGBA", "CMYK"],
}


@pytest.mark.parametrize(("kind", "mode"), [(k, m) for k, modes in MODES.items() for m in modes])
def test_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    image = red_over_blue().convert(mode)
    data = encoded(image, kind)
    pixels = decode(data)
    assert header_size(data) == (20, 40)
    assert pixels.shape == (40, 20, 3) and pixels.dtype == np.uint8
    if mode in ("L", "LA", "1"):
        assert (pixels == pixels[..., :1]).all()
        assert abs(int(pixels[2, 2, 0]) - int(np.asarray(image.convert("L"))[2, 2])) <= 3
    elif mode == "P":  # the palette of the web has only steps of 51
        assert tuple(pixels[2, 2]) == (255, 0, 0) and tuple(pixels[-3, -3]) == (0, 0, 255)
    else:
        assert near(pixels[2, 2], RED) and near(pixels[-3, -3], BLUE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # show turned by 90 degrees clockwise: the top goes to the right
    pixels = decode(encoded(red_over_blue(), kind, exif=exif))
    assert pixels.shape == (20, 40, 3)
    assert near(pixels[10, 2], BLUE) and near(pixels[10, -3], RED)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_are_scaled_to_8(ending: str) -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (16, 12, 3), dtype=np.uint16)
    data = cv2.imencode(ending, deep)[1].tobytes()
    np.testing.assert_allclose(decode(data), (deep / 257)[..., ::-1], atol=1)


def test_transparent_colour_stays() -> None:
    image = red_over_blue()
    image.putalpha(0)
    assert near(decode(encoded(image, "PNG"))[2, 2], RED)


def png_announcing(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(9)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\xff\xd8\xff",
        b"GIF89a" + bytes(40),
        png_announcing(20, 20),
        png_announcing(2**31 - 1, 2**31 - 1),
    ],
)
def test_what_does_not_decode_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError):
        decode(data)


@given(st.sampled_from(["JPEG", "PNG", "BMP", "TIFF"]), st.data())
def test_damaged_files_give_an_image_or_a_data_error(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(red_over_blue(), kind))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    for at in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=4)):
        if damaged:
            damaged[at] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(damaged))
    except DataError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def smooth(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(height).integers(0, 255, (8, 4, 3), np.uint8)
    return Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@given(st.integers(8, 700), st.integers(8, 700))
def test_a_large_jpeg_is_decoded_smaller_but_no_smaller_than_needed(h: int, w: int) -> None:
    data = encoded(smooth(h, w), "JPEG", quality=95)
    full, small = decode(data), decode(data, (64, 32))
    assert full.shape == (h, w, 3)
    times = min(h // 64, w // 32)
    by = next(r for r in (8, 4, 2, 1) if times >= r or r == 1)
    assert small.shape == (-(-h // by), -(-w // by), 3)
    if h % by == w % by == 0:  # else the last row or column stands for less than the others
        difference = np.abs(resize(full, 64, 32).astype(int) - resize(small, 64, 32))
        assert difference.mean() < 2


def test_a_turned_jpeg_is_not_decoded_too_small() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    data = encoded(smooth(512, 128), "JPEG", exif=exif)  # shown 512 wide and 128 high
    assert decode(data, (256, 64)).shape == (128, 512, 3)


def test_only_jpegs_are_decoded_smaller() -> None:
    image = smooth(512, 256)
    pixels = decode(encoded(image, "PNG"), (64, 32))
    np.testing.assert_array_equal(pixels, np.asarray(image))


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(DataError, match="8000x8000 pixels are more than"):
        decode(encoded(Image.new("1", (8000, 8000)), "PNG"))


def test_read_image_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"a\.jpg.*not a JPEG"):
        read_image(str(tmp_path), "a.jpg")
    (tmp_path / "b.png").write_bytes(encoded(red_over_blue(), "PNG"))
    assert read_image(str(tmp_path), "b.png").shape == (40, 20, 3)


def test_resize_averages_when_it_shrinks_and_keeps_constants() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = 240
    small = resize(stripes, 8, 8)
    assert small.shape == (8, 8, 3) and (small == 30).all()
    flat = np.full((30, 10, 3), 77, np.uint8)
    assert (resize(flat, 256, 128) == 77).all() and resize(flat, 256, 128).shape == (256, 128, 3)


def test_to_tensor_batch_is_the_formula() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    images.flags.writeable = False
    mean, std = (0.1, 0.5, 0.6), (0.2, 0.5, 0.9)
    batch = to_tensor_batch(images, mean, std)
    expected = ((images / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    assert batch.dtype == torch.float32 and batch.is_contiguous() and batch.shape == (3, 3, 5, 4)
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)
