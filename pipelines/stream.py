"""Training steps as a stream: planned on paper, made by data workers, taken in order.

A step is a number. The data worker that is given it plans the whole batch from (seed, epoch, step)
and makes one train worker's share of it, so that any worker makes any step the same. A train worker
asks for the next few steps ahead and takes them in their order; nobody stands between the two.

Ray Data carried these steps before, a row each. Its coordinator took a tenth of the throughput and
kept some 10 kB of every step for as long as the training lasted (results/step-stream.md and
stream-memory.md of the benchmarks).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch

from dpmpp_core.config import Config
from dpmpp_core.data.captions import read_captions
from dpmpp_core.data.donors import CACHE_BYTES
from dpmpp_core.data.manifest import Manifest, load_split
from dpmpp_core.data.packed import PackedImages
from dpmpp_core.data.plan import StepPlan, class_labels
from dpmpp_core.data.steps import StepMaker
from dpmpp_core.data.synthesis import Synthesiser
from pipelines import metrics
from pipelines.cluster import selector
from pipelines.masks import load_masks, transfer_grid
from pipelines.storage import Storage


@dataclass(frozen=True)
class TrainingSet:
    """Where a worker on any node finds the training images.

    Attributes:
        config: the run's configuration.
        storage: URI of the storage.
        prepared, saliency: keys of those stages; without masks (stage 0 itself trains) nothing is
            mixed and nothing erased.
        section: the configuration's section that says how large a batch is.
    """

    config: Config
    storage: str
    prepared: str
    saliency: str | None
    section: Literal["saliency", "metric", "pretrain"] = "metric"

    def table(self) -> tuple[str, pa.Table]:
        """Root and rows of the training images in the manifest."""
        return load_split(Storage(self.storage).fetch(self.prepared), "train")

    def is_packed(self, root: str) -> bool:
        """Whether its images, which are below `root`, are read from shards."""
        wanted = self.config.data.pack
        return "://" in root if wanted is None else wanted

    @property
    def shards(self) -> str:
        """Key of the folder of the shards."""
        return f"packed/{self.prepared.rpartition('/')[2]}"

    def shard(self, number: int) -> str:
        """Key of a shard."""
        return f"{self.shards}/shard-{number:05}.arrow"

    def _packed(self, root: str, paths: list[str]) -> PackedImages | None:
        if not self.is_packed(root):
            return None
        storage = Storage(self.storage)
        return PackedImages(paths, lambda number: storage.fetch_file(self.shard(number)))

    def rows(self) -> tuple[str, list[str], np.ndarray, np.ndarray]:
        """Root, paths, class labels int64 [N] and cameras int64 [N] of the training images."""
        root, table = self.table()
        labels, _ = class_labels(table["pid"].to_numpy())
        return root, table["path"].to_pylist(), labels, table["camid"].to_numpy()

    def classes(self) -> int:
        """Number of training identities."""
        return int(self.rows()[2].max()) + 1

    def captions(self) -> list[str]:
        """What is said about each training identity, in the order of the class labels."""
        root, paths, labels, _ = self.rows()
        _, first = np.unique(labels, return_index=True)
        return read_captions(root, [paths[row] for row in first])

    def plan(self) -> StepPlan:
        """The identity-balanced batches of every epoch."""
        _, _, labels, camids = self.rows()
        return self._plan(labels, camids)

    def _plan(self, labels: np.ndarray, camids: np.ndarray) -> StepPlan:
        section = getattr(self.config, self.section)
        return StepPlan(labels, camids, section.identities, section.images, self.config.seed)

    def step_maker(self, cache_bytes: int = CACHE_BYTES) -> StepMaker:
        """What makes the arrays of a step, on the machine that calls this; see `StepMaker`."""
        root, paths, labels, camids = self.rows()
        grid = transfer_grid(self.config)
        plan = self._plan(labels, camids)
        data, augment, occlusion = self.config.data, self.config.augment, self.config.occlusion
        if self.saliency:
            masks = load_masks(Storage(self.storage).fetch(self.saliency), paths, grid)
        else:
            masks = np.zeros((len(paths), *grid), np.bool_)  # empty masks are never paired
            augment = augment.model_copy(update={"erase": 0.0})
        twins = self.section == "metric" and self.config.metric.loss.visibility > 0
        covered = self.section == "metric" and self.config.model.bands > 0
        return StepMaker(
            root,
            paths,
            labels,
            camids,
            masks,
            plan,
            data,
            augment,
            occlusion,
            grid,
            cache_bytes,
            twins=twins,
            covered=covered,
            packed=self._packed(root, paths),
        )

    def synthesiser(self) -> Synthesiser:
        """What hides any image of the manifest behind training images."""
        assert self.saliency is not None
        manifest = Manifest.load(Storage(self.storage).fetch(self.prepared))
        paths = manifest.images["path"].to_pylist()
        masks = load_masks(
            Storage(self.storage).fetch(self.saliency), paths, transfer_grid(self.config)
        )
        lenders = np.flatnonzero(manifest.images["split"].to_numpy() == "train")
        data, occlusion = self.config.data, self.config.occlusion
        return Synthesiser(manifest.root, paths, masks, lenders, data, occlusion, self.config.seed)


QUEUED = 4  # batches that a data worker makes ahead, for all train workers together
UNUSED = ("rows", "camids")  # of a step's arrays: no task reads them


class DataWorker:
    """Makes batches on a CPU of any node."""

    def __init__(self, training_set: TrainingSet) -> None:
        self._maker = training_set.step_maker()
        self._making = threading.Lock()  # a batch that is handed over is no longer being made

    def make(self, step: int, rank: int, world: int) -> dict[str, np.ndarray]:
        """The share of train worker `rank` of `world`; see `StepMaker.make`."""
        with self._making:
            made = self._maker.make(step, rank, world)
        return {name: value for name, value in made.items() if name not in UNUSED}


@contextmanager
def data_workers(training_set: TrainingSet, count: int) -> Iterator[list[Any]]:
    """So many data workers, on the nodes with the labels `cluster.data_nodes`, until the end.

    One whose process or node dies is started again, elsewhere if need be, and makes again what was
    asked of it and not yet taken. They outlive the train workers, and so do the images in their
    memory.
    """
    nodes = selector(training_set.config.cluster.data_nodes)
    placement: dict[str, Any] = {"label_selector": nodes} if nodes else {}
    worker: Any = ray.remote(DataWorker).options(
        num_cpus=1,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=2,  # one batch is made while the one before is handed over
        scheduling_strategy="SPREAD",  # over nodes, and out of a trial's placement group
        **placement,
    )
    workers = [worker.remote(training_set) for _ in range(count)]
    try:
        yield workers
    finally:
        for one in workers:
            ray.kill(one)


def stream_steps(
    workers: Sequence[Any],
    first: int,
    last: int,
    rank: int = 0,
    world: int = 1,
    stage: str = "",
) -> Iterator[dict[str, torch.Tensor]]:
    """Train worker `rank`'s share of the steps `first` to `last` (excluded), in their order.

    The next one is fetched and copied while the caller works on this one. At most `QUEUED` whole
    batches a data worker wait in the object store.

    Args:
        workers: handles of `DataWorker`s; which one makes a step does not matter.
        stage: tag of what `metrics` shows.

    Raises:
        DataError: an image cannot be read; names the file.
    """
    batches = _in_order(workers, range(first, last), rank, world, stage)
    thread = ThreadPoolExecutor(1)
    try:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch
    finally:
        thread.shutdown(wait=False)


def _in_order(
    workers: Sequence[Any], steps: range, rank: int, world: int, stage: str
) -> Iterator[dict[str, torch.Tensor]]:
    upcoming = iter(steps)
    asked: deque[tuple[Any, int]] = deque()  # batch, number of its worker; oldest first
    shown = 0.0
    while True:
        for step in islice(upcoming, QUEUED * len(workers) - len(asked)):
            number = _idlest(asked, len(workers))
            asked.append((workers[number].make.remote(step, rank, world), number))
        if not asked:
            return
        if time.monotonic() - shown > metrics.EVERY and rank == 0:
            shown = time.monotonic()
            metrics.show(stage, {"dpmpp_ready_batches": _ready(asked)})
        batch, _ = asked.popleft()
        # Arrays out of the object store are read-only; it gets its room back after the copy.
        yield {name: torch.from_numpy(value.copy()) for name, value in ray.get(batch).items()}


def _ready(asked: Sequence[tuple[Any, int]]) -> int:
    """How many batches are made."""
    batches = [batch for batch, _ in asked]
    return len(ray.wait(batches, num_returns=len(batches), timeout=0)[0])


def _idlest(asked: Sequence[tuple[Any, int]], workers: int) -> int:
    """The worker with the fewest batches still to make: nodes are not equally fast."""
    batches = [batch for batch, _ in asked]
    unmade = set(ray.wait(batches, num_returns=len(batches), timeout=0)[1] if batches else ())
    load = Counter(number for batch, number in asked if batch in unmade)
    return min(range(workers), key=lambda number: load[number])
