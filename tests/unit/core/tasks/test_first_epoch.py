"""Windows of the first epoch's losses against the losses themselves, at their starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dpmpp_core.config import MetricConfig
from dpmpp_core.losses.arcface import arcface_logits
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.tasks.first_epoch import Window, first_epoch_windows, outside_first_epoch
from tests.support.tasks import metric_task

PRODUCTION = {"visual": 768, "joint": 512}


def windows(classes=751, spaces=PRODUCTION, rate=1.5e-5, steps=200, **changes):
    section = MetricConfig.model_validate(changes)
    return first_epoch_windows(section, classes, spaces, [rate] * steps)


def start(classes, width, stretch, seed=0):
    """Features behind a neck, of entries that lean on each other, and fresh prototypes."""
    torch.manual_seed(seed)
    features = torch.randn(2048, width) @ torch.diag(torch.linspace(1, stretch, width))
    features = features @ torch.linalg.qr(torch.randn(width, width))[0]
    features = nn.BatchNorm1d(width)(features).detach()
    labels = torch.arange(2048) % classes
    return features, torch.randn(classes, width) * width**-0.5, labels


@pytest.mark.parametrize("classes", [16, 120, 751])
@pytest.mark.parametrize(("width", "stretch"), [(192, 1), (768, 1), (512, 20)])
def test_untrained_losses_start_inside_near_the_upper_bound(classes, width, stretch):
    features, prototypes, labels = start(classes, width, stretch)
    bounds = windows(classes, {"visual": width})
    plain = 0.25 * cross_entropy(features @ prototypes.T, labels, 0.1).item()
    cosine = nn.functional.normalize(features) @ nn.functional.normalize(prototypes).T
    arc = 0.25 * cross_entropy(arcface_logits(cosine, labels, 30, 0.3), labels).item()
    figures = {"identity_visual": plain, "masked_visual": arc}
    assert outside_first_epoch(bounds, figures) == {}
    expected = (
        0.25 * (math.log(classes) + 0.5),
        0.25 * (math.log(classes) + 900 / (2 * width) + 30 * math.sin(0.3)),
    )
    assert tuple(figures.values()) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 100.0])
def test_texts_that_know_nothing_are_outside_whatever_their_scale(scale):
    labels = torch.arange(1502) % 751
    guess = scale * torch.randn(1502, 751, generator=torch.Generator().manual_seed(0))
    bounds = windows()
    assert "text" in outside_first_epoch(bounds, {"text": cross_entropy(guess, labels, 0.1).item()})
    right = guess / max(1, scale) + 8 * nn.functional.one_hot(labels, 751)
    assert not outside_first_epoch(bounds, {"text": cross_entropy(right, labels, 0.1).item()})


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_no_classifier_is_below_the_floor(smoothing):
    low = windows(7, rate=1.0, loss={"label_smoothing": smoothing})["text"].low
    logits = torch.zeros(1, 7, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        loss = cross_entropy(logits, torch.tensor([3]), smoothing)
        loss.backward()
        optimiser.step()
    assert low - 1e-4 <= loss.item() < low + 0.02


def trained_on_one_batch(rate, steps=15):
    """Mean weighted loss of prototypes that learn 16 samples by heart: the easiest case."""
    features, prototypes, labels = (x[:16] if len(x) > 120 else x for x in start(120, 192, 1))
    prototypes.requires_grad_(True)
    optimiser = torch.optim.Adam([prototypes], lr=rate)
    total = 0.0
    for _ in range(steps):
        optimiser.zero_grad()
        loss = cross_entropy(features @ prototypes.T, labels, 0.1)
        total += 0.25 * loss.item() / steps
        loss.backward()
        optimiser.step()
    return {"identity_visual": total}


def test_adam_cannot_leave_the_window_downwards_by_moving_the_prototypes_alone():
    slow, fast = trained_on_one_batch(1e-4), trained_on_one_batch(2e-3)
    bounds = windows(120, {"visual": 192}, 1e-4, 15)
    assert outside_first_epoch(bounds, slow) == {}
    assert "falling faster" in outside_first_epoch(bounds, fast)["identity_visual"]


def test_windows_exist_for_what_is_computed():
    both = {"identity_visual", "masked_visual", "identity_joint", "masked_joint", "text"}
    assert set(windows()) == both
    assert set(windows(spaces={"visual": 768})) == {"identity_visual", "masked_visual"}
    assert set(windows(spaces={**PRODUCTION, "bands": 384})) == both
    less = windows(loss={"identity": 0, "masked": 0, "text": 2})
    assert set(less) == {"text"}
    assert less["text"].high == pytest.approx(2 * windows()["text"].high, abs=1e-3)
    assert all(0 <= w.low < w.high for w in windows(2, rate=1.0).values())


def test_sgd_has_only_the_floor():
    adam, sgd = windows(), windows(optimiser="sgd")
    assert sgd["identity_visual"].low == sgd["identity_joint"].low < adam["identity_visual"].low
    assert sgd["identity_visual"].high == adam["identity_visual"].high


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "is nan, expected 1.000 to 2.000; lower the learning rates"),
        (math.inf, "is inf"),
        (0.5, "is 0.500, expected 1.000 to 2.000; falling faster"),
        (2.5, "check the losses of stage 1"),
    ],
)
def test_each_way_out_says_what_it_can_mean(value, says):
    (sentence,) = outside_first_epoch({"text": Window(1, 2)}, {"text": value}).values()
    assert sentence.startswith("first epoch: loss text ") and says in sentence


def test_inside_and_absent_losses_say_nothing():
    assert outside_first_epoch({"text": Window(1, 2)}, {"text": 1.0}) == {}
    assert outside_first_epoch({"text": Window(1, 2)}, {"triplet": 9.0}) == {}


def test_the_task_raises_the_alarm_after_the_first_epoch_only():
    task = metric_task()
    guess = {"text": math.log(4), "identity_visual": 0.25 * math.log(4)}
    figures = guess | {"mask_visual_std_samples": 0.2, "mask_joint_std_samples": 0.2}
    assert set(task.alarms(1, figures)) == {"first_epoch_text"}
    assert task.alarms(2, figures) == {}
