"""One train worker: from its last checkpoint through the step stream, on Ray Train."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import ray
import ray.train
import torch
from ray.data import DataIterator
from ray.train.torch import get_device

from dpmpp_core.errors import TrainingError
from dpmpp_core.models.tensors import read_tensors
from dpmpp_core.tasks.feed import Batch, copy_batches, to_host_tensor
from dpmpp_core.tasks.step import train_step, wrap_for_workers
from dpmpp_core.tasks.task import Task
from pipelines.runtime.device import describe_full_memory, describe_unusable_device
from pipelines.runtime.storage import Storage
from pipelines.runtime.telemetry import StepTimer, publish_mask_metrics, publish_metrics
from pipelines.training.batches import DATASET, BatchPlan
from pipelines.training.checkpoints import Checkpoints, State, Writer
from pipelines.training.control import ControlSync, FigureSums, reduce_max
from pipelines.training.training_set import TrainingSet


@dataclass(frozen=True)
class Job:
    """What a train worker needs, on any node.

    Attributes:
        kind: `saliency`, `prompts`, `metric`, `pretrain` or `head`.
        training_set: Where the images are.
        inputs: Key of the stage whose files the task starts from: manifest, cached features, text
            prototypes; empty for a backbone without text.
        checkpoints: Key of the folder of the checkpoints.
        threads: Torch threads of a worker.
        gpu: Whether each worker has a GPU.
        monitor: Handle of the `TrainingMonitor` actor.
    """

    kind: str
    training_set: TrainingSet
    inputs: str
    checkpoints: str
    threads: int
    gpu: bool
    monitor: Any

    @property
    def precision(self) -> str:
        """Precision of the training, as in `MetricConfig`."""
        return self.training_set.config.metric.precision

    def build_task(self) -> Task:
        """Build the task, untrained."""
        # Networks load here, as the processes that only coordinate the workers import this module.
        from dpmpp_core.tasks.head import HeadTask
        from dpmpp_core.tasks.metric import MetricTask
        from dpmpp_core.tasks.pretrain import PretrainTask
        from dpmpp_core.tasks.prompts import PromptTask
        from dpmpp_core.tasks.saliency import SaliencyTask

        config = self.training_set.config
        if self.kind == "prompts":
            cached = self._load("features.safetensors")
            return PromptTask(config, cached["features"], cached["labels"])
        steps = self.training_set.plan().steps_per_epoch
        if self.kind == "pretrain":
            return PretrainTask(config, self.training_set.captions(), steps)
        if self.kind == "head":
            return HeadTask(config, steps)
        if self.kind == "saliency":
            return SaliencyTask(config, self.training_set.classes(), steps)
        if not self.inputs:
            texts = torch.zeros(self.training_set.classes(), 0)
            return MetricTask(config, texts, 1.0, steps)
        learned = self._load("texts.safetensors")
        return MetricTask(config, learned["texts"], float(learned["scale"]), steps)

    def _load(self, name: str) -> dict[str, torch.Tensor]:
        return read_tensors(Storage(self.training_set.storage).fetch(self.inputs) / name)

    def open_checkpoints(self) -> Checkpoints:
        """Return the checkpoints, whose warnings go to the monitor."""
        return Checkpoints(Storage(self.training_set.storage), self.checkpoints, self.log_warning)

    def log_warning(self, message: str) -> None:
        """Log a warning on the driver, from any process."""
        self.monitor.log_warning.remote(message)

    def report_fault(self, message: str) -> None:
        """Report to the driver why the training must end; no worker starts it again."""
        ray.get(self.monitor.report_fault.remote(message))

    def reported_fault(self) -> str:
        """Return what any worker reported by `report_fault`; empty if nothing."""
        return ray.get(self.monitor.fault.remote())

    def stop_requested(self) -> bool:
        """Return whether the driver requests the end; False where it cannot be reached."""
        try:
            return ray.get(self.monitor.stop_requested.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            return False


@dataclass
class Position:
    """How far a training is.

    Attributes:
        step: Steps done.
        history: Metrics of each finished epoch.
        sums: Of the metrics of the steps since then.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: FigureSums = field(default_factory=FigureSums)


class LoopConfig(TypedDict):
    """Arguments of `train_loop`; `plan` is None where the task plans its batches itself."""

    job: Job
    total: int
    plan: BatchPlan | None
    checkpoint_seconds: float


