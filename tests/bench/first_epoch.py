"""Losses of stage 2's first epoch, of healthy and of broken runs, beside their windows.

    python -m tests.bench.first_epoch NAME [KEY=VALUE ...] [--data DIR] [--seeds 0 1 2]
        [--only healthy ...]

Stage 1 and the first epoch of stage 2 by the demo recipe, on the demo set or on DIR, in this
process and on one thread. Writes `results/NAME.md`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpmpp_core.config import Config, load_config
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import read_manifest
from dpmpp_core.data.plan import StepPlan, class_labels
from dpmpp_core.data.steps import StepMaker, TrainingImages
from dpmpp_core.demo import generate
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.person_masks import SpectralMasks
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import start_clip
from dpmpp_core.tasks.first_epoch import Window, outside_first_epoch
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.prompts import PromptTask
from dpmpp_core.tasks.task import Task
from pipelines.training.masks import PATCH
from tests.bench.timing import write

Batch = dict[str, Tensor]
Texts = Callable[[Tensor], Tensor]


class Stages:
    """Stage 1 and the batches of stage 2's first epoch, of one seed."""

    def __init__(self, config: Config, root: str, wrong_labels: bool = False) -> None:
        self.config = config
        manifest = read_manifest(root)
        rows = manifest.subset("train")
        paths = rows["path"].to_pylist()
        labels, _ = class_labels(rows["pid"].to_numpy())
        camids = rows["camid"].to_numpy()
        data, metric = config.data, config.metric
        plan = StepPlan(labels, camids, metric.identities, metric.images, config.seed)
        images = np.stack([resize(read_image(root, p), data.height, data.width) for p in paths])
        grid = data.height // PATCH, data.width // PATCH
        masks = SpectralMasks(grid, config.saliency.target_ratio)(images, paths)
        maker = StepMaker(
            TrainingImages(root, paths, labels, camids, masks),
            plan, data, config.augment, config.occlusion,
        )  # fmt: skip
        wanted = ("images", "labels", "donor_labels", "visible", "rows")
        self.batches: list[Batch] = []
        for step in range(plan.steps_per_epoch):
            made = maker.make(step)
            self.batches.append({name: torch.from_numpy(made[name]) for name in wanted})
        if wrong_labels:
            labels = np.random.default_rng(config.seed).permutation(labels)
            for batch in self.batches:
                batch["labels"] = torch.from_numpy(labels)[batch["rows"]]
        prompts = PromptTask(config, self._features(images), torch.from_numpy(labels))
        train(prompts, prompts.batches(0))
        learned = prompts.results()
        self.texts, self.scale = learned["texts"], float(learned["scale"])

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> Tensor:
        data = self.config.data
        encoder = ImageEncoder(start_clip(self.config).visual, self.config.model.taps).eval()
        parts = [
            encoder(to_tensor_batch(images[i : i + 64], data.mean, data.std)).joint.float()
            for i in range(0, len(images), 64)
        ]
        return torch.cat(parts).clone()


def train(task: Task, batches: Iterable[Batch]) -> dict[str, float]:
    """The training loop over these batches; means of the figures."""
    task.train()
    optimiser = task.optimiser()
    sums: dict[str, float] = {}
    count = 0
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * task.lr_factor(step)
        losses, report = task(batch)
        loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        task.filter_gradients("joint")
        optimiser.step()
        for name, value in {"loss": loss, **losses, **report}.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        count += 1
    return {name: value / count for name, value in sums.items()}


def times(factor: float) -> tuple[str, str]:
    """Both learning rates of the demo recipe, times a factor."""
    section = load_config("demo").metric
    return f"metric.lr={section.lr * factor}", f"metric.encoder_lr={section.encoder_lr * factor}"


