"""The shape of the code: who may import whom, what stays out of the core, how large files get."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = sorted([*ROOT.glob("dpmpp_core/**/*.py"), *ROOT.glob("pipelines/**/*.py")])


def modules_loaded_by(program):
    """Names of the modules that a fresh interpreter holds after running `program`."""
    script = f"import json, sys\n{program}\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_layers_import_downwards_only():
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    run = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def test_the_core_loads_without_cluster_tracking_and_cloud():
    loaded = modules_loaded_by(
        "import importlib, pkgutil, dpmpp_core\n"
        "for m in pkgutil.walk_packages(dpmpp_core.__path__, 'dpmpp_core.'):\n"
        "    importlib.import_module(m.name)"
    )
    core = {".".join(f.relative_to(ROOT).with_suffix("").parts) for f in PRODUCT}
    core = {name.removesuffix(".__init__") for name in core if name.startswith("dpmpp_core")}
    assert core <= loaded  # every module of the core was in fact imported
    assert not loaded & {"ray", "mlflow", "boto3", "botocore", "pipelines"}


def test_reading_a_configuration_loads_no_torch():
    loaded = modules_loaded_by("from dpmpp_core.config import load_config; load_config('demo')")
    assert not loaded & {"torch", "open_clip", "cv2", "pyarrow", "numpy"}


@pytest.mark.parametrize("file", PRODUCT, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_stay_short_and_are_named_for_what_they_hold(file):
    lines = file.read_text().count("\n")
    assert lines <= 400, f"{lines} lines"
    assert file.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}
