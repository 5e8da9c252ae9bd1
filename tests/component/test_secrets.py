"""Secrets in URIs and in the environment reach no record: MLflow on SQLite, results, the log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from dpmpp_core.config import load_config
from pipelines.runtime.stage import Stage
from pipelines.runtime.tracking import Tracking
from pipelines.workflows.options import Options
from pipelines.workflows.pipeline import run_pipeline

SECRET, TOKEN = "wJalrXUtnFEMI", "hf_aBcDeFgHiJ"
URI = f"s3://AKIA:{SECRET}@bucket/x"


def everything(folder: Path) -> bytes:
    """All that was written, the database's pages included."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_mlflow_has_no_secret_in_params_tags_inputs_and_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    config = load_config("demo", [f"occlusion.backgrounds={URI}", f"model.checkpoint=/x/{TOKEN}"])
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db", (tmp_path / "artifacts").as_uri())
    tracking.begin(config, "demo-1", {"id": "abc", "root": URI, "counts": {}})
    tracking.start_stage("metric")
    tracking.set_warning_tag("lost", f"{URI} with {TOKEN} is out of reach")
    tracking.end_stage(Stage("metric", "stages/metric-1", {"root": URI, "n": 1}, 1.0, False))
    tracking.log_trial("grid", "plain", {"backgrounds": URI, "token": TOKEN}, {"mAP": 0.5})
    tracking.end("FINISHED")
    written = everything(tmp_path)
    assert SECRET.encode() not in written and TOKEN.encode() not in written
    assert written.count(b"s3://***@bucket/x") >= 5  # param, input, yaml, tag, summary, trial


def test_result_and_log_have_no_secret(
    cluster: None,
    small_demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    options = Options(
        data=str(small_demo),
        storage=str(tmp_path / "runs"),
        tracking_uri=f"sqlite:///{tmp_path}/{SECRET}.db",
    )
    with caplog.at_level(logging.INFO):
        result = run_pipeline(options, until="prepare")
    assert result["tracking_uri"] == f"sqlite:///{tmp_path}/***.db"
    assert SECRET not in json.dumps(result) and SECRET not in caplog.text
    assert SECRET.encode() not in everything(tmp_path / "runs")
