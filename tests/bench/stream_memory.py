"""The step stream over a manifest of many rows: resident memory of all its processes over time.

    python -m tests.bench.stream_memory [--rows 200000] [--minutes 3]

The files are links to the images of a small demo set; manifest, masks and stream are the real ones.
Writes `results/stream-memory.md` and `.png`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import ray

from dpmpp_core.config import Config, DemoConfig, load_config
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.demo import generate
from pipelines.reporting.figures import create_panels, rasterise
from pipelines.runtime.resources import connect
from pipelines.runtime.storage import Storage
from pipelines.training.batches import BatchPlan
from pipelines.training.masks import save_masks, transfer_grid
from pipelines.training.training_set import TrainingSet
from pipelines.training.worker import start_batches
from tests.bench.prepare_speed import inspected
from tests.bench.timing import RESULTS, write

STEPS = 1_000_000  # of the training that is streamed, of which the first are taken
WARM_UP = 60  # seconds
BLOCKS = 6  # of the counted time; flat means that the last holds no more than the second

TITLES = {
    "data workers": ("ray::MapWorker", "ray::_MapWorker"),
    "the process that takes": ("ray::Taker",),
    "the coordinator": ("ray::SplitCoordinator",),
    "the driver": ("tests.bench.stream_memory",),
    "Ray's node and control store": ("raylet/raylet", "gcs_server"),
}
STORE = "object store, pages touched"


@ray.remote(num_cpus=0)
class Taker:
    """The process that trains, without training."""

    def take(self, training_set: TrainingSet, workers: int, seconds: float) -> tuple[int, int]:
        """Steps and images taken in that time."""
        end, steps, images = time.monotonic() + seconds, 0, 0
        pipeline = BatchPlan(training_set, STEPS, workers).build_pipeline(0)
        for batch in start_batches(pipeline.streaming_split(1)[0]):
            steps, images = steps + 1, images + len(batch["images"])
            if time.monotonic() > end:
                break
        return steps, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=3.0)
    arguments = parser.parse_args()
    config = load_config("demo")
    plan, _ = connect(None, config.cluster)
    with tempfile.TemporaryDirectory() as folder:
        training_set = make_training_set(Path(folder), config, arguments.rows)
        trained_on = len(training_set.rows()[1])
        taker = Taker.remote()  # type: ignore[attr-defined]
        workers = plan.data_workers
        taken = taker.take.remote(training_set, workers, 60 * arguments.minutes)
        seconds, curves = watch(taken)
        done, images = ray.get(taken)
    cv2.imwrite(str(RESULTS / "stream-memory.png"), picture(seconds, curves)[..., ::-1])
    command = f"python -m tests.bench.stream_memory --rows {arguments.rows}"
    lines = [
        f"{arguments.rows:,} rows ({trained_on:,} of them to train), "
        f"{plan.data_workers} data worker(s), {done:,} of {STEPS:,} steps, {images:,} images. "
        "Resident memory in MB, shared pages apart; mean of each sixth of the "
        "time.",
        "",
        "| process | " + " | ".join(str(i + 1) for i in range(BLOCKS)) + " |",
        "|---|" + "---:|" * BLOCKS,
    ]
    for name, curve in curves.items():
        means = [part.mean() for part in np.array_split(np.array(curve), BLOCKS)]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.0f}" for mean in means) + " |")
    write("stream-memory", f"{command} --minutes {arguments.minutes}", lines)


def make_training_set(folder: Path, config: Config, rows: int) -> TrainingSet:
    """A prepared stage of so many rows, and random masks for them."""
    demo, data = folder / "demo", folder / "data"
    generate(demo, DemoConfig(train_identities=8, test_identities=4, cameras=3, train_images=6))
    some = sorted((demo / "bounding_box_train").glob("*.jpg"))
    table = inspected(rows)
    for number, path in enumerate(table["path"].to_pylist()):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(some[number % len(some)], data / path)
    storage = Storage(str(folder / "runs"))
    manifest = Manifest.build(str(data), "market1501", table, [])
    with storage.commit("stages/prepare") as (target, _):
        manifest.save(target)
    paths = sorted(set(manifest.images["path"].to_pylist()))
    masks = np.random.default_rng(0).random((len(paths), *transfer_grid(config))) < 0.4
    with storage.commit("stages/saliency") as (target, _):
        save_masks(target, paths, masks)
    return TrainingSet(config, storage.uri, "stages/prepare", "stages/saliency")


def watch(taken: ray.ObjectRef) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds, and MB by kind of process at each, once the workers' image caches are full."""
    time.sleep(WARM_UP)
    begun, seconds = time.monotonic(), []
    curves: dict[str, list[float]] = {name: [] for name in (*TITLES, STORE)}
    while not ray.wait([taken], timeout=1)[0]:
        seconds.append(time.monotonic() - begun)
        found = dict.fromkeys(curves, 0.0)
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            for name, value in _memory(process):
                found[name] += value
        for name, value in found.items():
            curves[name].append(value)
    return seconds, curves


def _memory(process: psutil.Process) -> Iterator[tuple[str, float]]:
    """MB of a process by kind: pages of its own, and what Ray's node shares with all."""
    try:
        title, memory = " ".join(process.cmdline()[:3]), process.memory_info()
    except psutil.Error:
        return
    for name, wanted in TITLES.items():
        if any(part in title for part in wanted):
            yield name, (memory.rss - memory.shared) / 1e6
    if "raylet/raylet" in title:
        yield STORE, memory.shared / 1e6


def picture(seconds: list[float], curves: dict[str, list[float]]) -> np.ndarray:
    figure, (axes,) = create_panels(1, width=7.0, height=3.6)
    for name, curve in curves.items():
        axes.plot(seconds, curve, label=name, lw=1.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds of streaming")
    axes.set_ylabel("resident memory, MB")
    axes.legend(fontsize=8)
    return rasterise(figure)


if __name__ == "__main__":
    main()
