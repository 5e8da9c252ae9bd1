"""What a new process loads, and who may import whom."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpmpp_core.data.plan import StepPlan
from tests.support.cli import TIMEOUT_S

ROOT = Path(__file__).parents[2]
PRODUCT = sorted([*ROOT.glob("dpmpp_core/**/*.py"), *ROOT.glob("pipelines/**/*.py")])


def modules_loaded_by(program):
    """Names of the modules that a fresh interpreter holds after running `program`."""
    script = f"import json, sys\n{program}\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
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
        timeout=TIMEOUT_S,
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


def test_another_process_makes_the_same_plan():
    program = (
        "import numpy as np; from dpmpp_core.data.plan import StepPlan;"
        "l = np.arange(60) % 9;"
        "print(StepPlan(l, l % 2, 4, 3, 11).rows(2, 1).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    labels = np.arange(60) % 9
    assert out.stdout.strip() == str(StepPlan(labels, labels % 2, 4, 3, 11).rows(2, 1).tolist())


@pytest.mark.parametrize("failing", ["lint", "test", "test-long", None])
def test_a_failing_step_fails_ci(tmp_path: Path, failing: str | None) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    steps = {step: "false" if step == failing else "true" for step in ("lint", "test", "test-long")}
    makefile = "".join(f"{step}:\n\t{command}\n" for step, command in steps.items())
    (tmp_path / "Makefile").write_text(makefile)
    done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, timeout=TIMEOUT_S)
    assert (done.returncode == 0) == (failing is None)
