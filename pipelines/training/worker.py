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
import torch.distributed as dist
from ray.data import DataIterator
from ray.train.torch import get_device
from torch.nn.parallel import DistributedDataParallel

from dpmpp_core.models.tensors import read_tensors
from dpmpp_core.tasks.head import HeadTask
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.pretrain import PretrainTask
from dpmpp_core.tasks.prompts import PromptTask
from dpmpp_core.tasks.saliency import SaliencyTask
from dpmpp_core.tasks.step import train_step
from dpmpp_core.tasks.task import Task
from pipelines.runtime.storage import Storage
from pipelines.runtime.telemetry import StepTimer, publish_mask_metrics, publish_metrics
from pipelines.training.batches import DATASET, BatchPlan
from pipelines.training.checkpoints import Checkpoints, State, Writer
from pipelines.training.training_set import TrainingSet

SYNC_SECONDS = 1.0  # between two synchronisations of the workers


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
        monitor: Handle of the `TrainingMonitor` actor.
    """

    kind: str
    training_set: TrainingSet
    inputs: str
    checkpoints: str
    threads: int
    monitor: Any

    def build_task(self) -> Task:
        """Build the task, untrained."""
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
        sums: Sums of the metrics of the steps since then.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, Any] = field(default_factory=dict)


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
    """

    step: int
    stopped: bool = False
    fault: int | None = None


def train_loop(settings: LoopConfig) -> LoopResult:
    """Train from the newest checkpoint to the end, or to where the workers agree to stop."""
    job, total, plan = settings["job"], settings["total"], settings["plan"]
    torch.set_num_threads(job.threads)
    device = get_device()
    # On CPUs plain attention takes a sixth less time than the fused kernels, whose backward pass
    # is slow for the few tokens of a person crop.
    torch.backends.cuda.enable_flash_sdp(device.type != "cpu")
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    batches: Iterable[dict[str, torch.Tensor]] = ()
    if job.kind != "prompts":  # the data workers start while the model is built
        batches = start_batches(ray.train.get_dataset_shard(DATASET))
    task = job.build_task().to(device)
    task.compile_parts()
    optimiser = task.optimiser()
    checkpoints = job.open_checkpoints()
    position = _resume(checkpoints, task, optimiser, rank)
    if position.step >= total:  # killed between the last step and the end of the stage
        return LoopResult(position.step)
    end = plan.end(position.step) if plan else total
    model: torch.nn.Module = task
    if world > 1:
        model = DistributedDataParallel(task, find_unused_parameters=not task.updates_all)

    writer = Writer(checkpoints, job.log_warning) if rank == 0 else None
    sync = _ControlSync(job, writer, position.step, settings["checkpoint_seconds"])
    timers = step_timer, epoch_timer = StepTimer(position.step), StepTimer(position.step)
    step_end = time.monotonic()
    first_fault = torch.zeros((), dtype=torch.float64, device=device)
    if isinstance(task, PromptTask):  # plans its batches in memory
        batches = task.batches(position.step)
    for batch in batches:
        if "step" in batch and batch["step"] != position.step:
            raise RuntimeError(f"batch of step {int(batch['step'])} at step {position.step}")
        for timer in timers:
            timer.add_wait(time.monotonic() - step_end)
        on_device = {name: value.to(device) for name, value in batch.items()}
        on_device["step"] = torch.tensor(position.step)
        torch.manual_seed(_step_seed(task.config.seed, position.step, rank))
        figures = train_step(task, model, optimiser, on_device, position.step)
        position.sums = {
            name: position.sums.get(name, 0.0) + value for name, value in figures.items()
        }
        # Stays on the device, without a synchronisation per step.
        bad = (~figures["loss"].isfinite()) & (first_fault == 0)
        first_fault = torch.where(bad, float(total - position.step), first_fault)
        position.step += 1
        step_end = time.monotonic()
        epoch_over = position.step % task.steps_per_epoch == 0
        if not (epoch_over or position.step == end or sync.due(position.step)):
            continue
        decision = sync.decide(position.step, first_fault)
        if decision.fault:
            return LoopResult(position.step, fault=total - int(decision.fault))
        if rank == 0:
            _report_step(job, position.step, total, figures, step_timer)
        if epoch_over:
            _end_epoch(job, task, optimiser, position, epoch_timer, rank)
        ends = position.step == end or decision.stop
        if ends or decision.save:
            state = _training_state(task, optimiser, position)
            if writer is not None:
                write = writer.finish if ends else writer.start
                loss = position.history[-1]["loss"] if position.history else float("nan")
                write(position.step, state, loss)
        if ends:
            return LoopResult(position.step, decision.stop)
    raise RuntimeError(f"the batches ended at step {position.step} of {end}")


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


