"""The step stream against a torch DataLoader: images a second, and how much memory they keep.

    python -m tests.bench.step_stream [--steps 150] [--rounds 3] [--workers 1]

Both make the same batches with the same code in as many processes, and one process takes them and
copies each into a tensor; the first steps are not counted. Writes `results/step-stream.md`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass

import ray
import torch

from dpmpp_core.config import load_config
from dpmpp_core.data.steps import StepMaker
from pipelines.cluster import connect
from pipelines.prepare import find_data, prepare
from pipelines.run import _demo_root
from pipelines.saliency import saliency
from pipelines.stage import Run
from pipelines.storage import Storage
from pipelines.stream import UNUSED, TrainingSet, data_workers, stream_steps
from pipelines.tracking import Tracking
from tests.bench.timing import write

WARM_UP = 30  # steps: processes started, buffers full
CASES = {
    "decode, augment": (0.0, 0),
    "the same and patch transfer": (0.5, 0),
    "decoded images in memory, augment": (0.0, 2**30),
    "the same and patch transfer, in memory": (0.5, 2**30),
}


@dataclass(frozen=True)
class Measured(TrainingSet):
    """A training set whose workers keep so many bytes of decoded images."""

    cache: int = 0

    def step_maker(self, cache_bytes: int = 0) -> StepMaker:
        return super().step_maker(self.cache)


class Items(torch.utils.data.Dataset):
    """The same for a DataLoader: item `i` is step `i`."""

    def __init__(self, training_set: TrainingSet, steps: int) -> None:
        self._set, self._steps = training_set, steps
        self._maker: StepMaker | None = None

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        if self._maker is None:  # in the process that uses it
            self._maker = self._set.step_maker()
        made = self._maker.make(step)
        return {k: torch.from_numpy(v) for k, v in made.items() if k not in (*UNUSED, "step")}


@ray.remote(num_cpus=0)
class Taker:
    """The process that trains, without training."""

    def from_stream(self, workers: list, steps: int) -> float:
        return rate(stream_steps(workers, 0, steps), steps)

    def from_loader(self, training_set: TrainingSet, steps: int, workers: int) -> float:
        torch.set_num_threads(1)
        loader = torch.utils.data.DataLoader(
            Items(training_set, steps), batch_size=None, num_workers=workers, prefetch_factor=4
        )
        return rate(loader, steps)


def rate(batches: Iterable[dict[str, torch.Tensor]], steps: int) -> float:
    """Images a second after the warm-up."""
    images, begun = 0, 0.0
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            begun = time.perf_counter()
        elif step > WARM_UP:
            images += len(batch["images"])
        batch["images"][0].sum()
        if step == steps - 1:
            break
    return images / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(folder, arguments.steps, arguments.rounds, arguments.workers)
    command = f"python -m tests.bench.step_stream --steps {arguments.steps}"
    write(
        "step-stream", f"{command} --rounds {arguments.rounds} --workers {arguments.workers}", lines
    )


def measured_sets(folder: str) -> dict[str, Measured]:
    """The demo set, with its masks, by what is to be done."""
    config = load_config("demo", ["saliency.provider=spectral", "cluster.data_workers=4"])
    plan, _ = connect(None, config.cluster)
    run = Run(config, Storage(folder), Tracking(""), plan)
    prepared = prepare(run, find_data(config.data, _demo_root(run)))
    masks = saliency(run, prepared)
    found = {}
    for name, (probability, cache) in CASES.items():
        occlusion = config.occlusion.model_copy(update={"probability": probability})
        changed = config.model_copy(update={"occlusion": occlusion})
        found[name] = Measured(changed, folder, prepared.key, masks.key, cache=cache)
    return found


def measure(folder: str, steps: int, rounds: int, workers: int) -> list[str]:
    lines = [
        f"{workers} process(es) make batches of 64 images of 256x128 (demo set, JPEG), one takes "
        f"them; {steps - WARM_UP} steps counted, median of {rounds} turns.",
        "",
        "| work | step stream, images/s | DataLoader | ratio | bar |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, measured in measured_sets(folder).items():
        rates: dict[str, list[float]] = {"stream": [], "loader": []}
        for _ in range(rounds):
            taker = Taker.remote()  # type: ignore[attr-defined]
            with data_workers(measured, workers) as makers:
                rates["stream"].append(ray.get(taker.from_stream.remote(makers, steps)))
            ray.kill(taker)
            taker = Taker.remote()  # type: ignore[attr-defined]
            rates["loader"].append(ray.get(taker.from_loader.remote(measured, steps, workers)))
            ray.kill(taker)
        ours, theirs = (statistics.median(rates[who]) for who in ("stream", "loader"))
        bar = 0.85 if CASES[name][0] else 0.95
        lines.append(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} | {bar} |")
        print(lines[-1], rates, flush=True)
    return lines


if __name__ == "__main__":
    main()
