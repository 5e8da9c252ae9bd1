"""Pictures as a user has them become the same pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from dpmpp_core.data.headers import ImageError
from dpmpp_core.models.pictures import list_pictures, read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 12, 3), np.uint8)


def test_a_path_bytes_a_pillow_image_and_an_array_are_the_same(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for picture in (tmp_path / "a.png", str(tmp_path / "a.png"), data, image, PIXELS):
        assert np.array_equal(read_picture(picture), PIXELS)
        assert len(list_pictures(picture)) == 1
    assert len(list_pictures(np.stack([PIXELS, PIXELS]))) == 2
    assert np.array_equal(read_picture(image.convert("RGBA")), PIXELS)


def test_a_pillow_image_is_turned_upright_as_its_file_is() -> None:
    turned = PIL.Image.fromarray(PIXELS)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    opened = PIL.Image.open(io.BytesIO(file.getvalue()))
    assert read_picture(opened).shape == (12, 24, 3)
    assert np.array_equal(read_picture(opened), read_picture(file.getvalue()))


@pytest.mark.parametrize(
    ("picture", "given"),
    [
        (PIXELS.astype(np.float32), r"float32 \(24, 12, 3\)"),
        (PIXELS[..., 0], r"uint8 \(24, 12\)"),
        (7, "int"),
    ],
)
def test_anything_else_is_named_with_its_position(picture: object, given: str) -> None:
    with pytest.raises(ValueError, match=f"image 3: .* is needed, not {given}"):
        read_picture(picture, 3)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="image 3: not a JPEG"):
        read_picture(b"no picture", 3)
