"""Files of tensors: tensors and nothing else, all of them finite."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dpmpp_core.config.text import shorten
from dpmpp_core.errors import WeightsError

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def weights_alone() -> Iterator[None]:
    """Prevent that a variable of the environment lets `torch.load` run code of files.

    open_clip calls it a second time, without `weights_only`, where the first call fails in a
    certain way. torch's default then is the safe one, unless this variable is set.
    """
    before = os.environ.pop(UNSAFE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[UNSAFE] = before


def load_problem(path: Path, error: Exception) -> str:
    """Return why a file of weights did not load, without the libraries' advice to trust it."""
    text = " ".join(str(error).split())
    if path.suffix != ".safetensors" and "weights_only" in text:
        return (
            "it does not hold weights alone: it is damaged, or a pickle with code, which is never "
            "run; its author can save it as .safetensors"
        )
    return shorten(text, 300)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file; WeightsError if it is damaged or has NaN."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        if path.is_file() and not os.access(path, os.R_OK):  # safetensors says: no such file
            raise WeightsError(f"{path}: this user may not read it (mode, owner)") from None
        raise WeightsError(f"{path}: a damaged file of tensors: {error}") from None
    refuse_non_finite(state, str(path))
    return state


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, readable as the umask says.

    `safetensors.torch.save_file` would create a file that only its owner can read.
    """
    path.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in state.items()}))


def refuse_non_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise WeightsError, which names `where` and the tensor, if one holds NaN or infinity."""
    bad = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all())
    ]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise WeightsError(
            f"{where}: NaN or infinite values in {bad[0]}{more}: it is damaged, or left by a "
            "training that diverged; create it again"
        )
