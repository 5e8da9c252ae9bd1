"""Bands of the person: what is hidden in one band leaves the others alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpmpp_core.losses.patches import patch_visibility
from dpmpp_core.models.bands import SPACE, VisibleBands
from dpmpp_core.models.reid import ReidModel, load_model, save_model, start_clip
from dpmpp_core.retrieval import masked_similarity
from tests.support.tasks import config, metric_batch, metric_task

ROWS, COLUMNS, WIDTH, BANDS = 6, 3, 5, 3


def bands(count=BANDS):
    torch.manual_seed(0)
    return VisibleBands(2 * WIDTH, WIDTH, count).eval()


def taps(seed=0, rows=ROWS):
    """Two taps: the bands' own tokens come first, the last tap only says what is seen."""
    return torch.randn(2, 2 * WIDTH, rows, COLUMNS, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_band_is_the_weighed_mean_of_its_own_rows():
    module, x = bands(), taps()
    made = module(x)
    weight = module.predict_visibility(x).sigmoid()
    for sample in range(2):
        for band in range(BANDS):
            total, pooled = 0.0, torch.zeros(WIDTH)
            for row in (2 * band, 2 * band + 1):
                for column in range(COLUMNS):
                    total += weight[sample, row, column]
                    pooled += weight[sample, row, column] * x[sample, :WIDTH, row, column]
            own = slice(WIDTH * band, WIDTH * (band + 1))
            torch.testing.assert_close(made.feature[sample, own], pooled / total)
            seen = total / (2 * COLUMNS)
            mask = (seen / (seen + module.usual[band])) ** 2
            torch.testing.assert_close(made.mask[sample, own], mask.expand(WIDTH))


@torch.no_grad()
@pytest.mark.parametrize("rows", (5, 6, 21))
def test_tokens_of_one_band_change_no_other(rows):
    """The eye looks further than a patch; what it lets through stays where it was."""
    module, x = bands(), taps(rows=rows)
    module.predict_visibility = lambda taps: torch.zeros(2, rows, COLUMNS)
    y = x.clone()
    y[:, :, : rows // 3] += 3
    before, after = module(x), module(y)
    same = (before.feature == after.feature).all(dim=0)
    assert same[2 * WIDTH :].all() and not same[:WIDTH].any()


def test_the_eye_learns_from_patches_alone_and_teaches_nobody():
    module, x = bands().train(), taps().requires_grad_()
    made = module(x)
    made.feature.square().sum().backward()
    assert all(p.grad is None for p in module.patches.parameters())
    assert x.grad[:, :WIDTH].abs().sum() > 0 and (x.grad[:, WIDTH:] == 0).all()
    x.grad = None
    patch_visibility(module(x).visible, torch.ones(2, ROWS, COLUMNS) > 0).backward()
    assert x.grad is None and module.patches[1].weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_hidden_band_does_not_count():
    """Whatever the query shows there, the order is that of the other bands."""
    module = bands()
    x, gallery = taps(1), taps(2)
    seen = torch.full((2, ROWS, COLUMNS), 9.0)
    module.predict_visibility = lambda taps: seen
    g = module(gallery)
    seen = seen.clone()
    seen[:, :2] = -9.0
    y = x.clone()
    y[:, :, :2] = 7 * taps(3)[:, :, :2]
    masks = module(x).mask
    assert masks[:, :WIDTH].max() < 1e-6 < 0.2 < masks[:, WIDTH:].min()
    scores = [masked_similarity(module(z).feature, module(z).mask, g.feature) for z in (x, y)]
    ratio = scores[1] / scores[0]  # a query's length scales its scores, and orders nothing
    torch.testing.assert_close(ratio[:, 0], ratio[:, 1], atol=1e-3, rtol=0)


def test_usual_amounts_are_learned_in_training_alone():
    module, x = bands(), taps()
    module(x)
    assert (module.usual == 0.5).all()
    for _ in range(200):
        module.train()(x)
    seen = module.predict_visibility(x).sigmoid().unflatten(1, (BANDS, 2)).mean(dim=(0, 2, 3))
    torch.testing.assert_close(module.usual, seen.detach(), atol=1e-4, rtol=1e-3)


def test_patch_visibility_is_binary_cross_entropy_on_the_encoders_grid():
    logits = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    visible = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(1)) < 0.5
    p = logits.sigmoid()
    naive = -(visible * p.log() + ~visible * (1 - p).log()).mean()
    torch.testing.assert_close(patch_visibility(logits, visible), naive)
    finer = patch_visibility(torch.full((2, 8, 4), 20.0), torch.ones(2, 4, 2, dtype=torch.bool))
    assert 0 <= finer < 1e-6


@pytest.mark.parametrize("update", ("joint", "alternating"))
def test_bands_are_a_third_space_of_stage_2(update):
    task = metric_task("model.bands=2", f"metric.update={update}")
    batch = metric_batch()
    batch |= {"visible": torch.rand(8, 4, 2) < 0.5, "covered": batch["images"][::2]}
    batch |= {"covered_visible": torch.rand(4, 4, 2) < 0.5}
    losses, report = task(batch, task.phases[0])
    assert {"patches", "masked_bands"} <= set(losses) and "identity_bands" not in losses
    assert "mask_bands_std_samples" in report
    torch.stack(list(losses.values())).sum().backward()
    assert task.model.bands.patches[1].weight.grad.abs().sum() > 0
    if update == "alternating":
        assert "patches" not in task(batch, "mask")[0]


def test_a_model_with_bands_is_saved_and_read(tmp_path):
    whole = config("model.bands=2")
    model = ReidModel(whole.model, whole.data, start_clip(whole)).eval()
    save_model(model, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    ours, theirs = model.embed(images), load_model(tmp_path).embed(images)
    assert set(ours.features) == {"visual", "joint", SPACE}
    np.testing.assert_array_equal(ours.features[SPACE], theirs.features[SPACE])
    assert ours.masks[SPACE].shape == (3, model.spaces[SPACE])
