"""Embeddings on disk: a safetensors file, and a JSON file of the image paths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from dpmpp_core.models.tensors import read_tensors
from dpmpp_core.retrieval import Controls, Embeddings, from_columns, to_columns


def save_embeddings(part: Embeddings, path: Path) -> None:
    """Write embeddings to `path`, and their image paths to a JSON file of the same name."""
    arrays: dict[str, np.ndarray] = dict(to_columns(part.features, part.masks))
    arrays |= {"pids": part.pids, "camids": part.camids}
    if part.occluded is not None:
        arrays["occluded"] = part.occluded
    if part.controls is not None:
        for i, features in enumerate((part.controls.unmasked, *part.controls.permuted)):
            arrays |= {f"control{i}_{space}": x for space, x in features.items()}
    path.write_bytes(save({name: np.ascontiguousarray(x) for name, x in arrays.items()}))
    path.with_suffix(".paths.json").write_text(json.dumps(list(part.paths)))


def load_embeddings(path: Path) -> Embeddings:
    """Return what `save_embeddings` wrote; WeightsError if the file is damaged."""
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    features, masks = from_columns(arrays)
    controls: list[dict[str, np.ndarray]] = []
    while (prefix := f"control{len(controls)}_") + next(iter(features)) in arrays:
        controls.append({space: arrays[prefix + space] for space in features})
    return Embeddings(
        features=features,
        masks=masks,
        pids=arrays["pids"],
        camids=arrays["camids"],
        paths=json.loads(path.with_suffix(".paths.json").read_text()),
        occluded=arrays.get("occluded"),
        controls=Controls(controls[0], controls[1:]) if controls else None,
    )
