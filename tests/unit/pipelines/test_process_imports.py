"""What the processes of a run load: each import is paid by every worker that Ray starts."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch", "open_clip", "timm", "torchvision", "mlflow", "sklearn", "matplotlib", "ray.train",
)  # fmt: skip


# Each with what it and those before it may load: one process loads them one after the other.
ALLOWED: dict[str, set[str]] = {
    "pipelines.cli": set(),
    "dpmpp_core.models.weights": set(),
    "pipelines.training.batches": {"ray.train"},  # data workers and coordinators
    "pipelines.training.worker": {"ray.train", "torch"},  # the controller, too
}


def find_heavy_imports(*modules: str) -> list[set[str]]:
    """What is loaded after each of the modules."""
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += f"    print(*(set({HEAVY!r}) & set(sys.modules)))"
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_a_process_loads_what_it_needs() -> None:
    loaded = dict(zip(ALLOWED, find_heavy_imports(*ALLOWED), strict=True))
    assert not {name: more for name in ALLOWED if (more := loaded[name] - ALLOWED[name])}


def test_a_worker_that_embeds_loads_no_training() -> None:
    (loaded,) = find_heavy_imports("pipelines.inference.workers")
    assert loaded <= {"torch", "open_clip", "timm", "torchvision"}


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
