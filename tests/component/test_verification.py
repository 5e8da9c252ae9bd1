"""What the code of a registered version gets to see when it is verified."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pyarrow as pa
import pytest

from dpmpp_core.data.inspection import inspect
from dpmpp_core.data.layouts import Entry
from dpmpp_core.data.manifest import IMAGE_SCHEMA
from dpmpp_core.errors import WeightsError
from pipelines.registry.verify import verify_version, without_network
from tests.support.models import saved_model

CODE = """
import json, os, socket
import dpmpp_core
import pandas as pd
from mlflow.pyfunc import PythonModel
from mlflow.models import set_model

class Spy(PythonModel):
    def load_context(self, context):
        try:
            socket.create_connection(("127.0.0.1", {port}), timeout=5).close()
            reached = True
        except OSError:
            reached = False
        seen = {{"environment": dict(os.environ), "folder": os.getcwd(), "reached": reached}}
        open({report!r}, "w").write(json.dumps(seen))

    def predict(self, context, model_input, params=None):
        rows = len(model_input)
        return pd.DataFrame({{"feature_visual": [[1.0, 2.0]] * rows,
                              "mask_visual": [[1.0, 1.0]] * rows}})

set_model(Spy())
"""


@pytest.fixture
def images(tmp_path: Path) -> pa.Table:
    rows = []
    for number, split in enumerate(("query", "gallery")):
        picture = np.random.default_rng(number).integers(0, 256, (64, 32, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{split}.jpg"), picture)
        rows.append(inspect(str(tmp_path), Entry(f"{split}.jpg", 7, number, split, False)))
    return pa.Table.from_pylist(rows, IMAGE_SCHEMA)


def test_a_versions_code_gets_no_secrets_and_no_network(
    images: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "of-the-promoter")
    code = tmp_path / "code" / "dpmpp_core"
    code.mkdir(parents=True)
    (code / "__init__.py").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = tmp_path / "spy.py"
        report = tmp_path / "report.json"
        port = server.getsockname()[1]
        program.write_text(CODE.format(port=port, report=str(report)))
        version = tmp_path / "version"
        mlflow.pyfunc.save_model(version, python_model=str(program), code_paths=[str(code)])
        result = verify_version(version, images, str(tmp_path))
    assert np.isfinite(result.latency_ms) and set(result.queries) == {"holistic"}
    seen = json.loads(report.read_text())
    assert "of-the-promoter" not in seen["environment"].values()
    assert seen["folder"] == seen["environment"]["HOME"] != str(Path.cwd())
    assert seen["reached"] == (not without_network())  # some containers forbid to take it away


def test_own_code_measures_the_weights_and_never_runs_the_versions(
    images: pa.Table, tmp_path: Path
) -> None:
    model, ran = saved_model(tmp_path / "model"), tmp_path / "ran"
    program = tmp_path / "spy.py"
    program.write_text(f"open({str(ran)!r}, 'w').close()\n" + CODE.format(port=1, report=str(ran)))
    version = tmp_path / "version"
    mlflow.pyfunc.save_model(version, python_model=str(program), artifacts={"model": str(model)})
    ran.unlink()  # MLflow itself runs the file when it writes the version
    result = verify_version(version, images, str(tmp_path), own_code=True)
    assert not ran.exists()
    assert set(result.queries) == {"holistic"} and np.isfinite(result.latency_ms)


def test_own_code_refuses_a_version_without_a_model_of_this_package(
    images: pa.Table, tmp_path: Path
) -> None:
    (tmp_path / "version" / "artifacts").mkdir(parents=True)
    with pytest.raises(WeightsError, match="register it again"):
        verify_version(tmp_path / "version", images, str(tmp_path), own_code=True)
