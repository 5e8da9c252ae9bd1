"""Bands of the person: what is hidden in one band leaves the others alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpmpp_core.losses.patches import patch_visibility
from dpmpp_core.models.bands import SPACE, VisibleBands
from dpmpp_core.models.reid import ReidModel, load_model, save_model, start_clip
from dpmpp_core.retrieval import masked_similarity
from tests.unit.test_tasks import config, metric_batch, metric_task

ROWS, COLUMNS, WIDTH, BANDS = 6, 3, 5, 3


def bands(count=BANDS):
    torch.manual_seed(0)
    return VisibleBands(2 * WIDTH, WIDTH, count, 4).eval()


def taps(seed=0, rows=ROWS):
    return torch.randn(2, 2 * WIDTH, rows, COLUMNS, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_band_is_the_weighed_mean_of_its_own_rows():
    module, x = bands(), taps()
    made = module(x)
    weight = module.patches(x).sigmoid()[:, 0]
    for sample in range(2):
        for band in range(BANDS):
            total, pooled = 0.0, torch.zeros(WIDTH)
            for row in (2 * band, 2 * band + 1):
                for column in range(COLUMNS):
                    total += weight[sample, row, column]
                    pooled += weight[sample, row, column] * x[sample, WIDTH:, row, column]
            own = slice(4 * band, 4 * band + 4)
            expected = module.project.weight[own, :, 0] @ (pooled / total)
            torch.testing.assert_close(made.feature[sample, own], expected)
            seen = total / (2 * COLUMNS)
            mask = seen / (seen + module.usual[band])
            torch.testing.assert_close(made.mask[sample, own], mask.expand(4))


@torch.no_grad()
@pytest.mark.parametrize("rows", (5, 6, 21))
def test_what_happens_in_one_band_changes_no_other(rows):
    module, x = bands(), taps(rows=rows)
    y = x.clone()
    y[:, :, : rows // 3] += 3
    before, after = module(x), module(y)
    same = (before.feature == after.feature).all(dim=0)
    assert same[8:].all() and not same[:4].any()
    assert (before.mask == after.mask).all(dim=0)[8:].all()


@torch.no_grad()
def test_a_hidden_band_does_not_count():
    """Whatever the query shows there, the scores are those of the other bands."""
    module = bands()
    module.patches.weight.zero_()
    module.patches.weight[0, 0] = 50.0  # the first channel says what is seen
    x, gallery = taps(1), taps(2)
    x[:, 0], gallery[:, 0] = 1.0, 1.0
    x[:, 0, :2] = -1.0
    y = x.clone()
    y[:, WIDTH:, :2] = 7 * taps(3)[:, WIDTH:, :2]
    g = module(gallery)
    scores = [masked_similarity(m.feature[:, 4:], m.mask[:, 4:], g.feature[:, 4:])
              for m in (module(x), module(y))]  # fmt: skip
    torch.testing.assert_close(*scores)
    assert module(x).mask[:, :4].max() < 1e-6 < 0.4 < module(x).mask[:, 4:].min()


def test_usual_amounts_are_learned_in_training_alone():
    module, x = bands(), taps()
    module(x)
    assert (module.usual == 0.5).all()
    for _ in range(200):
        module.train()(x)
    seen = module.patches(x).sigmoid()[:, 0].unflatten(1, (BANDS, 2)).mean(dim=(0, 2, 3))
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
    batch = metric_batch() | {"visible": torch.rand(8, 4, 2) < 0.5}
    losses, report = task(batch, task.phases[0])
    assert {"patches", "masked_bands", "identity_bands"} <= set(losses)
    assert "mask_bands_std_samples" in report
    torch.stack(list(losses.values())).sum().backward()
    assert task.model.bands.patches.weight.grad.abs().sum() > 0
    assert task.model.bands.project.weight.grad.abs().sum() > 0
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
