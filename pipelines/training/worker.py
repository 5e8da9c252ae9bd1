"""One train worker: from its last checkpoint through the step stream, on Ray Train."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.data import DataIterator
from ray.train.torch import get_device
from torch.nn.parallel import DistributedDataParallel

from dpmpp_core.models.tensors import read_tensors
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.pretrain import PretrainTask
from dpmpp_core.tasks.prompts import PromptTask
from dpmpp_core.tasks.saliency import SaliencyTask
from dpmpp_core.tasks.step import train_step
from dpmpp_core.tasks.task import Task
from pipelines.runtime import telemetry as metrics
from pipelines.runtime.storage import Storage
from pipelines.training.batches import DATASET, BatchPlan
from pipelines.training.checkpoints import Checkpoints, State, Writer
from pipelines.training.training_set import TrainingSet

PULSE_SECONDS = 1.0  # how often the workers agree on what to do beside training


@dataclass(frozen=True)
class Job:
    """What a train worker needs, on whatever node it wakes up.

    Attributes:
        kind: `saliency`, `prompts`, `metric` or `pretrain`.
        inputs: key of the stage whose files the task starts from: manifest, cached features, text
            prototypes; empty for a backbone without text.
        checkpoints: key of the folder of the checkpoints.
        threads: torch threads of a worker.
        board: the progress board's actor handle.
    """

    kind: str
    training_set: TrainingSet
    inputs: str
    checkpoints: str
    threads: int
    board: Any

    def task(self) -> Task:
        config = self.training_set.config
        if self.kind == "prompts":
            cached = self._load("features.safetensors")
            return PromptTask(config, cached["features"], cached["labels"])
        steps = self.training_set.plan().steps_per_epoch
        if self.kind == "pretrain":
            return PretrainTask(config, self.training_set.captions(), steps)
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
        """The checkpoints; what there is to say of them goes to the board."""
        return Checkpoints(Storage(self.training_set.storage), self.checkpoints, self.say)

    def first_step(self) -> int:
        """Step at which the training continues: that of the newest checkpoint."""
        return self.open_checkpoints().newest()

    def say(self, sentence: str) -> None:
        """Show the user a sentence, from any process."""
        self.board.say.remote(sentence)

    def asked_to_stop(self) -> bool:
        """Whether the driver was told to end; False where it cannot be asked."""
        try:
            return ray.get(self.board.stopping.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            return False


@dataclass
class Position:
    """How far a training is.

    Attributes:
        step: steps done.
        history: figures of each epoch that is over.
        sums: of the steps since then.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, Any] = field(default_factory=dict)


def train_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Train from the newest checkpoint to the end, or to where the workers agree to stop.

    Returns:
        `step`, how many are done and saved; `stopped`, whether the driver asked for the end;
        `fault`, the number of a step, counted from 0, whose loss was not finite, or None. Nothing
        is saved after a fault.
    """
    job: Job = settings["job"]
    total: int = settings["total"]
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
    task = job.task().to(device)
    task.compile_parts()
    optimiser = task.optimiser()
    checkpoints = job.open_checkpoints()
    at = _resume(checkpoints, task, optimiser, rank)
    if at.step >= total:  # killed between the last step and the end of the stage
        return {"step": at.step, "stopped": False, "fault": None}
    plan: BatchPlan | None = settings["plan"]
    end = plan.end(at.step) if plan else total
    model: torch.nn.Module = task
    if world > 1:
        model = DistributedDataParallel(task, find_unused_parameters=not task.updates_all)

    writer = Writer(checkpoints, job.say) if rank == 0 else None
    pulse = _ControlSync(job, writer, at.step, settings["checkpoint_seconds"])
    clock, pace = _StepTimer(), metrics.Rate(at.step)
    first_fault = torch.zeros((), dtype=torch.float64, device=device)
    if isinstance(task, PromptTask):  # plans its batches in memory
        batches = task.batches(at.step)
    for batch in batches:
        if "step" in batch and batch["step"] != at.step:
            raise RuntimeError(f"a batch of step {int(batch['step'])} came for step {at.step}")
        pace.wait(clock.waited())
        on_device = {name: value.to(device) for name, value in batch.items()}
        on_device["step"] = torch.tensor(at.step)
        torch.manual_seed(_seed(task.config.seed, at.step, rank))
        figures = train_step(task, model, optimiser, on_device, at.step)
        at.sums = {name: at.sums.get(name, 0.0) + value for name, value in figures.items()}
        # Never asks the device: the answer is read at the next pulse.
        bad = (~figures["loss"].isfinite()) & (first_fault == 0)
        first_fault = torch.where(bad, float(total - at.step), first_fault)
        at.step += 1
        clock.worked()
        epoch_over = at.step % task.steps_per_epoch == 0
        if not (epoch_over or at.step == end or pulse.due(at.step)):
            continue
        agreed = pulse.agree(at.step, first_fault)
        if agreed.fault:
            return {"step": at.step, "stopped": False, "fault": total - int(agreed.fault)}
        if rank == 0:
            loss = figures["loss"].item()
            job.board.step.remote(at.step, f"loss {loss:.3f}")
            metrics.show(job.kind, {**pace.read(at.step), "dpmpp_loss": loss})
            metrics.show(job.kind, {"dpmpp_train_steps_total": total})
            metrics.show_masks(job.kind, {k: v.item() for k, v in figures.items() if "mask_" in k})
        if epoch_over:
            _end_epoch(job, task, optimiser, at, clock, rank)
        ends = at.step == end or agreed.stop
        if ends or agreed.save:
            state = _state(task, optimiser, at)
            if writer is not None:
                (writer.finish if ends else writer.start)(at.step, state, _loss(at))
        if ends:
            return {"step": at.step, "stopped": agreed.stop, "fault": None}
    raise RuntimeError(f"the batches ended at step {at.step} of {end}")


def start_batches(shard: DataIterator) -> Iterator[dict[str, torch.Tensor]]:
    """Start the pipeline behind a shard and return its batches, tensors on the CPU.

    The pipeline's processes start now, while the caller builds its model. Arrays are as in
    `StepMaker.make`, less UNUSED.

    Raises:
        DataError: an image cannot be read; names the file.
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
    """Go back to the newest checkpoint; the first worker says which one that is."""
    newest = torch.tensor([float(checkpoints.newest() if rank == 0 else 0)], device=get_device())
    step = int(_largest(newest)[0])
    if step == 0:
        return Position()
    state = checkpoints.load(step)
    task.load_trained_state(state["task"])
    optimiser.load_state_dict(state["optimiser"])
    return Position(state["step"], state["history"], state["sums"])


