"""Person masks: one interface of four providers, masks that come with the data, other grids."""

from __future__ import annotations

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dpmpp_core.config import load_config
from dpmpp_core.data.annotations import ANNOTATIONS, pack_mask
from dpmpp_core.data.given_masks import GivenMasks, has_true_masks, masks_fingerprint
from dpmpp_core.errors import DataError
from dpmpp_core.models.person_masks import LearnedMasks, person_masks
from dpmpp_core.models.reid import start_clip
from dpmpp_core.models.saliency import SaliencyModel
from dpmpp_core.occlusion.saliency import attention_saliency, mask_iou, resample_area

PATHS = ["query/a.jpg", "query/b.jpg"]
PROVIDERS = ("sps", "attention", "spectral", "given")


def config(*overrides):
    return load_config("demo", ["data.height=128", "data.width=64", *overrides])


def saliency_model(run):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SaliencyModel(run.model, run.data, start_clip(run))


def pictures(count=2):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 128, 64, 3)).astype(np.uint8)


def half_person():
    """256x128 pixels, person in the left half of the lower half."""
    mask = np.zeros((256, 128), bool)
    mask[128:, :64] = True
    return mask


def annotate(root, masks):
    table = pa.table({"path": list(masks), "person_mask": pa.array(masks.values(), pa.binary())})
    pq.write_table(table, root / ANNOTATIONS)


def draw(root, masks):
    for path, mask in masks.items():
        for place, picture in ((root / path, 255 - mask), (root / f"masks/{path}.png", mask)):
            place.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place), picture.astype(np.uint8))


# --- one interface ------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [16, 12])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_providers_agree_on_shape_and_type_and_are_deterministic(tmp_path, provider, stride):
    annotate(tmp_path, dict.fromkeys(PATHS, pack_mask(half_person())))
    run = config(f"saliency.provider={provider}", f"model.stride={stride}")

    def found():
        model = saliency_model(run) if provider == "sps" else None
        return person_masks(run, str(tmp_path), (8, 4), model)(pictures(), PATHS)

    masks = found()
    assert masks.shape == (2, 8, 4) and masks.dtype == np.bool_
    assert np.array_equal(masks, found())


def test_learned_masks_do_not_depend_on_the_company():
    find = LearnedMasks(saliency_model(config()), (8, 4))
    images = pictures(3)
    together = find(images, [""] * 3)
    alone = np.concatenate([find(image[None], [""]) for image in images])
    assert np.array_equal(together, alone)


def test_attention_finds_what_is_attended_to_and_keeps_its_share_in_range():
    attention = np.full((16, 8), 1e-3, np.float32)
    attention[4:12, 2:6] = 1e-2
    mask = attention_saliency(attention, (16, 8), 0.3)
    assert mask_iou(mask[None], (attention > 5e-3)[None])[0] > 0.8
    for target in (0.1, 0.3, 0.9):
        for level in (attention, np.full((16, 8), 0.1, np.float32)):
            share = attention_saliency(level, (16, 8), target).mean()
            assert 0.5 * target - 0.01 <= share <= min(1, 1.7 * target) + 0.01


# --- another grid -------------------------------------------------------------------------------


def test_resampling_is_the_mean_over_the_area():
    values = np.random.default_rng(1).random((2, 21, 10)).astype(np.float32)
    fine = values.repeat(16, axis=1).repeat(4, axis=2)  # 336x40 cells: a multiple of both grids
    naive = fine.reshape(2, 16, 21, 8, 5).mean(axis=(2, 4))
    np.testing.assert_allclose(resample_area(values, (16, 8)), naive, rtol=1e-5)


