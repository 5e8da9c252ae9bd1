"""`python -m tests.gpu`: the checks run on a CPU, and say so where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_without_a_gpu_nothing_is_measured() -> None:
    done = check()
    assert (done.returncode, done.stdout) == (0, "no GPU: nothing measured\n")


@pytest.mark.long
def test_every_check_runs_on_a_cpu() -> None:
    done = check("--device", "cpu", "--small")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count(" ok ") == 14 and "FAILED" not in done.stdout
