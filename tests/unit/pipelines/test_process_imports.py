"""What the processes of a run load: each import is paid by every worker that Ray starts."""

import subprocess
import sys
from pathlib import Path

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


EXTRA = ("ray", "mlflow", "optuna", "boto3", "matplotlib")
WITHOUT_EXTRA = f"import sys; sys.modules.update(dict.fromkeys({EXTRA!r}))\n"


def run_without_extra(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_EXTRA + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_core_needs_no_extra() -> None:
    names = "print(*(getattr(dpmpp_core, name).__name__ for name in dpmpp_core.__all__))"
    done = run_without_extra(f"import dpmpp_core; {names}")
    assert done.returncode == 0 and "Index" in done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [["search", "--index", "x", "--query", "y"], ["train"]])
def test_a_command_without_its_extra_names_it(arguments: list[str], tmp_path: Path) -> None:
    options = ["--storage", str(tmp_path / "runs")] if arguments == ["train"] else []
    code = f"sys.argv = {['dpmpp', *arguments, *options]!r}; from pipelines.cli import main; main()"
    done = run_without_extra(code)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'dpmpp[train]'" in done.stderr
    assert not list(tmp_path.iterdir())