def test_resampling_keeps_the_mean_constants_and_its_own_grid():
    values = np.random.default_rng(2).random((3, 22, 11)).astype(np.float32)
    out = resample_area(values, (16, 8))
    np.testing.assert_allclose(out.mean(axis=(1, 2)), values.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(resample_area(np.ones_like(values), (16, 8)), 1, rtol=1e-6)
    assert np.array_equal(resample_area(values, (22, 11)), values)
    assert np.array_equal(resample_area(values[:, :8, :4], (16, 8))[:, ::2, ::2], values[:, :8, :4])


def test_iou_is_counted_patch_by_patch():
    a, b = np.random.default_rng(3).random((2, 5, 4, 3)) > 0.5
    a[0], b[0] = False, False
    naive = [
        len(x & y) / len(x | y) if x | y else 1.0
        for x, y in (
            (set(map(tuple, np.argwhere(i))), set(map(tuple, np.argwhere(j))))
            for i, j in zip(a, b, strict=True)
        )
    ]
    np.testing.assert_allclose(mask_iou(a, b), naive)


# --- masks that come with the data --------------------------------------------------------------


def expected():
    mask = np.zeros((16, 8), bool)
    mask[8:, :4] = True
    return mask


def test_a_table_of_packed_masks_is_read(tmp_path):
    annotate(tmp_path, {PATHS[0]: pack_mask(half_person()), PATHS[1]: pack_mask(~half_person())})
    masks = GivenMasks(str(tmp_path), (16, 8))(pictures(), PATHS)
    assert np.array_equal(masks, [expected(), ~expected()])
    assert has_true_masks(str(tmp_path))


def test_a_folder_of_mask_pictures_is_read(tmp_path):
    draw(tmp_path, {PATHS[0]: 1 * half_person(), PATHS[1]: 200 * ~half_person()[:64, :32]})
    masks = GivenMasks(str(tmp_path), (16, 8))(pictures(), PATHS)
    assert np.array_equal(masks, [expected(), np.ones((16, 8), bool)])
    assert not has_true_masks(str(tmp_path))


def test_a_patch_is_person_if_half_of_it_is(tmp_path):
    mask = np.zeros((256, 128), bool)
    mask[:16, :8] = True  # exactly half of the first patch
    mask[:16, 16:23] = True  # less of the second
    annotate(tmp_path, {PATHS[0]: pack_mask(mask)})
    found = GivenMasks(str(tmp_path), (16, 8))(pictures(1), PATHS[:1])[0]
    assert found[0, 0] and found.sum() == 1


def test_data_without_masks_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"neither annotations\.parquet .* nor a folder masks/"):
        GivenMasks(str(tmp_path), (16, 8))


def test_a_table_without_the_columns_is_no_table_of_masks(tmp_path):
    pq.write_table(pa.table({"path": PATHS}), tmp_path / ANNOTATIONS)
    assert not has_true_masks(str(tmp_path))
    with pytest.raises(DataError, match="neither"):
        GivenMasks(str(tmp_path), (16, 8))


@pytest.mark.parametrize("packed", [b"no zlib", pack_mask(half_person()[:100])])
def test_a_packed_mask_of_another_kind_is_named(tmp_path, packed):
    annotate(tmp_path, {PATHS[0]: packed})
    with pytest.raises(DataError, match=r"person_mask of query/a\.jpg is not .* 256x128"):
        GivenMasks(str(tmp_path), (16, 8))(pictures(1), PATHS[:1])


def test_an_image_without_mask_is_named(tmp_path):
    annotate(tmp_path, {PATHS[0]: pack_mask(half_person())})
    with pytest.raises(DataError, match=r"no person_mask of query/b\.jpg"):
        GivenMasks(str(tmp_path), (16, 8))(pictures(), PATHS)
    other = tmp_path / "other"
    draw(other, {PATHS[0]: 1 * half_person()})
    with pytest.raises(DataError, match=r"missing mask for query/b\.jpg: masks/query/b\.jpg\.png"):
        GivenMasks(str(other), (16, 8))(pictures(), PATHS)


def test_a_mask_picture_of_another_size_or_no_picture_is_named(tmp_path):
    draw(tmp_path, {PATHS[0]: 1 * half_person()})
    place = tmp_path / f"masks/{PATHS[0]}.png"
    cv2.imwrite(str(place), np.ones((128, 256), np.uint8))
    with pytest.raises(DataError, match=r"masks/query/a\.jpg\.png .* 128x256 .* image 256x128"):
        GivenMasks(str(tmp_path), (16, 8))(pictures(1), PATHS[:1])
    place.write_text("no picture")
    with pytest.raises(DataError, match=r"masks/query/a\.jpg\.png .* does not decode"):
        GivenMasks(str(tmp_path), (16, 8))(pictures(1), PATHS[:1])


def test_other_masks_have_another_fingerprint(tmp_path):
    seen = {masks_fingerprint(str(tmp_path))}
    draw(tmp_path, {PATHS[0]: 1 * half_person()})
    seen.add(masks_fingerprint(str(tmp_path)))
    draw(tmp_path, {PATHS[1]: 1 * half_person()})
    seen.add(masks_fingerprint(str(tmp_path)))
    for mask in (half_person(), ~half_person()):
        annotate(tmp_path, {PATHS[0]: pack_mask(mask)})
        seen.add(masks_fingerprint(str(tmp_path)))
    assert len(seen) == 5
    assert masks_fingerprint(str(tmp_path)) in seen
