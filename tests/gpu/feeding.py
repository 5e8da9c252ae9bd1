"""Whether data workers keep up: rate of the step maker, share that a step waits for batches."""

from __future__ import annotations

import math
import queue
import threading
import time

from dpmpp_core.tasks.feed import Batch, copy_batches, to_host_tensor
from dpmpp_core.tasks.step import train_step
from tests.gpu.setting import Row, Setting


def check_fed(setting: Setting) -> Row:
    """Measure a maker of batches alone, then a training that is fed by as many as it needs."""
    row = Row()
    config = setting.config("metric.identities=4") if setting.small else setting.config(
        "metric.identities=8"
    )  # fmt: skip
    maker, steps = setting.step_maker(config), setting.size(20, 2)
    maker.make(0)
    start = time.perf_counter()
    for step in range(steps):
        made = maker.make(step)
    seconds = time.perf_counter() - start
    images = len(made["images"])
    rate = steps * images / seconds
    people = int(maker.make(0)["labels"].max()) + 1
    task = setting.metric_task(config, max(people, setting.size(16, 8)))
    optimiser = task.optimiser()
    once = setting.on_device(setting.people_batch_of(maker, 0))
    alone = setting.seconds(lambda: train_step(task, task, optimiser, once, 1), steps, warm=2)
    threads = max(1, math.ceil(images / alone / rate))
    waited, total = _train(setting, maker, threads, steps, task, optimiser)
    row.figures |= {"images_a_second_a_core": round(rate, 1), "threads": threads,
                    "step_images_a_second": round(images / alone, 1),
                    "share_waited": round(waited / total, 4)}  # fmt: skip
    if not setting.small:
        row.expect(rate >= 730, f"a core makes {rate:.0f} images a second, less than 730")
        row.expect(waited / total <= 0.02, f"{waited / total:.1%} of the time waits for batches")
    return row


def _train(setting, maker, threads: int, steps: int, task, optimiser) -> tuple[float, float]:
    """Train on batches that threads make and pin; return seconds waited for them, and in all."""
    made: queue.Queue[Batch] = queue.Queue(maxsize=2 * threads)
    stop = threading.Event()

    def make(first: int) -> None:
        step = first
        while not stop.is_set():
            arrays = {n: x for n, x in maker.make(step % 2).items() if n not in ("rows", "camids")}
            batch = {n: to_host_tensor(x, setting.cuda) for n, x in arrays.items()}
            step += threads
            while not stop.is_set():
                try:
                    made.put(batch, timeout=0.1)
                    break
                except queue.Full:
                    continue

    workers = [threading.Thread(target=make, args=(i,), daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    waited, start = 0.0, time.perf_counter()

    def batches():
        nonlocal waited, start
        for step in range(steps + 2):
            if step == 2:  # the threads have started
                setting.wait()
                waited, start = 0.0, time.perf_counter()
            before = time.perf_counter()
            batch = made.get()
            waited += time.perf_counter() - before
            yield batch

    for step, batch in enumerate(copy_batches(batches(), setting.device)):
        train_step(task, task, optimiser, batch, step)
    setting.wait()
    total = time.perf_counter() - start
    stop.set()
    for worker in workers:
        worker.join(timeout=30)
    return waited, total
