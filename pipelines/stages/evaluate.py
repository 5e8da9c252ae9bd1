"""Embed queries and gallery with the trained model, rank, and measure."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.occlusion_ratios import occlusion_ratios
from dpmpp_core.errors import DataError
from dpmpp_core.models.reid import NAME
from dpmpp_core.models.saved import read_card
from dpmpp_core.retrieval import (
    Embeddings,
    QueryFigures,
    compute_chance,
    compute_intervals,
    evaluate_by_camera_pair,
    evaluate_by_occlusion,
    evaluate_ranking,
    evaluate_tracklets,
    mask_statistics,
    masked_similarity,
    rank_by_mode,
    summarise_rankings,
)
from dpmpp_core.retrieval.queries import to_table
from pipelines.inference.embed import embed_manifest_rows
from pipelines.inference.embeddings_file import save_embeddings
from pipelines.inference.onnx_model import SUFFIX, OnnxModel
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage

METRICS_FILE, QUERIES_FILE = "metrics.json", "queries.parquet"
FORMAT = 2  # of the files

log = logging.getLogger(__name__)


def evaluate_model(run: Run, prepared: Stage, model_storage: str, model_key: str) -> Stage:
    """Measure a model on a prepared data set.

    Args:
        model_storage, model_key: storage URI and stage key of the trained model; with an empty key
            the URI is a model folder, or a file of `dpmpp export`.
    """
    manifest = Manifest.load(run.folder(prepared))
    config = run.config
    queries = dict(query_sets(manifest))
    hidden = {name: _hidden(manifest.root, rows) for name, rows in queries.items()}
    identity = {
        "format": FORMAT,
        "dataset": manifest.dataset_id,
        "model": model_key or _weights(model_storage),
        "batch": config.evaluation.batch,
        "seed": config.seed,
        "shots": config.evaluation.shots,
        "hidden": {
            name: hashlib.sha256(shares.tobytes()).hexdigest() for name, shares in hidden.items()
        },
    }

    def build(folder: Path) -> dict[str, Any]:
        sets = queries | {"gallery": manifest.subset("gallery")}
        parts = embed_manifest_rows(
            manifest, sets, model_storage, model_key, run.plan, config.evaluation.batch
        )
        measured, found = _measure(parts, hidden, config.evaluation.shots, config.seed)
        for name, (part, _) in parts.items():
            save_embeddings(part, folder / f"{name}.safetensors")
        pq.write_table(to_table(found), folder / QUERIES_FILE)
        (folder / METRICS_FILE).write_text(json.dumps(measured, indent=2))
        return {name: values for name, values in measured.items() if name != "cmc"}

    return run.stage("evaluate", identity, build)


def _weights(model: str) -> str:
    """Hash of a saved model's weights: another model in the same folder is another model."""
    if model.endswith(SUFFIX):
        return f"onnx {OnnxModel(model, threads=1).weights_sha256}"
    return str(read_card(Path(model), NAME).get("weights_sha256"))


def _hidden(root: str, rows: pa.Table) -> np.ndarray:
    """Share hidden of each query; NaN where no file beside the data says it."""
    paths = rows["path"].to_pylist()
    try:
        return occlusion_ratios(root, paths)
    except DataError as error:
        log.warning("no figures by share hidden: %s", error)
        return np.full(len(paths), np.nan)


def query_sets(manifest: Manifest) -> list[tuple[str, pa.Table]]:
    """The query sets that the data has: `occluded`, `holistic`."""
    sets = [
        ("occluded", manifest.subset("query", occluded=True)),
        ("holistic", manifest.subset("query", occluded=False)),
    ]
    return [(name, rows) for name, rows in sets if len(rows)]


def _measure(
    parts: dict[str, tuple[Embeddings, np.ndarray]],
    hidden: dict[str, np.ndarray],
    shots: tuple[int, ...],
    seed: int,
) -> tuple[dict[str, Any], dict[str, QueryFigures]]:
    """`metrics` by query set, with `baselines`; `masks` statistics; `cmc` curves; `intervals`;
    `strata`: `hidden` as `evaluate_by_occlusion`, `cameras` as `evaluate_by_camera_pair`;
    `multi_shot`, if requested. And
    what each query found with its mask."""
    gallery, gallery_colours = parts["gallery"]
    metrics: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    cmc: dict[str, Any] = {}
    sure: dict[str, Any] = {}
    strata: dict[str, Any] = {}
    tracklets: dict[str, Any] = {}
    found: dict[str, QueryFigures] = {}
    for name, (query, colours) in parts.items():
        if name == "gallery":
            continue
        ranked = rank_by_mode(query, gallery, seed)
        metrics[name] = summarise_rankings(ranked)
        found[name] = QueryFigures.of(query, ranked["masked"])
        masks[name] = mask_statistics(query.masks)
        sure[name] = compute_intervals(ranked, query.pids)
        strata[name] = {
            "hidden": evaluate_by_occlusion(ranked["masked"], hidden[name], query.pids),
            "cameras": evaluate_by_camera_pair(query, gallery),
        }
        if shots:
            tracklets[name] = evaluate_tracklets(query, gallery, shots, seed)
        ids = (query.pids, gallery.pids, query.camids, gallery.camids)
        histogram = evaluate_ranking(masked_similarity(colours, None, gallery_colours), *ids)
        chance_map, chance_rank1 = compute_chance(*ids)
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
    measured = {"metrics": metrics, "masks": masks, "cmc": cmc}
    measured |= {"intervals": sure, "strata": strata}
    return measured | ({"multi_shot": tracklets} if shots else {}), found
