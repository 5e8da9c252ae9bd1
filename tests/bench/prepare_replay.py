"""What `prepare` of 10,000,000 images asks of the head of a cluster: a replay without the pictures.

    python -m tests.bench.prepare_replay [--images 10000000] [--workers 8]

Ray Data gets the tasks that `prepare` would give it, cut for 64 workers, and each writes its part
of the inspection record as it would, with figures made up instead of read from a picture. What is
left is what the driver, Ray's control store and its node spend on it. Writes
`results/prepare-replay.md`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray

from pipelines.runtime.blocks import map_blocks
from pipelines.runtime.resources import ENVIRONMENT, set_up_data
from pipelines.runtime.storage import Storage
from pipelines.stages.inspection_cache import (
    CACHE_SCHEMA,
    FILE_SCHEMA,
    RESULT_SCHEMA,
    InspectionCache,
)
from pipelines.stages.prepare import task_images
from tests.bench.timing import write

CLUSTER_WORKERS = 64
PROCESSES = {
    "driver": "tests.bench.prepare_replay",
    "control store": "gcs_server",
    "node": "raylet",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=8, help="tasks at a time, here")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    ray.init(num_cpus=arguments.workers, log_to_driver=False, logging_level="WARNING")
    set_up_data(ray.data.DataContext.get_current(), ())
    with tempfile.TemporaryDirectory() as folder:
        lines = replay(arguments.images, arguments.workers, folder)
    command = f"python -m tests.bench.prepare_replay --images {arguments.images}"
    write("prepare-replay", f"{command} --workers {arguments.workers}", lines)


def replay(images: int, workers: int, folder: str) -> list[str]:
    todo = files(images)
    size = task_images(images, CLUSTER_WORKERS)
    blocks = [todo.slice(start, size).combine_chunks() for start in range(0, images, size)]
    del todo

    def look(block: pa.Table) -> pa.Table:
        InspectionCache(Storage(folder), "replay").add(made_up(block))
        return pa.table({"done": [len(block)]})

    seconds, peaks = watched(lambda: map_blocks(look, blocks, workers, "replayed"))
    record = InspectionCache(Storage(folder), "replay")
    reading, read = watched(record.read)
    tasks = len(blocks) / seconds
    lines = [
        f"{images:,} images in {len(blocks):,} tasks of {size:,} images, {workers} at a time here, "
        f"each writing one object of the inspection record. {seconds:.0f} s: {tasks:.0f} tasks a "
        f"second, so the head can hand out {tasks * size:,.0f} images a second. Reading the record "
        f"again, all rows: {reading:.0f} s.",
        "",
        "| process | peak RSS while the tasks ran, MB | while the record was read, MB |",
        "|---|---:|---:|",
    ]
    return lines + [f"| {name} | {peaks[name]:,.0f} | {read[name]:,.0f} |" for name in PROCESSES]


def files(count: int) -> pa.Table:
    """Made-up files, FILE_SCHEMA."""
    number = np.arange(count)
    names = np.char.add(np.char.zfill(number.astype("U8"), 8), "_c1s1_00.jpg")
    return pa.table([pa.array(names), pa.array(number + 5000), pa.array(number)], FILE_SCHEMA)


def made_up(block: pa.Table) -> pa.Table:
    """What looking at the files might have found, CACHE_SCHEMA."""
    number = block["mtime_ns"].to_numpy()
    found = {
        "width": np.full(len(block), 64),
        "height": np.full(len(block), 128),
        "bytes": number + 5000,
        "sha256": [f"{n * 0x9E3779B97F4A7C15 % 2**256:064x}" for n in number.tolist()],
        "reason": [""] * len(block),
        "detail": [""] * len(block),
    }
    columns = [pa.array(found[field.name], field.type) for field in RESULT_SCHEMA]
    return pa.table([*block.columns, *columns], CACHE_SCHEMA)


def watched(work: Callable[[], Any]) -> tuple[float, dict[str, float]]:
    """Seconds of the work, and the peak resident size of each kind of process, MB."""
    peaks = dict.fromkeys(PROCESSES, 0.0)
    over = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not over.wait(0.5):
            for process in [me, *me.children(recursive=True)]:
                try:
                    title = " ".join(process.cmdline()[:3])
                    used = process.memory_info()
                except psutil.Error:
                    continue
                for name, part in PROCESSES.items():
                    if part in title and (name == "driver") == (process.pid == me.pid):
                        peaks[name] = max(peaks[name], (used.rss - used.shared) / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        work()
        return time.perf_counter() - start, peaks
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
