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

from dpmpp_core.config.gate import QUERY_SETS
from dpmpp_core.data.given_masks import true_visibility
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.occlusion_ratios import occlusion_ratios
from dpmpp_core.errors import DataError
from dpmpp_core.models.saved import read_card
from dpmpp_core.models.sources import GRAPH_SUFFIX, NAME
from dpmpp_core.occlusion.visibility import body_auc
from dpmpp_core.redaction import one_line
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
from pipelines.inference.onnx_model import OnnxModel
from pipelines.inference.workers import ModelLocation
from pipelines.reporting.mlflow_record import (
    TABLE_FILE,
    headline_metrics,
    render_description,
    render_results_csv,
)
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage

METRICS_FILE, QUERIES_FILE = "metrics.json", "queries.parquet"
FORMAT = 3  # of the files

log = logging.getLogger(__name__)


def evaluate_model(run: Run, prepared: Stage, model: ModelLocation) -> Stage:
    """Measure a model on a prepared data set."""
    manifest = Manifest.load(run.folder(prepared))
    config = run.config
    queries = dict(query_sets(manifest))
    hidden = {
        name: read_occlusion_ratios(manifest.root, rows["path"].to_pylist())
        for name, rows in queries.items()
    }
    identity = {
        "format": FORMAT,
        "dataset": manifest.dataset_id,
        "model": model.key or _weights_hash(model.storage),
        "batch": config.evaluation.batch,
        "seed": config.seed,
        "shots": config.evaluation.shots,
        "hidden": {
            name: hashlib.sha256(shares.tobytes()).hexdigest() for name, shares in hidden.items()
        },
    }

    def build(folder: Path) -> dict[str, Any]:
        sets = queries | {"gallery": manifest.subset("gallery")}
        size, seed = config.evaluation.batch, config.seed
        embedded = embed_manifest_rows(manifest, sets, model, run.plan, size, seed)
        measured, by_query = _measure(embedded, hidden, config.evaluation.shots, config.seed)
        measured["visibility"] = _measure_visibility(manifest.root, embedded)
        for name, (embeddings, _) in embedded.items():
            save_embeddings(embeddings, folder / f"{name}.safetensors")
        pq.write_table(to_table(by_query), folder / QUERIES_FILE)
        (folder / METRICS_FILE).write_text(json.dumps(measured, indent=2))
        return {name: values for name, values in measured.items() if name != "cmc"}

    return run.build_stage(
        "evaluate", identity, build, lambda summary: headline_metrics(summary["metrics"])
    )


def record_results(run: Run, prepared: Stage, metric: Stage, evaluated: Stage) -> None:
    """Show the evaluation of the trained model on the pipeline's MLflow run."""
    metrics, intervals = (evaluated.summary[name] for name in ("metrics", "intervals"))
    facts = {
        "Data": f"{one_line(prepared.summary['root'])} ({prepared.summary['dataset_id'][:16]})",
        "Model": run.storage.location(f"{metric.key}/model"),
    }
    persons = count_persons(prepared)
    run.tracking.log_final_metrics(headline_metrics(metrics))
    run.tracking.log_text(TABLE_FILE, render_results_csv(metrics, intervals))
    run.tracking.describe(render_description(metrics, intervals, persons, facts))


def count_persons(prepared: Stage) -> dict[str, int]:
    """Return the number of persons among the queries of each set."""
    counts = prepared.summary["counts"]
    return {name: counts[f"query_{name}"]["identities"] for name in QUERY_SETS}


def _weights_hash(model: str) -> str:
    """Return the hash of a saved model's weights, since its folder may get another model."""
    if model.endswith(GRAPH_SUFFIX):
        return f"onnx {OnnxModel(model, threads=1).weights_sha256}"
    return str(read_card(Path(model), NAME).get("weights_sha256"))


def read_occlusion_ratios(root: str, paths: list[str]) -> np.ndarray:
    """Return the occlusion ratio of each picture; NaN where the data has no file of them."""
    try:
        return occlusion_ratios(root, paths)
    except DataError as error:
        log.warning("no figures by share hidden: %s", error)
        return np.full(len(paths), np.nan)


def query_sets(manifest: Manifest) -> list[tuple[str, pa.Table]]:
    """Return those of the query sets `occluded` and `holistic` that have queries."""
    sets = [
        ("occluded", manifest.subset("query", occluded=True)),
        ("holistic", manifest.subset("query", occluded=False)),
    ]
    return [(name, rows) for name, rows in sets if len(rows)]


def _measure_visibility(
    root: str, embedded: dict[str, tuple[Embeddings, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """Return by query set the head's `body_auc`, where the data says what is occluded."""
    figures = {}
    for name, (query, _) in embedded.items():
        if name == "gallery" or query.occluded is None:
            continue
        rows, columns = query.occluded.shape[1:]
        truth = true_visibility(root, query.paths, (rows, columns))
        if truth is not None and not np.isnan(auc := body_auc(query.occluded, *truth)):
            figures[name] = {"body_auc": auc}
    return figures


def _measure(
    embedded: dict[str, tuple[Embeddings, np.ndarray]],
    hidden: dict[str, np.ndarray],
    shots: tuple[int, ...],
    seed: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, QueryFigures]]:
    """Return the content of METRICS_FILE, and the figures of each query with its mask.

    METRICS_FILE holds by query set `metrics`, also with `baselines`; statistics of the `masks`;
    `cmc` curves; `visibility` of the patches; `intervals`; `strata` (`hidden` as
    `evaluate_by_occlusion`, `cameras` as `evaluate_by_camera_pair`); `multi_shot` if there are
    `shots`.
    """
    gallery, gallery_colours = embedded["gallery"]
    names = ["metrics", "masks", "cmc", "intervals", "strata", *(["multi_shot"] if shots else [])]
    measured: dict[str, dict[str, Any]] = {name: {} for name in names}
    baselines: dict[str, Any] = {}
    by_query: dict[str, QueryFigures] = {}
    for name, (query, colours) in embedded.items():
        if name == "gallery":
            continue
        ranked = rank_by_mode(query, gallery, seed)
        measured["metrics"][name] = summarise_rankings(ranked)
        by_query[name] = QueryFigures.of(query, ranked["masked"])
        measured["masks"][name] = mask_statistics(query.masks)
        measured["intervals"][name] = compute_intervals(ranked, query.pids)
        measured["strata"][name] = {
            "hidden": evaluate_by_occlusion(ranked["masked"], hidden[name], query.pids),
            "cameras": evaluate_by_camera_pair(query, gallery),
        }
        if shots:
            measured["multi_shot"][name] = evaluate_tracklets(query, gallery, shots, seed)
        ids = (query.pids, gallery.pids, query.camids, gallery.camids)
        histogram = evaluate_ranking(masked_similarity(colours, None, gallery_colours), *ids)
        baselines[name] = {
            "histogram": histogram.metrics(),
            "chance": dict(zip(("mAP", "rank1"), compute_chance(*ids), strict=True)),
        }
        measured["cmc"][name] = {
            "with mask": ranked["masked"].cmc.tolist(),
            **({"no mask": ranked["unmasked"].cmc.tolist()} if "unmasked" in ranked else {}),
            "histogram": histogram.cmc.tolist(),
        }
    measured["metrics"]["baselines"] = baselines
    return measured, by_query
