"""A part cut away: its share in whole patches, its place, and a scene without a second person."""

import numpy as np
import pytest

from dpmpp_core.data.synthesis import BANDS
from dpmpp_core.occlusion.cut import cut_away, lend_scene

GRID = (16, 8)
CUTS = ("top", "bottom", "side")


def person(rng):
    """An upright person with a ragged outline."""
    mask = np.zeros(GRID, bool)
    top, bottom, left = rng.integers(0, 4), rng.integers(12, 17), rng.integers(0, 4)
    mask[top:bottom, left : left + rng.integers(3, 5)] = True
    return mask & (rng.random(GRID) < 0.95)


def places(mask, part):
    """Row or column of each person patch."""
    return np.nonzero(mask)[1 if part == "side" else 0]


@pytest.mark.parametrize("part", CUTS)
def test_every_band_is_hit_in_whole_patches_on_the_right_side_of_an_edge(part):
    rng = np.random.default_rng(0)
    for seed in range(40):
        mask = person(rng)
        area = int(mask.sum())
        for band in BANDS:
            cut = cut_away(mask, part, band, np.random.default_rng(seed))
            hidden, seen = mask & cut, mask & ~cut
            assert band.low * area <= 100 * hidden.sum() < band.high * area
            gone, left = places(hidden, part), places(seen, part)
            before, after = gone.max() <= left.min(), gone.min() >= left.max()
            assert {"top": before, "bottom": after, "side": before or after}[part]
            # All but the last row or column is cut as a whole, with what is beside the person.
            lines = cut.all(axis=0 if part == "side" else 1)
            some = cut.any(axis=0 if part == "side" else 1)
            assert (lines != some).sum() <= 1


def test_an_edge_between_rows_is_taken_where_the_band_has_one_and_else_a_row_is_broken():
    mask = np.ones((10, 10), bool)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cut = cut_away(mask, "top", (20, 30), rng)
        assert cut.sum() == 20 and cut[:2].all()
        cut = cut_away(mask, "bottom", (21, 30), rng)
        assert 21 <= cut.sum() < 30 and cut[8:].all()
        broken = np.flatnonzero(cut[7])
        assert broken[0] == 0 or broken[-1] == 9
        assert (np.diff(broken) == 1).all()


def test_a_side_is_either_side_and_an_end_either_end():
    mask = np.ones((10, 10), bool)
    cuts = [cut_away(mask, "side", (31, 39), np.random.default_rng(seed)) for seed in range(60)]
    assert {(bool(cut[:, 0].all()), bool(cut[0].sum() > 3)) for cut in cuts} == {
        (left, top) for left in (True, False) for top in (True, False)
    }


@pytest.mark.parametrize("part", CUTS)
def test_what_no_whole_number_of_patches_is_cannot_be_cut(part):
    rng = np.random.default_rng(0)
    mask = np.zeros(GRID, bool)
    assert cut_away(mask, part, (10, 90), rng) is None
    mask[3:5, 2:4] = True  # four patches: 25, 50 or 75 %
    assert cut_away(mask, part, (30, 50), rng) is None
    assert cut_away(mask, part, (0, 10), rng) is None  # nothing hidden is no cut
    assert (mask & cut_away(mask, part, (50, 60), rng)).sum() == 2


def test_the_donor_s_person_stands_beside_the_hidden_part_and_is_not_shown():
    mask = np.zeros(GRID, bool)
    mask[2:15, 3:6] = True
    cut = cut_away(mask, "top", (40, 50), np.random.default_rng(0))
    donors = np.zeros((4, *GRID), bool)
    donors[0, :, 2:6] = True  # fits beside, when rolled
    donors[1, :, :7] = True  # too wide
    donors[3, :, 2:6] = True
    for seed in range(10):
        excluded = np.array([False, False, False, True])  # and 2 is empty
        lender = lend_scene(mask, cut, donors, np.random.default_rng(seed), excluded)
        assert lender.donor == 0
        shown = np.roll(donors[0], lender.shift, axis=1) & ~lender.kept
        assert not shown.any()
        assert not (mask & cut & lender.kept).any()  # what is to be hidden is hidden
        assert lender.kept[~cut].all()


def test_a_person_in_the_way_is_shown_where_no_donor_does_without():
    mask, cut = np.ones(GRID, bool), np.zeros(GRID, bool)
    cut[:5] = True
    donors = np.zeros((2, *GRID), bool)
    donors[0, 4, :3] = donors[1, 4, :2] = True
    lender = lend_scene(mask, cut, donors, np.random.default_rng(0))
    assert lender.donor == 1
    assert np.array_equal(lender.kept, ~cut)


def test_nobody_lends_to_nobody():
    mask = np.ones(GRID, bool)
    rng = np.random.default_rng(0)
    assert lend_scene(mask, mask, np.zeros((3, *GRID), bool), rng) is None
    assert lend_scene(mask, mask, np.ones((1, *GRID), bool), rng, np.array([True])) is None
    assert lend_scene(mask, mask, np.zeros((0, *GRID), bool), rng) is None
