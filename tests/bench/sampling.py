"""Two ways to sample identities, on a training set with few large and many small ones.

    python -m tests.bench.sampling [--seeds 0 1 2 3 4] [--storage runs/sampling]

Generated people, of whom each keeps 2 to 16 of its 16 training images. Both samplings train the
same number of steps, and are measured on other identities with all of their images. Every result
is written at once and never trained again. Writes `results/sampling.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpmpp_core.data.plan import StepPlan, class_labels
from pipelines.reporting.ablation_table import format_mean_std
from tests.bench.search_trials import Memory, Workshop, print_each
from tests.bench.timing import write

BASE = [
    "data.height=128", "data.width=64", "data.demo.train_identities=160", "data.demo.cameras=3",
    "data.demo.train_images=16", "metric.identities=8", "metric.epochs=10",
]  # fmt: skip
LEAST, MOST = 2, 16  # training images of an identity
SAMPLINGS = ("identities", "images")


class SkewedWorkshop(Workshop):
    """A workshop in which most training identities have few images."""

    def _rows(self, split: str) -> NDArray[np.int64]:
        rows = super()._rows(split)
        if split != "train":
            return rows
        # A quarter of the identities has half of the images, as in collections from the web.
        labels, classes = class_labels(self._pids[rows])
        draws = np.random.default_rng(0).random(len(classes))
        sizes = LEAST + np.round((MOST - LEAST) * draws**3).astype(int)
        kept = [rows[labels == label][:size] for label, size in enumerate(sizes)]
        return np.sort(np.concatenate(kept))

    def views(self, by_images: bool) -> tuple[float, float]:
        """How often an image is seen per epoch: of the smallest identities, and of the largest."""
        rows = self._rows("train")
        labels, classes = class_labels(self._pids[rows])
        metric = self.base.metric
        plan = StepPlan(labels, self._camids[rows], metric.identities, metric.images, 0,
                        by_images=by_images)  # fmt: skip
        seen = np.zeros(len(rows))
        for epoch in range(metric.epochs):
            for step in range(plan.steps_per_epoch):
                np.add.at(seen, plan.rows(epoch, step), 1 / metric.epochs)
        sizes = np.bincount(labels, minlength=len(classes))[labels]
        return float(seen[sizes == LEAST].mean()), float(seen[sizes == sizes.max()].mean())


_workshop: SkewedWorkshop  # made before the processes that train are forked


def main() -> None:
    global _workshop
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--storage", type=Path, default=Path("runs/sampling"))
    arguments = parser.parse_args()
    arguments.storage.mkdir(parents=True, exist_ok=True)
    _workshop = SkewedWorkshop(arguments.storage / "data", "demo", BASE)
    file = arguments.storage / "measured.jsonl"
    print_each(measure, product([file], SAMPLINGS, arguments.seeds))
    write_table(file, arguments.seeds)


def measure(file: Path, sampling: str, seed: int) -> dict[str, float]:
    changes = {"metric.sampling": sampling}
    return Memory(_workshop, file).measure(changes, _workshop.base.metric.epochs, seed)


def write_table(file: Path, seeds: Sequence[int]) -> None:
    figures = {s: [measure(file, s, seed) for seed in seeds] for s in SAMPLINGS}
    lines = [
        "Generated people, pictures of 128x64, 2 to 16 training images per identity. mAP in "
        f"percent on identities that were not trained; mean ± std over {len(seeds)} training "
        "seeds, the difference paired with its 95 % interval (Student's t).",
        "",
        "| sampling | an image of the smallest identities, times per epoch | of the largest | "
        "occluded | whole |",
        "|---|---:|---:|---:|---:|",
    ]
    for sampling, found in figures.items():
        small, large = _workshop.views(sampling == "images")
        cells = [format_mean_std([one[name] for one in found]) for name in ("occluded", "holistic")]
        lines.append(f"| {sampling} | {small:.2f} | {large:.2f} | {' | '.join(cells)} |")
    gains = []
    for name in ("occluded", "holistic"):
        by_identities, by_images = ([one[name] for one in figures[s]] for s in SAMPLINGS)
        gap = 100 * (np.array(by_images) - by_identities)
        half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5
        gains.append(f"{gap.mean():+.1f} [{gap.mean() - half:+.1f}, {gap.mean() + half:+.1f}]")
    lines.append(f"| images over identities | | | {' | '.join(gains)} |")
    lines += ["", f"{_workshop.counts()} That is before the cut."]
    seeds_named = " ".join(map(str, seeds))
    write("sampling", f"python -m tests.bench.sampling --seeds {seeds_named}", lines)


if __name__ == "__main__":
    main()
