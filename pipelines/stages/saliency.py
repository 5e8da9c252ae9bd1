"""Stage 0: one person mask per image of the data set, by a model trained first if configured."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import ray

from dpmpp_core.config import Config
from dpmpp_core.data.given_masks import GivenMasks, has_true_masks, masks_fingerprint
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.models.clip import weights_fingerprint
from dpmpp_core.models.saliency import save_saliency
from dpmpp_core.occlusion.saliency import mask_iou
from dpmpp_core.tasks.saliency import SaliencyTask
from pipelines.inference.embed import join_in_order, stream_embeddings
from pipelines.inference.workers import FindPersons
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage, stage_key
from pipelines.training.driver import fit
from pipelines.training.masks import save_masks, transfer_grid
from pipelines.training.training_set import TrainingSet

log = logging.getLogger(__name__)

MODEL = "model"  # folder of the learned saliency model in the stage's


def compute_person_masks(run: Run, prepared: Stage) -> Stage:
    """Compute and store the person masks of all images; test images are occluded by them too."""
    manifest = Manifest.load(run.folder(prepared))
    config = _with_provider(run.config, manifest)
    grid = transfer_grid(config)
    identity = _identity(run, config, manifest)
    key = stage_key("saliency", identity)

    def build(folder: Path) -> dict[str, Any]:
        trained: ray.ObjectRef | None = None
        summary: dict[str, Any] = {}
        if config.saliency.provider == "sps":
            images = TrainingSet(config, run.storage.uri, prepared.key, None, "saliency")
            task, summary = fit(run, "saliency", images, prepared.key, key)
            assert isinstance(task, SaliencyTask)
            summary["weights_sha256"] = save_saliency(task.model, folder / MODEL)
            trained = ray.put(task.model)
        paths = sorted(set(manifest.images["path"].to_pylist()))
        arguments = (manifest.root, config, grid, trained)
        columns = join_in_order(stream_embeddings(
            paths, FindPersons, arguments, run.plan, config.evaluation.batch, "person masks",
            on_gpu=config.saliency.provider in ("sps", "attention"),
        ))  # fmt: skip
        masks = columns["mask"].astype(bool)
        save_masks(folder, paths, masks)
        share = masks.mean(axis=(1, 2))
        figures = {
            "images": len(paths),
            "person_share_mean": float(share.mean()),
            "empty_masks": int((share == 0).sum()),
        }
        if figures["empty_masks"] > 0.1 * len(paths):
            log.warning(
                "saliency: %d of %d masks are empty, so few images can be occluded in stage 2: "
                "train longer (saliency.epochs) or choose another saliency.provider",
                figures["empty_masks"],
                len(paths),
            )
        if has_true_masks(manifest.root):
            truth = GivenMasks(manifest.root, grid)(np.empty(0, np.uint8), paths)
            figures["iou_with_truth"] = float(mask_iou(masks, truth).mean())
        return {"provider": config.saliency.provider, **figures, **summary}

    return run.build_stage("saliency", identity, build)


def _with_provider(config: Config, manifest: Manifest) -> Config:
    """Return the configuration with a provider that the data allow: `sps` learns from training."""
    if config.saliency.provider != "sps" or manifest.subset("train").num_rows:
        return config
    log.warning(
        "saliency: there are no training images, so the person masks come from "
        "saliency.provider=spectral"
    )
    saliency = config.saliency.model_copy(update={"provider": "spectral"})
    return config.model_copy(update={"saliency": saliency})


def _identity(run: Run, config: Config, manifest: Manifest) -> dict[str, Any]:
    """Return what determines the masks; each provider reads another part of the configuration."""
    section = config.saliency
    identity: dict[str, Any] = {
        "dataset": manifest.dataset_id,
        "provider": section.provider,
        "size": [config.data.height, config.data.width],
    }
    if section.provider == "given":
        return identity | {"masks": masks_fingerprint(manifest.root)}
    if section.provider == "spectral":
        return identity | {"target_ratio": section.target_ratio}
    identity |= {
        "model": config.model,
        "weights": weights_fingerprint(config.model),
        "seed": config.seed,
        "colours": [config.data.mean, config.data.std],
    }
    if section.provider == "attention":
        return identity | {"target_ratio": section.target_ratio}
    return identity | {
        "saliency": section,
        "geometry": [config.augment.flip, config.augment.pad],
        "precision": config.metric.precision,
        "workers": run.plan.train_workers,
    }