@dataclass(frozen=True)
class LoopResult:
    """How `train_loop` ended.

    Attributes:
        step: Steps done and saved.
        stopped: Whether the driver requested the end.
        fault: Number, from 0, of a step whose loss was not finite; nothing is saved after it.
        error: Why no worker can train, from `Job.reported_fault`; empty if none.
    """

    step: int
    stopped: bool = False
    fault: int | None = None
    error: str = ""


def train_loop(settings: LoopConfig) -> LoopResult:
    """Train from the newest checkpoint to the end, or to where the workers agree to stop."""
    job, total, plan = settings["job"], settings["total"], settings["plan"]
    if error := job.reported_fault():
        return LoopResult(0, error=error)
    torch.set_num_threads(job.threads)
    device = get_device()
    if error := describe_unusable_device(job.gpu, device, job.precision):
        job.report_fault(error)
        raise TrainingError(error)
    # On CPUs in bf16 plain attention takes a sixth less time than the fused kernels, whose backward
    # pass is slow for the few tokens of a person crop. `LeanAttention` chooses by itself.
    torch.backends.cuda.enable_flash_sdp(device.type != "cpu")
    batches: Iterable[Batch] = ()
    if job.kind != "prompts":  # the data workers start while the model is built
        batches = start_batches(ray.train.get_dataset_shard(DATASET), device.type == "cuda")
    task = job.build_task().to(device)
    task.compile_parts()
    optimiser = task.optimiser()
    rank = ray.train.get_context().get_world_rank()
    position = _resume(job.open_checkpoints(), task, optimiser, rank)
    if position.step >= total:  # killed between the last step and the end of the stage
        return LoopResult(position.step)
    if job.kind == "prompts":  # plans its batches in memory
        batches = task.batches(position.step)
    training = Training(job, task, optimiser, position, total, plan)
    try:
        return training.run(copy_batches(batches, device), settings["checkpoint_seconds"])
    except torch.OutOfMemoryError:
        error = describe_full_memory(job.kind, position.step + 1, device)
        job.report_fault(error)
        raise TrainingError(error) from None


@dataclass
class Training:
    """One worker's training, from `position` on.

    Attributes:
        job: What is trained.
        task: The task, on its device.
        optimiser: Its optimiser.
        position: Where it starts, and then how far it is.
        total: Steps of the whole training.
        plan: Plan of the batches; None where the task plans them.
    """

    job: Job
    task: Task
    optimiser: torch.optim.Optimizer
    position: Position
    total: int
    plan: BatchPlan | None

    def run(self, batches: Iterable[Batch], checkpoint_seconds: float) -> LoopResult:
        """Train on the batches of the steps from `position` on, which are on the device.

        The host waits for a GPU only after the steps that `ControlSync` names, and after an epoch.
        """
        job, task, position = self.job, self.task, self.position
        end = self.plan.end(position.step) if self.plan else self.total
        context = ray.train.get_context()
        rank, model = context.get_world_rank(), wrap_for_workers(task, context.get_world_size())
        writer = Writer(job.open_checkpoints(), job.log_warning) if rank == 0 else None
        sync = ControlSync(job, writer, position.step, checkpoint_seconds)
        timers = step_timer, epoch_timer = StepTimer(position.step), StepTimer(position.step)
        step_end = time.monotonic()
        first_fault = torch.zeros((), dtype=torch.float64, device=task.pixel_mean.device)
        for batch in batches:
            if "step" in batch and batch["step"] != position.step:
                raise RuntimeError(f"batch of step {int(batch['step'])} at step {position.step}")
            for timer in timers:
                timer.add_wait(time.monotonic() - step_end)
            batch["step"] = torch.tensor(position.step)
            torch.manual_seed(_step_seed(task.config.seed, position.step, rank))
            figures = train_step(task, model, self.optimiser, batch, position.step)
            position.sums.add(figures)
            # Stays on the device, without a synchronisation per step.
            bad = (~figures["loss"].isfinite()) & (first_fault == 0)
            first_fault = torch.where(bad, float(self.total - position.step), first_fault)
            position.step += 1
            step_end = time.monotonic()
            epoch_over = position.step % task.steps_per_epoch == 0
            if not (epoch_over or position.step == end or sync.due(position.step)):
                continue
            decision = sync.decide(position.step, first_fault)
            if decision.fault:
                return LoopResult(position.step, fault=self.total - int(decision.fault))
            if rank == 0:
                _report_step(job, position.step, self.total, figures, step_timer)
            if epoch_over:
                _end_epoch(job, task, self.optimiser, position, epoch_timer, rank)
            ends = position.step == end or decision.stop
            if ends or decision.save:
                self._save(writer, ends)
            if ends:
                return LoopResult(position.step, decision.stop)
        raise RuntimeError(f"the batches ended at step {position.step} of {end}")

    def _save(self, writer: Writer | None, last: bool) -> None:
        """Write a checkpoint, whose state all workers compute and the first one writes."""
        position = self.position
        state = _training_state(self.task, self.optimiser, position)
        if writer is not None:
            write = writer.finish if last else writer.start
            loss = position.history[-1]["loss"] if position.history else float("nan")
            write(position.step, state, loss)


