"""Bands of the person: what is hidden in one band leaves the others alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpmpp_core.models.bands import SPACE, VisibleBands
from dpmpp_core.models.reid import ReidModel, load_model, save_model, start_clip
from dpmpp_core.retrieval import masked_similarity
from tests.support.tasks import config, metric_task, visibility_batch

ROWS, COLUMNS, WIDTH, BANDS = 6, 3, 5, 3


def bands(count=BANDS):
    return VisibleBands(WIDTH, count).eval()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(seed=0, rows=ROWS):
    return draw(2, WIDTH, rows, COLUMNS, seed=seed)


@torch.no_grad()
def test_a_band_is_the_weighed_mean_of_its_own_rows():
    module, x, visible = bands(), tokens(), draw(2, ROWS, COLUMNS, seed=9)
    made = module(x, visible)
    weight = visible.sigmoid()
    for sample in range(2):
        for band in range(BANDS):
            total, pooled = 0.0, torch.zeros(WIDTH)
            for row in (2 * band, 2 * band + 1):
                for column in range(COLUMNS):
                    total += weight[sample, row, column]
                    pooled += weight[sample, row, column] * x[sample, :, row, column]
            own = slice(WIDTH * band, WIDTH * (band + 1))
            torch.testing.assert_close(made.feature[sample, own], pooled / total)
            seen = total / (2 * COLUMNS)
            mask = (seen / (seen + module.usual[band])) ** 2
            torch.testing.assert_close(made.mask[sample, own], mask.expand(WIDTH))


@torch.no_grad()
@pytest.mark.parametrize("rows", (5, 6, 21))
def test_tokens_of_one_band_change_no_other(rows):
    module, x, visible = bands(), tokens(rows=rows), torch.zeros(2, rows, COLUMNS)
    y = x.clone()
    y[:, :, : rows // 3] += 3
    before, after = module(x, visible), module(y, visible)
    same = (before.feature == after.feature).all(dim=0)
    assert same[2 * WIDTH :].all() and not same[:WIDTH].any()


@torch.no_grad()
def test_a_hidden_band_does_not_count():
    """Whatever the query shows there, the order is that of the other bands."""
    module = bands()
    x, gallery = tokens(1), tokens(2)
    seen = torch.full((2, ROWS, COLUMNS), 9.0)
    g = module(gallery, seen)
    hidden = seen.clone()
    hidden[:, :2] = -9.0
    y = x.clone()
    y[:, :, :2] = 7 * tokens(3)[:, :, :2]
    made = [module(z, hidden) for z in (x, y)]
    assert made[0].mask[:, :WIDTH].max() < 1e-6 < 0.2 < made[0].mask[:, WIDTH:].min()
    scores = [masked_similarity(one.feature, one.mask, g.feature) for one in made]
    ratio = scores[1] / scores[0]  # a query's length scales its scores, and orders nothing
    torch.testing.assert_close(ratio[:, 0], ratio[:, 1], atol=1e-3, rtol=0)


def test_usual_amounts_are_learned_in_training_alone():
    module, x, visible = bands(), tokens(), draw(2, ROWS, COLUMNS, seed=9)
    module(x, visible)
    assert (module.usual == 0.5).all()
    for _ in range(200):
        module.train()(x, visible)
    seen = visible.sigmoid().unflatten(1, (BANDS, 2)).mean(dim=(0, 2, 3))
    torch.testing.assert_close(module.usual, seen, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("update", ("joint", "alternating"))
def test_bands_are_a_third_space_of_stage_2(update):
    task = metric_task("model.bands=2", f"metric.update={update}")
    batch = visibility_batch()
    losses, report = task(batch, task.phases[0])
    assert {"patches", "masked_bands"} <= set(losses) and "identity_bands" not in losses
    assert "mask_bands_std_samples" in report
    torch.stack(list(losses.values())).sum().backward()
    assert task.model.visibility.patches[1].weight.grad.abs().sum() > 0
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
