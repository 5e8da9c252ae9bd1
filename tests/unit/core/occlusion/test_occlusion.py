"""Pairing, transfer and saliency."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.config import OcclusionConfig
from dpmpp_core.occlusion.pairing import draw_pairs, oiou, overlap, place
from dpmpp_core.occlusion.saliency import pack_mask, spectral_saliency, unpack_mask
from dpmpp_core.occlusion.transfer import transfer_patches, visible_patches

EVERYTHING = OcclusionConfig(
    rolling=True, probability=1, min_oiou=0, min_ratio=0, max_ratio=1, min_donor=0, top_share=1
)


@st.composite
def mask_batches(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return rng.random(shape) < draw(st.floats(0, 1))


def people(samples, seed=0):
    """Upright rectangles, some cut off below, on a 16x8 grid."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((samples, 16, 8), bool)
    for mask in masks:
        left, top = rng.integers(0, 4), rng.integers(0, 4)
        mask[top : rng.integers(6, 17), left : left + rng.integers(3, 5)] = True
    return masks


@given(mask_batches())
@settings(max_examples=100, deadline=None)
def test_oiou_is_the_triple_loop(masks):
    samples, _, width = masks.shape
    result = oiou(masks)
    assert result.shape == (samples, samples, width) and result.dtype == np.float32
    for i in range(samples):
        for j in range(samples):
            for s in range(width):
                shared = (np.roll(masks[i], s, axis=1) & masks[j]).sum()
                expected = shared / masks[j].sum() if masks[j].any() else 0
                assert result[i, j, s] == pytest.approx(expected, abs=1e-6)


@given(mask_batches())
@settings(max_examples=50, deadline=None)
def test_oiou_of_a_sample_with_itself_unrolled_is_one(masks):
    masks[:, 0, 0] = True
    assert (np.diagonal(oiou(masks)[:, :, 0]) == 1).all()


@given(mask_batches(), st.integers(-7, 7))
@settings(max_examples=50, deadline=None)
def test_oiou_depends_on_the_relative_shift_with_period_width(masks, by):
    width = masks.shape[2]
    rolled = oiou(np.roll(masks, by, axis=2))
    assert np.array_equal(rolled, oiou(masks))
    moved = masks.copy()
    moved[0] = np.roll(masks[0], by, axis=1)
    expected = oiou(masks)[0, 1:, (np.arange(width) + by) % width]
    assert np.array_equal(oiou(moved)[0, 1:].T, expected)


def test_empty_masks_give_zero_and_neither_lend_nor_borrow():
    masks = people(6)
    masks[2] = False
    result = oiou(masks)
    assert not result[2].any() and not result[:, 2].any()
    for seed in range(20):
        pairs = draw_pairs(masks, EVERYTHING, np.random.default_rng(seed))
        assert pairs.donor[2] == -1 and 2 not in pairs.donor
        assert (np.delete(pairs.donor, 2) >= 0).all()


