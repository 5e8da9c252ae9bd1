"""Sizes, tasks and batches of the checks; how time is taken on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dpmpp_core.config import Config, DemoConfig, load_config
from dpmpp_core.data.annotations import ANNOTATIONS
from dpmpp_core.data.given_masks import GivenMasks
from dpmpp_core.data.plan import StepPlan, class_labels
from dpmpp_core.data.steps import StepMaker, TrainingImages
from dpmpp_core.demo import generate
from dpmpp_core.models.weights import find_head_lr
from dpmpp_core.tasks.feed import Batch, copy_batches
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.pretrain import PretrainTask
from dpmpp_core.tasks.prompts import PromptTask
from dpmpp_core.tasks.saliency import SaliencyTask
from dpmpp_core.tasks.step import train_step
from dpmpp_core.tasks.task import Task

STEPS_PER_EPOCH = 100
SMALL = ["data.height=128", "data.width=64", "metric.identities=4", "metric.images=2"]
FULL = ["model.pretrained=null", "model.normalise_text=false"]


@dataclass
class Row:
    """The result of a check.

    Attributes:
        figures: what was measured, by name.
        problems: sentences about what must not be; the check failed if there is one.
        remarks: sentences about figures outside of what is expected of a card.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def require(self, holds: bool, problem: str) -> None:
        """Add a problem unless `holds`."""
        if not holds:
            self.problems.append(problem)

    def expect(self, holds: bool, remark: str) -> None:
        """Add a remark unless `holds`."""
        if not holds:
            self.remarks.append(remark)


