"""Augmentation: the mask follows the pixels."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.config import AugmentConfig
from dpmpp_core.data.augment import (
    Geometry,
    apply_to_image,
    apply_to_masks,
    camera_jitter,
    random_erase,
)

PAD = 10


@st.composite
def geometries(draw, pad=PAD):
    shift = st.integers(0, 2 * pad)
    return Geometry(draw(st.booleans()), draw(shift), draw(shift))


@given(geometries(), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_mask_of_a_painted_image_is_the_mask_of_the_augmented_image(geometry, seed):
    mask = np.random.default_rng(seed).random((16, 8)) < 0.5
    painted = np.repeat(mask.repeat(16, 0).repeat(16, 1)[:, :, None], 3, 2).astype(np.uint8)
    after = apply_to_image(painted, geometry, PAD)[:, :, 0]
    painted_pixels = after.reshape(16, 16, 8, 16).sum(axis=(1, 3), dtype=int)
    expected = painted_pixels >= 128
    assert np.array_equal(apply_to_masks(mask[None], [geometry], PAD, 256, 128)[0], expected)


@given(geometries(pad=40))
@settings(max_examples=50, deadline=None)
def test_image_is_flipped_padded_with_black_and_cropped(geometry):
    image = np.random.default_rng(0).integers(1, 256, (32, 24, 3), np.uint8)
    source = image[:, ::-1] if geometry.flip else image
    padded = np.pad(source, ((40, 40), (40, 40), (0, 0)))
    expected = padded[geometry.dy : geometry.dy + 32, geometry.dx : geometry.dx + 24]
    assert np.array_equal(apply_to_image(image, geometry, 40), expected)


def test_unmoved_geometry_changes_nothing_but_copies():
    image = np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8)
    out = apply_to_image(image, Geometry(False, PAD, PAD), PAD)
    assert np.array_equal(out, image) and not np.shares_memory(out, image)


def test_geometry_covers_its_range_and_obeys_the_configuration():
    rng = np.random.default_rng(0)
    drawn = [Geometry.draw(AugmentConfig(flip=0.5, pad=3), rng) for _ in range(400)]
    assert {g.dy for g in drawn} == {g.dx for g in drawn} == set(range(7))
    assert 150 < sum(g.flip for g in drawn) < 250
    still = [Geometry.draw(AugmentConfig(flip=0, pad=0), rng) for _ in range(20)]
    assert set(still) == {Geometry(False, 0, 0)}


@given(st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_erasing_fills_one_rectangle_of_the_stated_area(seed):
    image = np.zeros((256, 128, 3), np.uint8)
    out = random_erase(image, np.random.default_rng(seed))
    assert not image.any()
    touched = out.any(axis=2)
    rows, columns = touched.any(axis=1).nonzero()[0], touched.any(axis=0).nonzero()[0]
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert 0.018 <= height * width / (256 * 128) <= 0.405
    assert 0.28 <= height / width <= 3.5
    assert touched[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99
    assert np.array_equal(out, random_erase(image, np.random.default_rng(seed)))


def test_another_camera_changes_colours_by_its_strength_and_only_by_the_seed():
    image = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    kept = image.copy()
    assert (
        np.abs(camera_jitter(image, 0.0, np.random.default_rng(1)).astype(int) - image).max() <= 1
    )
    changes = []
    for strength in (0.2, 1.0):
        out = [camera_jitter(image, strength, np.random.default_rng(s)) for s in range(40)]
        again = camera_jitter(image, strength, np.random.default_rng(3))
        assert (again == out[3]).all() and again.shape == image.shape and again.dtype == np.uint8
        changes.append(np.mean([np.abs(o.mean((0, 1)) - image.mean((0, 1))).mean() for o in out]))
    assert 1 < changes[0] < changes[1]
    assert (image == kept).all()
