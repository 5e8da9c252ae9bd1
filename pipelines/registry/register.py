"""Register the trained model in MLflow as a version, with the alias `candidate`.

A version is complete: weights, the code that runs them, requirements, the record of its evaluation
and a model card. It appears in the registry with all its tags or not at all.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
import pandas as pd
import pyarrow.compute as pc
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

import dpmpp_core
from dpmpp_core.data.annotations import is_generated
from dpmpp_core.data.manifest import Manifest, rows_sha256
from dpmpp_core.errors import WeightsError
from dpmpp_core.models.saved import read_card
from dpmpp_core.models.sources import NAME
from dpmpp_core.redaction import redact
from pipelines.registry import record
from pipelines.registry.client import CANDIDATE, FILES, WEIGHTS, hash_files
from pipelines.registry.model_card import render_model_card, shorten_card
from pipelines.registry.record import Record, read_evaluation
from pipelines.runtime.environment import environment
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.tracking import open_client

log = logging.getLogger(__name__)

REQUIREMENTS = (
    "torch", "torchvision", "open_clip_torch", "timm", "safetensors", "opencv-python-headless",
    "numpy", "pandas", "pyarrow", "pydantic", "PyYAML", "tenacity",
)  # fmt: skip
FORMAT = 2  # of a version's files


def register(run: Run, prepared: Stage, metric: Stage, evaluated: Stage) -> Stage:
    """Register the model of the run; move the alias `candidate` to the new version."""
    name = run.config.tracking.model_name
    identity = {
        "format": FORMAT,
        "metric": metric.key,
        "evaluate": evaluated.key,
        "name": name,
        "tracking": redact(run.tracking.uri),  # a changed password is not another server
    }

    def build(folder: Path) -> dict[str, Any]:
        created = register_version(run, prepared, evaluated, run.folder(metric) / "model")
        number = int(created.version)
        return {"model_uri": f"models:/{name}/{number}", "version": number, "alias": CANDIDATE}

    stage = run.build_stage("register", identity, build)
    if stage.reused and not _is_registered(run.tracking.uri, name, stage.summary["version"]):
        log.warning("register: %s is gone from the registry: again", stage.summary["model_uri"])
        run.stages.remove(stage)
        stage = replace(run, fresh=True).build_stage("register", identity, build)
    return stage


def _is_registered(uri: str, name: str, number: int) -> bool:
    try:
        open_client(uri).get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def register_version(run: Run, prepared: Stage, evaluated: Stage, model: Path) -> ModelVersion:
    """Register a saved model with its evaluation, and set the alias `candidate` to the version.

    Args:
        run: its MLflow run is the version's.
        prepared: the data.
        evaluated: the evaluation of the model.
        model: folder of the model.
    """
    name = run.config.tracking.model_name
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(run.tracking.uri)
    client = MlflowClient(run.tracking.uri)
    own = _build_record(run, prepared, evaluated, model)
    card = render_model_card(own, run.config, client)
    with tempfile.TemporaryDirectory() as folder:
        record_folder = Path(folder) / record.FOLDER
        own.write(record_folder, run.folder(evaluated))
        (record_folder / record.CARD).write_text(card)
        (record_folder / record.CONFIG).write_text(redact(run.config.to_yaml()))
        with mlflow.start_run(run_id=run.tracking.run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("serving.py")),
                artifacts={"model": str(model), record.FOLDER: str(record_folder)},
                code_paths=[str(_copy_code(Path(folder)))],
                model_config={"device": "cpu"},  # `load_model(uri, model_config=...)` changes it
                signature=_build_signature(own.measured["masks"]),
                input_example=_build_example(),
                # Without `+cpu`, which names a build that pip cannot find by itself.
                pip_requirements=[f"{p}=={version(p).partition('+')[0]}" for p in REQUIREMENTS],
            )
        stored = Path(folder) / "stored"
        stored.mkdir()
        mlflow.artifacts.download_artifacts(logged.model_uri, dst_path=str(stored))
        if hash_files(stored / "artifacts" / model.name) != hash_files(model):
            raise WeightsError(f"{logged.model_uri} is not what was stored there: register again")
        tags = {
            WEIGHTS: own.facts["weights_sha256"],
            FILES: hash_files(stored),
            "dpmpp.data": own.facts["dataset_id"],
            "dpmpp.evaluation": own.facts["evaluation_id"],
            "dpmpp.evaluate": evaluated.key,
        }
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name,
        source=logged.model_uri,
        run_id=run.tracking.run_id,
        model_id=logged.model_id,
        tags=tags,
        description=shorten_card(card),
    )
    client.set_registered_model_alias(name, CANDIDATE, str(created.version))
    return created


def _build_record(run: Run, prepared: Stage, evaluated: Stage, model: Path) -> Record:
    manifest = Manifest.load(run.folder(prepared))
    images = manifest.images.filter(pc.not_equal(manifest.images["split"], "train"))
    saliency = [stage.key for stage in run.stages if stage.name == "saliency"]
    facts = {
        "dataset_id": manifest.dataset_id,
        "evaluation_id": rows_sha256(images),  # the training images do not change the evaluation
        "root": redact(manifest.root),
        "layout": manifest.layout,
        "counts": manifest.counts(),
        "weights_sha256": read_card(model, NAME)["weights_sha256"],
        "config": run.config.name,
        "seed": run.config.seed,
        "run_id": run.tracking.run_id,
        "saliency": saliency[-1] if saliency else None,
        "generated": is_generated(manifest.root, manifest.images["path"].to_pylist()),
        "stages": {stage.name: stage.key for stage in (prepared, evaluated)},
        "environment": environment(),
    }
    return Record(facts, *read_evaluation(run.folder(evaluated)), images)


def _copy_code(folder: Path) -> Path:
    """Copy the package that runs the model, without the weights that training starts from."""
    package = Path(dpmpp_core.__file__).parent
    omitted = shutil.ignore_patterns("__pycache__", "weights")
    return Path(shutil.copytree(package, folder / package.name, ignore=omitted))


def _build_signature(masks: dict[str, Any]) -> ModelSignature:
    spaces = sorted(next(iter(masks.values())))
    columns = [f"{kind}_{space}" for kind in ("feature", "mask") for space in spaces]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(Array(DataType.float), column) for column in columns]),
    )


def _build_example() -> pd.DataFrame:
    """Draw a picture, since an example must not show a person."""
    ramp = np.linspace(0, 255, 128, dtype=np.uint8)
    image = np.repeat(np.tile(ramp, (256, 1))[..., None], 3, axis=2)
    return pd.DataFrame({"image": [cv2.imencode(".jpg", image)[1].tobytes()]})
