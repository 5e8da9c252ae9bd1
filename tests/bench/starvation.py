"""How long an accelerator waits for batches: step time simulated, against the workers' raw rate.

    python -m tests.bench.starvation [--steps 150] [--workers 1 2]

The process that trains sleeps for the time of a step, as a host does while its accelerator works.
Slack is that time over the time in which the data workers make a batch when nobody lets them wait.
Writes `results/starvation.md`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import ray
import torch

from pipelines.training.batches import BatchPlan
from pipelines.training.worker import start_batches
from tests.bench.step_stream import Measured, measured_sets
from tests.bench.timing import write

WARM_UP = 40  # steps: processes started, buffers full
SLACKS = (0.9, 1.1, 1.3, 2.0)


@ray.remote(num_cpus=0)
class Trainer:
    def run(
        self, training_set: Measured, workers: int, seconds: float, steps: int
    ) -> tuple[float, float]:
        """Seconds per step, and the share of them spent waiting, after the warm-up."""
        waited = begun = 0.0
        mark = time.perf_counter()
        pipeline = BatchPlan(training_set, steps, workers).build_pipeline(0)
        batches = start_batches(pipeline.streaming_split(1)[0])
        for step, batch in enumerate(batches):
            now = time.perf_counter()
            waited += now - mark
            if step == WARM_UP:
                waited, begun = 0.0, now
            torch.stack([value.sum() for value in batch.values()])  # all of it is read
            time.sleep(max(0.0, now + seconds - time.perf_counter()))
            mark = time.perf_counter()
        whole = mark - begun
        return whole / (steps - WARM_UP), waited / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = [
        f"Batches of 64 images of 256x128 with patch transfer (demo set, JPEG); "
        f"{arguments.steps - WARM_UP} steps counted. Bar: at most 2 % waiting at a slack of 1.3.",
        "",
        "| data workers | raw step, ms | slack | step T, ms | T with waiting, ms | waiting |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        training_set = measured_sets(folder)["the same and patch transfer"]
        for workers in arguments.workers:
            raw, _ = run(training_set, workers, 0.0, arguments.steps)
            for slack in SLACKS:
                took, share = run(training_set, workers, raw * slack, arguments.steps)
                lines.append(
                    f"| {workers} | {1e3 * raw:.1f} | {slack} | {1e3 * raw * slack:.1f} | "
                    f"{1e3 * took:.1f} | {100 * share:.1f} % |"
                )
                print(lines[-1], flush=True)
    workers_given = " ".join(map(str, arguments.workers))
    command = f"python -m tests.bench.starvation --steps {arguments.steps}"
    write("starvation", f"{command} --workers {workers_given}", lines)


def run(training_set: Measured, workers: int, seconds: float, steps: int) -> tuple[float, float]:
    trainer = Trainer.remote()  # type: ignore[attr-defined]
    found = ray.get(trainer.run.remote(training_set, workers, seconds, steps))
    ray.kill(trainer)
    return found


if __name__ == "__main__":
    main()
