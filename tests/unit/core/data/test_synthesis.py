"""Occlusion to order: bands are hit; a picture comes from (seed, image, band, part) alone."""

import cv2
import numpy as np
import pytest

from dpmpp_core.config import DataConfig, OcclusionConfig
from dpmpp_core.data.files import new_folder
from dpmpp_core.data.images import read_image
from dpmpp_core.data.synthesis import BANDS, PARTS, Band, Synthesiser, parse_bands, parse_parts
from dpmpp_core.errors import ConfigError, DataError

DATA, GRID = DataConfig(height=128, width=64), (8, 4)
TESTED, LENT = 6, 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The first 6 pictures are to be hidden, the others lend; each is of one colour."""
    folder = tmp_path_factory.mktemp("images")
    for row in range(TESTED + LENT):
        cv2.imwrite(str(folder / f"{row}.png"), np.full((128, 64, 3), row + 1, np.uint8))
    return folder


def people(count):
    """Upright shapes of many sizes."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, *GRID), bool)
    for mask in masks:
        left, top = rng.integers(0, 3), rng.integers(0, 4)
        mask[top : rng.integers(4, 9), left : left + rng.integers(1, 4)] = True
    return masks


def synthesiser(root, seed=0, masks=None, **occlusion):
    masks = people(TESTED + LENT) if masks is None else masks
    paths = [f"{row}.png" for row in range(len(masks))]
    lenders = np.arange(TESTED, len(masks))
    settings = OcclusionConfig(**occlusion)
    return Synthesiser(str(root), paths, masks, lenders, DATA, settings, seed)


def test_every_band_is_hit_and_the_picture_shows_what_is_noted(root):
    masks, hits = people(TESTED + LENT), 0
    made_by = synthesiser(root)
    for row in range(TESTED):
        for band in BANDS:
            made = made_by.make(row, band)
            if made is None:
                continue
            hits += 1
            assert band.low - 1e-9 <= 100 * made.occlusion_ratio < band.high
            donor = int(made.donor.removesuffix(".png"))
            assert donor >= TESTED  # never another test image
            colours = made.image.reshape(8, 16, 4, 16, 3)[:, 0, :, 0, 0]
            assert set(np.unique(colours)) <= {row + 1, donor + 1}
            rolled = np.roll(masks[row], made.shift, axis=1)
            left = (rolled & (colours == row + 1)).sum() / masks[row].sum()
            assert left == pytest.approx(1 - made.occlusion_ratio)
    assert hits >= 0.5 * TESTED * len(BANDS)


def test_a_part_is_hidden_behind_the_scene_of_a_training_image(root):
    masks, made_by = people(TESTED + LENT), synthesiser(root)
    for part in PARTS[1:]:
        for row in range(TESTED):
            for band in BANDS[2:]:
                made = made_by.make(row, band, part)
                if made is None:
                    assert masks[row].sum() < 10
                    continue
                assert band.low - 1e-9 <= 100 * made.occlusion_ratio < band.high
                assert made.oiou is None
                donor = int(made.donor.removesuffix(".png"))
                assert donor >= TESTED
                colours = made.image.reshape(8, 16, 4, 16, 3)[:, 0, :, 0, 0]
                assert set(np.unique(colours)) == {row + 1, donor + 1}
                seen = masks[row] & (colours == row + 1)
                assert seen.sum() == pytest.approx((1 - made.occlusion_ratio) * masks[row].sum())


def test_a_picture_depends_on_seed_image_band_and_part_alone(root):
    one, other = synthesiser(root), synthesiser(root)
    places = [(row, band, p) for row in range(TESTED) for band in BANDS for p in PARTS]
    forwards = [one.make(*place) for place in places]
    backwards = [other.make(*place) for place in reversed(places)][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert np.array_equal(a.image, b.image)
            assert (a.donor, a.shift, a.oiou, a.occlusion_ratio) == (
                b.donor,
                b.shift,
                b.oiou,
                b.occlusion_ratio,
            )
    seeds = [synthesiser(root, seed).make(1, Band(20, 50)).donor for seed in range(5)]
    assert len(set(seeds)) > 1


def test_backgrounds_lend_in_borrowed_shapes(root, tmp_path):
    cv2.imwrite(str(tmp_path / "street.png"), np.full((300, 400, 3), 250, np.uint8))
    made = synthesiser(root, backgrounds=str(tmp_path), background_share=1).make(0, Band(20, 50))
    assert made.donor == f"{tmp_path}/street.png"
    assert set(np.unique(made.image)) == {1, 250}


def test_a_lender_that_is_hidden_itself_never_lends_to_itself(root):
    masks = np.zeros((TESTED + 2, *GRID), bool)
    masks[TESTED:, 1:7, 1:3] = True
    for seed in range(10):
        made = synthesiser(root, seed, masks).make(TESTED, Band(0, 10))
        assert made.donor == f"{TESTED + 1}.png"


def test_what_cannot_be_hidden_is_none(root):
    masks = people(TESTED + LENT)
    masks[0] = False
    assert synthesiser(root, masks=masks).make(0, Band(10, 20)) is None
    masks[0] = True  # fills the picture: every donor's shape hides more than a tenth
    assert synthesiser(root, masks=masks).make(0, Band(0, 10)) is None


def test_clean_is_the_image(root):
    clean = synthesiser(root).clean(3)
    assert np.array_equal(clean, read_image(str(root), "3.png"))


def test_bands_are_read_and_wrong_ones_explained():
    assert parse_bands("10-20, 20-30") == (Band(10, 20), Band(20, 30))
    assert [str(band) for band in BANDS][::3] == ["0-10", "30-40", "60-70"]
    for text in ("", "10", "20-10", "10-10", "a-b", "80-95", "10-20,", "-5-10"):
        with pytest.raises(ConfigError, match="LOW-HIGH"):
            parse_bands(text)
    with pytest.raises(ConfigError, match="twice"):
        parse_bands("10-20,10-20")


def test_parts_are_read_and_wrong_ones_explained():
    assert parse_parts("any, side") == ("any", "side")
    for text in ("", "left", "any,", "top bottom"):
        with pytest.raises(ConfigError, match="any,top,bottom,side"):
            parse_parts(text)
    with pytest.raises(ConfigError, match="twice"):
        parse_parts("top,side,top")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "a" / "out"
    with pytest.raises(RuntimeError), new_folder(out) as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert not list((tmp_path / "a").iterdir())
    with new_folder(out) as folder:
        (folder / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    with pytest.raises(DataError, match="not empty"), new_folder(out):
        pass
    with pytest.raises(DataError, match="is a file"), new_folder(out / "file"):
        pass
