"""Matrix products in full float32, also where torch may use TF32 or bfloat16 for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

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