@given(
    mask_batches(),
    st.integers(0, 2**16),
    st.floats(0, 1),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_pairs_obey_every_bound(masks, seed, min_oiou, ratios, min_donor, top_share, rolling):
    config = OcclusionConfig(
        probability=1,
        min_oiou=min_oiou,
        min_ratio=ratios[0],
        max_ratio=ratios[1],
        min_donor=min_donor,
        top_share=top_share,
        rolling=rolling,
    )
    pairs = draw_pairs(masks, config, np.random.default_rng(seed))
    scores = oiou(masks)
    samples, _, width = masks.shape
    for i in range(samples):
        candidates = []
        for j in range(samples):
            for s in range(width if rolling else 1):
                shared = (np.roll(masks[i], s, axis=1) & masks[j]).sum()
                hidden = np.float32(1) - np.float32(shared) / np.float32(max(masks[i].sum(), 1))
                if (
                    j != i
                    and shared
                    and masks[j].mean() >= min_donor
                    and scores[i, j, s] >= min_oiou
                    and ratios[0] <= hidden <= ratios[1]
                ):
                    candidates.append((scores[i, j, s], j, s, hidden))
        if not candidates:
            assert (pairs.donor[i], pairs.shift[i]) == (-1, 0)
            assert pairs.oiou[i] == pairs.occlusion_ratio[i] == 0
            continue
        values = sorted((c[0] for c in candidates), reverse=True)
        floor = values[max(1, int(np.ceil(top_share * len(values)))) - 1]
        drawn = (pairs.oiou[i], pairs.donor[i], pairs.shift[i], pairs.occlusion_ratio[i])
        assert drawn in candidates and drawn[0] >= floor


def test_pairs_come_from_the_generator_alone():
    masks = people(32)
    first, again, other = (
        draw_pairs(masks, EVERYTHING, np.random.default_rng(s)) for s in (0, 0, 1)
    )
    assert np.array_equal(first.donor, again.donor) and np.array_equal(first.shift, again.shift)
    assert not np.array_equal(first.donor, other.donor)


@given(mask_batches(), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_a_bank_that_is_the_batch_lends_as_the_batch(masks, seed):
    batch = draw_pairs(masks, EVERYTHING, np.random.default_rng(seed))
    itself = np.eye(len(masks), dtype=bool)
    bank = draw_pairs(masks, EVERYTHING, np.random.default_rng(seed), masks.copy(), itself)
    for name in ("donor", "shift", "oiou", "occlusion_ratio"):
        assert np.array_equal(getattr(bank, name), getattr(batch, name))


@given(mask_batches(), mask_batches(), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_donors_of_a_bank_are_scored_as_in_a_batch_and_never_excluded_ones(one, other, seed):
    height, width = (min(a, b) for a, b in zip(one.shape[1:], other.shape[1:], strict=True))
    masks, bank = one[:, :height, :width], other[:, :height, :width]
    excluded = np.random.default_rng(seed).random((len(masks), len(bank))) < 0.5
    pairs = draw_pairs(masks, EVERYTHING, np.random.default_rng(seed), bank, excluded)
    together = oiou(np.concatenate([masks, bank]))[: len(masks), len(masks) :]
    assert np.array_equal(overlap(masks, bank, 1)[:, :, 0] > 0, together[:, :, 0] > 0)
    possible = (together > 0).any(axis=2) & ~excluded
    assert np.array_equal(pairs.donor >= 0, possible.any(axis=1))
    for i in np.flatnonzero(pairs.donor >= 0):
        assert possible[i, pairs.donor[i]]
        assert pairs.oiou[i] == together[i, pairs.donor[i], pairs.shift[i]]


def test_an_empty_bank_lends_nothing():
    pairs = draw_pairs(people(4), EVERYTHING, np.random.default_rng(0), people(0))
    assert (pairs.donor == -1).all()


@given(mask_batches(), st.integers(0, 9), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_a_placement_is_the_best_that_hides_the_wanted_share(masks, tens, seed):
    person, donors = masks[0], masks
    excluded = np.random.default_rng(seed).random(len(masks)) < 0.3
    wanted = 10 * tens, 10 * tens + 10
    found = place(person, donors, wanted, np.random.default_rng(seed), excluded)
    candidates = {}
    for j, donor in enumerate(donors):
        for s in range(person.shape[1]):
            shared = (np.roll(person, s, axis=1) & donor).sum()
            lost = 100 * (person.sum() - shared)
            within = wanted[0] * person.sum() <= lost < wanted[1] * person.sum()
            if shared and within and not excluded[j]:
                candidates[j, s] = shared / donor.sum()
    if found is None:
        assert not candidates
        return
    assert found.oiou == pytest.approx(max(candidates.values()))
    assert candidates[found.donor, found.shift] == pytest.approx(found.oiou)
    seen = visible_patches(person, donors[found.donor], found.shift).sum()
    assert found.occlusion_ratio == pytest.approx(1 - seen / person.sum())


def test_nobody_is_placed_where_nobody_is():
    rng = np.random.default_rng(0)
    empty = np.zeros((16, 8), bool)
    assert place(empty, people(5), (0, 90), rng) is None
    assert place(people(1)[0], np.stack([empty]), (0, 90), rng) is None
    assert place(people(1)[0], people(0), (0, 90), rng) is None


def test_probability_is_the_share_of_mixed_samples():
    masks = people(500)
    for probability in (0.0, 0.3, 1.0):
        config = EVERYTHING.model_copy(update={"probability": probability})
        mixed = draw_pairs(masks, config, np.random.default_rng(1)).donor >= 0
        assert mixed.mean() == pytest.approx(probability, abs=0.06)


def test_equal_candidates_are_drawn_equally_often():
    masks = np.repeat(people(1), 5, axis=0)
    config = EVERYTHING.model_copy(update={"rolling": False, "top_share": 0.1})
    drawn = [draw_pairs(masks, config, np.random.default_rng(s)).donor[0] for s in range(400)]
    counts = np.bincount(drawn, minlength=5)
    assert counts[0] == 0 and counts[1:].min() > 70


def test_visible_patches_are_what_is_not_hidden():
    masks = people(40)
    pairs = draw_pairs(masks, OcclusionConfig(probability=1), np.random.default_rng(0))
    mixed = np.flatnonzero(pairs.donor >= 0)
    assert len(mixed) > 10
    for i in mixed:
        visible = visible_patches(masks[i], masks[pairs.donor[i]], pairs.shift[i])
        assert 1 - visible.sum() / masks[i].sum() == pytest.approx(
            pairs.occlusion_ratio[i], abs=1e-6
        )


def images(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, 3, 64, 32), np.uint8)


def test_full_donor_mask_leaves_the_recipient_as_it_is():
    recipient, donor = images()
    out = transfer_patches(recipient, donor, np.ones((4, 2), bool), 0)
    assert np.array_equal(out, recipient)
    assert np.array_equal(transfer_patches(recipient, donor, np.zeros((4, 2), bool), 1), donor)
    assert not np.shares_memory(out, donor) and not np.shares_memory(out, recipient)


@given(st.integers(0, 2**16), st.integers(0, 1))
@settings(max_examples=25, deadline=None)
def test_mixing_pixels_is_mixing_patch_embeddings(seed, shift):
    recipient, donor = images(seed)
    mask = np.random.default_rng(seed).random((4, 2)) < 0.5
    embed = torch.nn.Conv2d(3, 8, 16, 16).double()

    def embedding(image):
        return embed(torch.from_numpy(image.copy())[None].double())[0]

    rolled = torch.roll(embedding(recipient), shift, dims=2)
    expected = torch.where(torch.from_numpy(mask), rolled, embedding(donor))
    mixed = embedding(transfer_patches(recipient, donor, mask, shift))
    assert torch.allclose(mixed, expected, atol=1e-9)


def test_transfer_keeps_the_memory_layout():
    recipient, donor = images()
    mask = np.random.default_rng(1).random((4, 2)) < 0.5
    last = [
        np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1) for x in (recipient, donor)
    ]
    mixed = transfer_patches(*last, mask, 1)
    assert np.array_equal(mixed, transfer_patches(recipient, donor, mask, 1))
    assert mixed.transpose(1, 2, 0).flags.c_contiguous


def test_transfer_refuses_broken_patches_and_unequal_images():
    recipient, donor = images()
    with pytest.raises(ValueError, match="64x32 pixels are no whole number of 5x2 patches"):
        transfer_patches(recipient, donor, np.ones((5, 2), bool), 0)
    with pytest.raises(ValueError, match="must be equal"):
        transfer_patches(recipient[:, :32], donor, np.ones((4, 2), bool), 0)


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**16))
def test_packed_masks_come_back(rows, columns, seed):
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.4
    data = pack_mask(mask)
    assert len(data) == (rows * columns + 7) // 8
    assert np.array_equal(unpack_mask(data, (rows, columns)), mask)