@dataclass
class Setting:
    """What all checks share.

    Attributes:
        device: where they run.
        small: whether sizes are those of a test, for a CPU; figures of speed then mean nothing.
        folder: temporary, for drawn people.
    """

    device: torch.device
    small: bool
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def size(self, full: int, small: int) -> int:
        """Return the size of something."""
        return small if self.small else full

    def config(self, *overrides: str) -> Config:
        """Return the configuration that is timed: ViT-B/16 with random weights; small: the demo."""
        if self.small:
            return load_config("demo", [*SMALL, *overrides])
        return load_config("market1501", [*FULL, *overrides])

    def demo_config(self, *overrides: str) -> Config:
        """Return the demo's configuration, whose weights are in the package."""
        small = SMALL if self.small else ["metric.identities=8"]
        return load_config("demo", [*small, *overrides])

    @cached_property
    def people(self) -> Path:
        """A folder of drawn people."""
        out = self.folder / "people"
        images = self.size(8, 3)
        if not out.exists():
            generate(
                out,
                DemoConfig(
                    train_identities=self.size(16, 8), test_identities=4, cameras=3,
                    train_images=images,
                ),
            )  # fmt: skip
        return out

    def step_maker(self, config: Config) -> StepMaker:
        """Return what makes the batches of stage 2, of the drawn people."""
        root = str(self.people)
        table = pq.read_table(self.people / ANNOTATIONS)
        table = table.filter(np.array(table["split"].to_pylist()) == "bounding_box_train")
        paths = table["path"].to_pylist()
        labels, _ = class_labels(table["pid"].to_numpy())
        grid = config.data.height // 16, config.data.width // 16
        masks = GivenMasks(root, grid)(np.empty(0, np.uint8), paths)
        images = TrainingImages(root, paths, labels, table["camid"].to_numpy(), masks)
        metric, model = config.metric, config.model
        plan = StepPlan(images.labels, images.camids, metric.identities, metric.images, config.seed)
        attention = None
        if model.attention_mask_depth is not None:
            attention = metric.true_masks, metric.predicted_masks
        has_head = bool(model.bands or model.attention_mask_depth) and find_head_lr(config) > 0
        return StepMaker(
            images, plan, config.data, config.augment, config.occlusion,
            visibility=has_head, attention_masks=attention,
        )  # fmt: skip

    def people_batch(self, config: Config, step: int = 0) -> Batch:
        """Return a batch of drawn people, in host memory."""
        return to_batch(self.step_maker(config).make(step))

    def people_batch_of(self, maker: StepMaker, step: int) -> Batch:
        """Return the batch of a step, in host memory."""
        return to_batch(maker.make(step))

    def random_batch(self, config: Config, identities: int) -> Batch:
        """Return a batch of noise with all that any task reads, in host memory."""
        metric, data = config.metric, config.data
        size = metric.identities * metric.images
        draw = torch.Generator().manual_seed(0)
        labels = torch.arange(size) // metric.images % identities
        images = torch.randint(
            0, 256, (size, data.height, data.width, 3), dtype=torch.uint8, generator=draw
        )
        visible = torch.rand(size, data.height // 16, data.width // 16, generator=draw) < 0.5
        donors = torch.where(torch.arange(size) % 2 == 0, (labels + 1) % identities, -1)
        batch = {"images": images, "labels": labels, "donor_labels": donors, "masked": ~visible,
                 "known": donors >= 0, "covered": images[::2], "step": torch.tensor(0)}  # fmt: skip
        for name, patches in (("visible", visible), ("occluded", ~visible), ("foreign", ~visible)):
            batch |= {name: patches, f"covered_{name}": patches[::2]}
        return batch

    def metric_task(self, config: Config, identities: int) -> MetricTask:
        """Return stage 2 on the device, ready to train."""
        draw = torch.Generator().manual_seed(1)
        width = 192 if config.model.backbone == "dpmpp-small" else 512
        texts = torch.nn.functional.normalize(torch.randn(identities, width, generator=draw), dim=1)
        return MetricTask(config, texts, 14.0, STEPS_PER_EPOCH).to(self.device).train()

    def task(self, kind: str) -> tuple[Task, Batch]:
        """Return a task of each kind on the device, and a batch in host memory."""
        config, people = self.config("metric.precision=auto"), self.size(751, 8)
        if kind == "metric":
            return self.metric_task(config, people), self.random_batch(config, people)
        batch = {
            name: value
            for name, value in self.random_batch(config, people).items()
            if name in ("images", "labels", "step")
        }
        if kind == "saliency":
            task: Task = SaliencyTask(config, people, STEPS_PER_EPOCH)
        elif kind == "pretrain":
            task = PretrainTask(
                load_config("demo"), [f"a person number {i}" for i in range(people)], 100
            )
            size = self.size(64, 8)
            labels = torch.arange(size) // 4
            shape = (size, 256, 128, 3)
            batch = {"images": torch.randint(0, 256, shape, dtype=torch.uint8), "labels": labels,
                     "step": torch.tensor(0)}  # fmt: skip
        else:
            draw = torch.Generator().manual_seed(2)
            rows = self.size(4096, 24)
            width = 192 if config.model.backbone == "dpmpp-small" else 512
            features = torch.randn(rows, width, generator=draw)
            prompts = PromptTask(config, features, torch.arange(rows) % people)
            batch, task = next(prompts.batches(0)), prompts
        return task.to(self.device).train(), batch

    def on_device(self, batch: Batch) -> Batch:
        """Return a batch as the training loop has it."""
        return next(copy_batches([batch], self.device))

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], Any], rounds: int, warm: int = 1) -> float:
        """Return the seconds of a call, mean over rounds in a row, until the device is done."""
        for _ in range(warm):
            call()
        self.wait()
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        self.wait()
        return (time.perf_counter() - start) / rounds


def to_batch(arrays: Mapping[str, np.ndarray]) -> Batch:
    """Return the arrays of a step maker as a batch in host memory."""
    return {n: torch.from_numpy(np.array(x)) for n, x in arrays.items() if n != "rows"}


def stepper(task: Task, batch: Batch) -> Callable[[], dict[str, Tensor]]:
    """Return a call that makes the product's own training step on a batch on the device."""
    optimiser = task.optimiser()
    return lambda: train_step(task, task, optimiser, batch, 1)
