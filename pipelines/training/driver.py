"""Training on Ray Train, on the side of the driver."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.data
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from dpmpp_core.errors import ConfigError, TrainingError
from dpmpp_core.tasks.task import Task
from pipelines.runtime.progress import follow_training, start_monitor
from pipelines.runtime.resources import parse_labels
from pipelines.runtime.run import Run
from pipelines.runtime.stage import training_key
from pipelines.training.batches import DATASET, BatchesPerRank, BatchPlan
from pipelines.training.checkpoints import find_newest_step
from pipelines.training.shards import pack_images
from pipelines.training.training_set import TrainingSet
from pipelines.training.worker import Job, LoopResult, train_loop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSegment:
    """A part of a training, which another segment continues.

    Attributes:
        epochs: Number of epochs after which it ends.
        start: Folder, in storage, of the checkpoint it starts from; empty = from the beginning.
        keep: Local folder for its last checkpoint.
    """

    epochs: int
    start: str
    keep: Path


def fit(
    run: Run,
    kind: str,
    training_set: TrainingSet,
    inputs: str,
    key: str,
    segment: TrainingSegment | None = None,
) -> tuple[Task, dict[str, Any]]:
    """Train on Ray Train, from the newest checkpoint if there is one.

    Args:
        run: The run that the stage is part of.
        kind: Which task, see `Job`.
        training_set: Where the images are.
        inputs: As in `Job`.
        key: Key of the stage; checkpoints are kept until it is committed.
        segment: Train only this part; None = all.

    Returns:
        The trained task, and a summary for the stage.

    Raises:
        ConfigError: The train workers cannot share the persons of a small set evenly.
        TrainingError: The loss was not finite (names the step and its images), or no worker can
            train: GPUs that torch cannot use, or whose memory is full.
        KeyboardInterrupt: Stopped before the end; the next call resumes there.
    """
    name = training_key(key)
    monitor = start_monitor()
    plan, checkpoints_key = run.plan, f"{name}/checkpoints"
    job = Job(kind, training_set, inputs, checkpoints_key, plan.train_cpus, plan.train_gpu, monitor)
    task = job.build_task()
    epochs = segment.epochs if segment else task.epochs
    total = task.steps_per_epoch * epochs
    if segment and segment.start:
        job.open_checkpoints().copy_newest_from(segment.start)
    if kind != "prompts":  # prompts learn from features that fit in memory
        _check_batch(run, training_set)
        pack_images(run, training_set)
    with (
        follow_training(monitor, f"{kind} steps", total, _log_epochs(run, task)),
        _request_graceful_stop(monitor),
    ):
        while True:  # one execution of the batches after the other
            result = _fit_or_stop(_build_trainer(run, job, name, total), job)
            if result.error:
                raise TrainingError(result.error)
            if result.step == total or result.stopped or result.fault is not None:
                break
    if result.fault is not None:
        raise TrainingError(_describe_fault(job, task, result.fault))
    if result.step < total:
        raise KeyboardInterrupt
    checkpoints = job.open_checkpoints()
    state = checkpoints.load(total)
    task.load_trained_state(state["task"])
    if segment:
        checkpoints.copy_to(total, segment.keep)
    run.storage.delete(name)
    history = state["history"]
    alarms: dict[str, str] = {}
    for figures in (*history[:1], *history[-1:]):  # a report lists those of both ends
        alarms |= task.alarms(figures["epoch"], figures)
    return task, {
        "steps": total,
        "epochs": epochs,
        "history": history,
        "warnings": list(alarms.values()),
    }


def _check_batch(run: Run, training_set: TrainingSet) -> None:
    """Log that a small set fills no batch; refuse one that the train workers cannot share."""
    section, workers = training_set.section, run.plan.train_workers
    wanted = getattr(run.config, section).identities
    identities = training_set.plan().identities
    if identities == wanted:
        return
    if identities % workers:
        raise ConfigError(
            f"the {identities} identities of the training set cannot be shared by {workers} train "
            f"workers: set {section}.identities to a multiple of {workers} below {identities}"
        )
    log.info("%s: all %d persons in each batch, as %s.identities is %d", section, identities,
             section, wanted)  # fmt: skip


def _build_trainer(run: Run, job: Job, name: str, total: int) -> TorchTrainer:
    plan, storage, cluster = run.plan, run.storage, run.config.cluster
    workers: int | tuple[int, int] = plan.train_workers
    if cluster.worker_counts[0] < plan.train_workers:
        workers = cluster.worker_counts[0], plan.train_workers
    steps, datasets = None, {}
    first_step = partial(find_newest_step, storage.uri, job.checkpoints, job.monitor)
    if job.kind == "prompts":
        workers = 1  # a step takes milliseconds
    else:
        steps = BatchPlan(job.training_set, total, plan.data_workers)
        datasets = {DATASET: partial(ray.data.range, total)}  # planned by `BatchesPerRank`
    resources = {"CPU": plan.train_cpus} | ({"GPU": 1} if plan.train_gpu else {})
    return TorchTrainer(
        train_loop,  # type: ignore[arg-type]
        train_loop_config={  # `LoopConfig`
            "job": job,
            "total": total,
            "plan": steps,
            "checkpoint_seconds": cluster.checkpoint_seconds,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # mypy reads the older Ray Train
            use_gpu=plan.train_gpu,
            resources_per_worker=resources,
            label_selector=parse_labels(cluster.train_nodes) or None,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage.base,
            storage_filesystem=None if storage.is_local else storage.filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
        datasets=datasets,  # type: ignore[arg-type]  # mypy reads the older Ray Train
        dataset_config=BatchesPerRank(steps, first_step) if steps else None,
    )


def _describe_fault(job: Job, task: Task, step: int) -> str:
    """Return an error message for a step, counted from 0, whose loss is not finite."""
    epoch, epoch_step = divmod(step, task.steps_per_epoch)
    saved = job.open_checkpoints().newest()
    message = (
        f"{job.kind}: the loss of step {step + 1} (epoch {epoch + 1}) is not finite; the last "
        f"checkpoint, of step {saved}, is kept. Lower the learning rates, set "
        "metric.precision=fp32, or look at the images of the step"
    )
    if job.kind == "prompts":
        return message
    _, paths, _, _ = job.training_set.rows()
    rows = sorted(set(job.training_set.plan().rows(epoch, epoch_step).tolist()))
    return f"{message}: {', '.join(paths[row] for row in rows)}"


@contextmanager
def _request_graceful_stop(monitor: Any) -> Iterator[None]:
    """On SIGTERM inside the block, request that the workers write a checkpoint and end."""
    if threading.current_thread() is not threading.main_thread():  # a trial of a search
        yield
        return

    def request(number: int, frame: Any) -> None:
        log.warning("stopping: the workers write a checkpoint first")
        monitor.request_stop.remote()

    before = signal.signal(signal.SIGTERM, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _log_epochs(run: Run, task: Task) -> Callable[[int, dict[str, float]], None]:
    """Return a callback: epoch metrics to MLflow, the first alarm of each name to the log too."""
    raised: set[str] = set()

    def on_epoch(epoch: int, figures: dict[str, float]) -> None:
        run.tracking.log_metrics(epoch, figures)
        for name, sentence in task.alarms(epoch, figures).items():
            if name not in raised:
                raised.add(name)
                log.warning("training: %s", sentence)
                run.tracking.set_warning_tag(name, sentence)

    return on_epoch


def _fit_or_stop(trainer: TorchTrainer, job: Job) -> LoopResult:
    """Run `train_loop`; on Ctrl-C raise KeyboardInterrupt, where Ray Train would exit."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value  # type: ignore[attr-defined]  # mypy reads older ones
    except SystemExit:
        raise KeyboardInterrupt from None
    except Exception:
        if error := job.reported_fault():  # there was no restart to find it
            return LoopResult(0, error=error)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
