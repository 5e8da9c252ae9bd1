"""Training on Ray Train, seen from the driver: start it, follow it, take what it learned."""

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

from dpmpp_core.errors import TrainingError
from dpmpp_core.tasks.task import Task
from pipelines.runtime.progress import follow, start_board
from pipelines.runtime.resources import selector
from pipelines.runtime.run import Run
from pipelines.runtime.stage import training_key
from pipelines.training.batches import DATASET, BatchesPerRank, BatchPlan
from pipelines.training.shards import pack_images
from pipelines.training.training_set import TrainingSet
from pipelines.training.worker import Job, train_loop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSegment:
    """A training that is left under way, for another one to go on with.

    Attributes:
        epochs: after which it is left.
        start: folder, in storage, of the checkpoint that it begins with; empty = the beginning.
        keep: local folder for its last checkpoint.
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
    part: TrainingSegment | None = None,
) -> tuple[Task, dict[str, Any]]:
    """Train on Ray Train, from the newest checkpoint if there is one.

    Args:
        kind: which task, see `Job`.
        key: of the stage; its checkpoints live beside it until it is committed.
        part: train no more than this; None = all.

    Returns:
        the trained task, and a summary for the stage.

    Raises:
        TrainingError: the loss was not finite; names the step and its images.
        KeyboardInterrupt: stopped before the end; the next call goes on from there.
    """
    name = training_key(key)
    board = start_board()
    job = Job(kind, training_set, inputs, f"{name}/checkpoints", run.plan.train_cpus, board)
    task = job.task()
    epochs = part.epochs if part else task.epochs
    total = task.steps_per_epoch * epochs
    if part and part.start:
        job.open_checkpoints().take_over(part.start)
    if kind != "prompts":  # prompts learn from features that fit in memory
        pack_images(run, training_set)
    with follow(board, f"{kind} steps", total, _watch(run, task)), _request_graceful_stop(board):
        while True:  # one execution of the batches after the other
            ended = _fit_or_stop(_trainer(run, job, name, total))
            if ended["step"] == total or ended["stopped"] or ended["fault"] is not None:
                break
    if ended["fault"] is not None:
        raise TrainingError(_fault(job, task, ended["fault"]))
    if ended["step"] < total:
        raise KeyboardInterrupt
    checkpoints = job.open_checkpoints()
    state = checkpoints.load(total)
    task.load_trained_state(state["task"])
    if part:
        checkpoints.keep(total, part.keep)
    run.storage.delete(name)
    history = state["history"]
    alarms: dict[str, str] = {}
    for figures in (*history[:1], *history[-1:]):  # what a report should say
        alarms |= task.alarms(figures["epoch"], figures)
    return task, {
        "steps": total,
        "epochs": epochs,
        "history": history,
        "warnings": list(alarms.values()),
    }


def _trainer(run: Run, job: Job, name: str, total: int) -> TorchTrainer:
    plan, storage, cluster = run.plan, run.storage, run.config.cluster
    workers: int | tuple[int, int] = plan.train_workers
    if cluster.worker_counts[0] < plan.train_workers:
        workers = cluster.worker_counts[0], plan.train_workers
    steps, datasets = None, {}
    if job.kind == "prompts":
        workers = 1  # a step takes milliseconds
    else:
        steps = BatchPlan(job.training_set, total, plan.data_workers)
        datasets = {DATASET: partial(ray.data.range, total)}  # planned by `BatchesPerRank`
    resources = {"CPU": plan.train_cpus} | ({"GPU": 1} if plan.train_gpu else {})
    return TorchTrainer(
        train_loop,  # type: ignore[arg-type]
        train_loop_config={
            "job": job,
            "total": total,
            "plan": steps,
            "checkpoint_seconds": cluster.checkpoint_seconds,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # mypy reads the older Ray Train
            use_gpu=plan.train_gpu,
            resources_per_worker=resources,
            label_selector=selector(cluster.train_nodes) or None,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage.base,
            storage_filesystem=None if storage.is_local else storage.filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
        datasets=datasets,  # type: ignore[arg-type]  # mypy reads the older Ray Train
        dataset_config=BatchesPerRank(steps, job.first_step) if steps else None,
    )


def _fault(job: Job, task: Task, step: int) -> str:
    """What to tell of a step, counted from 0, whose loss is no number."""
    epoch, at = divmod(step, task.steps_per_epoch)
    saved = job.open_checkpoints().newest()
    sentence = (
        f"{job.kind}: the loss of step {step + 1} (epoch {epoch + 1}) is not finite; the last "
        f"checkpoint, of step {saved}, is kept. Lower the learning rates, set "
        "metric.precision=fp32, or look at the images of the step"
    )
    if job.kind == "prompts":
        return sentence
    _, paths, _, _ = job.training_set.rows()
    rows = sorted(set(job.training_set.plan().rows(epoch, at).tolist()))
    return f"{sentence}: {', '.join(paths[row] for row in rows)}"


@contextmanager
def _request_graceful_stop(board: Any) -> Iterator[None]:
    """While training, SIGTERM asks the workers to write a checkpoint and end."""
    if threading.current_thread() is not threading.main_thread():  # a trial of a search
        yield
        return

    def ask(number: int, frame: Any) -> None:
        log.warning("stopping: the workers write a checkpoint first")
        board.stop.remote()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def _fit_or_stop(trainer: TorchTrainer) -> dict[str, Any]:
    """Run `train_loop` and return what it returns; Ctrl-C stays Ctrl-C.

    Ray Train answers Ctrl-C by ending the run, then the process.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value  # type: ignore[attr-defined]  # mypy reads older ones
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
