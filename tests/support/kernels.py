"""Counts the operations that a GPU would launch kernels for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Memory that is taken or renamed, without a kernel.
FREE = {"aten._unsafe_view", "aten.detach", "aten.empty", "aten.empty_like", "aten.empty_strided",
        "aten.lift_fresh", "aten.new_empty", "aten.new_empty_strided"}  # fmt: skip


class CountKernels(TorchDispatchMode):
    """Counts operations inside the block, forward and backward, without views.

    Attributes:
        names: number of calls by name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Number of all calls."""
        return sum(self.names.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.replace("::", ".")
        aliases = [x.alias_info for x in func._schema.returns]
        view = any(x is not None and not x.is_write for x in aliases)
        if not view and name not in FREE:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))
