"""A trained model by any name: a folder, a stage, a run, S3, the registry, an exported file."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from dpmpp_core.data.files import resolve_path
from dpmpp_core.errors import WeightsError
from dpmpp_core.index import ModelVersion
from dpmpp_core.models.reid import CARD_FILE, NAME, WEIGHTS_FILE, ReidModel, load_model
from dpmpp_core.models.saved import read_card
from pipelines.inference.onnx_model import SUFFIX, OnnxModel
from pipelines.registry.references import fetch_registered, is_registered, resolve_model_uri
from pipelines.runtime.device import assigned_device
from pipelines.runtime.storage import Storage


def resolve_model_source(model: str) -> str:
    """Return a model's location for other processes: an absolute path, a URI, or a version.

    Args:
        model: the folder of a saved model, of the stage that trained it or of its run;
            `s3://bucket/prefix` of a saved model; NAME.onnx; `models:/NAME@ALIAS`, which becomes
            the version that it names now, or `models:/NAME/VERSION`.

    Raises:
        UserError: there is no such model, or the registry does not answer.
    """
    if is_registered(model):
        return resolve_model_uri(model)
    if "://" in model or model.endswith(SUFFIX):
        return resolve_path(model)
    return str(_find_folder(Path(resolve_path(model))))


def _find_folder(path: Path) -> Path:
    """Return the folder of the saved model that a folder is, or holds as a stage or run."""
    places = [path, path / "model"]
    with suppress(OSError, ValueError, KeyError, TypeError):  # else not the folder of a run
        places.append(Path(json.loads((path / "result.json").read_text())["model"]))
    for place in places:
        if (place / CARD_FILE).is_file():
            return place
    raise WeightsError(
        f"{path} holds no {CARD_FILE}: not a saved model. Name the folder of a model, stage or "
        f"run, s3://bucket/prefix, FILE{SUFFIX} or models:/NAME@ALIAS"
    )


def fetch_model(source: str) -> Path:
    """Return the folder of a saved model, or a file of `dpmpp export`.

    A model on S3 or in the registry is copied to this node.

    Args:
        source: what `resolve_model_source` returned.

    Raises:
        UserError: it cannot be reached, or is no saved model.
    """
    if is_registered(source):
        return fetch_registered(source)
    if "://" not in source:
        return Path(source)
    if source.endswith(SUFFIX):
        place, _, name = source.rpartition("/")
        return Storage(place).fetch_current(name)
    return Storage(source).fetch_described(CARD_FILE, WEIGHTS_FILE)


def read_model_version(source: str) -> ModelVersion:
    """Return the version of the model at `source`; raise WeightsError if it is no model."""
    if source.endswith(SUFFIX):
        graph = OnnxModel(fetch_model(source))
        return ModelVersion(weights_sha256=graph.weights_sha256, spaces=graph.spaces)
    card = read_card(fetch_model(source), NAME)
    return ModelVersion(weights_sha256=card["weights_sha256"], spaces=card["spaces"])


def load_source_model(source: str) -> ReidModel | OnnxModel:
    """Load a model, on the GPU that Ray gave this worker if any, or a file of `dpmpp export`."""
    if source.endswith(SUFFIX):
        return OnnxModel(fetch_model(source))
    return load_model(fetch_model(source), assigned_device())
