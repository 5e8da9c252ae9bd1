"""What the processes of a run load: each import is paid by every worker that Ray starts."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch", "open_clip", "timm", "torchvision", "mlflow", "sklearn", "matplotlib", "ray.train",
)  # fmt: skip


def find_heavy_imports(module: str) -> set[str]:
    code = f"import {module}, sys; print(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("pipelines.cli", set()),
        ("dpmpp_core.models.weights", set()),
        ("pipelines.training.batches", {"ray.train"}),  # data workers and coordinators
        ("pipelines.training.worker", {"ray.train", "torch"}),  # the controller, too
        ("pipelines.inference.workers", {"torch", "open_clip", "timm", "torchvision"}),
    ],
)
def test_a_process_loads_what_it_needs(module: str, allowed: set[str]) -> None:
    assert find_heavy_imports(module) <= allowed
