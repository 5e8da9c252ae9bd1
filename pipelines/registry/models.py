"""A trained model by any name: a folder, a stage, a run, S3, the registry, an exported file."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from dpmpp_core import __version__
from dpmpp_core.config import load_config
from dpmpp_core.data.files import resolve_path
from dpmpp_core.index import ModelVersion
from dpmpp_core.models.clip import weights_fingerprint
from dpmpp_core.models.reid import ReidModel, load_model, save_model, shipped_model
from dpmpp_core.models.saved import read_card
from dpmpp_core.models.sources import (
    CARD_FILE,
    GRAPH_SUFFIX,
    NAME,
    SHIPPED,
    WEIGHTS_FILE,
    find_model_folder,
    is_remote,
)
from dpmpp_core.models.weights import head_fingerprint
from pipelines.inference.onnx_model import OnnxModel
from pipelines.registry.references import fetch_registered, is_registered, resolve_model_uri
from pipelines.runtime.device import assigned_device
from pipelines.runtime.storage import Storage, cache_folder


def resolve_model_source(model: str) -> str:
    """Return a model's location for other processes: an absolute path, a URI, or a version.

    Args:
        model: the folder of a saved model, of the stage that trained it or of its run;
            `s3://bucket/prefix` of a saved model; NAME.onnx; `models:/NAME@ALIAS`, which becomes
            the version that it names now, or `models:/NAME/VERSION`; `shipped`, the package's own.

    Raises:
        UserError: there is no such model, or the registry does not answer.
    """
    if model == SHIPPED:
        return model
    if is_registered(model):
        return resolve_model_uri(model)
    if is_remote(model) or model.endswith(GRAPH_SUFFIX):
        return resolve_path(model)
    return str(find_model_folder(Path(resolve_path(model))))


def fetch_model(source: str) -> Path:
    """Return the folder of a saved model, or a file of `dpmpp export`.

    A model on S3 or in the registry is copied to this node; the package's own is written to it.

    Args:
        source: what `resolve_model_source` returned.

    Raises:
        UserError: it cannot be reached, or is no saved model.
    """
    if source == SHIPPED:
        return _write_shipped()
    if is_registered(source):
        return fetch_registered(source)
    if not is_remote(source):
        return Path(source)
    if source.endswith(GRAPH_SUFFIX):
        place, _, name = source.rpartition("/")
        return Storage(place).fetch_current(name)
    return Storage(source).fetch_described(CARD_FILE, WEIGHTS_FILE)


def _write_shipped() -> Path:
    """Return the package's own model as a folder, in the cache of this node."""
    config = load_config("demo").model
    parts = f"{__version__} {weights_fingerprint(config)} {head_fingerprint(config)}"
    folder = cache_folder() / "models" / f"shipped-{hashlib.sha256(parts.encode()).hexdigest()}"
    if not (folder / CARD_FILE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
            save_model(shipped_model(), Path(partial, NAME), {"zero_shot": True})
            try:
                Path(partial, NAME).rename(folder)
            except OSError:
                if not (folder / CARD_FILE).is_file():  # else another process was faster
                    raise
    return folder


def fetch_named_model(model: str) -> Path:
    """Return the local folder of a model on S3 or in the registry; for `dpmpp_core.load_model`.

    Raises:
        UserError: as `resolve_model_source` and `fetch_model`.
    """
    return fetch_model(resolve_model_source(model))


def read_model_version(source: str) -> ModelVersion:
    """Return the version of the model at `source`; raise WeightsError if it is no model."""
    if source.endswith(GRAPH_SUFFIX):
        graph = OnnxModel(fetch_model(source))
        return ModelVersion(weights_sha256=graph.weights_sha256, spaces=graph.spaces)
    card = read_card(fetch_model(source), NAME)
    return ModelVersion(weights_sha256=card["weights_sha256"], spaces=card["spaces"])


def load_source_model(source: str) -> ReidModel | OnnxModel:
    """Load a model, on the GPU that Ray gave this worker if any, or a file of `dpmpp export`."""
    if source.endswith(GRAPH_SUFFIX):
        return OnnxModel(fetch_model(source), device=assigned_device())
    return load_model(fetch_model(source), assigned_device())
