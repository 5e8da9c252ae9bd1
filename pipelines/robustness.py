"""How retrieval falls as more and more of the person is hidden."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.synthesis import Band
from dpmpp_core.retrieval import (
    Embeddings,
    figures,
    from_columns,
    rankings,
    to_columns,
)
from pipelines.embed import embed, trained_model
from pipelines.evaluate import load_embeddings
from pipelines.pictures import robustness_curve, save_png
from pipelines.stage import Run, Stage
from pipelines.stream import TrainingSet
from pipelines.synthesis import clean_rows

FILE, TABLE, PICTURE = "robustness.json", "robustness.csv", "robustness.png"
CLEAN = "clean"
COLUMNS = ("band", "queries", "missed", "hidden", "mAP_masked", "mAP_unmasked", "rank1_masked",
           "rank1_unmasked")  # fmt: skip


def robustness(
    run: Run,
    prepared: Stage,
    saliency: Stage,
    evaluated: Stage,
    model_storage: str,
    model_key: str,
    bands: tuple[Band, ...],
) -> Stage:
    """Hide the clean queries band by band (ours) and rank them against the clean gallery.

    The pictures are those of `dpmpp synthesize`, made where they are embedded and never stored. A
    query for which no donor hides the wanted share is left out of that band and counted as missed.

    Args:
        evaluated: the same model's evaluation: its gallery and clean queries are not embedded anew.
        model_storage, model_key: as of `evaluate_model`.

    Raises:
        DataError: the data has no clean queries.
    """
    manifest = Manifest.load(run.folder(prepared))
    config = run.config
    rows = manifest.images.append_column("row", pa.array(range(len(manifest.images))))
    queries = clean_rows(manifest, rows, "query")
    identity = {
        "evaluate": evaluated.key,
        "saliency": saliency.key,
        "bands": [str(band) for band in bands],
        "backgrounds": [config.occlusion.backgrounds, config.occlusion.background_share],
        "size": [config.data.height, config.data.width],
        "seed": config.seed,
    }

    def build(folder: Path) -> dict[str, Any]:
        training_set = TrainingSet(config, run.storage.uri, prepared.key, saliency.key)
        arguments = (training_set, queries["row"].to_pylist(), bands, model_storage, model_key)
        paths = queries["path"].to_pylist() * len(bands)
        size = config.evaluation.batch
        columns = embed(paths, EmbedHidden, arguments, run.plan, size, "queries hidden")
        source = run.folder(evaluated)
        gallery = load_embeddings(source / "gallery.safetensors")
        clean = load_embeddings(source / "holistic.safetensors")
        measured = {CLEAN: _measure(clean, np.zeros(len(clean)), gallery, config.seed)}
        for i, band in enumerate(bands):
            part = {name: column[i * len(queries) :][: len(queries)]
                    for name, column in columns.items()}  # fmt: skip
            hidden = part.pop("hidden")
            hit = np.isfinite(hidden)
            found = _embeddings(queries.filter(pa.array(hit)), part, hit)
            measured[str(band)] = _measure(found, hidden[hit], gallery, config.seed)
        for name, figure in measured.items():
            figure["missed"] = len(queries) - figure["queries"]
            step = 0 if name == CLEAN else Band(*map(int, name.split("-"))).high
            run.tracking.figures(step, {k: v for k, v in figure.items() if v is not None})
        (folder / FILE).write_text(json.dumps(measured, indent=2))
        with (folder / TABLE).open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows({"band": name, **figure} for name, figure in measured.items())
        save_png(folder / PICTURE, robustness_curve(measured))
        return {"bands": measured}

    return run.stage("robustness", identity, build)


def has_clean_queries(prepared: Stage) -> bool:
    """Whether a prepared data set has queries that are not known to be occluded."""
    return bool(prepared.summary["counts"]["query_holistic"]["images"])


class EmbedHidden:
    """Data worker: numbers of (band, query) -> features and masks of the query so hidden."""

    def __init__(
        self,
        training_set: TrainingSet,
        rows: list[int],
        bands: tuple[Band, ...],
        storage: str,
        key: str,
    ) -> None:
        self._model = trained_model(storage, key)
        self._synthesiser = training_set.synthesiser()
        self._rows, self._bands = rows, bands

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images, hidden = [], []
        for number in batch["row"]:
            band, query = divmod(int(number), len(self._rows))
            made = self._synthesiser.make(self._rows[query], self._bands[band])
            images.append(made.image if made else self._synthesiser.clean(self._rows[query]))
            hidden.append(made.hidden if made else np.nan)
        embedded = self._model.embed(images, batch=len(images))
        columns = to_columns(embedded.features, embedded.masks)
        return {"row": batch["row"], "hidden": np.array(hidden), **columns}


def _embeddings(rows: pa.Table, columns: dict[str, np.ndarray], hit: np.ndarray) -> Embeddings:
    features, masks = from_columns({name: column[hit] for name, column in columns.items()})
    pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
    return Embeddings(features, masks, pids, camids, rows["path"].to_pylist())


def _measure(
    queries: Embeddings, hidden: np.ndarray, gallery: Embeddings, seed: int
) -> dict[str, Any]:
    """Number of queries, mean share hidden, mAP and rank-1 with and without masks; None = none."""
    result: dict[str, Any] = {"queries": len(queries), "hidden": None}
    measures = [(figure, mode) for figure in ("mAP", "rank1") for mode in ("masked", "unmasked")]
    if not len(queries):
        return result | {f"{figure}_{mode}": None for figure, mode in measures}
    numbers = figures(rankings(queries, gallery, seed))
    result["hidden"] = float(hidden.mean())
    return result | {f"{figure}_{mode}": numbers[mode][figure] for figure, mode in measures}
