"""Images read from and results written to a real S3 server."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from dpmpp_core.data.manifest import SETS
from dpmpp_core.errors import WeightsError
from dpmpp_core.models.reid import load_model
from dpmpp_core.models.sources import WEIGHTS_FILE
from pipelines.registry.models import fetch_model, load_source_model, read_model_version
from tests.support.cli import run_dpmpp
from tests.support.configs import TEXTLESS, TEXTLESS_CONFIG
from tests.support.models import saved_model
from tests.support.s3_server import S3Server


def test_a_model_that_was_replaced_is_fetched_again(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    found = []
    for seed in (0, 1):
        folder = saved_model(tmp_path / str(seed), seed)
        s3.upload(folder, "*", "results", "replaced")
        fetched = fetch_model("s3://results/replaced")
        assert load_model(fetched).config == load_model(folder).config  # hashes agree
        found.append(read_model_version("s3://results/replaced"))
        assert found[-1] == read_model_version(str(folder))
    assert found[0] != found[1]
    (fetched / WEIGHTS_FILE).write_bytes(b"planted")
    with pytest.raises(WeightsError):
        load_source_model("s3://results/replaced")


@pytest.mark.long
def test_the_pipeline_runs_from_s3_to_s3(s3: S3Server, small_demo: Path, tmp_path: Path) -> None:
    s3.upload(small_demo, "*.jpg", "images", "demo")
    arguments = [
        "--data", "s3://images/demo", "--storage", "s3://results/dpmpp",
        "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--json",
        "--config", TEXTLESS_CONFIG, *TEXTLESS,
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
