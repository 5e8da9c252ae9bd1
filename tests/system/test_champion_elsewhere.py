"""The champion where there is only the registry: on S3, and in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

import dpmpp_core
from tests.support.cli import TIMEOUT_S
from tests.support.mlflow_server import MlflowServer
from tests.support.promotion_lab import Lab, lab
from tests.support.s3_server import S3Server

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "docs" / "guides" / "release.md"


@pytest.fixture(scope="module")
def at(
    s3: S3Server, cluster: None, small_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A server with its artifacts on S3, whose clients know nothing of S3."""
    folder = tmp_path_factory.mktemp("elsewhere")
    keys = s3.environment | {"MLFLOW_S3_ENDPOINT_URL": s3.environment["AWS_ENDPOINT_URL"]}
    server = MlflowServer(folder / "server", "s3://results/mlflow", keys).start()
    try:
        with lab(small_demo, server, folder) as made:
            made.register("dpmpp-demo")
            made.promote("dpmpp-demo")
            yield made
    finally:
        server.stop()


@pytest.fixture
def venv(tmp_path: Path) -> Iterator[Path]:
    """A new environment; gone after the test, for it has gigabytes."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / "query").glob("*.jpg"))[:2]


@pytest.mark.long
def test_artifacts_on_s3_are_promoted_and_served_without_keys(
    at: Lab, s3: S3Server, small_demo: Path
) -> None:
    assert not [name for name in os.environ if name.startswith("AWS_SECRET")]
    assert at.aliases("dpmpp-demo")["champion"] == 1
    listed = s3.client().list_objects_v2(Bucket="results", Prefix="mlflow/")["Contents"]
    keys = [item["Key"] for item in listed]
    assert any(key.endswith("/model.safetensors") for key in keys)
    assert any(key.endswith("/record/model_card.md") for key in keys)
    at.register("dpmpp-demo", at.worse())
    assert at.promote("dpmpp-demo")["refused_by"]
    at.register("dpmpp-demo")
    model_id = at.client.get_model_version("dpmpp-demo", "3").source.rpartition("/")[2]
    listed = s3.client().list_objects_v2(Bucket="results", Prefix="mlflow/")["Contents"]
    keys = [item["Key"] for item in listed if model_id in item["Key"]]
    (newest,) = (key for key in keys if key.endswith("/model.safetensors"))
    s3.client().put_object(Bucket="results", Key=newest, Body=b"something else")
    assert at.promote("dpmpp-demo")["refused_by"] == ["files"]
    assert at.aliases("dpmpp-demo") == {"candidate": 3, "champion": 1}
    mlflow.set_tracking_uri(at.server.uri)
    frame = pd.DataFrame({"image": [path.read_bytes() for path in pictures(small_demo)]})
    found = mlflow.pyfunc.load_model("models:/dpmpp-demo@champion").predict(frame)
    direct = dpmpp_core.load_model(at.model).embed(pictures(small_demo))
    for space, features in direct.features.items():
        np.testing.assert_allclose(np.stack(found[f"feature_{space}"]), features, atol=1e-5)


@pytest.mark.slow
def test_the_readme_uses_the_champion_where_only_its_requirements_are_installed(
    at: Lab, small_demo: Path, tmp_path: Path, venv: Path
) -> None:
    """A new virtual environment outside of this checkout; the code comes with the version."""
    mlflow.set_tracking_uri(at.server.uri)
    wanted = mlflow.artifacts.download_artifacts(
        "models:/dpmpp-demo@champion/requirements.txt", dst_path=str(tmp_path)
    )
    install = [sys.executable, "-m", "pip", "--python", str(venv), "install"]
    install += ["--quiet", "--no-compile", "--requirement", wanted]
    subprocess.run(install, check=True, timeout=TIMEOUT_S)
    (picture,) = pictures(small_demo)[:1]
    lines = documented_lines().replace("a.jpg", str(picture))
    lines += "\nimport dpmpp_core, json"
    lines += "\nrow = {name: [float(x) for x in found[name][0]] for name in found}"
    lines += "\nprint(json.dumps([dpmpp_core.__file__, row]))"
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", lines],
        env=environment | {"MLFLOW_TRACKING_URI": at.server.uri},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    code, row = json.loads(done.stdout.splitlines()[-1])
    assert not Path(code).is_relative_to(ROOT) and "/code/dpmpp_core/" in code
    direct = dpmpp_core.load_model(at.model).embed([picture])
    for space, features in direct.features.items():
        np.testing.assert_allclose(row[f"feature_{space}"], features[0], atol=1e-5)
    installed = {path.name for path in (venv / "lib").glob("python*/site-packages/*")}
    assert "mlflow" in installed and not installed & {"ray", "dpmpp_core", "pipelines"}


def documented_lines() -> str:
    """The three lines of docs/guides/release.md."""
    blocks = re.findall(r"```python\n(.*?)```", RELEASE.read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if "@champion" in block)
    assert len([line for line in lines.splitlines() if line]) == 3
    return lines
