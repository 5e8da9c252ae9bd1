"""Synthetic occluders: how much they hide, that only chance decides, that they vary."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmpp_core.occlusion.synthetic_occluders import (
    draw_shape,
    draw_texture,
    paste_synthetic_occluder,
)


@given(seed=st.integers(0, 2**31), size=st.sampled_from([(256, 128), (64, 32), (48, 48)]))
def test_what_is_hidden_is_told_and_the_rest_is_kept(seed, size) -> None:
    image, other = np.zeros((*size, 3), np.uint8), np.full((*size, 3), 200, np.uint8)
    made, front = paste_synthetic_occluder(image, other, np.random.default_rng(seed))
    again, _ = paste_synthetic_occluder(image, other, np.random.default_rng(seed))
    np.testing.assert_array_equal(made, again)
    white, _ = paste_synthetic_occluder(image + 255, other, np.random.default_rng(seed))
    differs = np.abs(made.astype(int) - white).max(axis=2)
    reach = cv2.dilate(front.astype(np.uint8), np.ones((13, 13))) > 0
    inside = cv2.erode(front.astype(np.uint8), np.ones((13, 13)), borderValue=1) > 0
    assert (differs[~reach] == 255).all() and (differs[inside] <= 1).all()
    assert not image.any() and front.shape == size


def test_shapes_hide_from_a_little_to_most_of_a_picture() -> None:
    shapes = [draw_shape(256, 128, np.random.default_rng(seed)) for seed in range(300)]
    shares = np.array([shape.mean() for shape in shapes])
    low, high = np.percentile(shares, (10, 90))
    assert low < 0.2 and high > 0.4 and shares.max() < 0.75
    often = np.mean(shapes, axis=0)
    assert often.min() > 0.1  # every place is hidden at times


def test_synthetic_occluders_differ_in_colour_and_pattern() -> None:
    made = [draw_texture(64, 32, np.random.default_rng(seed)) for seed in range(200)]
    colours = np.array([s.mean(axis=(0, 1)) for s in made])
    assert colours.std(axis=0).min() > 40
    within = np.array([s.std(axis=(0, 1)).mean() for s in made])
    assert np.percentile(within, 10) < 15 and np.percentile(within, 90) > 35


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2)])
def test_any_size_can_be_filled(size) -> None:
    assert draw_texture(*size, np.random.default_rng(0)).shape == (*size, 3)
