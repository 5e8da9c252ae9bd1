"""The trained model -> a version in MLflow's registry, with the alias `candidate`."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from dpmpp_core.redaction import redact
from pipelines.stage import Run, Stage

ALIAS = "candidate"
REQUIREMENTS = ("torch", "open_clip_torch", "timm", "opencv-python-headless", "pyarrow", "pydantic")


def register(run: Run, metric: Stage, evaluated: Stage) -> Stage:
    """Log and register the model of the run; move the alias `candidate` to the new version."""
    name = run.config.tracking.model_name
    identity = {
        "metric": metric.key,
        "evaluate": evaluated.key,
        "name": name,
        "tracking": redact(run.tracking.uri),  # a new password is no new server
    }

    def build(folder: Path) -> dict[str, Any]:
        model = run.folder(metric) / "model"
        sha256 = metric.summary["weights_sha256"]
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with mlflow.start_run(run_id=run.tracking.run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("serving.py")),
                artifacts={"model": str(model)},
                signature=_signature(evaluated.summary["masks"]),
                input_example=_example(),
                pip_requirements=[f"{p}=={version(p)}" for p in REQUIREMENTS],
                registered_model_name=name,
            )
        client = MlflowClient(run.tracking.uri)
        number = str(logged.registered_model_version)
        client.set_model_version_tag(name, number, "weights_sha256", sha256)
        client.set_model_version_tag(name, number, "dpmpp.evaluate", evaluated.key)
        client.set_registered_model_alias(name, ALIAS, number)
        return {"model_uri": f"models:/{name}/{number}", "version": int(number), "alias": ALIAS}

    return run.stage("register", identity, build)


def _signature(masks: dict[str, Any]) -> ModelSignature:
    spaces = sorted(next(iter(masks.values())))
    columns = [f"{kind}_{space}" for kind in ("feature", "mask") for space in spaces]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(Array(DataType.float), column) for column in columns]),
    )


def _example() -> pd.DataFrame:
    """A drawn picture: an example must not show anybody."""
    ramp = np.linspace(0, 255, 128, dtype=np.uint8)
    image = np.repeat(np.tile(ramp, (256, 1))[..., None], 3, axis=2)
    return pd.DataFrame({"image": [cv2.imencode(".jpg", image)[1].tobytes()]})
