"""Matrix products in full float32, where torch may use TF32 or bfloat16, and their errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor

_backends: Any = torch.backends  # its type lacks some of its modules
_lock = Lock()
_users = 0
_before: tuple[str | None, str, str] = (None, "ieee", "ieee")


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute the float32 products of the block in float32, also where TF32 or bfloat16 is allowed.

    The settings belong to the process, not to a thread: while any thread is in such a block, they
    hold for all. The last one to leave restores what was set before.
    """
    global _users, _before
    with _lock:
        if _users == 0:
            _before = _read()
            torch.set_float32_matmul_precision("highest")
            _set("ieee", "ieee")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _restore(_before)


def _read() -> tuple[str | None, str, str]:
    """Return torch's older setting, None if the newer ones contradict it, and the newer ones."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the two interfaces of torch were mixed
        older = None
    return older, _backends.cuda.matmul.fp32_precision, _backends.mkldnn.matmul.fp32_precision


def _set(cuda: str, cpu: str) -> None:
    _backends.cuda.matmul.fp32_precision = cuda
    _backends.mkldnn.matmul.fp32_precision = cpu


def _restore(before: tuple[str | None, str, str]) -> None:
    older, cuda, cpu = before
    if older is not None:
        torch.set_float32_matmul_precision(older)
    _set(cuda, cpu)


def bound_rounding(weight: Tensor) -> Tensor:
    """Bound the error of float32 scores of queries with these weights [Q, D] (ours).

    Returns float32 [Q, 1]. Errors of D products, 2^-24 each, add up like a random walk, and eight
    more are for other operations: 2.6e-6 at 1280; measured is a fifth of it, see `retrieval.md`.
    Weights of few levels, as signs, make equal products: their D errors may all agree.
    """
    size, width = weight.abs(), weight.shape[1]
    equal = (size[:, 1:] == size[:, :-1]) & (size[:, 1:] > 0)
    few_levels = equal.sum(1, keepdim=True) > width / 32
    errors = torch.where(few_levels, float(width), math.sqrt(width)) + 8
    return (errors * 2**-24).to(weight.device, torch.float32)
