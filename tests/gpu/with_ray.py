"""The second part, where Ray is installed: the demo trained by Ray Train, on the GPU and off it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.gpu.setting import Row, Setting

TIMEOUT_S = 900


def has_ray() -> bool:
    """Return whether Ray and MLflow are installed."""
    return all(importlib.util.find_spec(name) for name in ("ray", "mlflow"))


def check_ray(setting: Setting) -> Row:
    """Run the demo with GPUs as planned, once killed on the way, and with `cluster.gpu=false`.

    On the way the processes on the GPU are counted: a train worker, or none.
    """
    row = Row()
    for name, gpu in (("gpu", True), ("off", False)):
        folder = setting.folder / f"ray-{name}"
        command = [
            sys.executable, "-m", "pipelines.cli", "train", "--config", "demo",
            "--storage", str(folder), f"cluster.gpu={str(gpu).lower()}", "metric.epochs=2",
        ]  # fmt: skip
        most, ended = 0, None
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while ended is None and time.monotonic() - start < TIMEOUT_S:
            most = max(most, _processes_on_gpu())
            ended = process.poll()
            time.sleep(1)
        process.kill()
        _, errors = process.communicate()
        tail = errors.decode(errors="replace").strip().splitlines()[-3:]
        row.require(ended == 0, f"{name}: exit {ended}: {' '.join(tail)[:300]}")
        row.figures[name] = {"processes_on_gpu": most, "seconds": round(time.monotonic() - start),
                             "epochs": _history(folder)}  # fmt: skip
        row.require(most <= (1 if gpu else 0), f"{name}: {most} processes on the GPU")
    return row


def _processes_on_gpu() -> int:
    command = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(lines.split())


def _history(folder: Path) -> list[dict[str, float]]:
    """Return seconds and share waited for batches of each epoch of stage 2."""
    for file in folder.glob("stages/metric-*/stage.json"):
        history = json.loads(file.read_text())["summary"]["history"]
        return [{k: epoch[k] for k in ("seconds", "data_wait_share")} for epoch in history]
    return []