@dataclass(frozen=True)
class Agreed:
    """What all workers do after a step.

    Attributes:
        fault: 0, or a number that says which step's loss was not finite.
        save: write a checkpoint.
        stop: write one and end.
    """

    fault: float
    save: bool
    stop: bool


class _ControlSync:
    """About once a second the workers look up from training, all after the same step.

    Args:
        writer: the first worker's; None elsewhere.
        step: where the training starts.
        every: seconds between checkpoints.
    """

    def __init__(self, job: Job, writer: Writer | None, step: int, every: float) -> None:
        self._job, self._writer, self._every = job, writer, every
        self._next, self._last = step + 1, step
        self._looked = self._saved = time.monotonic()
        self._preempted = False

    def due(self, step: int) -> bool:
        return step >= self._next

    def agree(self, step: int, fault: torch.Tensor) -> Agreed:
        """Ask everybody; `fault` is float64 on the device."""
        now = time.monotonic()
        save = stop = ahead = 0.0
        if self._writer is not None:
            stop = float(self._job.asked_to_stop())
            save = float(now - self._saved >= self._every and not self._writer.busy)
            seconds = max(1e-6, now - self._looked) / max(1, step - self._last)
            ahead = max(1, min(100, int(PULSE_SECONDS / seconds)))
        leaving = ray.train.get_preemption_info() is not None
        told = torch.tensor([save, stop, ahead], dtype=torch.float64, device=fault.device)
        found, save, stop, ahead = _largest(torch.cat([fault[None], told]))
        due = bool(save) or (leaving and not self._preempted)  # once, when a node is to go
        self._preempted = leaving
        if due:
            self._saved = now
        self._looked, self._last, self._next = now, step, step + int(ahead)
        return Agreed(found, due, bool(stop))


def _largest(values: torch.Tensor) -> list[float]:
    """The largest of each value over the workers."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def _seed(seed: int, step: int, rank: int) -> int:
    """Seed of what a network draws in a step, such as dropped paths."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _state(task: Task, optimiser: torch.optim.Optimizer, at: Position) -> State:
    """All that a training is. Random numbers and rates are functions of the step."""
    return {
        "task": task.trained_state(),
        "optimiser": optimiser.state_dict(),
        "step": at.step,
        "history": at.history,
        "sums": _means(at.sums, 1),
    }


def _loss(at: Position) -> float:
    return at.history[-1]["loss"] if at.history else float("nan")


def _end_epoch(
    job: Job,
    task: Task,
    optimiser: torch.optim.Optimizer,
    at: Position,
    clock: _StepTimer,
    rank: int,
) -> None:
    epoch = at.step // task.steps_per_epoch
    means = _means(at.sums, task.steps_per_epoch)
    means |= {"lr": optimiser.param_groups[0]["lr"], **clock.read()}
    at.history.append({"epoch": epoch, **{k: round(v, 6) for k, v in means.items()}})
    at.sums = {}
    if rank == 0:
        job.board.figures.remote(epoch, means)


def _means(sums: dict[str, torch.Tensor], steps: int) -> dict[str, float]:
    """Sums over `steps`, as means over the workers, whose shares of a loss may differ."""
    if not sums:
        return {}
    values = torch.stack(list(sums.values())) / steps
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(sums, values.tolist(), strict=True))


class _StepTimer:
    """Seconds waited for batches and seconds worked, since the last reading."""

    def __init__(self) -> None:
        self._mark = time.monotonic()
        self._waited = self._worked = 0.0

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._mark = now - self._mark, now
        return lap

    def waited(self) -> float:
        """The wait that ends now, in seconds."""
        lap = self._lap()
        self._waited += lap
        return lap

    def worked(self) -> None:
        self._worked += self._lap()

    def read(self) -> dict[str, float]:
        waited, worked = self._waited, self._worked
        self._waited = self._worked = 0.0
        return {"seconds": waited + worked, "data_wait_share": waited / max(1e-9, waited + worked)}
