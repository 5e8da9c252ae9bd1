"""Stage 0 learned: the saliency model, its losses and its task (SPT)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dpmpp_core.config import load_config
from dpmpp_core.errors import WeightsError
from dpmpp_core.losses.saliency import area_loss, background_penalty
from dpmpp_core.models.reid import start_clip
from dpmpp_core.models.saliency import CARD_FILE, WEIGHTS_FILE, load_saliency, save_saliency
from tests.support.tasks import (
    rng_untouched,
    saliency_batch,
    saliency_config,
    saliency_task,
    same_state,
    total,
)


def normalised(task):
    return task.normalise(saliency_batch()["images"])


# --- losses -------------------------------------------------------------------------------------


def test_area_loss_is_the_formula():
    person = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    naive = sum((sum(row.tolist()) / 7 - 0.3) ** 2 for row in person) / 5
    assert area_loss(person, 0.3).item() == pytest.approx(naive, rel=1e-5)
    assert area_loss(torch.full((2, 4), 0.3), 0.3).item() == pytest.approx(0, abs=1e-12)


def test_background_penalty_is_the_formula():
    z, rest = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)).unbind()
    naive = 0.0
    for a, b in zip(z.tolist(), rest.tolist(), strict=True):
        p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        naive += sum(p[c] * q[c] for c in range(6))
    assert background_penalty(z, rest).item() == pytest.approx(naive, rel=1e-5)


def test_background_penalty_is_one_a_sample_for_the_same_certain_answer_and_none_for_another():
    certain = 100.0 * nn.functional.one_hot(torch.tensor([0, 1, 2]), 4).float()
    assert background_penalty(certain, certain).item() == pytest.approx(3)
    assert background_penalty(certain, certain.roll(1, dims=0)).item() == pytest.approx(0, abs=1e-6)


def test_the_published_weights_are_the_defaults_and_ride_on_the_losses():
    section = load_config("market1501").saliency
    assert (section.area_weight, section.target_ratio, section.penalty_weight) == (50, 0.3, 0.1)
    noise = torch.randint(0, 256, (8, 64, 32, 3), generator=torch.Generator().manual_seed(4))
    alike = {
        **saliency_batch(),
        "images": noise.to(torch.uint8),
    }  # persons that triplets cannot separate
    plain = saliency_task("saliency.triplet_weight=1").eval()(alike)[0]
    heavy = saliency_task(
        "saliency.area_weight=100", "saliency.penalty_weight=0.4", "saliency.triplet_weight=3"
    ).eval()(alike)[0]
    ratios = {name: (heavy[name] / plain[name]).item() for name in plain}
    assert ratios == pytest.approx(
        {"whole": 1, "person": 1, "triplet": 3, "area": 2, "background": 4}, rel=1e-5
    )


# --- the three passes ---------------------------------------------------------------------------


def test_passes_are_of_the_whole_the_person_and_the_rest():
    task = saliency_task("saliency.triplet_weight=1").eval()
    tower = task.model.encoder.tower

    def logits(embeddings):
        """A second transcription, from patch embeddings on."""
        cls = tower.class_embedding.expand(len(embeddings), 1, -1)
        x = torch.cat([cls, embeddings], dim=1) + tower.positional_embedding
        x = tower.transformer(tower.ln_pre(x))
        return task.classifier(task.neck(tower.ln_post(x[:, 0])))

    with torch.no_grad():
        nn.init.normal_(task.classifier.weight, generator=torch.Generator().manual_seed(2))
        images, labels = normalised(task), saliency_batch()["labels"]
        person = task.model(images)[1].flatten(1)
        patches = tower.conv1(images).flatten(2).transpose(1, 2)
        z = logits(patches)
        kept = logits(patches * person[..., None])
        rest = logits(patches * (1 - person[..., None]))
        losses = task(saliency_batch())[0]
    expected = {
        "whole": nn.functional.cross_entropy(z, labels),
        "person": nn.functional.cross_entropy(kept, labels),
        "area": 50 * (person.mean(1) - 0.4).square().mean(),
        "background": 0.1 * (z.softmax(1) * rest.softmax(1)).sum(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_patch_weights_of_one_change_nothing_and_of_zero_hide_the_picture():
    task = saliency_task().eval()
    encoder, images = task.model.encoder, normalised(task)
    ones = torch.ones(len(images), 8)
    with torch.no_grad():
        plain = encoder(images).visual
        assert torch.equal(plain, encoder(images, ones).visual)
        hidden = encoder(images, 0 * ones).visual
    torch.testing.assert_close(hidden, hidden[:1].expand_as(hidden))
    assert not torch.allclose(plain, plain[:1].expand_as(plain), atol=1e-3)


def test_no_gradient_of_the_mask_reaches_the_tokens_it_is_read_from():
    task = saliency_task()
    task.model(normalised(task))[1].sum().backward()
    reached = {n for n, p in task.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"model.head.weight", "model.head.bias"}


def test_every_parameter_but_the_joint_projection_gets_a_gradient():
    task = saliency_task("saliency.triplet_weight=1").train()
    total(task(saliency_batch())[0]).backward()
    left = {n for n, p in task.named_parameters() if p.requires_grad and p.grad is None}
    assert left == {"model.encoder.tower.proj"}
    assert not task.updates_all  # data-parallel training must be told


def test_losses_and_figures_are_finite_with_bf16_and_with_overlapping_patches():
    for override in ("metric.precision=bf16", "model.stride=12"):
        losses, report = saliency_task(override).train()(saliency_batch())
        assert all(loss.isfinite() and loss.shape == () for loss in losses.values())
        assert all(0 <= figure <= 1 and not figure.requires_grad for figure in report.values())


def test_it_starts_the_same_from_the_same_seed_and_leaves_the_generator_alone():
    one, two = rng_untouched(saliency_task), saliency_task()
    assert same_state(one, two)
    assert not same_state(one, saliency_task("seed=1"))


def test_a_step_is_deterministic_and_a_checkpoint_continues_it():
    def step(task, optimiser):
        optimiser.zero_grad()
        total(task(saliency_batch())[0]).backward()
        optimiser.step()

    tasks = [saliency_task().train() for _ in range(2)]
    for task in tasks:
        step(task, task.optimiser())
    assert same_state(*tasks)
    resumed = saliency_task("seed=1")
    resumed.load_trained_state(tasks[0].trained_state())
    assert same_state(tasks[0], resumed)


def test_rates_are_those_of_the_configuration():
    task = saliency_task("saliency.encoder_lr=1e-5", "saliency.lr=1e-3")
    rates = {
        id(parameter): group["base_lr"]
        for group in task.optimiser().param_groups
        for parameter in group["params"]
    }
    assert rates[id(task.model.encoder.tower.conv1.weight)] == 1e-5
    assert rates[id(task.model.head.weight)] == rates[id(task.classifier.weight)] == 1e-3
    assert task.lr_factor(0) < 0.05 and task.lr_factor(10) == 1 and task.lr_factor(20) < 0.02


# --- its files ----------------------------------------------------------------------------------


def test_a_saved_model_masks_as_before(tmp_path):
    model = saliency_task("model.stride=12").model.eval()
    save_saliency(model, tmp_path / "m")
    loaded = load_saliency(tmp_path / "m")
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images)[1], loaded(images)[1])


@pytest.mark.parametrize("damage", [WEIGHTS_FILE, CARD_FILE])
def test_a_damaged_saved_model_is_refused(tmp_path, damage):
    save_saliency(saliency_task().model, tmp_path)
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:-9])
    with pytest.raises(WeightsError, match=str(tmp_path)):
        load_saliency(tmp_path)


def test_the_encoder_is_the_one_that_the_run_starts_from():
    task = saliency_task()
    start = start_clip(saliency_config()).visual.state_dict()
    own = task.model.encoder.tower.state_dict()
    assert all(torch.equal(start[name], own[name]) for name in start)
