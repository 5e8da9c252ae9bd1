"""Measure retrieval while more and more of the person, or of one part of it, is hidden."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpmpp_core.config import Config
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.synthesis import CLEAN_QUERIES, Band, Part
from dpmpp_core.errors import DataError
from dpmpp_core.models.reid import ReidModel
from dpmpp_core.retrieval import Controls, Embeddings, rank_by_mode, summarise_rankings, to_columns
from pipelines.inference.embed import build_embeddings, join_in_order, stream_embeddings
from pipelines.inference.embeddings_file import load_embeddings
from pipelines.inference.workers import ModelLocation, compact_masks
from pipelines.reporting.figures import draw_robustness, save_png
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.stages.synthesis import select_clean_rows
from pipelines.training.training_set import TrainingSet

FILE, TABLE, PICTURE = "robustness.json", "robustness.csv", "robustness.png"
# CLEAN_QUERIES -> its figures (`_measure`, `missed`); each part -> band -> the same.
Measured = dict[str, dict[str, Any]]
COLUMNS = ("part", "band", "queries", "missed", "hidden", "mAP_masked", "mAP_unmasked",
           "rank1_masked", "rank1_unmasked")  # fmt: skip


def measure_robustness(
    run: Run,
    prepared: Stage,
    saliency: Stage,
    evaluated: Stage,
    model: ModelLocation,
    bands: tuple[Band, ...],
    parts: tuple[Part, ...],
) -> Stage:
    """Hide the clean queries part by part and band by band (ours); rank them in the clean gallery.

    Workers create the images with a `Synthesiser` and do not store them. A query of which the
    requested share cannot be hidden is left out of that band and counted as missed. Gallery and
    clean queries are those of `evaluated`, the evaluation of the same model.

    Raises:
        DataError: The data has no clean queries.
    """
    manifest = Manifest.load(run.folder(prepared))
    config = run.config
    rows = manifest.images.append_column("row", pa.array(range(len(manifest.images))))
    queries = select_clean_rows(manifest, rows, "query")
    identity = {
        "evaluate": evaluated.key,
        "saliency": saliency.key,
        "bands": [str(band) for band in bands],
        "parts": list(parts),
        "backgrounds": [config.occlusion.backgrounds, config.occlusion.background_share],
        "size": [config.data.height, config.data.width],
        "seed": config.seed,
    }

    def build(folder: Path) -> dict[str, Any]:
        training_set = TrainingSet(config, run.storage.uri, prepared.key, saliency.key)
        settings = [(part, band) for part in parts for band in bands]
        arguments = (training_set, queries["row"].to_pylist(), settings, model)
        paths = queries["path"].to_pylist() * len(settings)
        size = config.evaluation.batch
        columns = join_in_order(stream_embeddings(
            paths, EmbedHidden, arguments, run.plan, size, "queries hidden",
            (HideQueries, arguments[:3]),
        ))  # fmt: skip
        source = run.folder(evaluated)
        gallery = load_embeddings(source / "gallery.safetensors")
        clean = load_embeddings(source / "holistic.safetensors")
        unhidden = _measure(clean, np.zeros(len(clean)), gallery, config.seed)
        measured: Measured = {CLEAN_QUERIES: {**unhidden, "missed": 0}}
        measured |= {part: {} for part in parts}
        for i, (part, band) in enumerate(settings):
            rows = slice(i * len(queries), (i + 1) * len(queries))
            hit = np.isfinite(columns["hidden"][rows])
            kept = {name: column[rows][hit] for name, column in columns.items()}
            embedded = build_embeddings(queries.filter(pa.array(hit)), kept)
            unmasked = {space: kept[f"unmasked_{space}"] for space in embedded.features
                        if f"unmasked_{space}" in kept}  # fmt: skip
            if unmasked:
                embedded = replace(embedded, controls=Controls(unmasked, []))
            figure = _measure(embedded, kept["hidden"], gallery, config.seed)
            missed = len(queries) - figure["queries"]
            measured[part][str(band)] = {**figure, "missed": missed}
        _log(run, measured, bands)
        (folder / FILE).write_text(json.dumps(measured, indent=2))
        with (folder / TABLE).open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerow({"band": CLEAN_QUERIES, **measured[CLEAN_QUERIES]})
            for part in parts:
                for name, figure in measured[part].items():
                    table.writerow({"part": part, "band": name, **figure})
        save_png(folder / PICTURE, draw_robustness(measured))
        return {"measured": measured}

    return run.build_stage("robustness", identity, build)


def has_clean_queries(prepared: Stage) -> bool:
    """Return whether a prepared data set has queries that are not known to be occluded."""
    return bool(prepared.summary["counts"]["query_holistic"]["images"])


def require_lenders(config: Config, prepared: Stage) -> None:
    """Raise DataError if a prepared data set has nothing that could hide its queries."""
    training = prepared.summary["counts"].get("train", {}).get("images", 0)
    if not training and not config.occlusion.backgrounds:
        raise DataError(
            f"{prepared.summary['root']} has no training images, whose scenes hide the queries: "
            "name a folder of pictures without people, occlusion.backgrounds=DIR"
        )


def _log(run: Run, measured: Measured, bands: tuple[Band, ...]) -> None:
    """Log each part's figures over the upper edges of the bands, the clean queries at 0."""
    for part in (name for name in measured if name != CLEAN_QUERIES):
        steps = {0: measured[CLEAN_QUERIES]} | {
            band.high: measured[part][str(band)] for band in bands
        }
        for step, figure in steps.items():
            values = {f"{part}_{k}": v for k, v in figure.items() if v is not None}
            run.tracking.log_metrics(step, values)


