"""The device of each process, by the plan; devices that cannot do what was planned, described."""

from __future__ import annotations

import ray
import torch

from dpmpp_core.config import Config
from dpmpp_core.errors import ConfigError
from dpmpp_core.tasks.task import computes_bf16


def assigned_device() -> str:
    """Return `cuda` in a worker to which Ray gave a GPU, else `cpu`.

    `torch.cuda.is_available` would also take a GPU that the plan gives to others, or to nobody
    (`cluster.gpu=false`).

    Raises:
        ConfigError: Torch cannot use the GPU.
    """
    if not (ray.is_initialized() and ray.get_gpu_ids()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(describe_unusable_gpu("Ray gave a worker a GPU"))
    return "cuda"


def count_usable_gpus(wanted: bool | None) -> int:
    """Return the number of GPUs of this machine.

    NVML counts them without the driver that torch needs, so that one too old would show only when
    training starts.

    Args:
        wanted: `cluster.gpu`; False = none is used, so that none is looked at.

    Raises:
        ConfigError: There are some, but torch cannot use them.
    """
    gpus = torch.cuda.device_count() if wanted is not False else 0
    if gpus and not torch.cuda.is_available():
        raise ConfigError(describe_unusable_gpu(f"this machine has {gpus} GPU(s)"))
    return gpus


def resolve_precision(config: Config, gpu: bool) -> Config:
    """Return the configuration with what `metric.precision=auto` means for its trainings.

    So that keys of stages, checkpoints and workers have one precision, also where a run is resumed
    on another machine. A GPU without bf16 is refused when training starts, see
    `describe_unusable_device`.

    Args:
        config: Of a run.
        gpu: Whether it trains on GPUs; else this machine's CPU decides.
    """
    if config.metric.precision != "auto":
        return config
    precision = "bf16" if gpu or computes_bf16(torch.device("cpu")) else "fp32"
    metric = config.metric.model_copy(update={"precision": precision})
    return config.model_copy(update={"metric": metric})


def describe_unusable_device(gpu: bool, device: torch.device, precision: str) -> str:
    """Return why a train worker cannot train as planned; empty if it can.

    Args:
        gpu: Whether the plan gives it a GPU.
        device: What it got.
        precision: `metric.precision`.
    """
    if gpu and device.type != "cuda":
        return describe_unusable_gpu("Ray gave a train worker a GPU")
    if device.type == "cuda" and precision == "bf16" and not computes_bf16(device):
        name = torch.cuda.get_device_name(device)
        return f"{name} has no bf16 arithmetic (Ampere and later have): set metric.precision=fp32"
    return ""


def describe_unusable_gpu(what: str) -> str:
    """Return an error message for a GPU that is there, but that torch cannot use."""
    return (
        f"{what}, but torch {torch.__version__} cannot use it: its driver is too old for CUDA "
        f"{torch.version.cuda} or not running (nvidia-smi shows it; CUDA 13 needs driver 580 or "
        "newer). Update the driver, install a torch for an older CUDA, or set cluster.gpu=false"
    )


def describe_full_memory(kind: str, step: int, device: torch.device) -> str:
    """Return an error message for a step, counted from 1, that did not fit into GPU memory."""
    total = torch.cuda.get_device_properties(device).total_memory
    smaller = f"{kind}.batch" if kind == "prompts" else f"{kind}.identities or {kind}.images"
    parts = "set metric.accumulate=2 or more, or " if kind == "metric" else ""
    return (
        f"{kind}: step {step} does not fit into the {total / 1e9:.0f} GB of the GPU: {parts}lower "
        f"{smaller}; `nvidia-smi` shows what else uses its memory"
    )
