"""A whole stage-2 step against a plain CLIP-ReID one on the same encoder.

    python -m tests.bench.stage2_step [--rounds 5] [--batch 8] [--only plain joint ...]

ViT-B/16 with random weights, 256x128, 751 identities, the recipe's precision for this machine, all
losses on; forward, backward and Adam. Bar: 1.15 times the plain step for `joint`, the paper's form.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpmpp_core.config import load_config
from dpmpp_core.losses.cross_entropy import cross_entropy
from dpmpp_core.losses.triplet import batch_hard_triplet
from dpmpp_core.tasks.metric import MetricTask
from tests.bench.timing import describe_turns, interleaved, write

IDENTITIES = 751
PAPER = ["model.mask_generator=light"]
BANDS = ["model.mask_generator=none", "model.bands=8"]
VARIANTS = {
    "plain": PAPER,
    "joint": PAPER,
    "alternating": [*PAPER, "metric.update=alternating"],
    "full": ["model.mask_generator=full"],
    "bands": BANDS,
    "attention": [*BANDS, "model.attention_mask_depth=0.33"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch = random_batch(arguments.batch)
    steps = {name: step_of(name, batch) for name in arguments.only}
    seconds = interleaved(steps, arguments.rounds)
    ratios = {
        name: [a / b for a, b in zip(values, seconds["plain"], strict=True)]
        for name, values in seconds.items()
    }
    rows = [
        f"| {name} | {min(values):.3f} | {statistics.median(values):.3f} | "
        f"{min(values) / min(seconds['plain']):.3f} | {statistics.median(ratios[name]):.3f} |"
        for name, values in seconds.items()
    ]
    write(
        "stage2_step",
        f"python -m tests.bench.stage2_step --rounds {arguments.rounds} --batch {arguments.batch} "
        f"--threads {arguments.threads} --only {' '.join(arguments.only)}",
        [
            describe_turns(),
            "",
            "| step | least s | median s | x plain (least) | x plain (median of turns) |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            f"ViT-B/16, {arguments.batch} images of 256x128, {IDENTITIES} identities, forward, "
            "backward, Adam; bf16 autocast where the CPU computes it. `plain`: identity losses in "
            "both spaces, three triplets, image-to-text cross entropy (CLIP-ReID). `joint`: "
            "everything of stage 2 with the light mask generator; `alternating`: the same in two "
            "passes; `full`: joint with DPM's generator; `bands`: no generator but "
            "masked bands, whose visibility head reads half a batch more; `attention`: with the "
            "attention mask too, the default. Bars: joint 1.15, attention 1.25.",
            "",
            "Multiply-adds an image, counted: encoder 11.3 G; light generator 0.12 G (1.1 %), of "
            "which the 1x1 convolution over the four taps 0.10 G; class attention, one key "
            "projection, 0.08 G (0.7 %); masked logits 0.004 G. So `joint` needs 2 % more than "
            "`plain`, and no rearrangement of the generator could win more than that. DPM's "
            "generator needs 5.8 G (51 %), and Adam 59 M more parameters; the second pass of "
            "`alternating` is a forward pass of the encoder (a third of the plain step) and a "
            "generator pass. `bands`: the forward pass of half a batch, a sixth of the plain step; "
            "the head itself 0.05 G an image. `attention`: a third of that pass, since the head "
            "reads early blocks only.",
        ],
    )


def random_batch(size: int) -> dict[str, Tensor]:
    labels = torch.arange(size) // 4
    donors = torch.where(torch.arange(size) % 2 == 0, (labels + 1) % labels.max().add(1), -1)
    images = torch.randint(0, 256, (size, 256, 128, 3), dtype=torch.uint8)
    visible = torch.rand(size, 16, 8) < 0.5
    covered = {"covered": images[::2], "masked": ~visible, "known": donors >= 0}
    for name, patches in (("visible", visible), ("occluded", ~visible), ("foreign", ~visible)):
        covered |= {name: patches, f"covered_{name}": patches[::2]}
    return {
        "images": images,
        "labels": labels,
        "donor_labels": donors,
    } | covered


def step_of(name: str, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One whole update, as pipelines.training.worker makes it."""
    config = load_config("market1501", ["model.pretrained=null", *VARIANTS[name]])
    task = MetricTask(config, torch.randn(IDENTITIES, 512), 1.0, 100).train()
    optimiser = task.optimiser()

    def losses_of(phase: str) -> Tensor:
        if name == "plain":
            return plain_losses(task, batch)
        return torch.stack(list(task(batch, phase)[0].values())).sum()

    def step() -> None:
        for phase in task.phases:
            optimiser.zero_grad()
            losses_of(phase).backward()
            task.filter_gradients(phase)
            optimiser.step()

    return step


def plain_losses(task: MetricTask, batch: dict[str, Tensor]) -> Tensor:
    """CLIP-ReID's second stage: no taps, no head attention, no mask, no masked logits."""
    labels, weights = batch["labels"], task.config.metric.loss
    with task.autocast():
        block11, visual, joint = class_tokens(task.model.encoder.tower, task, batch["images"])
    features = {"visual": visual.float(), "joint": joint.float()}
    loss = weights.text * task._text(features["joint"], labels, torch.full_like(labels, -1))
    for feature in (block11.float(), *features.values()):
        loss = loss + batch_hard_triplet(feature, labels, weights.triplet_margin)
    for name, feature in features.items():
        logits = task.prototypes.plain(name, task.model.necks[name](feature))
        smoothing = weights.label_smoothing
        loss = loss + weights.identity * cross_entropy(logits, labels, smoothing)
    return loss


def class_tokens(tower: nn.Module, task: MetricTask, images: Tensor) -> tuple[Tensor, ...]:
    x = tower.conv1(task.normalise(images)).flatten(2).transpose(1, 2)
    cls = tower.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    x = tower.ln_pre(torch.cat([cls, x], dim=1) + tower.positional_embedding.to(x.dtype))
    for block in tower.transformer.resblocks:
        before_last, x = x, block(x)
    visual = tower.ln_post(x[:, 0])
    return before_last[:, 0], visual, visual @ tower.proj


if __name__ == "__main__":
    main()