def _report_step(
    job: Job, step: int, total: int, figures: dict[str, torch.Tensor], timer: StepTimer
) -> None:
    loss, times = figures["loss"].item(), timer.read(step)
    job.monitor.report_step.remote(step, f"loss {loss:.3f}")
    gauges = {
        "dpmpp_loss": loss,
        "dpmpp_train_step": step,
        "dpmpp_train_steps_total": total,
        "dpmpp_train_steps_per_second": times.steps_per_second,
        "dpmpp_data_wait_share": times.data_wait_share,
    }
    publish_metrics(job.kind, gauges)
    masks = {name: value.item() for name, value in figures.items() if "mask_" in name}
    publish_mask_metrics(job.kind, masks)


def start_batches(shard: DataIterator, pinned: bool = False) -> Iterator[Batch]:
    """Start the pipeline behind a shard and return its batches, tensors on the CPU.

    The pipeline's processes start now, while the caller builds its model. Arrays are those of
    `StepMaker.make` without UNUSED.

    Args:
        shard: One train worker's part of the pipeline.
        pinned: Whether a GPU will copy the batches.

    Raises:
        DataError: An image cannot be read; names the file.
    """

    def convert(batch: dict[str, np.ndarray]) -> Batch:
        # Arrays in the object store are read-only; the copy also frees their block.
        return {name: to_host_tensor(value[0], pinned) for name, value in batch.items()}

    batches = iter(
        shard.iter_torch_batches(batch_size=1, collate_fn=convert, prefetch_batches=2, device="cpu")
    )
    thread = ThreadPoolExecutor(1)
    first = thread.submit(next, batches, None)
    thread.shutdown(wait=False)

    def continue_from_first() -> Iterator[Batch]:
        if (batch := first.result()) is not None:
            yield batch
            yield from batches

    return continue_from_first()


def _resume(
    checkpoints: Checkpoints, task: Task, optimiser: torch.optim.Optimizer, rank: int
) -> Position:
    """Restore the newest checkpoint; the first worker decides which one that is."""
    newest = torch.tensor([float(checkpoints.newest() if rank == 0 else 0)], device=get_device())
    step = int(reduce_max(newest)[0])
    if step == 0:
        return Position()
    state = checkpoints.load(step)
    task.load_trained_state(state["task"])
    optimiser.load_state_dict(state["optimiser"])
    return Position(state["step"], state["history"], FigureSums(state["sums"]))


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of what a network draws in a step, such as dropped paths."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _training_state(task: Task, optimiser: torch.optim.Optimizer, position: Position) -> State:
    """Return all that a checkpoint holds; random numbers and rates are functions of the step."""
    return {
        "task": task.trained_state(),
        "optimiser": optimiser.state_dict(),
        "step": position.step,
        "history": position.history,
        "sums": position.sums.average_over_workers(1),
    }


def _end_epoch(
    job: Job,
    task: Task,
    optimiser: torch.optim.Optimizer,
    position: Position,
    timer: StepTimer,
    rank: int,
) -> None:
    epoch = position.step // task.steps_per_epoch
    means = position.sums.average_over_workers(task.steps_per_epoch)
    times = timer.read(position.step)
    means |= {"lr": optimiser.param_groups[0]["lr"], "seconds": times.seconds}
    means["data_wait_share"] = times.data_wait_share
    position.history.append({"epoch": epoch, **{k: round(v, 6) for k, v in means.items()}})
    position.sums = FigureSums()
    if rank == 0:
        job.monitor.report_epoch.remote(epoch, means)
