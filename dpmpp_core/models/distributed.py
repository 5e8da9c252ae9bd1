"""Tensors over the whole batch when its images are spread over train workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """`all_gather` with a gradient.

    torch's own (`torch.distributed.nn.functional`) is deprecated in favour of a private module, and
    DTensor, which is public, takes seconds to import and a fifth longer.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = local.shape[0]
        return _gather_plain(local)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)  # autograd may share it
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather(local: Tensor) -> Tensor:
    """Return the rows of all workers in rank order, [world * B, ...].

    Every worker then computes the same loss on the whole batch. The backward pass sums the
    workers' gradients, and the averaging of data-parallel training turns that into the exact
    gradient of the single-worker loss. Batch norm after it has the whole batch.
    """
    if worker_count() == 1:
        return local
    return _Gather.apply(local) if local.is_floating_point() else _gather_plain(local)


def gather_together(local: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `gather` of each tensor [B, ...], all of one type, in one exchange."""
    if worker_count() == 1:
        return dict(local)
    rows = [x.flatten(1) if x.ndim > 1 else x[:, None] for x in local.values()]
    parts = gather(torch.cat(rows, dim=1)).split([x.shape[1] for x in rows], dim=1)
    return {
        n: part.reshape(-1, *x.shape[1:]) for (n, x), part in zip(local.items(), parts, strict=True)
    }


def mean_over_workers(local: Tensor) -> Tensor:
    """Return the mean over the train workers; gradients flow to all of them."""
    return local if worker_count() == 1 else gather(local[None]).mean(dim=0)


def worker_count() -> int:
    """Return the number of train workers that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather_plain(local: Tensor) -> Tensor:
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)
