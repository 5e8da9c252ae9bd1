"""`prepare` on real Ray Data: what it reads again, and what it does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline
from tests.support.prepared import images, parts, spoil


@pytest.fixture
def data(small_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_demo, tmp_path / "data"))


def prepare(data: Path, fresh: bool = False) -> dict[str, Any]:
    storage = str(data.parent / "runs")
    return run_pipeline(Options(data=str(data), storage=storage, fresh=fresh), until="prepare")


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


@pytest.mark.long
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
