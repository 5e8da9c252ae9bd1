"""One training step of any task: learning rates, forward and backward passes, update."""

from __future__ import annotations

from contextlib import nullcontext

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
            loss = torch.stack(list(losses.values())).sum() / len(parts)
            loss.backward()
        figures = {"loss": loss.detach() * len(parts), **losses, **report}
        for name, value in figures.items():
            means[name] = means.get(name, 0.0) + value.detach() / len(parts)
    return means


def split_batch(batch: dict[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    """Cut a batch into equal parts of whole identities; each gets scalars such as the step."""
    if count == 1:
        return [batch]
    cut = {
        name: value.chunk(count) if value.ndim else (value,) * count
        for name, value in batch.items()
    }
    return [{name: pieces[i] for name, pieces in cut.items()} for i in range(count)]
