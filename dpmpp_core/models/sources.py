"""Where a model is, by the name that a user gives it; loads no torch."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from dpmpp_core.data.files import resolve_path
from dpmpp_core.errors import ConfigError, WeightsError

SHIPPED = "shipped"  # the name of the package's own model; ./shipped is a folder
SHIPPED_WORTH = (
    "the package's own model has learnt from drawn people only. On photographs of 16 persons its "
    "mAP is 33 % for occluded queries and 43 % for whole ones (tests/bench/results/shipped.md). "
    "`dpmpp run --data DIR` trains it on yours"
)
NAME = "model"
WEIGHTS_FILE, CARD_FILE = f"{NAME}.safetensors", f"{NAME}.json"
REGISTRY_SCHEME = "models:/"
GRAPH_SUFFIX = ".onnx"
# What fetches a model of a registry or of S3 is an entry point, as the core knows neither.
FETCH_GROUP, FETCH_NAME = "dpmpp.models", "fetch"


def is_remote(model: str) -> bool:
    """Return whether a model is named by a URI: of the registry, or of a storage."""
    return "://" in model or model.startswith(REGISTRY_SCHEME)


def find_model_folder(path: Path) -> Path:
    """Return the folder of the saved model that a folder is, or holds as a stage or run.

    Raises:
        WeightsError: there is none.
    """
    places = [path, path / NAME]
    with suppress(OSError, ValueError, KeyError, TypeError):  # else not the folder of a run
        places.append(Path(json.loads((path / "result.json").read_text())["model"]))
    for place in places:
        if (place / CARD_FILE).is_file():
            return place
    raise WeightsError(
        f"{path} holds no {CARD_FILE}: not a saved model. Name the folder of a model, stage or "
        f"run, s3://bucket/prefix, FILE{GRAPH_SUFFIX}, models:/NAME@ALIAS, or {SHIPPED} for the "
        "package's own"
    )


def fetch_model_folder(model: str) -> Path:
    """Return the local folder of a saved model: of a folder, stage or run, or fetched by its URI.

    Raises:
        ConfigError: a URI, and the extra `train` is not installed.
        WeightsError: there is no such model, or it is an exported graph.
    """
    if model.endswith(GRAPH_SUFFIX):
        raise WeightsError(
            f"{model}: an exported graph; `dpmpp search --model` runs it, here its model is needed"
        )
    if not is_remote(model):
        return find_model_folder(Path(resolve_path(model)))
    try:
        (fetch,) = entry_points(group=FETCH_GROUP, name=FETCH_NAME)
        return fetch.load()(model)
    except (ImportError, ValueError):
        raise ConfigError(
            f"{model}: a model by its URI needs the extra train: pip install 'dpmpp[train]'"
        ) from None
