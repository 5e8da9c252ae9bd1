"""Training tasks and batches of the smallest size."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from dpmpp_core.config import load_config
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.prompts import PromptTask
from dpmpp_core.tasks.saliency import SaliencyTask

CLASSES = 4


def config(*overrides):
    """The demo's, small, with the paper's form of the mask and all its losses."""
    form = ("model.bands=0", "model.mask_generator=light", "model.attention_mask_depth=null")
    form += ("metric.loss.heads=1", "metric.class_ignoring=true")
    return load_config("demo", ["data.height=64", "data.width=32", *form, *overrides])


def texts(width=192):
    rows = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(5))
    return nn.functional.normalize(rows, dim=1)


def metric_task(*overrides):
    return MetricTask(config("metric.precision=fp32", *overrides), texts(), 14.0, 10)


def prompt_task(*overrides, rows=12):
    labels = torch.arange(rows) % CLASSES
    noise = torch.randn(rows, 192, generator=torch.Generator().manual_seed(2))
    return PromptTask(config(*overrides), 10 * (texts()[labels] + 0.01 * noise), labels)


def awake(task):
    """The task with masks that already depend on the picture."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for linear in task.model.mask_generator.spaces.values():
            nn.init.normal_(linear.weight, std=0.1, generator=generator)
    return task.train()


def saliency_config(*overrides):
    size = ["data.height=64", "data.width=32", "metric.precision=fp32", "saliency.epochs=2"]
    return load_config("demo", [*size, *overrides])


def saliency_task(*overrides):
    return SaliencyTask(saliency_config(*overrides), CLASSES, 10)


def metric_batch(donors=True):
    """Two pictures of each of four persons, each person in one flat colour and noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 2)
    colours = rng.integers(60, 196, (CLASSES, 1, 1, 3))[labels]
    images = (colours + rng.integers(-40, 40, (len(labels), 64, 32, 3))).astype(np.uint8)
    donor_labels = np.where(donors, [1, 2, 0, -1, 3, 1, -1, 0], -1)
    return {
        "images": torch.from_numpy(images),
        "labels": torch.from_numpy(labels),
        "donor_labels": torch.from_numpy(donor_labels),
    }


def visibility_batch():
    """The same with what a visibility head and an attention mask learn from."""
    batch, draw = metric_batch(), torch.Generator().manual_seed(1)
    count = len(batch["images"])
    visible, masked = (torch.rand(count, 4, 2, generator=draw) < 0.5 for _ in range(2))
    return batch | {
        "visible": visible,
        "occluded": ~visible,
        "covered": batch["images"][::2],
        "covered_visible": ~visible[::2],
        "covered_occluded": visible[::2],
        "foreign": ~visible,
        "covered_foreign": visible[::2],
        "masked": masked,
        "known": torch.arange(count) % 2 == 0,
    }


def saliency_batch():
    return {name: metric_batch()[name] for name in ("images", "labels")}


def total(losses):
    return torch.stack(list(losses.values())).sum()


def rng_untouched(build):
    before = torch.random.get_rng_state()
    built = build()
    assert torch.equal(before, torch.random.get_rng_state())
    return built


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
