"""The program as a user runs it: exit codes, output, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import DPMPP, TIMEOUT_S, assert_mistake, run_dpmpp
from tests.support.configs import TEXTLESS, TEXTLESS_CONFIG

LONG = ["--config", TEXTLESS_CONFIG, *TEXTLESS, "metric.epochs=6", "cluster.checkpoint_seconds=0"]


def test_a_mistake_exits_2_with_one_line() -> None:
    assert_mistake(run_dpmpp("run", "metric.epoch=3"), "did you mean 'metric.epochs'")


def test_config_show_prints_what_would_run() -> None:
    done = run_dpmpp("config", "show", "metric.epochs=3", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["metric"]["epochs"] == 3


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("{dpmpp} config list >&-", 0),
        ("PYTHONIOENCODING=ascii {dpmpp} data check {folder}", 2),
        ("{dpmpp} config schema | true; exit ${{PIPESTATUS[0]}}", 1),
    ],
)
def test_a_terminal_of_any_kind_gets_no_traceback(tmp_path: Path, command: str, code: int) -> None:
    folder = tmp_path / "人"
    folder.mkdir()
    line = command.format(dpmpp=DPMPP, folder=folder)
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


@pytest.mark.long
def test_stopped_in_stage_2_it_goes_on_and_ends_with_the_same_weights(
    small_demo: Path, tmp_path: Path
) -> None:
    """Ctrl-C after a checkpoint; the second run repeats no stage and equals an unbroken one."""
    storage = tmp_path / "runs"
    command = [DPMPP, "train", "--data", str(small_demo), "--storage", str(storage), "--json"]
    command += LONG
    log = (tmp_path / "first.log").open("w")
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, preexec_fn=heed_ctrl_c)
    try:
        wait_for_checkpoint(storage, first)
        first.send_signal(signal.SIGINT)
        assert first.wait(TIMEOUT_S) == 1
    finally:
        first.kill()
    assert "the same command again" in (tmp_path / "first.log").read_text()
    assert not list(storage.glob("stages/*.partial")), "half a stage was left"

    second = json.loads(run_dpmpp(*command[1:]).stdout.splitlines()[-1])
    reused = {stage["name"]: stage["reused"] for stage in second["stages"]}
    assert reused == {"prepare": True, "saliency": True, "metric": False}
    assert not list((storage / "training").glob("*")), "checkpoints of a finished stage were left"
    for stage in storage.glob("stages/metric-*"):
        shutil.rmtree(stage)
    unbroken = run_dpmpp(*command[1:])
    assert (
        json.loads(unbroken.stdout.splitlines()[-1])["weights_sha256"] == second["weights_sha256"]
    )


def heed_ctrl_c() -> None:
    """A job in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_checkpoint(storage: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if list(storage.glob("training/metric-*/checkpoints/step-*.json")):
            return
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    pytest.fail(f"no checkpoint of stage 2 within {TIMEOUT_S} s")
