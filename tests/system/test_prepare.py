"""`dpmpp prepare` killed in the middle."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from pipelines.stages.prepare import MIN_TASK_IMAGES
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline
from tests.support.cli import TIMEOUT_S
from tests.support.prepared import images, parts, spoil

# The program, whose workers read no file more once a part is finished: they wait for the kill.
WAITING = """
import sys, time
from pathlib import Path

import pipelines.stages.prepare as stage
from pipelines.cli import main

storage, inspect_file = Path(sys.argv.pop(1)), stage.inspect_file

def inspect_or_wait(root, path):
    while any(storage.glob("inspected/*/part-*.parquet")):
        time.sleep(0.1)
    return inspect_file(root, path)

stage.inspect_file = inspect_or_wait
main()
"""


@pytest.mark.long
def test_killed_in_the_middle_it_continues_where_it_was(
    cluster: None, small_demo: Path, tmp_path: Path
) -> None:
    """SIGKILL after the first part; the files of finished parts are not read again."""
    data, storage = tmp_path / "data", tmp_path / "runs"
    shutil.copytree(small_demo, data)
    some = images(data)
    for number in range(6 * MIN_TASK_IMAGES):  # of one person more, all different
        file = some[number % len(some)]
        copy = data / "bounding_box_train" / f"0900_c{number % 5 + 1}s1_{number:06}_00.jpg"
        copy.write_bytes(file.read_bytes() + number.to_bytes(4, "big"))
    command = [sys.executable, "-c", WAITING, str(storage)]
    command += ["prepare", "--data", str(data), "--storage", str(storage)]
    command += ["--address", ray.get_runtime_context().gcs_address]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + TIMEOUT_S
        while not parts(data) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    done = {path for part in parts(data) for path in pq.read_table(part)["path"].to_pylist()}
    assert 0 < len(done) < len(list(data.rglob("*.jpg")))
    assert not list(storage.glob("stages/prepare-*"))
    for path in done:
        spoil(data / path)
    result = run_pipeline(Options(data=str(data), storage=str(storage)), until="prepare")
    assert result["quarantined"] == []
    assert result["counts"]["train"]["images"] == len(images(data))