def test_a_mask_of_16_by_8_patches_is_16_bytes_and_others_are_refused():
    assert len(pack_mask(np.ones((16, 8), bool))) == 16
    with pytest.raises(ValueError, match="17 bytes are no mask of 16x8"):
        unpack_mask(b"x" * 17, (16, 8))


def scene(seed):
    """A dressed figure before a noisy street, 128x64, and its pixel mask."""
    rng = np.random.default_rng(seed)
    image = np.empty((128, 64, 3))
    image[:50], image[50:] = rng.integers(60, 200, 3), rng.integers(60, 200, 3)
    mask = np.zeros((128, 64), bool)
    left = rng.integers(14, 22)
    parts = [
        (6, 24, left + 9, left + 21, (210, 170, 140)),
        (24, 70, left, left + 30, rng.integers(0, 256, 3)),
        (70, 124, left + 3, left + 27, rng.integers(0, 256, 3)),
    ]
    for top, bottom, start, end, colour in parts:
        image[top:bottom, start:end] = colour
        mask[top:bottom, start:end] = True
    noisy = image + rng.normal(0, 8, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), mask


def test_saliency_finds_the_figure():
    overlaps = []
    for seed in range(40):
        image, mask = scene(seed)
        truth = mask.reshape(16, 8, 8, 8).mean(axis=(1, 3)) >= 0.5
        found = spectral_saliency(image, (16, 8), 0.3)
        overlaps.append((found & truth).sum() / (found | truth).sum())
    assert np.mean(overlaps) > 0.75


@given(st.integers(0, 2**16), st.sampled_from([(16, 8), (24, 8), (21, 10)]), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_saliency_keeps_its_share_in_range_for_any_image(seed, grid, target):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*rng.integers(3, 90, 2), 3), np.uint8)
    image[: len(image) // 2] = rng.integers(0, 256)
    mask = spectral_saliency(image, grid, target)
    assert mask.shape == grid and mask.dtype == np.bool_
    half_patch = 0.5 / mask.size
    assert 0.5 * target - half_patch <= mask.mean() <= min(1.0, 1.7 * target) + half_patch
    assert np.array_equal(mask, spectral_saliency(image, grid, target))