class HideQueries:
    """Data worker: numbers of (part, band, query) -> pictures of the hidden query."""

    def __init__(
        self, training_set: TrainingSet, rows: list[int], settings: list[tuple[Part, Band]]
    ) -> None:
        self._synthesiser = training_set.build_synthesiser()
        self._rows, self._settings = rows, settings

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return `images` and the shares `hidden`, NaN where no such share can be hidden."""
        images, hidden = [], []
        for number in batch["row"]:
            setting, query = divmod(int(number), len(self._rows))
            part, band = self._settings[setting]
            sample = self._synthesiser.make(self._rows[query], band, part)
            images.append(sample.image if sample else self._synthesiser.clean(self._rows[query]))
            hidden.append(sample.occlusion_ratio if sample else np.nan)
        return {"row": batch["row"], "images": np.stack(images), "hidden": np.array(hidden)}


class EmbedHidden:
    """Data worker: pictures of `HideQueries`, or what it takes, -> features and masks."""

    def __init__(
        self,
        training_set: TrainingSet,
        rows: list[int],
        settings: list[tuple[Part, Band]],
        model: ModelLocation,
    ) -> None:
        self._model = model.load()
        self._hide = (training_set, rows, settings)
        self._made: HideQueries | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns of the hidden queries; `hidden` as `HideQueries`."""
        if "images" not in batch:
            self._made = self._made or HideQueries(*self._hide)
            batch = self._made(batch)
        images = batch["images"]
        embedded = self._model.embed(images, batch=len(images))
        masks = compact_masks(embedded.masks, self._model.mask_values)
        columns: dict[str, np.ndarray] = dict(to_columns(embedded.features, masks))
        if embedded.occluded is not None:
            columns["occluded"] = embedded.occluded
        if isinstance(self._model, ReidModel) and embedded.occluded is not None:
            none = np.zeros(embedded.occluded.shape, np.bool_)
            unmasked = self._model.embed(images, len(images), none).features
            columns |= {f"unmasked_{space}": values for space, values in unmasked.items()}
        return {"row": batch["row"], "hidden": batch["hidden"], **columns}


def _measure(
    queries: Embeddings, hidden: np.ndarray, gallery: Embeddings, seed: int
) -> dict[str, Any]:
    """Return number of queries, mean share hidden, and mAP and rank-1 by mode; None = none."""
    result: dict[str, Any] = {"queries": len(queries), "hidden": None}
    measures = [(figure, mode) for figure in ("mAP", "rank1") for mode in ("masked", "unmasked")]
    if not len(queries):
        return result | {f"{figure}_{mode}": None for figure, mode in measures}
    ranked = rank_by_mode(queries, gallery, seed, ("masked", "unmasked"))
    numbers = summarise_rankings(ranked)
    result["hidden"] = float(hidden.mean())
    return result | {
        f"{figure}_{mode}": numbers[mode][figure] if mode in ranked else None
        for figure, mode in measures
    }
