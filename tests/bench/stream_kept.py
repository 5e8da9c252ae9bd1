"""What each process of the step stream keeps, by step and by second.

    python -m tests.bench.stream_kept [--seconds 150] [--pauses 0 0.05]

Streams small steps, once as fast as they are taken and once slowly. What grows by the step grows
slower in the slow run; what grows by time grows alike. Writes `results/stream-kept.md`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import ray

from dpmpp_core.config import load_config
from pipelines.runtime.resources import connect
from pipelines.training.batches import BatchPlan
from pipelines.training.training_set import TrainingSet
from pipelines.training.worker import start_batches
from tests.bench.stream_memory import make_training_set
from tests.bench.timing import write

SMALL = ["data.height=64", "data.width=32", "metric.identities=2", "metric.images=2"]
STEPS = 50_000
WARM_UP = 40  # seconds
TITLES = {
    "coordinator": "ray::SplitCoordinator",
    "data worker": "MapWorker",
    "raylet": "raylet/raylet",
    "control store": "gcs_server",
    "Ray Data's `_StatsActor`": "ray::_StatsActor",
    "the process that takes": "ray::SlowTaker",
}


@ray.remote(num_cpus=0, max_concurrency=2)
class SlowTaker:
    """The process that trains, without training."""

    def __init__(self) -> None:
        self._steps, self._ended = 0, False

    def take(self, training_set: TrainingSet, pause: float) -> None:
        """Take steps, and wait so many seconds after each, until the end."""
        pipeline = BatchPlan(training_set, STEPS, 1).build_pipeline(0)
        for _ in start_batches(pipeline.streaming_split(1)[0]):
            self._steps += 1
            time.sleep(pause)
            if self._ended:
                return

    def steps(self) -> int:
        return self._steps

    def end(self) -> None:
        self._ended = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--pauses", type=float, nargs="+", default=[0.0, 0.05])
    arguments = parser.parse_args()
    config = load_config("demo", SMALL)
    lines = [
        f"Steps of 4 images of 64x32, one data worker. Growth of resident memory, shared pages "
        f"apart, in {arguments.seconds:.0f} s after {WARM_UP} s: a straight line fitted to a "
        "reading per second.",
    ]
    connect(None, config.cluster)
    with tempfile.TemporaryDirectory() as folder:
        training_set = make_training_set(Path(folder), config, 2000)
        for pause in arguments.pauses:
            lines += ["", *run(training_set, pause, arguments.seconds)]
    write("stream-kept", "python -m tests.bench.stream_kept", lines)


def run(training_set: TrainingSet, pause: float, seconds: float) -> list[str]:
    """A table: growth of each process per step and per second."""
    taker = SlowTaker.remote()  # type: ignore[attr-defined]
    taken = taker.take.remote(training_set, pause)
    time.sleep(WARM_UP)
    first, begun = ray.get(taker.steps.remote()), time.monotonic()
    times, readings = [], []
    while (now := time.monotonic() - begun) < seconds:
        times.append(now)
        readings.append(_memory())
        time.sleep(1)
    steps = ray.get(taker.steps.remote()) - first
    ray.get(taker.end.remote())
    ray.get(taken)
    ray.kill(taker)
    lines = [
        f"{steps:,} steps, {steps / seconds:.0f} per second:",
        "",
        "| process | kB per step | kB per second |",
        "|---|---:|---:|",
    ]
    for name in TITLES:
        slope = np.polyfit(times, [one[name] / 1e3 for one in readings], 1)[0]
        lines.append(f"| {name} | {slope * seconds / steps:.2f} | {slope:.1f} |")
    return lines


def _memory() -> dict[str, float]:
    """Bytes by process, of the children of this one."""
    found = dict.fromkeys(TITLES, 0.0)
    for process in psutil.Process().children(recursive=True):
        try:
            title, memory = " ".join(process.cmdline()[:3]), process.memory_info()
        except psutil.Error:
            continue
        for name, wanted in TITLES.items():
            if wanted in title:
                found[name] += memory.rss - memory.shared
    return found


if __name__ == "__main__":
    main()
