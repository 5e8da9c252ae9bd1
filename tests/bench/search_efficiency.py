"""What `dpmpp tune` finds for its epochs, beside plain random search.

    python -m tests.bench.search_efficiency [--seeds 0 1 ...] [--arms tpe random ...]
        [--storage runs/search-efficiency] [--report]

Runs whole searches, several seeds an arm, through the same `Study` that `dpmpp tune` asks, each
for BUDGET epochs of training. A trial is real training (`search_trials`). Every result is written
at once, and what is there is not trained again; the same command goes on. `--report` only writes
`results/search-efficiency.md`, `.png` and `.json` from what there is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from dpmpp_core.config.space import load_space
from pipelines.storage import Storage
from pipelines.study import Study
from pipelines.tracking import look_up
from pipelines.tune import rung_epochs
from tests.bench.search_trials import Memory, Workshop

ARMS = {"random": ("random", 1), "tpe": ("tpe", 1), "random, rungs": ("random", 2),
        "tpe, rungs": ("tpe", 2)}  # fmt: skip
BUDGET = 120  # epochs trained: 20 whole trials
AGAIN = (1, 2)  # other training seeds, with which the best of each search is trained again

_workshop: Workshop  # made before the processes that run searches are forked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--storage", type=Path, default=Path("runs/search-efficiency"))
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    global _workshop
    arguments.storage.mkdir(parents=True, exist_ok=True)
    _workshop = Workshop(arguments.storage / "data")
    if not arguments.report:
        jobs = [
            (arguments.storage, arm, seed) for arm in arguments.arms for seed in arguments.seeds
        ]
        run(jobs)


def run(jobs: list[tuple[Path, str, int]]) -> None:
    """The searches, two at a time: a trial takes one core."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        for done in as_completed([pool.submit(search, *job) for job in jobs]):
            print(done.result(), flush=True)


def search(folder: Path, arm: str, seed: int) -> str:
    """One search to the end of its budget, and its best with other training seeds; a line."""
    memory, one = Memory(_workshop, folder / "measured.jsonl"), study(folder, arm, seed)
    while one.unfinished or spent(one) < BUDGET:
        trial = one.ask()
        for epochs in one.rungs:
            values = memory.measure(trial.changes, epochs)
            if not one.measured(trial.number, epochs, values):
                break
    best = one.front()[0]
    again = [memory.measure(best.changes, one.rungs[-1], s)["occluded"] for s in AGAIN]
    figures = ", ".join(f"{100 * value:.2f}" for value in (best.last["occluded"], *again))
    return f"{arm}, seed {seed}: {len(one.trials)} trials, best {best.number}: {figures}"


def study(folder: Path, arm: str, seed: int) -> Study:
    """The search as `dpmpp tune` makes it, from its journal."""
    algorithm, rungs = ARMS[arm]
    space, base = load_space("default"), _workshop.base
    values = base.model_dump(mode="json")
    return Study(
        Storage(str(folder)),
        f"{arm.replace(', ', '-')}-{seed}.json",
        space,
        {key: look_up(values, key) for key in space},
        ("occluded",),
        rung_epochs(base.metric.epochs, rungs),
        algorithm,
        seed,
    )


def spent(one: Study) -> int:
    """Epochs trained: each rung is a training of its own."""
    return sum(sum(trial.rungs) for trial in one.trials)


if __name__ == "__main__":
    main()
