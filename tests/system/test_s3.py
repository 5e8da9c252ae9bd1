"""Images read from and results written to a real S3 server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dpmpp_core.data.manifest import SETS
from tests.support.cli import run_dpmpp
from tests.support.configs import SMALL
from tests.support.s3_server import S3Server


@pytest.mark.long
def test_the_pipeline_runs_from_s3_to_s3(s3: S3Server, small_demo: Path, tmp_path: Path) -> None:
    s3.upload(small_demo, "*.jpg", "images", "demo")
    arguments = [
        "--data", "s3://images/demo", "--storage", "s3://results/dpmpp",
        "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--json", *SMALL,
    ]  # fmt: skip
    environment = os.environ | s3.environment
    results = []
    for _ in range(2):
        done = run_dpmpp("evaluate", *arguments, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = results
    assert first["counts"]["train"]["identities"] == 8
    assert all(stage["reused"] for stage in second["stages"])
    assert second["weights_sha256"] == first["weights_sha256"]
    listed = s3.client().list_objects_v2(Bucket="results", Prefix="dpmpp/")["Contents"]
    keys = {item["Key"] for item in listed}
    for stage in first["stages"]:
        assert f"dpmpp/{stage['key']}/stage.json" in keys
    assert not [key for key in keys if "/checkpoints/" in key]
    prepared = first["stages"][0]["key"].rpartition("/")[2]
    assert f"dpmpp/packed/{prepared}/shard-00000.arrow" in keys

    new = next((small_demo / "query").glob("*.jpg"))
    s3.client().upload_file(str(new), "images", "demo/bounding_box_train/0900_c1s1_000000_00.jpg")
    done = run_dpmpp("prepare", *arguments, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    known = sum(first["counts"][name]["images"] for name in SETS)
    assert f"{known} of {known + 1} images are known from before" in done.stderr