def roll(texts: Tensor) -> Tensor:
    return texts.roll(len(texts) // 2, dims=0)


class Variant(NamedTuple):
    """A way to train.

    everywhere, stage_2: changes of the configuration of all stages, of stage 2 alone.
    texts: what stage 2 makes of the texts of stage 1.
    wrong_labels: whether all stages get the images' labels shuffled.
    """

    stage_2: tuple[str, ...] = ()
    texts: Texts = lambda texts: texts
    everywhere: tuple[str, ...] = ()
    wrong_labels: bool = False


def random_texts(texts: Tensor) -> Tensor:
    return nn.functional.normalize(torch.randn_like(texts), dim=1)


NOT_SCALED = "data.mean=[0, 0, 0]", "data.std=[0.00392, 0.00392, 0.00392]"
SHIFTED = "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"
VARIANTS = {
    "healthy": Variant(),
    "rates x 10": Variant(times(10)),
    "rates x 100": Variant(times(100)),
    "rates / 100": Variant(times(0.01)),
    "texts all zero": Variant(texts=torch.zeros_like),
    "texts of other identities": Variant(texts=roll),
    "texts drawn at random": Variant(texts=random_texts),
    "pixels of stage 2 not scaled": Variant(NOT_SCALED),
    "pixels of stage 2 shifted": Variant(SHIFTED),
    "pixels of all stages shifted": Variant(everywhere=SHIFTED),
    "labels of all stages shuffled": Variant(wrong_labels=True),
}
Row = tuple[dict[str, float], dict[str, Window], dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    found: dict[str, list[Row]] = {name: [] for name in arguments.only}
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data or folder + "/data"
        if not arguments.data:
            generate(Path(root), load_config("demo", overrides).data.demo)
        for seed in arguments.seeds:
            changes = [*overrides, f"seed={seed}"]
            healthy = Stages(load_config("demo", changes), root)
            for name in arguments.only:
                variant = VARIANTS[name]
                stages, here = healthy, [*changes, *variant.everywhere]
                if variant.everywhere or variant.wrong_labels:
                    stages = Stages(load_config("demo", here), root, variant.wrong_labels)
                row = first_epoch(stages, [*here, *variant.stage_2], variant.texts)
                found[name].append(row)
                print(seed, name, row[0], list(row[2]), flush=True)
    shown = Path(arguments.data).name if arguments.data else "the demo set"
    only = "" if len(arguments.only) == len(VARIANTS) else " --only ..."
    seeds = " ".join(map(str, arguments.seeds))
    command = " ".join(["python -m tests.bench.first_epoch", arguments.name, *overrides])
    write(arguments.name, f"{command} --seeds {seeds}{only}", lines(found, shown))


def first_epoch(stages: Stages, overrides: list[str], texts: Texts) -> Row:
    """Mean losses, their windows, and what is outside."""
    config = load_config("demo", overrides)
    torch.manual_seed(config.seed)
    task = MetricTask(config, texts(stages.texts), stages.scale, len(stages.batches))
    figures = train(task, stages.batches)
    windows = task.first_epoch()
    return figures, windows, outside_first_epoch(windows, figures)


def lines(found: dict[str, list[Row]], data: str) -> list[str]:
    """A table: weighted losses, mean over the seeds; in how many seeds outside."""
    windows = next(iter(found.values()))[0][1]
    result = [
        f"Data: {data}. Weighted losses, mean over the steps of the first epoch and over the "
        "seeds; in brackets in how many seeds the loss was outside its window; `caught`: seeds "
        "with any loss outside. Windows are of each run's own configuration, shown those of the "
        "first line.",
        "",
        f"| | {' | '.join(windows)} | caught |",
        f"|---|{'---:|' * (len(windows) + 1)}",
        f"| window | {' | '.join(f'{w.low:.2f} - {w.high:.2f}' for w in windows.values())} | |",
    ]
    for name, rows in found.items():
        cells = []
        for loss in windows:
            mean = statistics.mean(figures[loss] for figures, _, _ in rows)
            times_out = sum(loss in out for _, _, out in rows)
            cells.append(f"{mean:.2f}" + (f" ({times_out})" if times_out else ""))
        caught = sum(bool(out) for _, _, out in rows)
        result.append(f"| {name} | {' | '.join(cells)} | {caught} of {len(rows)} |")
    return result


if __name__ == "__main__":
    main()
