"""Embed queries and gallery with the trained model, rank, and measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from dpmpp_core.data.manifest import Manifest
from dpmpp_core.models.reid import NAME
from dpmpp_core.models.saved import read_card
from dpmpp_core.models.tensors import read_tensors
from dpmpp_core.retrieval import (
    Embeddings,
    chance,
    evaluate_ranking,
    figures,
    from_columns,
    mask_statistics,
    masked_similarity,
    rankings,
    to_columns,
)
from pipelines.embed import embed_sets
from pipelines.stage import Run, Stage

METRICS_FILE = "metrics.json"


def evaluate_model(run: Run, prepared: Stage, model_storage: str, model_key: str) -> Stage:
    """Measure a model on a prepared data set.

    Args:
        model_storage, model_key: storage URI and stage key of the trained model; with an empty key
            the URI is a model folder.
    """
    manifest = Manifest.load(run.folder(prepared))
    config = run.config
    identity = {
        "dataset": manifest.dataset_id,
        "model": model_key or _weights(model_storage),
        "batch": config.evaluation.batch,
        "seed": config.seed,
    }

    def build(folder: Path) -> dict[str, Any]:
        sets = dict(query_sets(manifest)) | {"gallery": manifest.subset("gallery")}
        parts = embed_sets(
            manifest, sets, model_storage, model_key, run.plan, config.evaluation.batch
        )
        measured = _measure(parts, config.seed)
        for name, (part, _) in parts.items():
            _save(part, folder / f"{name}.safetensors")
        (folder / METRICS_FILE).write_text(json.dumps(measured, indent=2))
        return {"metrics": measured["metrics"], "masks": measured["masks"]}

    return run.stage("evaluate", identity, build)


def _weights(folder: str) -> str:
    """Hash of a saved model's weights: another model in the same folder is another model."""
    return str(read_card(Path(folder), NAME).get("weights_sha256"))


def query_sets(manifest: Manifest) -> list[tuple[str, pa.Table]]:
    """The query sets that the data has: `occluded`, `holistic`."""
    sets = [
        ("occluded", manifest.subset("query", occluded=True)),
        ("holistic", manifest.subset("query", occluded=False)),
    ]
    return [(name, rows) for name, rows in sets if len(rows)]


def _measure(parts: dict[str, tuple[Embeddings, np.ndarray]], seed: int) -> dict[str, Any]:
    """`metrics` by query set, with `baselines`; `masks` statistics; `cmc` curves."""
    gallery, gallery_colours = parts["gallery"]
    metrics: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    cmc: dict[str, Any] = {}
    for name, (query, colours) in parts.items():
        if name == "gallery":
            continue
        ranked = rankings(query, gallery, seed)
        metrics[name] = figures(ranked)
        masks[name] = mask_statistics(query.masks)
        ids = (query.pids, gallery.pids, query.camids, gallery.camids)
        histogram = evaluate_ranking(masked_similarity(colours, None, gallery_colours), *ids)
        chance_map, chance_rank1 = chance(*ids)
        baselines[name] = {
            "histogram": histogram.metrics(),
            "chance": {"mAP": chance_map, "rank1": chance_rank1},
        }
        cmc[name] = {
            "with mask": ranked["masked"].cmc.tolist(),
            "no mask": ranked["unmasked"].cmc.tolist(),
            "histogram": histogram.cmc.tolist(),
        }
    metrics["baselines"] = baselines
    return {"metrics": metrics, "masks": masks, "cmc": cmc}


def _save(part: Embeddings, path: Path) -> None:
    arrays: dict[str, np.ndarray] = dict(to_columns(part.features, part.masks))
    arrays |= {"pids": part.pids, "camids": part.camids}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    path.with_suffix(".paths.json").write_text(json.dumps(list(part.paths)))


def load_embeddings(path: Path) -> Embeddings:
    """Embeddings as `evaluate_model` stored them; WeightsError if the file is damaged."""
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    features, masks = from_columns(arrays)
    return Embeddings(
        features=features,
        masks=masks,
        pids=arrays["pids"],
        camids=arrays["camids"],
        paths=json.loads(path.with_suffix(".paths.json").read_text()),
    )
