"""Training batches from Ray Data: a pipeline for each train worker, one row per training step.

A row is the number of a step until a data worker replaces it with the arrays of that step. Ray
Data's overhead is per task and per block, not per row. So a task makes several steps, one after
the other, and a block holds several (`results/step-stream.md` of the benchmarks).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray.data
import ray.train
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataIterator, Dataset, ExecutionResources

from pipelines.runtime.resources import set_up_data
from pipelines.training.training_set import TrainingSet

DATASET = "steps"  # its name in Ray Train
STEPS_PER_TASK = 16
BLOCK_BYTES = 64 * 2**20
NO_PROGRESS_TIMEOUT_S = 3600  # training may take minutes per step, and then takes no batch
UNUSED = ("rows", "camids")  # arrays of a step that no task reads
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

Arrays = dict[str, NDArray[Any]]


class MakeBatches:
    """Replace step numbers by one train worker's share of the batches; runs on a data worker.

    Args:
        training_set: Where the images are.
        first: Step of row 0.
        rank: Number of the share; see `StepMaker.make`.
        world: Number of shares.
    """

    def __init__(self, training_set: TrainingSet, first: int, rank: int, world: int) -> None:
        _keep_freed_memory()
        self._maker = training_set.build_step_maker()
        self._first, self._rank, self._world = first, rank, world

    def __call__(self, rows: Arrays) -> Iterator[Arrays]:
        """Yield the arrays of each step, with a leading dimension of 1."""
        for row in rows["id"]:
            batch = self._maker.make(self._first + int(row), self._rank, self._world)
            yield {name: value[None] for name, value in batch.items() if name not in UNUSED}


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of a step for the next one.

    By default it returns arrays of this size to the system, and mapping their pages again costs
    5 % of the throughput.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, 2**30)


@dataclass(frozen=True)
class BatchPlan:
    """What the pipelines of all train workers have in common.

    Attributes:
        training_set: Where the images are.
        total: Steps of the whole training.
        data_workers: Processes that make batches, for all train workers together, one CPU each.
        steps_per_execution: After so many the pipelines are executed again, since Ray Data keeps
            some kB per task until the end of an execution.
    """

    training_set: TrainingSet
    total: int
    data_workers: int
    steps_per_execution: int = 50_000

    def end(self, first: int) -> int:
        """Return the step, excluded, at which an execution from step `first` on ends."""
        return min(self.total, first + self.steps_per_execution)

    def build_pipeline(self, first: int, rank: int = 0, world: int = 1) -> Dataset:
        """Return the batches of the steps from `first` on for train worker `rank` of `world`."""
        steps = self.end(first) - first
        workers = max(1, self.data_workers // world + (rank < self.data_workers % world))
        dataset = ray.data.range(
            steps, override_num_blocks=max(1, -(-steps // STEPS_PER_TASK))
        ).map_batches(
            MakeBatches,
            fn_constructor_args=(self.training_set, first, rank, world),
            batch_size=None,
            compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=min(1.0, self.data_workers / world),
        )
        dataset.set_name(f"{self.training_set.section}-batches-rank{rank}")
        context = dataset.context
        set_up_data(context, self.training_set.config.cluster.data_nodes)
        task_bytes = STEPS_PER_TASK * self.training_set.step_bytes() // world
        context.target_max_block_size = block = min(BLOCK_BYTES, task_bytes)
        context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
        context.execution_options.preserve_order = True
        # Each data worker makes one block while another waits; two are being read.
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=2 * (workers + 1) * block
        )
        return dataset


class BatchesPerRank(ray.train.DataConfig):
    """Give every train worker a pipeline of its own, from the step of the newest checkpoint on.

    The workers need no common coordinator: step numbers keep them in lockstep. Ray Train calls
    `configure` for each worker group, so that a restart or another number of workers is a new plan.

    Args:
        plan: What the pipelines have in common.
        first_step: Returns the step at which the training continues.
    """

    def __init__(self, plan: BatchPlan, first_step: Callable[[], int]) -> None:
        super().__init__()
        self._plan, self._first_step = plan, first_step

    def configure(  # type: ignore[override]
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """Return one iterator per train worker; the rows of `datasets` are planned here."""
        first, iterators = self._first_step(), []
        for rank in range(world_size):
            hints = worker_node_ids and [worker_node_ids[rank]]
            dataset = self._plan.build_pipeline(first, rank, world_size)
            iterators.append({DATASET: dataset.streaming_split(1, locality_hints=hints)[0]})
        return iterators
