"""Training steps as a Ray Data stream: planned on paper, made on data workers, in order.

A row is one train worker's share of one step. It holds nothing but a number; the data worker that
gets it plans the whole batch from (seed, epoch, step) and makes its share of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data import ActorPoolStrategy, DataIterator, ExecutionOptions, ExecutionResources

from dpmpp_core.config import Config
from dpmpp_core.data.captions import read_captions
from dpmpp_core.data.donors import CACHE_BYTES
from dpmpp_core.data.manifest import Manifest, load_split
from dpmpp_core.data.packed import PackedImages
from dpmpp_core.data.plan import StepPlan, class_labels
from dpmpp_core.data.steps import StepMaker
from dpmpp_core.data.synthesis import Synthesiser
from pipelines.cluster import pace, selector
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


AHEAD_BYTES = 512 * 2**20  # of batches made ahead of training, in the object store
QUEUED = 8  # steps that wait at a data worker: with Ray's 2 it idles a fifth of its time
BLOCK = 1000  # rows planned by one task of Ray Data
UNUSED = ("rows", "camids")  # of a step's arrays: no task reads them


class MakeStep:
    """Data worker: row number -> batch."""

    def __init__(self, training_set: TrainingSet, first_step: int, world: int) -> None:
        self._maker = training_set.step_maker()
        self._first, self._world = first_step, world

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        step, rank = divmod(int(row["id"]), self._world)
        made = self._maker.make(self._first + step, rank, self._world)
        return {name: value for name, value in made.items() if name not in UNUSED}


@dataclass(frozen=True)
class Steps:
    """Steps `first` to `last` (excluded) of a training, for a worker group of any size."""

    training_set: TrainingSet
    first: int
    last: int
    data_workers: int

    def deal(self, world: int) -> list[DataIterator]:
        """The steps as `world` streams, in which each worker finds its share of every step.

        Made on nodes with the labels `cluster.data_nodes`, in order, at most AHEAD_BYTES ahead.
        """
        context = ray.data.DataContext.get_current()
        pace(context)
        context.memory_usage_poll_interval_s = None  # a thread for every batch
        rows = (self.last - self.first) * world  # `world` rows a step, in the order of the ranks
        nodes = selector(self.training_set.config.cluster.data_nodes)
        placement: dict[str, Any] = {"label_selector": nodes} if nodes else {}
        numbers = ray.data.range(rows, override_num_blocks=-(-rows // BLOCK))
        # One row a block, cut when its turn comes: blocks of one row from the start cost Ray Data
        # more than a millisecond each, before the first step.
        stream = numbers.repartition(target_num_rows_per_block=1).map(
            MakeStep,  # type: ignore[arg-type]  # a callable class
            fn_constructor_args=(self.training_set, self.first, world),
            compute=ActorPoolStrategy(size=self.data_workers, max_tasks_in_flight_per_actor=QUEUED),
            num_cpus=1,
            max_concurrency=2,  # one batch is made while the one before is handed over
            **placement,
        )
        stream.context.execution_options = ExecutionOptions(
            preserve_order=True,
            resource_limits=ExecutionResources(object_store_memory=AHEAD_BYTES),
        )
        return stream.streaming_split(world, equal=True)  # row by row


class DealSteps(ray.train.DataConfig):
    """Deals `Steps` to the worker group that there is, smaller when a node was lost."""

    def configure(  # type: ignore[override]
        self, datasets: dict[str, Steps], world_size: int, *args: Any, **more: Any
    ) -> list[dict[str, DataIterator]]:
        """The streams by name, for each rank."""
        dealt = {name: steps.deal(world_size) for name, steps in datasets.items()}
        return [
            {name: streams[rank] for name, streams in dealt.items()} for rank in range(world_size)
        ]
