"""The production recipe at full size, one step of each stage on the CPU, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dpmpp_core.config import load_config
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.prompts import PromptTask
from dpmpp_core.tasks.saliency import SaliencyTask

pytestmark = pytest.mark.long

CLASSES = 2
OVERRIDES = ["model.pretrained=null", "model.normalise_text=false", "metric.precision=fp32"]


@pytest.fixture(scope="module")
def config():
    return load_config("market1501", OVERRIDES)


def batch():
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (4, 256, 128, 3), np.uint8))
    visible = torch.from_numpy(draw.random((4, 16, 8)) < 0.5)
    return {
        "images": images,
        "visible": visible,
        "occluded": ~visible,
        "covered": images[::2],
        "covered_visible": visible[::2],
        "covered_occluded": ~visible[::2],
        "foreign": ~visible,
        "covered_foreign": ~visible[::2],
        "masked": ~visible,
        "known": torch.tensor([True, False, True, False]),
        "labels": torch.arange(CLASSES).repeat_interleave(2),
        "donor_labels": torch.tensor([1, -1, -1, 0]),
    }


def step(task, given):
    """One step of the training loop; losses, and the seconds are the caller's."""
    optimiser = task.optimiser()
    losses, report = task(given)
    torch.stack(list(losses.values())).sum().backward()
    task.filter_gradients("joint")
    optimiser.step()
    assert all(value.isfinite() for value in (*losses.values(), *report.values()))
    return losses


def resident():
    """Bytes that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_stage_0_at_full_size(config):
    task = SaliencyTask(config, CLASSES, steps_per_epoch=200).train()
    losses = step(task, batch())
    assert set(losses) == {"whole", "person", "triplet", "area", "background"}
    other = SaliencyTask(config, CLASSES, steps_per_epoch=200)
    other.load_trained_state(task.trained_state())
    images = torch.randn(1, 3, 256, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (_, ours), (_, theirs) = (t.eval().model(images) for t in (task, other))
    assert ours.numel() == 16 * 8 and torch.equal(ours, theirs)


def test_stage_1_at_full_size(config):
    features = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    task = PromptTask(config, features, torch.arange(CLASSES).repeat_interleave(2)).train()
    before = task.prompts.tokens.detach().clone()
    losses = step(task, task.batch(torch.arange(4)))
    assert set(losses) == {"image_to_text", "text_to_image"}
    assert task.prompts.tokens.shape == (CLASSES, 4, 512) and len(task.prompts.ids) == 12
    assert (task.prompts.tokens != before).all()
    results = task.results()
    assert results["texts"].shape == (CLASSES, 512) and results["scale"] == 1


def test_stage_2_without_text_at_full_size():
    config = load_config("market1501_vit", ["model.pretrained=null", "metric.precision=fp32"])
    task = MetricTask(config, torch.zeros(CLASSES, 0), 1.0, steps_per_epoch=200).train()
    assert set(step(task, batch())) == {"identity_visual", "masked_visual", "triplet", "heads"}
    assert isinstance(task.optimiser(), torch.optim.SGD) and task.model.spaces == {"visual": 768}


def test_stage_2_at_full_size():
    """The published form, and bands and attention mask as well."""
    ours = ["model.bands=8", "model.attention_mask_depth=0.33"]
    config = load_config("market1501", [*OVERRIDES, *ours])
    texts = torch.randn(CLASSES, 512, generator=torch.Generator().manual_seed(0))
    task = MetricTask(config, texts, 1.0, steps_per_epoch=200).train()
    losses = step(task, batch())
    # Weights, gradients and Adam's two moments are 1.4 GiB; the whole process stood at 2.3 GiB.
    assert resident() < 6 * 2**30
    expected = {"identity_visual", "masked_joint", "triplet", "text", "text_transfer", "heads"}
    assert expected | {"patches", "masked_bands"} <= set(losses)
    encoder = task.model.encoder
    assert encoder.taps == (2, 4, 10, 12) and task.model.spaces == {
        "visual": 768,
        "joint": 512,
        "bands": 8 * 768,
    }

    other = MetricTask(config, texts, 1.0, steps_per_epoch=200)
    other.load_trained_state(task.trained_state())
    images = torch.randn(1, 3, 256, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (t.eval().model(images) for t in (task, other))
    seen = ours.encoded
    assert seen.taps.shape == (1, 4 * 768, 16, 8) and seen.heads.shape == (1, 12, 128)
    for name, feature in ours.features.items():
        assert torch.equal(feature, theirs.features[name])
        assert torch.equal(ours.masks[name], theirs.masks[name])