def start_batches(shard: DataIterator) -> Iterator[dict[str, torch.Tensor]]:
    """Start the pipeline behind a shard and return its batches, tensors on the CPU.

    The pipeline's processes start now, while the caller builds its model. Arrays are those of
    `StepMaker.make` without UNUSED.

    Raises:
        DataError: An image cannot be read; names the file.
    """
    batches = iter(
        shard.iter_torch_batches(
            batch_size=1, collate_fn=_to_tensors, prefetch_batches=2, device="cpu"
        )
    )
    thread = ThreadPoolExecutor(1)
    first = thread.submit(next, batches, None)
    thread.shutdown(wait=False)

    def continue_from_first() -> Iterator[dict[str, torch.Tensor]]:
        if (batch := first.result()) is not None:
            yield batch
            yield from batches

    return continue_from_first()


def _to_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    # Arrays in the object store are read-only; the copy also frees their block.
    return {name: torch.from_numpy(np.array(value[0])) for name, value in batch.items()}


def _resume(
    checkpoints: Checkpoints, task: Task, optimiser: torch.optim.Optimizer, rank: int
) -> Position:
    """Restore the newest checkpoint; the first worker decides which one that is."""
    newest = torch.tensor([float(checkpoints.newest() if rank == 0 else 0)], device=get_device())
    step = int(_reduce_max(newest)[0])
    if step == 0:
        return Position()
    state = checkpoints.load(step)
    task.load_trained_state(state["task"])
    optimiser.load_state_dict(state["optimiser"])
    return Position(state["step"], state["history"], state["sums"])


@dataclass(frozen=True)
class Decision:
    """What all workers do after a step.

    Attributes:
        fault: 0, or total steps minus the step whose loss was not finite.
        save: Write a checkpoint.
        stop: Write a checkpoint and end.
    """

    fault: float
    save: bool
    stop: bool


class _ControlSync:
    """Let the workers decide together, all after the same step, about once a second.

    Args:
        job: What is trained.
        writer: That of the first worker; None elsewhere.
        step: Step at which the training starts.
        every: Seconds between checkpoints.
    """

    def __init__(self, job: Job, writer: Writer | None, step: int, every: float) -> None:
        self._job, self._writer, self._every = job, writer, every
        self._next, self._last = step + 1, step
        self._synced = self._saved = time.monotonic()
        self._preempted = False

    def due(self, step: int) -> bool:
        """Return whether the workers synchronise after this step."""
        return step >= self._next

    def decide(self, step: int, fault: torch.Tensor) -> Decision:
        """Return the decision of all workers; `fault` is float64 on the device."""
        now = time.monotonic()
        save = stop = ahead = 0.0
        if self._writer is not None:
            stop = float(self._job.stop_requested())
            save = float(now - self._saved >= self._every and not self._writer.busy)
            seconds = max(1e-6, now - self._synced) / max(1, step - self._last)
            ahead = max(1, min(100, int(SYNC_SECONDS / seconds)))
        leaving = ray.train.get_preemption_info() is not None
        own = torch.tensor([save, stop, ahead], dtype=torch.float64, device=fault.device)
        any_fault, save, stop, ahead = _reduce_max(torch.cat([fault[None], own]))
        due = bool(save) or (leaving and not self._preempted)  # once per preempted node
        self._preempted = leaving
        if due:
            self._saved = now
        self._synced, self._last, self._next = now, step, step + int(ahead)
        return Decision(any_fault, due, bool(stop))


def _reduce_max(values: torch.Tensor) -> list[float]:
    """Return the largest of each value over the workers."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


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
        "sums": _average_over_workers(position.sums, 1),
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
    means = _average_over_workers(position.sums, task.steps_per_epoch)
    times = timer.read(position.step)
    means |= {"lr": optimiser.param_groups[0]["lr"], "seconds": times.seconds}
    means["data_wait_share"] = times.data_wait_share
    position.history.append({"epoch": epoch, **{k: round(v, 6) for k, v in means.items()}})
    position.sums = {}
    if rank == 0:
        job.monitor.report_epoch.remote(epoch, means)


def _average_over_workers(sums: dict[str, torch.Tensor], steps: int) -> dict[str, float]:
    """Return sums over `steps` as means over the workers, whose shares of a loss may differ."""
    if not sums:
        return {}
    values = torch.stack(list(sums.values())) / steps
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(sums, values.tolist(), strict=True))
