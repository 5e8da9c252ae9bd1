"""Images out of shards are the images of the files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmpp_core.data.donors import ImageCache
from dpmpp_core.data.packed import PackedImages, pack
from dpmpp_core.errors import DataError
from tests.support.data import assert_same, maker, write_images

ROWS = 7


def packed_in(tmp_path, paths, images):
    for shard, start in enumerate(range(0, len(paths), ROWS)):
        part = slice(start, start + ROWS)
        (tmp_path / f"{shard}.arrow").write_bytes(pack(paths[part], images[part]))
    return PackedImages(paths, lambda shard: tmp_path / f"{shard}.arrow", ROWS)


@given(images=st.lists(st.binary(max_size=50), min_size=1, max_size=30), data=st.data())
def test_any_image_is_read_in_any_order(images, data, tmp_path_factory):
    paths = [f"{i}.jpg" for i in range(len(images))]
    packed = packed_in(tmp_path_factory.mktemp("shards"), paths, images)
    for number in data.draw(st.lists(st.integers(0, len(images) - 1), max_size=10)):
        assert packed.read(number) == images[number]


def test_a_step_out_of_shards_is_the_step_out_of_files(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    write_images(folder)
    steps = maker(folder, cache_bytes=0)
    paths = [f"{row}.png" for row in range(30)]
    packed = packed_in(tmp_path, paths, [(folder / path).read_bytes() for path in paths])
    others = maker(folder, cache_bytes=0)
    others._images = ImageCache("nowhere", paths, 64, 32, 0, packed=packed)
    others._donors._images = others._images
    for step in (0, 3):
        assert_same(others.make(step), steps.make(step))


def test_a_shard_of_other_images_is_refused(tmp_path):
    packed_in(tmp_path, ["a.jpg", "b.jpg"], [b"a", b"b"])
    others = PackedImages(["a.jpg", "c.jpg", "d.jpg"], lambda _: tmp_path / "0.arrow", ROWS)
    assert others.read(0) == b"a"
    for number in (1, 2):
        with pytest.raises(DataError, match=r"0\.arrow does not hold [cd]\.jpg: delete"):
            others.read(number)


@pytest.mark.parametrize("damage", [b"", b"ARROW1", b"no arrow at all" * 40])
def test_a_damaged_or_missing_shard_is_named(tmp_path, damage):
    file = tmp_path / "0.arrow"
    packed = PackedImages(["a.jpg"], lambda _: file, ROWS)
    with pytest.raises(DataError, match=r"0\.arrow is damaged"):
        packed.read(0)
    file.write_bytes(damage)
    with pytest.raises(DataError, match=r"0\.arrow is damaged"):
        packed.read(0)


def test_an_image_in_a_shard_that_does_not_decode_is_named(tmp_path):
    packed = packed_in(tmp_path, ["a.jpg"], [b"no picture"])
    with pytest.raises(DataError, match=r"a\.jpg in s3://b: not a JPEG"):
        ImageCache("s3://b", ["a.jpg"], 8, 4, packed=packed)[0]


def test_numbers_keep_their_place_over_the_last_short_shard(tmp_path):
    images = [np.full(3, i, np.uint8).tobytes() for i in range(2 * ROWS + 1)]
    packed = packed_in(tmp_path, [str(i) for i in range(len(images))], images)
    assert packed.read(2 * ROWS) == images[-1]
