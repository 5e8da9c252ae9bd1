"""Visibility consistency: its formula, what it rewards, and the twins that it looks at."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.losses.visibility import visibility_likelihood
from tests.support.tasks import awake, metric_batch, metric_task, total

FLOOR = 1e-3


def draw(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def everyone(n):
    return torch.ones(n, dtype=torch.bool)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_visibility_is_its_formula(seed, rows, width):
    masks, errors = 0.01 + draw(seed, rows, width), 0.01 + draw(seed + 1, rows, width)
    mixed = draw(seed + 2, rows) < 0.7
    kept = [i for i in range(rows) if mixed[i]]
    loss = 0.0
    for i in kept:
        r, x = [], []
        for d in range(width):
            r.append(masks[i, d].item() / (sum(masks[j, d].item() for j in kept) / len(kept)))
            mean = sum(errors[j, d].item() for j in kept) / len(kept)
            x.append(errors[i, d].item() / mean + FLOOR)
        loss += math.log(sum(a * b for a, b in zip(r, x, strict=True)) / width)
        loss -= math.log(sum(x) / width) + sum(map(math.log, r)) / width
    expected = 0.5 * loss / max(1, len(kept))
    assert visibility_likelihood(masks, errors, mixed).item() == pytest.approx(expected, abs=1e-5)


def test_a_static_mask_earns_nothing_whatever_it_weights():
    errors = draw(0, 16, 32) ** 2
    static = draw(1, 1, 32).expand(16, 32)
    dimmed = static * draw(2, 16, 1)  # and so for one that only rises and falls as a whole
    for mask in (static, dimmed):
        free = mask.clone().requires_grad_()
        loss = visibility_likelihood(free, errors, everyone(16))
        assert loss.item() == pytest.approx(0, abs=1e-6)
        (gradient,) = torch.autograd.grad(loss, free)
        assert (gradient * mask).sum(dim=0).abs().max() < 1e-6  # nor can it learn to
        assert (gradient * mask).sum(dim=1).abs().max() < 1e-6


def test_the_gradient_raises_the_mask_where_the_views_agree():
    errors = torch.ones(2, 4)
    errors[0, 0], errors[1, 0] = 0.1, 1.9
    logits = torch.zeros(2, 4, requires_grad=True)
    visibility_likelihood(logits.sigmoid(), errors, everyone(2)).backward()
    assert logits.grad[0, 0] < 0 < logits.grad[1, 0]  # descent raises the first, lowers the second


def test_a_mask_that_sees_the_cue_learns_the_reliability_and_a_static_one_cannot():
    """Each sample loses one of two halves of its dimensions; a cue in the picture says which."""
    n, width = 64, 16
    side = draw(0, n) < 0.5
    hidden = torch.where(side[:, None], torch.arange(width) < 8, torch.arange(width) >= 8)
    noise = torch.randn(n, width, generator=torch.Generator().manual_seed(1)).square()
    errors = noise * torch.where(hidden, 1.0, 0.05)
    cue = torch.stack([side, ~side], dim=1).float()
    final = {}
    for name, inputs in (("adaptive", cue), ("static", torch.ones(n, 2))):
        weight = torch.zeros(2, width, requires_grad=True)
        optimiser = torch.optim.Adam([weight], lr=0.1)
        for _ in range(80):
            loss = visibility_likelihood((inputs @ weight).sigmoid(), errors, everyone(n))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        final[name] = loss.item()
        masks = (inputs @ weight).sigmoid().detach()
        if name == "adaptive":
            assert masks[~hidden].min() > masks[hidden].max()
    assert final["static"] == pytest.approx(0, abs=1e-5)
    truth = visibility_likelihood(torch.where(hidden, 0.05, 1.0), errors, everyone(n)).item()
    assert final["adaptive"] < 0.9 * truth < -0.2


@pytest.mark.parametrize("mixed", [[False] * 3, [True, False, False], [True] * 3])
def test_extremes_are_finite(mixed):
    masks = torch.tensor([[0.0, 1.0], [1e-30, 1e-30], [1.0, 1.0]], requires_grad=True)
    errors = torch.tensor([[0.0, 0.0], [float("1e30"), 0.0], [1.0, 1e-30]])
    loss = visibility_likelihood(masks, errors, torch.tensor(mixed))
    (gradient,) = torch.autograd.grad(loss, masks)
    assert loss.isfinite() and gradient.isfinite().all()
    assert any(mixed) or (loss == 0 and not gradient.any())


# --- in the task and in the data ----------------------------------------------------------------

ON = "metric.loss.visibility=0.5"


def with_twins(batch):
    return batch | {"twins": batch["images"].flip(2)}


def pixels(images):
    """uint8 [B, H, W, 3] as the demo recipe's encoder takes them."""
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5


def test_the_task_compares_mixed_samples_with_their_twins():
    task, batch = awake(metric_task(ON)), metric_batch()
    task.model.necks.eval()
    losses, _ = task(with_twins(batch))
    assert {"visibility_visual", "visibility_joint"} <= set(losses)
    with torch.no_grad():
        reading = task.model(pixels(batch["images"]))
        twins = task.model.encoder(pixels(batch["images"].flip(2)))
        views = [
            torch.nn.functional.normalize(task.model.necks["joint"](e.joint), dim=1)
            for e in (reading.encoded, twins)
        ]
    errors = (views[0] - views[1]).square()
    mixed = batch["donor_labels"] >= 0
    expected = 0.5 * visibility_likelihood(reading.masks["joint"], errors, mixed)
    torch.testing.assert_close(losses["visibility_joint"].detach(), expected, atol=1e-5, rtol=1e-4)


def test_visibility_moves_the_masks_and_never_the_twins_or_necks():
    task = awake(metric_task(ON))
    before = {n: b.clone() for n, b in task.model.necks.named_buffers()}
    plain = awake(metric_task())
    losses, _ = task(with_twins(metric_batch()))
    plain(metric_batch())
    after = dict(task.model.necks.named_buffers())
    assert all(torch.equal(after[n], b) for n, b in plain.model.necks.named_buffers())
    assert any(not torch.equal(after[n], b) for n, b in before.items())
    (losses["visibility_visual"] + losses["visibility_joint"]).backward()
    names = {n for n, p in task.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(n.startswith("model.mask_generator.spaces.") for n in names)
    assert "model.encoder.tower.proj" not in names  # features are constants here
    assert not any(n.startswith(("prototypes.", "model.necks.")) for n in names)


def test_without_mixed_samples_visibility_is_zero():
    losses, _ = awake(metric_task(ON))(with_twins(metric_batch(donors=False)))
    assert losses["visibility_visual"] == 0
    total(losses).backward()


def test_alternating_looks_at_the_twins_once():
    task = awake(metric_task(ON, "metric.update=alternating"))
    batch = with_twins(metric_batch())
    assert "visibility_visual" not in task(batch, "model")[0]
    assert "visibility_visual" in task(batch, "mask")[0]
