"""Made-up surfaces: how much they hide, that chance is all theirs, that they vary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmpp_core.occlusion.occluder_textures import (
    HIDDEN_AREA_RANGE,
    draw_texture,
    paste_synthetic_occluder,
)


@given(seed=st.integers(0, 2**31), size=st.sampled_from([(256, 128), (64, 32), (48, 48)]))
def test_a_box_of_the_wanted_share_is_hidden_and_nothing_else(seed, size) -> None:
    image = np.zeros((*size, 3), np.uint8)
    made = paste_synthetic_occluder(image, np.random.default_rng(seed))
    again = paste_synthetic_occluder(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(made, again)
    white = paste_synthetic_occluder(image + 255, np.random.default_rng(seed))
    hidden = (made == white).all(axis=2)
    rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
    assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.99
    assert HIDDEN_AREA_RANGE[0] - 0.03 <= hidden.mean() <= HIDDEN_AREA_RANGE[1] + 0.03
    assert not image.any()


def test_occluder_textures_differ_in_colour_and_pattern() -> None:
    made = [draw_texture(64, 32, np.random.default_rng(seed)) for seed in range(200)]
    colours = np.array([s.mean(axis=(0, 1)) for s in made])
    assert colours.std(axis=0).min() > 40
    within = np.array([s.std(axis=(0, 1)).mean() for s in made])
    assert np.percentile(within, 10) < 15 and np.percentile(within, 90) > 35


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2)])
def test_any_size_can_be_filled(size) -> None:
    assert draw_texture(*size, np.random.default_rng(0)).shape == (*size, 3)
