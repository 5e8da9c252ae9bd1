"""What the train workers of one training decide together, all after the same step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray.train
import torch
import torch.distributed as dist

from pipelines.training.checkpoints import Writer

if TYPE_CHECKING:
    from pipelines.training.worker import Job

SYNC_SECONDS = 1.0  # between two synchronisations of the workers


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


class ControlSync:
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
        """Synchronise the workers and return the decision, which is the same for all of them.

        It is a collective operation: every worker calls it after the same step, or all block. It
        waits for the device. Afterwards `due` is False until the next synchronisation, about a
        second later.

        Args:
            step: Steps done.
            fault: Float64 scalar (shape []), on the device of the training. 0 = each loss was
                finite; else total steps minus the first step with a bad loss. The largest of all
                workers counts, which is the earliest step.
        """
        now = time.monotonic()
        save = stop = ahead = 0.0
        if self._writer is not None:
            stop = float(self._job.stop_requested())
            save = float(now - self._saved >= self._every and not self._writer.busy)
            seconds = max(1e-6, now - self._synced) / max(1, step - self._last)
            ahead = max(1, min(100, int(SYNC_SECONDS / seconds)))
        leaving = ray.train.get_preemption_info() is not None
        own = torch.tensor([save, stop, ahead], dtype=torch.float64, device=fault.device)
        any_fault, save, stop, ahead = reduce_max(torch.cat([fault[None], own]))
        due = bool(save) or (leaving and not self._preempted)  # once per preempted node
        self._preempted = leaving
        if due:
            self._saved = now
        self._synced, self._last, self._next = now, step, step + int(ahead)
        return Decision(any_fault, due, bool(stop))


def reduce_max(values: torch.Tensor) -> list[float]:
    """Return the largest of each value over the workers."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


class FigureSums:
    """Sums of a task's figures over steps, on their device.

    Args:
        sums: To continue from, from a checkpoint.
    """

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self._names = list(sums or {})
        self._total = torch.tensor(list(sums.values())) if sums else None

    def add(self, figures: Mapping[str, torch.Tensor]) -> None:
        """Add the figures of a step, scalars of the same names in the same order each time."""
        values = torch.stack([value.float() for value in figures.values()])
        if self._total is None:
            self._names, self._total = list(figures), values
        else:
            # Only sums of a checkpoint are on another device, once.
            self._total = self._total.to(values.device) + values

    def average_over_workers(self, steps: int) -> dict[str, float]:
        """Return the sums over `steps` as means over the workers, whose shares may differ."""
        if self._total is None:
            return {}
        values = self._total / steps
        if dist.is_initialized():
            dist.all_reduce(values)
            values /= dist.get_world_size()
        return dict(zip(self._names, values.tolist(), strict=True))
