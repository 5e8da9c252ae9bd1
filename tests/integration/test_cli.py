"""The program as a user runs it: exit codes, output, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import SMALL

DPMPP = str(Path(sys.executable).with_name("dpmpp"))
LONG = [*SMALL, "metric.epochs=6", "cluster.checkpoint_seconds=0"]


def dpmpp(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DPMPP, *arguments], capture_output=True, text=True, timeout=400, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["metric.epoch=3"], "did you mean 'metric.epochs'"),
        (["metric.identities=-4"], "metric.identities"),
        (["prompts.batch=-1"], "prompts.batch"),
        (["model.checkpoint=/nowhere/clip.safetensors"], "/nowhere/clip.safetensors"),
        (["--config", "market150"], "did you mean 'market1501'"),
        (["--data", "/nowhere/data"], "/nowhere/data"),
        (["--colour"], "--colour"),
    ],
)
def test_a_mistake_exits_2_with_one_line_and_writes_nothing(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    done = dpmpp("run", "--storage", str(storage), *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if not arguments[0].startswith("--colour"):
        assert len(done.stderr.strip().splitlines()) == 1
    assert not storage.exists()


def test_config_show_prints_what_would_run() -> None:
    done = dpmpp("config", "show", "metric.epochs=3", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["metric"]["epochs"] == 3


def test_data_check_reports_as_json(small_demo: Path) -> None:
    done = dpmpp("data", "check", str(small_demo), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["counts"]["train"]["identities"] == 8


@pytest.mark.long
def test_stopped_in_stage_2_it_goes_on_and_ends_with_the_same_weights(
    small_demo: Path, tmp_path: Path
) -> None:
    """Ctrl-C after a checkpoint; the second run repeats no stage and equals an unbroken one."""
    storage = tmp_path / "runs"
    command = [DPMPP, "train", "--data", str(small_demo), "--storage", str(storage), "--json"]
    command += LONG
    log = (tmp_path / "first.log").open("w")
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        wait_for_checkpoint(storage, first)
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=120) == 1
    finally:
        first.kill()
    assert "the same command continues" in (tmp_path / "first.log").read_text()
    assert not list(storage.glob("stages/*.partial")), "half a stage was left"

    second = json.loads(dpmpp(*command[1:]).stdout.splitlines()[-1])
    reused = {stage["name"]: stage["reused"] for stage in second["stages"]}
    assert reused == {
        "prepare": True, "saliency": True, "features": True, "prompts": True, "metric": False,
    }  # fmt: skip
    assert not list((storage / "training").glob("*")), "checkpoints of a finished stage were left"
    for stage in storage.glob("stages/metric-*"):
        shutil.rmtree(stage)
    unbroken = dpmpp(*command[1:])
    assert (
        json.loads(unbroken.stdout.splitlines()[-1])["weights_sha256"] == second["weights_sha256"]
    )


def wait_for_checkpoint(storage: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if list(storage.glob("training/metric-*/checkpoints/step-*.json")):
            return
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    pytest.fail("no checkpoint of stage 2 within 200 s")
