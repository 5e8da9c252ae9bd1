"""The training loop on Ray Train: one for any task."""

from __future__ import annotations

import logging
import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.data import ExecutionOptions, ExecutionResources
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from dpmpp_core.models.tensors import read_tensors
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.pretrain import PretrainTask
from dpmpp_core.tasks.prompts import PromptTask
from dpmpp_core.tasks.saliency import SaliencyTask
from dpmpp_core.tasks.task import Task
from pipelines.progress import Board, follow
from pipelines.stage import Run, training_key
from pipelines.storage import Storage
from pipelines.stream import TrainingSet, step_stream

log = logging.getLogger(__name__)

STATE = "state.pt"
AHEAD_BYTES = 512 * 2**20  # batches made ahead of training, in the object store


@dataclass(frozen=True)
class Job:
    """What a train worker needs, on whatever node it wakes up.

    Attributes:
        kind: `saliency`, `prompts`, `metric` or `pretrain`.
        inputs: key of the stage whose files the task starts from: manifest, cached features, text
            prototypes; empty for a backbone without text.
        threads: torch threads of a worker.
        board: the progress board's actor handle.
    """

    kind: str
    training_set: TrainingSet
    inputs: str
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


def fit(
    run: Run, kind: str, training_set: TrainingSet, inputs: str, key: str, workers: int
) -> tuple[Task, dict[str, Any]]:
    """Run the loop on Ray Train, from its last checkpoint if there is one; the trained task."""
    board = Board.remote()  # type: ignore[attr-defined]
    job = Job(kind, training_set, inputs, run.plan.train_cpus, board)
    task = job.task()
    total = task.steps_per_epoch * task.epochs
    name = training_key(key)
    storage = run.storage
    datasets: dict[str, Callable[[], ray.data.Dataset]] = {}
    if kind != "prompts":
        data_workers = run.plan.data_workers

        def stream() -> ray.data.Dataset:  # called again whenever the worker group starts anew
            first = _last_step(training_set.storage, name)
            if first >= total:  # nothing left, but Ray Data wants a row
                first = total - 1
            return step_stream(training_set, first, total, workers, data_workers)

        datasets["steps"] = stream
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "total": total},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=run.plan.train_gpu,
            resources_per_worker={"CPU": run.plan.train_cpus}
            | ({"GPU": 1} if run.plan.train_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage.base,
            storage_filesystem=None if storage.is_local else storage.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=3),
        ),
        datasets=datasets,  # type: ignore[arg-type]
        dataset_config=ray.train.DataConfig(
            execution_options=ExecutionOptions(
                preserve_order=True,
                resource_limits=ExecutionResources(object_store_memory=AHEAD_BYTES),
            ),
            enable_shard_locality=False,
        ),
    )
    with follow(board, f"{kind} steps", total, _watch(run, task)):
        result = _fit_or_stop(trainer)
    state = load_checkpoint(result.checkpoint)
    task.load_trained_state(state["task"])
    storage.delete(name)
    history = state["history"]
    alarms: dict[str, str] = {}
    for figures in (*history[:1], *history[-1:]):  # what a report should say
        alarms |= task.alarms(figures["epoch"], figures)
    return task, {
        "steps": total,
        "epochs": task.epochs,
        "history": history,
        "warnings": list(alarms.values()),
    }


def _watch(run: Run, task: Task) -> Callable[[int, dict[str, float]], None]:
    """Takes each epoch's figures to MLflow, and the first alarm of each name to the log too."""
    raised: set[str] = set()

    def on_figures(epoch: int, figures: dict[str, float]) -> None:
        run.tracking.figures(epoch, figures)
        for name, sentence in task.alarms(epoch, figures).items():
            if name not in raised:
                raised.add(name)
                log.warning("training: %s", sentence)
                run.tracking.alarm(name, sentence)

    return on_figures


