"""A real MLflow server for tests: a process of its own on a SQLite or other database."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import requests

from tests.support.s3_server import free_port

READY = 240.0  # seconds until it must answer; a busy machine takes its time


class MlflowServer:
    """A server whose database and artifacts outlive its process.

    Args:
        folder: of the database, the log, and the artifacts by default.
        artifacts: destination, such as s3://bucket/prefix.
        environment: of the process, such as S3 keys, which clients then need not have.
        database: such as postgresql://user:password@host/name, empty; None = a SQLite file.
    """

    def __init__(
        self,
        folder: Path,
        artifacts: str | None = None,
        environment: Mapping[str, str] | None = None,
        database: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._artifacts = artifacts or str(folder / "artifacts")
        self._environment = dict(environment or {})
        self._database = database or f"sqlite:///{folder}/server.db"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> MlflowServer:
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri",
            self._database, "--artifacts-destination", self._artifacts,
            "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
        ]  # fmt: skip
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | quiet | self._environment,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY
        while True:
            try:
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return self
            except requests.RequestException:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.2)

    def stop(self) -> None:
        """End the process and its workers."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, 15)
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, 9)
                self._process.wait()
            self._process = None
