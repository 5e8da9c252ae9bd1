"""The ceilings of the machine: products, memory, copies to the device."""

from __future__ import annotations

import platform
import subprocess

import torch

from dpmpp_core.tasks.task import computes_bf16
from tests.gpu.setting import Row, Setting

BATCH_BYTES = 9_450_000  # the pictures of a step of 64, and 32 behind synthetic occluders


def name_device(device: torch.device) -> str:
    """Return the name of a card; of a CPU its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}"


def check_machine(setting: Setting) -> Row:
    """Measure what the device can do at most."""
    device, n = setting.device, setting.size(8192, 512)
    row = Row({"device": name_device(device), "driver": _driver() if setting.cuda else None,
               "torch": torch.__version__, "cuda": torch.version.cuda,
               "bf16": computes_bf16(device)})  # fmt: skip
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "ieee"), ("fp32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
    ):  # fmt: skip
        x = torch.randn(n, n, device=device).to(dtype)
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = precision
        try:
            seconds = setting.seconds(lambda x=x: x @ x, setting.size(10, 1))
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
        row.figures[f"{name}_tflops"] = round(2 * n**3 / seconds / 1e12, 3)
    size = setting.size(2**30, 2**24)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    seconds = setting.seconds(source.clone, setting.size(10, 2))
    row.figures["memory_gb_s"] = round(2 * size / seconds / 1e9, 1)
    host = torch.randint(0, 256, (BATCH_BYTES,), dtype=torch.uint8)
    kinds = {"pageable": host, "pinned": host.pin_memory()} if setting.cuda else {"pageable": host}
    for name, value in kinds.items():
        moves = setting.seconds(lambda v=value: v.to(device, non_blocking=True, copy=True), 20)
        row.figures[f"{name}_copy_ms"] = round(1e3 * moves, 3)
    if setting.cuda:
        row.expect(row.figures["pinned_copy_ms"] <= 0.5, "a pinned batch takes more than 0.5 ms")
        row.expect(row.figures["bf16"], "no bf16 arithmetic: metric.precision=auto is fp32")
    return row


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