def _fit_or_stop(trainer: TorchTrainer) -> ray.train.Result:
    """Ray Train answers Ctrl-C by ending the run, then the process; here it stays Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _last_step(storage: str, name: str) -> int:
    """Step of the checkpoint that Ray Train will hand to the workers, 0 where there is none."""
    snapshot = Storage(storage).read_json(f"{name}/checkpoint_manager_snapshot.json") or {}
    latest = snapshot.get("latest_checkpoint_result") or {}
    return int(latest.get("metrics", {}).get("step", 0))


def train_loop(settings: dict[str, Any]) -> None:
    """One train worker: resume, step through the stream, report and checkpoint each epoch."""
    job: Job = settings["job"]
    total: int = settings["total"]
    torch.set_num_threads(job.threads)
    # On CPUs plain attention takes a sixth less time than the fused kernels, whose backward pass
    # is slow for the few tokens of a person crop.
    torch.backends.cuda.enable_flash_sdp(get_device().type != "cpu")
    context = ray.train.get_context()
    leader = context.get_world_rank() == 0
    device = get_device()
    task = job.task().to(device)
    optimiser = task.optimiser()
    step, history = _resume(task, optimiser)
    if step >= total:  # killed between the last step and the commit: hand the state back
        _report(task, optimiser, step, history, leader)
        return
    model: torch.nn.Module = task
    if context.get_world_size() > 1:
        model = torch.nn.parallel.DistributedDataParallel(
            task, find_unused_parameters=not task.updates_all
        )

    every = task.checkpoint_epochs
    sums: dict[str, torch.Tensor] = {}
    clock = _Clock()
    for batch in _batches(task, step):
        clock.waited()
        on_device = {name: value.to(device) for name, value in batch.items()}
        on_device["step"] = torch.tensor(step)
        figures = _train_step(task, model, optimiser, on_device, step)
        sums = {name: sums.get(name, 0.0) + value for name, value in figures.items()}
        step += 1
        clock.worked()
        if leader and (step % 10 == 0 or step == total):
            job.board.step.remote(step, f"loss {figures['loss'].item():.3f}")
        if step % task.steps_per_epoch == 0:
            epoch = step // task.steps_per_epoch
            means = _mean_figures(sums, task.steps_per_epoch)
            if not math.isfinite(means["loss"]):
                raise RuntimeError(f"{job.kind}: the loss is not finite in epoch {epoch}")
            means |= {"lr": optimiser.param_groups[0]["lr"], **clock.read()}
            history.append({"epoch": epoch, **{k: round(v, 6) for k, v in means.items()}})
            sums = {}
            if leader:
                job.board.figures.remote(epoch, means)
            if epoch % every == 0 or step == total:
                _report(task, optimiser, step, history, leader)


def _resume(task: Task, optimiser: torch.optim.Optimizer) -> tuple[int, list[dict[str, float]]]:
    """Steps done and the history of the checkpoint that Ray Train hands over, if it does."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, []
    state = load_checkpoint(checkpoint)
    task.load_trained_state(state["task"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["history"]


def _train_step(
    task: Task,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    step: int,
) -> dict[str, torch.Tensor]:
    """One step; `model` is the task or its data-parallel wrapper. Losses and report, detached."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * task.lr_factor(step)
    figures: dict[str, torch.Tensor] = {}
    for phase in task.phases:
        losses, report = model(batch, phase)
        loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        task.keep_gradients(phase)
        optimiser.step()
        figures = {"loss": loss, **losses, **report} | figures  # the first pass knows most
    return {name: value.detach() for name, value in figures.items()}


def _mean_figures(sums: dict[str, torch.Tensor], steps: int) -> dict[str, float]:
    """Means over an epoch's steps and over the workers, whose shares of a loss may differ."""
    values = torch.stack(list(sums.values())) / steps
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(sums, values.tolist(), strict=True))


class _Clock:
    """Seconds waited for batches and seconds worked, since the last reading."""

    def __init__(self) -> None:
        self._mark = time.monotonic()
        self._waited = self._worked = 0.0

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self._mark = now - self._mark, now
        return lap

    def waited(self) -> None:
        self._waited += self._lap()

    def worked(self) -> None:
        self._worked += self._lap()

    def read(self) -> dict[str, float]:
        waited, worked = self._waited, self._worked
        self._waited = self._worked = 0.0
        return {"seconds": waited + worked, "data_wait_share": waited / max(1e-9, waited + worked)}


def _batches(task: Task, step: int) -> Iterable[dict[str, torch.Tensor]]:
    """Batches from `step` on: prompts plan theirs in memory, Ray Data streams the others'."""
    if isinstance(task, PromptTask):
        return task.batches(step)
    return _streamed(step)


def _streamed(step: int) -> Iterator[dict[str, torch.Tensor]]:
    shard = ray.train.get_dataset_shard("steps")
    for row in shard.iter_batches(batch_size=1, prefetch_batches=2, batch_format="numpy"):
        found = int(row.pop("step")[0])
        if found < step:  # the stream began before this worker's checkpoint
            continue
        if found > step:
            raise RuntimeError(f"the step stream is at step {found}, the checkpoint at {step}")
        step += 1
        yield {name: torch.from_numpy(values[0].copy()) for name, values in row.items()}


def _report(
    task: Task, optimiser: torch.optim.Optimizer, step: int, history: list, leader: bool
) -> None:
    """Every rank reports, the first one with the checkpoint."""
    metrics = {"step": step, "loss": history[-1]["loss"] if history else float("nan")}
    if not leader:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {
            "task": task.trained_state(),
            "optimiser": optimiser.state_dict(),
            "step": step,
            "history": history,
        }
        torch.save(state, Path(folder) / STATE)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def load_checkpoint(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The state that `_report` stored, on the CPU."""
    if checkpoint is None:
        raise RuntimeError("training ended without a checkpoint")
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)
