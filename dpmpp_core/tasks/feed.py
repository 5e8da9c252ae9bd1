"""Batches on the device that computes, without the host waiting for a copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = dict[str, Tensor]


def copy_batches(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield each batch on `device`.

    A GPU copies a batch on a stream of its own while it computes the step before; only its kernels
    wait for the copy, not the host. That needs pinned memory: what is not pinned is pinned here.

    Args:
        batches: Tensors in host memory. `step` stays there, since `int` of it must cost nothing.
        device: Where the task is.
    """
    if device.type != "cuda":
        for batch in batches:
            yield {n: x if n == "step" else x.to(device) for n, x in batch.items()}
        return
    copying = torch.cuda.Stream(device)
    for batch in batches:
        computing = torch.cuda.current_stream(device)
        with torch.cuda.stream(copying):
            copied = {n: x if n == "step" else copy_to_device(x, device) for n, x in batch.items()}
        computing.wait_stream(copying)
        for name, value in copied.items():
            if name != "step":
                value.record_stream(computing)  # its memory is not reused before the step is done
        yield copied


def copy_to_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor in host memory to a device; the host does not wait."""
    if device.type != "cuda":
        return value.to(device)
    pinned = value if value.is_pinned() else value.pin_memory()
    return pinned.to(device, non_blocking=True)


def to_host_tensor(array: NDArray, pinned: bool) -> Tensor:
    """Return a copy of an array, also of a read-only one, in memory from which a GPU may copy.

    Args:
        array: Of any numeric type.
        pinned: Whether a GPU will copy it.
    """
    tensor = torch.from_numpy(np.array(array))  # a number too, such as that of the step
    return tensor.pin_memory() if pinned else tensor
