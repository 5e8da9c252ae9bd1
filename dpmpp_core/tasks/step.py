"""One training step of any task: learning rates, forward and backward passes, update."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from dpmpp_core.tasks.task import Task


def train_step(
    task: Task,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    step: int,
) -> dict[str, torch.Tensor]:
    """Update the parameters once and return losses and report, detached scalars.

    `model` is the task or its data-parallel wrapper; `step` decides the learning rates.
    """
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * task.lr_factor(step)
    figures: dict[str, torch.Tensor] = {}
    for phase in task.phases:
        optimiser.zero_grad()
        computed = _backward(model, split_batch(batch, task.accumulate), phase)
        task.filter_gradients(phase)
        optimiser.step()
        figures = computed | figures  # the first pass has most figures
    return figures


def _backward(
    model: torch.nn.Module, parts: list[dict[str, torch.Tensor]], phase: str
) -> dict[str, torch.Tensor]:
    """Compute gradients of the mean loss of the parts; workers exchange them after the last one."""
    means: dict[str, torch.Tensor] = {}
    for number, part in enumerate(parts, start=1):
        local = number < len(parts) and isinstance(model, DistributedDataParallel)
        with model.no_sync() if local else nullcontext():  # type: ignore[operator]
            losses, report = model(part, phase)
            loss = torch.stack(list(losses.values())).sum()
            (loss / len(parts)).backward()
        for name, value in {"loss": loss, **losses, **report}.items():
            share = value.detach() / len(parts) if len(parts) > 1 else value.detach()
            means[name] = means[name] + share if name in means else share
    return means


def wrap_for_workers(task: Task, workers: int) -> torch.nn.Module:
    """Return the task, or its data-parallel wrapper if several workers train it.

    Buffers are equal on all workers, as statistics are those of the whole batch, so that none is
    broadcast. Gradients are views of the buffers that are exchanged, which saves a copy of each.
    """
    if workers == 1:
        return task
    known = inspect.signature(DistributedDataParallel).parameters
    broadcast = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {broadcast: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(task, find_unused_parameters=not task.updates_all, **options)


def split_batch(batch: dict[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    """Cut a batch into equal parts of whole identities; each gets scalars such as the step."""
    if count == 1:
        return [batch]
    cut = {
        name: value.chunk(count) if value.ndim else (value,) * count
        for name, value in batch.items()
    }
    return [{name: pieces[i] for name, pieces in cut.items()} for i in range(count)]
