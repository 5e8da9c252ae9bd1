"""Which encoder learning rate suits the ends of the ablation, on identities held out of training.

    python -m tests.bench.learning_rates [--variants plain default] [--seeds 0 1]
        [--storage runs/learning-rates]

Half of the training identities of the recipe `proof` are held out; their queries are occluded as
`dpmpp tune` does it. No test query is looked at. Every result is written at once and never trained
again: the same command continues. Writes `results/learning-rates.md`.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from dpmpp_core.config.grid import load_grid
from pipelines.reporting.ablation_table import format_mean_std
from tests.bench.search_trials import Memory, Workshop, print_each
from tests.bench.timing import write

RATES = (3.125e-6, 6.25e-6, 1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)
KEY = "metric.encoder_lr"

_workshop: Workshop  # made before the processes that train are forked


def main() -> None:
    global _workshop
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=["plain", "default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--storage", type=Path, default=Path("runs/learning-rates"))
    arguments = parser.parse_args()
    arguments.storage.mkdir(parents=True, exist_ok=True)
    _workshop = Workshop(arguments.storage / "data", "proof", [])
    file = arguments.storage / "measured.jsonl"
    jobs = product([file], arguments.variants, RATES, arguments.seeds)
    print_each(measure, jobs)
    memory = Memory(_workshop, file)
    rows = [
        " | ".join([f"| {v}", f"{rate:g}", *figures(memory, v, rate, arguments.seeds)]) + " |"
        for v in arguments.variants
        for rate in RATES
    ]
    seeds = " ".join(map(str, arguments.seeds))
    command = f"python -m tests.bench.learning_rates --seeds {seeds}"
    counts = _workshop.counts()
    write("learning-rates", command, [
        f"mAP in percent with masks, on identities held out of the training set of `proof`; mean ± "
        f"std over {len(arguments.seeds)} training seeds. {counts}",
        "",
        f"| variant | {KEY} | occluded | whole |",
        "|---|---:|---:|---:|",
        *rows,
    ])  # fmt: skip


def measure(file: Path, variant: str, rate: float, seed: int) -> str:
    values = Memory(_workshop, file).measure(changes(variant, rate), _epochs(), seed)
    return f"{variant}, {rate:g}, seed {seed}: {values}"


def figures(memory: Memory, variant: str, rate: float, seeds: list[int]) -> list[str]:
    found = [memory.measure(changes(variant, rate), _epochs(), seed) for seed in seeds]
    return [format_mean_std([one[name] for one in found]) for name in ("occluded", "holistic")]


def changes(variant: str, rate: float) -> dict[str, Any]:
    pairs = (item.split("=", 1) for item in load_grid("method").overrides(variant))
    return {key: json.loads(value) for key, value in pairs} | {KEY: rate}


def _epochs() -> int:
    return int(_workshop.base.metric.epochs)


if __name__ == "__main__":
    main()
