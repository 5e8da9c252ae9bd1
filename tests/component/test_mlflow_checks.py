"""What MLflow must be able to do is asked before the work, and refused in a line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED as DENIED
from mlflow.tracking import MlflowClient

from dpmpp_core.errors import ConfigError
from pipelines.runtime.mlflow_checks import (
    PROBE,
    TrackingError,
    check_artifacts,
    check_version,
    translate_errors,
)
from pipelines.runtime.tracking import Tracking


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """A server that tells the version in its attribute `version`; None = it does not know."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version = getattr(self.server, "version", None)
            self.send_response(404 if version is None or self.path != "/version" else 200)
            self.end_headers()
            self.wfile.write((version or "").encode())

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("version", ["2.22.5", "1.30.0"])
def test_a_server_that_is_too_old_is_refused_with_its_version(
    server: HTTPServer, version: str
) -> None:
    server.version = version  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=f"is version {version}, .*3.0 or newer"):
        check_version(f"http://127.0.0.1:{server.server_port}")


@pytest.mark.parametrize("version", ["3.17.2", "4.0.0.dev0", "<html>", None])
def test_a_newer_server_and_one_that_does_not_tell_pass(
    server: HTTPServer, version: str | None
) -> None:
    server.version = version  # type: ignore[attr-defined]
    check_version(f"http://127.0.0.1:{server.server_port}")


def test_a_folder_of_the_servers_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="--artifacts-destination"):
        check_artifacts("http://mlflow:5000", "/nowhere/mlflow/1")


def test_artifacts_that_cannot_be_written_are_refused_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match=f"no artifact can be written to {tmp_path}/file/1"):
        check_artifacts(f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/file/1")


def test_a_check_creates_the_experiment_and_leaves_one_small_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # below which MLflow puts the artifacts of a database
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        Tracking(uri).check("people")
    (experiment,) = MlflowClient(uri).search_experiments(filter_string="name = 'people'")
    (left,) = (path for path in tmp_path.rglob("*.txt"))
    assert left.name == PROBE and left.parent.name == experiment.experiment_id


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MlflowException("Permission denied", error_code=DENIED), "login ann lacks .*MANAGE"),
        (MlflowException("failed with error code 401 != 200."), "login is missing or wrong"),
        (MlflowException("(Caused by: Read timed out.)"), "no answer: timed out"),
        (MlflowException("two\nlines"), "two lines"),
    ],
)
def test_a_refusal_says_what_is_missing(
    error: MlflowException, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    with pytest.raises(TrackingError, match=says), translate_errors("http://mlflow:5000"):
        raise error
