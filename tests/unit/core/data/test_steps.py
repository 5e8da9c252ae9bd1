"""A training step as arrays: deterministic, the same for any number of ranks, labelled right."""

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dpmpp_core.config import AugmentConfig, DataConfig, OcclusionConfig
from dpmpp_core.data.augment import Geometry, apply_to_image, apply_to_masks
from dpmpp_core.data.donors import Donors, ImageCache, list_backgrounds
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.plan import Draw, StepPlan, class_labels, stream
from dpmpp_core.data.steps import BACKGROUND, NO_OCCLUSION, StepMaker, TrainingImages
from dpmpp_core.errors import ConfigError, DataError
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.losses.triplet import batch_hard_triplet
from dpmpp_core.occlusion.saliency import spectral_saliency
from tests.support.data import BOUNDS, GRID, assert_same, maker, write_images

BANK = BOUNDS.model_copy(update={"bank": 40})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_images(root)
    return root


def test_shapes_types_and_meaning_of_a_step(folder):
    steps = maker(folder)
    donors = []
    for global_step in range(6):
        made = steps.make(global_step)
        assert made["images"].shape == (8, 64, 32, 3) and made["images"].dtype == np.uint8
        assert made["visible"].shape == (8, *GRID) and made["visible"].dtype == np.bool_
        assert made["step"] == global_step and made["step"].shape == ()
        for key in ("labels", "camids", "donor_labels", "rows", "step"):
            assert made[key].dtype == np.int64
        assert np.array_equal(made["labels"], made["rows"] % 6)
        assert np.array_equal(made["camids"], made["rows"] % 5)
        mixed = made["donor_labels"] >= 0
        assert np.isin(made["donor_labels"][mixed], made["labels"]).all()
        donors.extend(mixed)
    assert 0 < np.mean(donors) < 1


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("occlusion", [BOUNDS, BANK])
def test_the_ranks_together_make_the_batch_of_one(folder, world, occlusion):
    for global_step in (0, 3, 9):
        whole = maker(folder, occlusion).make(global_step)
        parts = [maker(folder, occlusion).make(global_step, rank, world) for rank in range(world)]
        joined = {key: np.concatenate([p[key] for p in parts]) for key in whole if key != "step"}
        assert_same(joined | {"step": parts[0]["step"]}, whole)
        assert all(len(set(p["labels"])) == 4 // world for p in parts)


def test_ranks_that_do_not_share_the_identities_evenly_are_refused(folder):
    with pytest.raises(ConfigError, match=r"metric\.identities 4 cannot be shared by 3"):
        maker(folder).make(0, 0, 3)


def test_a_step_does_not_depend_on_cache_history_or_maker(folder):
    warm, cold = maker(folder), maker(folder, cache_bytes=0)
    for global_step in (5, 1, 5, 4, 0):
        assert_same(warm.make(global_step), cold.make(global_step))
    assert not np.array_equal(warm.make(0)["images"], maker(folder, seed=8).make(0)["images"])


def test_a_caller_that_writes_to_the_arrays_spoils_nothing(folder):
    steps = maker(folder)
    made = steps.make(2)
    for value in made.values():
        value[...] = 0
    assert_same(steps.make(2), maker(folder).make(2))


def test_without_occlusion_and_erasing_the_images_are_only_augmented(folder):
    augment = AugmentConfig(erase=0, pad=4)
    steps = maker(folder, BOUNDS.model_copy(update={"probability": 0.0}), augment)
    made = steps.make(1)
    assert (made["donor_labels"] == -1).all()
    for item, row in enumerate(made["rows"]):
        geometry = Geometry.draw(augment, stream(7, 0, 1, item, Draw.GEOMETRY))
        pixels = cv2.imread(str(folder / f"{row}.png"))[:, :, ::-1]
        if row % 2:
            expected = apply_to_image(pixels, geometry, 4)
            assert np.array_equal(made["images"][item], expected)


def test_mixed_images_show_the_donor_where_its_person_is_not(folder):
    still = AugmentConfig(flip=0, pad=0, erase=1)
    always = BOUNDS.model_copy(update={"probability": 1.0})
    steps = maker(folder, always, still)
    plain = maker(
        folder,
        BOUNDS.model_copy(update={"probability": 0.0}),
        still.model_copy(update={"erase": 0.0}),
    )
    seen = 0
    for global_step in range(5):
        made, sources = steps.make(global_step), plain.make(global_step)
        for item in np.flatnonzero(made["donor_labels"] >= 0):
            patches = patched(made["images"][item])
            own = patched(sources["images"][item])
            others = [patched(x) for k, x in enumerate(sources["images"]) if k != item]
            for y, x in np.argwhere(made["visible"][item]):
                assert any(np.array_equal(patches[y, x], own[y, s]) for s in range(GRID[1]))
            from_own = np.array(
                [
                    [
                        any(np.array_equal(patches[y, x], own[y, s]) for s in range(2))
                        for x in (0, 1)
                    ]
                    for y in range(4)
                ]
            )
            assert any(
                all(np.array_equal(patches[y, x], other[y, x]) for y, x in np.argwhere(~from_own))
                for other in others
            )
            seen += 1
    assert seen > 10


def patched(image):
    """[gh, gw, 16, 16, 3] patches of an image."""
    return image.reshape(4, 16, 2, 16, 3).swapaxes(1, 2)


def test_only_images_that_were_not_mixed_are_erased(folder):
    always, never = AugmentConfig(erase=1), AugmentConfig(erase=0)
    erased, kept = maker(folder, augment=always), maker(folder, augment=never)
    for global_step in range(4):
        left, right = erased.make(global_step), kept.make(global_step)
        same = (left["images"] == right["images"]).all(axis=(1, 2, 3))
        assert np.array_equal(same, left["donor_labels"] >= 0)
        assert np.array_equal(left["visible"][same], right["visible"][same])


def test_what_is_erased_is_not_visible(folder):
    always = AugmentConfig(erase=1)
    never = BOUNDS.model_copy(update={"probability": 0.0})
    hidden = 0
    for global_step in range(4):
        made = maker(folder, augment=always, occlusion=never).make(global_step)
        kept = maker(folder, augment=AugmentConfig(erase=0), occlusion=never).make(global_step)
        for item in range(len(made["images"])):
            differs = patched(made["images"][item]) != patched(kept["images"][item])
            gone = differs.any(axis=-1).mean(axis=(2, 3)) > 0.5
            assert np.array_equal(made["visible"][item], kept["visible"][item] & ~gone)
            hidden += int((gone & kept["visible"][item]).sum())
    assert hidden > 20


def test_a_patch_of_the_body_is_visible_or_occluded(folder):
    """Whatever hides it: the donor's scene, erasing, a synthetic occluder."""
    never = BOUNDS.model_copy(update={"probability": 0.0})
    whole = maker(folder, never, AugmentConfig(erase=0))
    steps = maker(folder)
    hidden = 0
    for global_step in range(6):
        made, clean = steps.make(global_step), whole.make(global_step)
        assert not clean["occluded"].any()
        body = clean["visible"]
        unshifted = made["donor_labels"] < 0
        own = made["visible"] | made["occluded"]
        assert np.array_equal(own[unshifted], body[unshifted])
        assert np.array_equal(own.sum(axis=(1, 2)), body.sum(axis=(1, 2)))  # rolled, not lost
        assert not (made["visible"] & made["occluded"]).any()
        assert np.array_equal(made["covered_visible"] | made["covered_occluded"], body[::2])
        assert not (made["visible"] & made["foreign"]).any()
        assert (made["occluded"] <= made["foreign"]).all()  # bodies are masks here
        assert (made["covered_occluded"] == made["covered_foreign"] & body[::2]).all()
        hidden += made["occluded"].sum() + made["covered_occluded"].sum()
    assert hidden > 20


def test_a_body_may_be_larger_than_what_is_seen_of_it(folder):
    seen = maker(folder, BOUNDS.model_copy(update={"probability": 0.0}), AugmentConfig(erase=0))
    paths, masks = [f"{row}.png" for row in range(30)], seen._masks
    ids = seen._labels, seen._camids
    known = TrainingImages(str(folder), paths, *ids, masks, bodies=masks | True)
    steps = StepMaker(known, seen._plan, seen._data, AugmentConfig(erase=0, pad=0),
                      BOUNDS.model_copy(update={"probability": 0.0}), visibility=True)  # fmt: skip
    made = steps.make(0)
    assert (made["visible"] ^ made["occluded"]).all()


def test_shares_of_the_samples_have_the_true_and_the_predicted_attention_mask(folder):
    always = BOUNDS.model_copy(update={"probability": 1.0})
    counts = np.zeros(3)
    for global_step in range(40):
        made = maker(folder, always, attention_masks=(0.25, 0.5)).make(global_step)
        true = made["masked"].any(axis=(1, 2))
        assert made["known"][true].all()
        assert np.array_equal(made["masked"][true], made["occluded"][true])
        hides = made["occluded"].any(axis=(1, 2))
        counts += true.sum(), (~made["known"]).sum(), (made["known"] & ~true & hides).sum()
    np.testing.assert_allclose(counts / counts.sum(), (0.25, 0.5, 0.25), atol=0.1)
    assert "masked" not in maker(folder, attention_masks=None).make(0)
    assert "visible" not in maker(folder, visibility=False).make(0)


def test_twins_are_the_mixed_images_before_they_were_mixed(folder):
    never = BOUNDS.model_copy(update={"probability": 0.0})
    clean = maker(folder, never, AugmentConfig(erase=0))
    seen = 0
    for global_step in range(4):
        made = maker(folder, twins=True).make(global_step)
        twins, mixed = made.pop("twins"), made["donor_labels"] >= 0
        assert_same(made, maker(folder).make(global_step))
        assert not twins[~mixed].any()
        assert np.array_equal(twins[mixed], clean.make(global_step)["images"][mixed])
        seen += mixed.sum()
    assert seen > 5


def test_the_bank_lends_beyond_the_batch_and_nobody_himself(folder):
    always, still = {"probability": 1.0, "top_share": 1.0}, AugmentConfig(flip=0, pad=0, erase=0)
    steps = maker(folder, BANK.model_copy(update=always), still)
    kept = [resize(read_image(str(folder), f"{row}.png"), 64, 32) for row in range(30)]
    seen, foreign = 0, 0
    for global_step in range(6):
        made = steps.make(global_step)
        foreign += (~np.isin(made["donor_labels"], [-1, *made["labels"]])).sum()
        for item in np.flatnonzero(made["donor_labels"] >= 0):
            patches, row = patched(made["images"][item]), made["rows"][item]
            shared = [(patches == patched(image)).all(axis=(2, 3, 4)).sum() for image in kept]
            others = [n for k, n in enumerate(shared) if k != row]
            donor = np.argmax(np.where(np.arange(30) == row, -1, shared))
            if max(others):
                assert donor % 6 == made["donor_labels"][item]
                seen += 1
    assert seen > 20 and foreign > 5


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Pictures of one grey each, which no training image has, of several sizes."""
    root = tmp_path_factory.mktemp("streets")
    for number, size in enumerate([(64, 32), (90, 200), (300, 40), (20, 20)]):
        cv2.imwrite(str(root / f"{number}.png"), np.zeros((*size, 3), np.uint8))
    (root / "notes.txt").write_text("no picture")
    return root


def test_backgrounds_hide_but_no_class_is_ignored_for_them(folder, streets):
    changes = {"backgrounds": str(streets), "background_share": 1.0, "probability": 1.0}
    occlusion = BANK.model_copy(update=changes)
    steps = maker(folder, occlusion, AugmentConfig(erase=0, pad=0))
    shown = 0
    for global_step in range(6):
        made = steps.make(global_step)
        assert_same(made, maker(folder, occlusion, AugmentConfig(erase=0, pad=0)).make(global_step))
        for item in np.flatnonzero(made["donor_labels"] == BACKGROUND):
            black = (patched(made["images"][item]) == 0).all(axis=(2, 3, 4))
            assert not (black & made["visible"][item]).any()
            shown += black.any()
        assert ((made["donor_labels"] >= NO_OCCLUSION) | (made["donor_labels"] == BACKGROUND)).all()
    assert shown > 10


def test_the_losses_ignore_no_class_for_a_background():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 4, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])
    background = torch.full((6,), BACKGROUND)
    assert cross_entropy(logits, labels, 0.1, background) == cross_entropy(logits, labels, 0.1)
    hard = batch_hard_triplet(logits, labels, 0.3, background)
    assert hard == batch_hard_triplet(logits, labels, 0.3)


def test_a_bank_holds_its_share_of_backgrounds_and_no_row_twice(folder, streets):
    images = ImageCache(str(folder), [f"{row}.png" for row in range(30)], 64, 32)
    masks = np.random.default_rng(1).random((30, *GRID)) < 0.7
    occlusion = BANK.model_copy(update={"backgrounds": str(streets), "background_share": 0.25})
    donors = Donors(images, masks, AugmentConfig(pad=4), occlusion)
    bank = donors.draw(20, np.random.default_rng(0))
    assert (bank.backgrounds >= 0).sum() == 5 and len(set(bank.rows)) == 20
    assert len({(g.flip, g.dy, g.dx) for g in bank.geometries}) > 10
    for k in range(20):
        expected = apply_to_masks(masks[bank.rows[k]][None], [bank.geometries[k]], 4, 64, 32)[0]
        assert np.array_equal(bank.masks[k], expected)
        assert donors.picture(bank, k).shape == (64, 32, 3)
        assert donors.source(bank, k).startswith(str(streets)) == (bank.backgrounds[k] >= 0)
    assert len(donors.draw(50, np.random.default_rng(0)).rows) == 50  # more than there are


def test_a_folder_without_backgrounds_is_refused(folder, tmp_path):
    empty = BANK.model_copy(update={"backgrounds": str(tmp_path)})
    with pytest.raises(DataError, match="holds no image"):
        maker(folder, empty)
    with pytest.raises(ValidationError, match="raise bank"):
        OcclusionConfig(backgrounds="streets", bank=0)


def test_files_next_to_backgrounds_are_counted(tmp_path, caplog):
    (tmp_path / "street.JFIF").touch()
    (tmp_path / "street.raw").touch()
    caplog.set_level("INFO")
    assert list_backgrounds(str(tmp_path)) == ["street.JFIF"]
    assert "1 files are neither .jpg" in caplog.text


def test_a_missing_image_is_named(folder):
    steps = maker(folder)
    steps._images.paths = [f"gone{row}.png" for row in range(30)]
    with pytest.raises(DataError, match="gone"):
        steps.make(0)


def test_image_sizes_that_are_no_multiple_of_the_patches_are_refused(folder):
    labels = np.arange(4)
    with pytest.raises(ConfigError, match="multiples of 16"):
        StepMaker(
            TrainingImages(
                str(folder),
                [f"{n}.png" for n in range(4)],
                labels,
                labels,
                np.ones((4, *GRID), bool),
            ),
            StepPlan(labels, labels, 2, 2, 0),
            DataConfig(height=70, width=32),
            AugmentConfig(),
            BOUNDS,
        )


def test_real_person_images_are_mixed_at_the_configured_rate(samples):
    root = samples / "bounding_box_train"
    paths = sorted(p.name for p in root.iterdir())[:160]
    labels, _ = class_labels([int(p[:4]) for p in paths])
    camids = np.array([int(p[6]) for p in paths])
    pixels = [cv2.imread(str(root / p))[:, :, ::-1] for p in paths]
    masks = np.stack([spectral_saliency(x, (16, 8), 0.3) for x in pixels])
    plan = StepPlan(labels, camids, 8, 4, 0)
    steps = StepMaker(
        TrainingImages(str(root), paths, labels, camids, masks),
        plan,
        DataConfig(),
        AugmentConfig(),
        OcclusionConfig(),
        visibility=True,
    )
    made = [steps.make(s) for s in range(plan.steps_per_epoch)]
    mixed = np.concatenate([m["donor_labels"] for m in made]) >= 0
    assert 0.3 < mixed.mean() < 0.6
    shares = np.concatenate([m["visible"] for m in made]).mean(axis=(1, 2))
    assert shares[mixed].mean() < 0.95 * shares[~mixed].mean()
