"""Training of the visibility head on generated people (see `dpmpp_core.tasks.head`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpmpp_core.models.clip import weights_fingerprint
from dpmpp_core.models.saved import weights_sha256
from dpmpp_core.models.tensors import write_tensors
from dpmpp_core.tasks.head import HeadTask
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage, stage_key
from pipelines.training.driver import fit
from pipelines.training.training_set import TrainingSet


def train_head(run: Run, prepared: Stage, saliency: Stage) -> Stage:
    """Train the head over the encoder of `model`; store it with a card."""
    config = run.config
    identity = {
        "dataset": prepared.summary["dataset_id"],
        "saliency": saliency.key,
        "model": config.model,
        "weights": weights_fingerprint(config.model),
        "head": config.head,
        "augment": config.augment,
        "occlusion": config.occlusion,
        "size": [config.data.height, config.data.width, config.data.mean, config.data.std],
        "seed": config.seed,
        "workers": run.plan.train_workers,
    }
    key = stage_key("head", identity)

    def build(folder: Path) -> dict[str, Any]:
        training_set = TrainingSet(config, run.storage.uri, prepared.key, saliency.key, "head")
        task, summary = fit(run, "head", training_set, prepared.key, key)
        assert isinstance(task, HeadTask)
        state = {name: tensor.contiguous() for name, tensor in task.head.state_dict().items()}
        weights = folder / f"{config.model.backbone.replace('/', '-')}.visibility.safetensors"
        write_tensors(state, weights)
        digest = weights_sha256(state)
        counts = prepared.summary["counts"]["train"]
        card = {
            "what": f"visibility head over the early blocks of {config.model.backbone}",
            "encoder": identity["weights"],
            "trained_on": "pictures that the demo generator drew, and synthetic occluders",
            "made_by": f"dpmpp pretrain-head --config {config.name}",
            "images": counts["images"],
            "dataset_id": prepared.summary["dataset_id"],
            "seed": config.seed,
            "head": config.head.model_dump(mode="json"),
            "steps": summary["steps"],
            "weights_sha256": digest,
            "licence": "Apache-2.0",
        }
        weights.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
        return {**summary, "weights": weights.name, "weights_sha256": digest}

    return run.build_stage("head", identity, build)
