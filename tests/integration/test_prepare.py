"""`prepare` on real Ray Data: what it reads again, and what it does not.

That a file is not read is shown by spoiling it behind the record's back: other bytes, the same size
and time of change. Whoever read it would find no image.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline

DPMPP = str(Path(sys.executable).with_name("dpmpp"))


@pytest.fixture
def data(small_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_demo, tmp_path / "data"))


def prepare(data: Path, fresh: bool = False) -> dict[str, Any]:
    storage = str(data.parent / "runs")
    return run_pipeline(Options(data=str(data), storage=storage, fresh=fresh), until="prepare")


def images(data: Path) -> list[Path]:
    return sorted((data / "bounding_box_train").glob("*.jpg"))


def spoil(file: Path) -> None:
    """Other bytes; to a listing the file looks unchanged."""
    times = file.stat()
    file.write_bytes(bytes(times.st_size))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def parts(data: Path) -> list[Path]:
    return sorted((data.parent / "runs").glob("inspected/*/part-*.parquet"))


def test_only_new_and_changed_files_are_read(cluster: None, data: Path) -> None:
    first = prepare(data)
    before = images(data)
    for file in before[2:]:
        spoil(file)
    before[0].write_bytes(before[0].read_bytes()[:-200])  # changed
    before[1].unlink()  # removed
    shutil.copy(
        data / "query" / next((data / "query").iterdir()).name, before[0].with_stem("0900_c1")
    )
    second = prepare(data)
    assert second["dataset_id"] != first["dataset_id"]
    assert second["counts"]["train"]["images"] == first["counts"]["train"]["images"] - 2 + 1
    assert [(Path(row["path"]).name, row["reason"]) for row in second["quarantined"]] == [
        (before[0].name, "truncated")
    ]
    known = {path for part in parts(data) for path in pq.read_table(part)["path"].to_pylist()}
    assert known == {
        file.relative_to(data).as_posix() for file in data.rglob("*") if file.suffix == ".jpg"
    }


def test_fresh_forgets_what_was_known(cluster: None, data: Path) -> None:
    prepare(data)
    spoil(images(data)[3])
    assert prepare(data)["quarantined"] == []
    (row,) = prepare(data, fresh=True)["quarantined"]
    assert row["path"].endswith(images(data)[3].name) and row["reason"] == "not_an_image"


def test_the_images_of_a_damaged_part_are_read_again(
    cluster: None, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare(data)
    broken = parts(data)[0]
    lost = set(pq.read_table(broken)["path"].to_pylist())
    broken.write_bytes(broken.read_bytes()[:-50])
    for file in data.rglob("*.jpg"):
        if file.relative_to(data).as_posix() not in lost:
            spoil(file)
    shutil.rmtree(data.parent / "runs" / "stages")
    second = prepare(data)
    assert second["dataset_id"] == first["dataset_id"] and second["quarantined"] == []
    assert f"{broken.name} is damaged" in caplog.text and not broken.exists()


def test_killed_in_the_middle_it_goes_on_where_it_was(
    cluster: None, data: Path, tmp_path: Path
) -> None:
    """SIGKILL after the first parts; the files in them are not read again."""
    some = images(data)
    for number in range(4000):  # one person more, all pictures different
        file = some[number % len(some)]
        copy = data / "bounding_box_train" / f"0900_c{number % 5 + 1}s1_{number:06}_00.jpg"
        copy.write_bytes(file.read_bytes() + number.to_bytes(4, "big"))
    command = [DPMPP, "prepare", "--data", str(data), "--storage", str(tmp_path / "runs")]
    command += ["--address", ray.get_runtime_context().gcs_address]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 200
        while len(parts(data)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    time.sleep(5)  # Ray ends the tasks of a dead driver
    done = {path for part in parts(data) for path in pq.read_table(part)["path"].to_pylist()}
    assert 0 < len(done) < 4000 and not list((tmp_path / "runs").glob("stages/prepare-*"))
    for path in done:
        spoil(data / path)
    result = prepare(data)
    assert result["quarantined"] == []
    assert result["counts"]["train"]["images"] == 4000 + len(some)
