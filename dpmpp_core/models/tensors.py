"""Weights out of files: tensors and nothing else, all of them finite."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dpmpp_core.config.text import shorten
from dpmpp_core.errors import WeightsError

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def weights_alone() -> Iterator[None]:
    """Let no variable of the environment turn `torch.load` to files that run code.

    open_clip calls it a second time, without `weights_only`, where the first call fails in a
    certain way; torch's default then is the safe one unless this variable is set.
    """
    before = os.environ.pop(UNSAFE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[UNSAFE] = before


def load_problem(path: Path, error: Exception) -> str:
    """Why a file of weights did not load, without the libraries' advice to trust it."""
    text = " ".join(str(error).split())
    if path.suffix != ".safetensors" and "weights_only" in text:
        return (
            "it does not hold weights alone: it is damaged, or a pickle with code, which is never "
            "run; have whoever made it save it as .safetensors"
        )
    return shorten(text, 300)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        WeightsError: damaged, or a tensor with NaN or infinite values; names it.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: a damaged file of tensors: {error}") from None
    refuse_non_finite(state, str(path))
    return state


def refuse_non_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise WeightsError if a tensor holds NaN or infinity; names the first, and `where` it is."""
    bad = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all())
    ]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise WeightsError(
            f"{where}: NaN or infinite values in {bad[0]}{more}: it is damaged, or left by a "
            "training that diverged; make it anew"
        )
