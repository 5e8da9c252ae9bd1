"""Training batches from Ray Data next to a torch DataLoader: images per second.

    python -m tests.bench.step_stream [--steps 150] [--rounds 3] [--workers 1]

Both make the same batches with the same code in as many processes, and one process takes them and
copies each into a tensor; the first steps are not counted. The time to the first batch includes the
start of the processes. Writes `results/step-stream.md`.
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
from pipelines.runtime.resources import connect
from pipelines.runtime.run import Run
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from pipelines.stages.prepare import find_data, prepare
from pipelines.stages.saliency import compute_person_masks
from pipelines.training.batches import UNUSED, BatchPlan
from pipelines.training.training_set import TrainingSet
from pipelines.training.worker import start_batches
from pipelines.workflows.session import find_demo_root
from tests.bench.timing import write

WARM_UP = 30  # steps: processes started, buffers full
Rate = tuple[float, float]  # images per second, seconds to the first batch
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

    def build_step_maker(self, cache_bytes: int = 0) -> StepMaker:
        return super().build_step_maker(self.cache)


class Items(torch.utils.data.Dataset):
    """The same for a DataLoader: item `i` is step `i`."""

    def __init__(self, training_set: TrainingSet, steps: int) -> None:
        self._set, self._steps = training_set, steps
        self._maker: StepMaker | None = None

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        if self._maker is None:  # in the process that uses it
            self._maker = self._set.build_step_maker()
        made = self._maker.make(step)
        return {k: torch.from_numpy(v) for k, v in made.items() if k not in (*UNUSED, "step")}


class Taker:
    """The process that trains, without training."""

    def from_ray_data(self, training_set: TrainingSet, steps: int, workers: int) -> Rate:
        begun = time.perf_counter()
        pipeline = BatchPlan(training_set, steps, workers).build_pipeline(0)
        return rate(start_batches(pipeline.streaming_split(1)[0]), steps, begun)

    def from_loader(self, training_set: TrainingSet, steps: int, workers: int) -> Rate:
        torch.set_num_threads(1)
        begun = time.perf_counter()
        loader = torch.utils.data.DataLoader(
            Items(training_set, steps), batch_size=None, num_workers=workers, prefetch_factor=4
        )
        return rate(loader, steps, begun)


ARMS = {"Ray Data": Taker.from_ray_data, "DataLoader": Taker.from_loader}


def rate(batches: Iterable[dict[str, torch.Tensor]], steps: int, begun: float) -> Rate:
    """Images per second after the warm-up, and seconds from `begun` to the first batch."""
    images, first, mark = 0, 0.0, 0.0
    for step, batch in enumerate(batches):
        if step == 0:
            first = time.perf_counter() - begun
        if step == WARM_UP:
            mark = time.perf_counter()
        elif step > WARM_UP:
            images += len(batch["images"])
        batch["images"][0].sum()
        if step == steps - 1:
            break
    return images / (time.perf_counter() - mark), first


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
    prepared = prepare(run, find_data(config.data, find_demo_root(run)))
    masks = compute_person_masks(run, prepared)
    found = {}
    for name, (probability, cache) in CASES.items():
        occlusion = config.occlusion.model_copy(update={"probability": probability})
        changed = config.model_copy(update={"occlusion": occlusion})
        found[name] = Measured(changed, folder, prepared.key, masks.key, cache=cache)
    return found


def measure(folder: str, steps: int, rounds: int, workers: int) -> list[str]:
    lines = [
        f"{workers} process(es) make batches of 64 images of 256x128 (demo set, JPEG), one takes "
        f"them; {steps - WARM_UP} steps counted, median of {rounds} turns. Ratios: of Ray Data "
        "to the others. First batch: seconds, median over all turns, processes started.",
        "",
        f"| work | {' | '.join(f'{arm}, images/s' for arm in ARMS)} | ratios | first batch |",
        "|---|" + "---:|" * (len(ARMS) + 2),
    ]
    taker = ray.remote(Taker).options(num_cpus=0)
    for name, measured in measured_sets(folder).items():
        found: dict[str, list[Rate]] = {arm: [] for arm in ARMS}
        for _ in range(rounds):
            for arm, take in ARMS.items():
                one = taker.remote()
                method = getattr(one, take.__name__)
                found[arm].append(ray.get(method.remote(measured, steps, workers)))
                ray.kill(one)
        rates, firsts = (
            [statistics.median(turn[place] for turn in turns) for turns in found.values()]
            for place in (0, 1)
        )
        cells = [f"{value:,.0f}" for value in rates]
        cells.append(", ".join(f"{rates[0] / other:.2f}" for other in rates[1:]))
        cells.append(", ".join(f"{first:.1f}" for first in firsts))
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], found, flush=True)
    return lines


if __name__ == "__main__":
    main()
