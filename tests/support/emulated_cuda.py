"""A CUDA device without a GPU: tensors with values in host memory that say `cuda:0`.

Operations dispatch as on CUDA. Tensors of two devices do not mix, `numpy()` is refused, and every
operation for which a host waits for its GPU is recorded. Where torch allows TF32, products of
float32 round their inputs to TF32.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ROOT = str(Path(__file__).parents[2])
aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.equal.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
MOVING = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
PRODUCTS = {
    aten.mm.default, aten.mm.out, aten.bmm.default, aten.addmm.default, aten.addmm_.default,
    aten.baddbmm.default,
}  # fmt: skip
# CUDA takes indices in host memory, which it copies.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class OnDevice(Tensor):
    """A tensor that says `cuda:0`; its values are in `held`, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device="meta", requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """For torch itself it is on `meta`, whose operations need no driver."""
        return torch.device("cuda", 0)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self, **kwargs: Any) -> str:
        return f"OnDevice({self.held!r})"

    def tolist(self) -> Any:  # torch's own takes no subclass
        return self.cpu().tolist()

    def record_stream(self, stream: Any) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of emulated_cuda()")


class EmulatedCuda(TorchDispatchMode):
    """Runs operations on `OnDevice` tensors.

    Attributes:
        waits: "operation at file:line" of each one for which the host would wait.
        operations: number of operations on the device, views included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten.is_pinned.default:
            return False
        if func is aten._pin_memory.default:
            return args[0].clone()
        flat, _ = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        here = [x for x in tensors if isinstance(x, OnDevice)]
        device = kwargs.get("device")
        # What C++ creates like a tensor on the device says `meta`.
        moved = device is not None and torch.device(device).type in ("cuda", "meta")
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        if here or moved:
            self.operations += 1
            self._check(func, args, kwargs, tensors, here)
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        waits = self._waits(func, args, kwargs, here, device)
        if waits:
            self.waits.append(f"{func} at {_line()}")
        inner = tree_map(_unwrapped, (args, kwargs))
        if here and func in PRODUCTS and torch.backends.cuda.matmul.fp32_precision == "tf32":
            result = func(*map(_to_tf32, inner[0]), **inner[1])
        else:
            result = func(*inner[0], **inner[1])
        on_device = moved or (bool(here) and device is None)
        if func in (aten.copy_.default, aten._copy_from.default):
            on_device = isinstance(args[0], OnDevice)
        if func is aten._local_scalar_dense.default or not on_device:
            return _same(result, inner[0], args)
        return tree_map(lambda x: _wrapped(x, inner[0], inner[1], args, kwargs), result)

    def _check(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], here: list[OnDevice]
    ) -> None:
        if func in MOVING or func in INDEXING or len(here) == len(tensors) or not here:
            return
        if any(x.ndim for x in tensors if not isinstance(x, OnDevice)):
            raise RuntimeError(
                f"{func}: Expected all tensors to be on the same device, but found at least two "
                "devices, cuda:0 and cpu!"
            )

    def _waits(self, func: Any, args: Any, kwargs: Any, here: list[OnDevice], device: Any) -> bool:
        if func is aten._to_copy.default:
            crosses = device is not None and (
                isinstance(args[0], OnDevice) != (torch.device(device).type in ("cuda", "meta"))
            )
            return crosses and not kwargs.get("non_blocking")
        if func in (aten.copy_.default, aten._copy_from.default):
            crosses = isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice)
            blocking = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
            return crosses and blocking and bool(args[1].ndim)
        if func in INDEXING and here:
            indices = [x for x in args[1] if x is not None]
            return any(x.dtype == torch.bool or not isinstance(x, OnDevice) for x in indices)
        return bool(here) and func in WAITING


def _to_tf32(x: Any) -> Any:
    """Round float32 to the 10 bits of TF32, halves to even."""
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    return rounded.view(torch.float32)


def _unwrapped(x: Any) -> Any:
    return x.held if isinstance(x, OnDevice) else x


def _same(result: Any, inner: Any, outer: Any) -> Any:
    return outer[0] if inner and result is inner[0] else result


def _wrapped(x: Any, inner: Any, inner_kwargs: Any, outer: Any, outer_kwargs: Any) -> Any:
    """Wrap a result; one that is an argument, as of an operation in place, stays that argument."""
    if not isinstance(x, Tensor) or isinstance(x, OnDevice):
        return x
    before, _ = tree_flatten((inner, inner_kwargs))
    after, _ = tree_flatten((outer, outer_kwargs))
    for held, given in zip(before, after, strict=True):
        if held is x and isinstance(given, OnDevice):
            return given
    return OnDevice(x)


def _line() -> str:
    """Return `file:line` of the innermost line of this project."""
    for frame in reversed(traceback.extract_stack()):
        own = frame.filename.startswith(ROOT) and "site-packages" not in frame.filename
        if own and frame.filename != __file__:
            return f"{frame.filename.removeprefix(ROOT + '/')}:{frame.lineno}"
    return "?"


class _Stream:
    """A stream; operations are emulated in the order in which they are called."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def wait_stream(self, other: _Stream) -> None: ...


@contextmanager
def emulated_cuda() -> Iterator[EmulatedCuda]:
    """Emulate the device inside the block."""
    mode = EmulatedCuda()
    patched = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": lambda _stream: nullcontext(),
    }
    future = torch.__future__
    overwrites = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)  # module.to(device) changes the class
    try:
        with mock.patch.multiple(torch.cuda, **patched), _patched_moves(mode), mode:
            yield mode
    finally:
        future.set_overwrite_module_params_on_conversion(overwrites)


@contextmanager
def _patched_moves(mode: EmulatedCuda) -> Iterator[None]:
    """Let what moves a tensor to the device create an `OnDevice`; torch would call the driver."""
    own_to, own_tensor = Tensor.to, torch.tensor

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("copy", None)
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type != "cuda":
            return own_to(self, *args, **kwargs)
        if isinstance(self, OnDevice):
            return self if dtype is None else own_to(self, dtype)
        if not non_blocking and self.ndim:
            mode.waits.append(f"copy to the device at {_line()}")
        return OnDevice(own_to(self.detach(), dtype or self.dtype).clone())

    def tensor(data: Any, **kwargs: Any) -> Tensor:
        device = kwargs.pop("device", None)
        made = own_tensor(data, **kwargs)
        return made if device is None else made.to(device)

    def no_graphs(self: torch.optim.Optimizer) -> None: ...

    with (
        mock.patch.object(Tensor, "to", to),
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(
            torch.optim.Optimizer, "_accelerator_graph_capture_health_check", no_graphs
        ),
    ):
        yield


def to_device(x: Tensor) -> Tensor:
    """Return a tensor on the emulated device."""
    return OnDevice(x)
