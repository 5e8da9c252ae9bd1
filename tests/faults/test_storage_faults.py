"""A storage that is full, and one that is away for half a minute."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import OVERRIDES, Table, Unbroken
from tests.faults.lab import Lab, Training, copy_before_stage_2
from tests.support.s3_server import S3Server

DISK = 256 * 2**20  # bytes; a checkpoint has 38 MB, and up to three are kept
AWAY = 30.0  # seconds


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Take what room there is, also that of a checkpoint deleted since."""
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_not_the_training(
    lab: Lab, small_demo: Path, unbroken: Unbroken, table: Table, small_disk: Path, tmp_path: Path
) -> None:
    storage = small_disk / "runs"
    copy_before_stage_2(unbroken.storage, storage)
    training = Training(lab, str(small_demo), str(storage), tmp_path / "log", OVERRIDES)
    training.start().wait_for_step(30)
    step = training.step()
    filler = small_disk / "filler"
    training.wait_for(
        lambda: fill(filler) or "could not be written" in training.log(), "word of the full disk"
    )
    assert training.step() >= step, "the checkpoint before is kept"
    filler.unlink()
    equal = training.result()["weights_sha256"] == unbroken.sha256
    lost = time.monotonic() - training.began - unbroken.seconds
    table.add("disk full", "said; training went on; written again with room", step, lost, equal)
    assert equal


@pytest.mark.slow
def test_half_a_minute_without_storage_is_waited_for(
    small_demo: Path,
    unbroken: Unbroken,
    table: Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images, stages and checkpoints on an S3 server that is killed and started again."""
    server = S3Server(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    server.upload(small_demo, "*", "images", "demo")
    lab = Lab()  # whose processes know the server
    training = Training(lab, "s3://images/demo", "s3://results/r", tmp_path / "log", OVERRIDES)
    try:
        training.start().wait_for_step(30)
        step = training.step()
        server.stop()
        time.sleep(AWAY)
        server.start()
        equal = training.result()["weights_sha256"] == unbroken.sha256
        table.add(f"S3 away for {AWAY:.0f} s", "waited for; went on", step, float("nan"), equal)
        assert equal
    finally:
        training.end()
        lab.close()
        server.stop()
