"""Pre-training on generated people: a small CLIP, and the visibility head over an encoder.

Its last stages are those of any model: the encoder without a mask is a saved model, and `evaluate`
measures it on held-out people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dpmpp_core.data.captions import read_captions
from dpmpp_core.data.images import read_image
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.models.clip import build_clip, weights_fingerprint
from dpmpp_core.models.reid import ReidModel, save_model
from dpmpp_core.models.saved import weights_sha256
from dpmpp_core.models.tensors import read_tensors, write_tensors
from dpmpp_core.retrieval.captions import caption_retrieval
from dpmpp_core.tasks.head import HeadTask
from dpmpp_core.tasks.pretrain import PretrainTask, encode_captions
from pipelines.inference.embeddings_file import load_embeddings
from pipelines.reporting.figures import draw_caption_lists, save_png
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage, stage_key
from pipelines.training.driver import fit
from pipelines.training.training_set import TrainingSet

SHOWN_CAPTIONS = 6


def pretrain(run: Run, prepared: Stage, saliency: Stage) -> Stage:
    """Learn the weights; store them in half precision with a card, and a model to measure."""
    config = run.config
    identity = _identity(run, prepared, saliency, "pretrain")
    key = stage_key("pretrain", identity)

    def build(folder: Path) -> dict[str, Any]:
        training_set = TrainingSet(config, run.storage.uri, prepared.key, saliency.key, "pretrain")
        task, summary = fit(run, "pretrain", training_set, prepared.key, key)
        assert isinstance(task, PretrainTask)
        state = {name: value.half() for name, value in task.clip.state_dict().items()}
        card = {
            "what": f"weights of the open_clip model {config.model.backbone}, half precision",
            "trained_on": "pictures and captions that the demo generator drew; no photograph, no "
            "real person",
            "made_by": f"dpmpp pretrain --config {config.name}",
            "identities": prepared.summary["counts"]["train"]["identities"],
            "pretrain": config.pretrain.model_dump(mode="json"),
        }
        stored = _store(run, prepared, summary, state, folder / _weights_name(run), card)
        clip = build_clip(config.model, config.data.height, config.data.width, load_weights=False)
        clip.load_state_dict(state)
        save_model(
            ReidModel(config.model, config.data, clip), folder / "model", {"zero_shot": True}
        )
        return stored

    return run.build_stage("pretrain", identity, build)


def train_head(run: Run, prepared: Stage, saliency: Stage) -> Stage:
    """Train the visibility head over the encoder of `model`; store it with a card."""
    config = run.config
    identity = _identity(run, prepared, saliency, "head")
    key = stage_key("head", identity)

    def build(folder: Path) -> dict[str, Any]:
        training_set = TrainingSet(config, run.storage.uri, prepared.key, saliency.key, "head")
        task, summary = fit(run, "head", training_set, prepared.key, key)
        assert isinstance(task, HeadTask)
        weights = folder / f"{config.model.backbone.replace('/', '-')}.visibility.safetensors"
        card = {
            "what": f"visibility head over the early blocks of {config.model.backbone}",
            "encoder": identity["weights"],
            "trained_on": "pictures that the demo generator drew, and synthetic occluders",
            "made_by": f"dpmpp pretrain-head --config {config.name}",
            "head": config.head.model_dump(mode="json"),
        }
        return _store(run, prepared, summary, task.head.state_dict(), weights, card)

    return run.build_stage("head", identity, build)


def _identity(
    run: Run, prepared: Stage, saliency: Stage, section: Literal["pretrain", "head"]
) -> dict[str, Any]:
    config = run.config
    return {
        "dataset": prepared.summary["dataset_id"],
        "saliency": saliency.key,
        "model": config.model,
        "weights": weights_fingerprint(config.model),
        section: getattr(config, section),
        "augment": config.augment,
        "occlusion": config.occlusion,
        "size": [config.data.height, config.data.width, config.data.mean, config.data.std],
        "seed": config.seed,
        "precision": config.metric.precision,
        "workers": run.plan.train_workers,
    }


def _store(
    run: Run,
    prepared: Stage,
    summary: dict[str, Any],
    state: Mapping[str, Tensor],
    weights: Path,
    card: dict[str, Any],
) -> dict[str, Any]:
    """Write weights and their card; return the stage's summary."""
    write_tensors(state, weights)
    digest = weights_sha256(state)
    card |= {
        "images": prepared.summary["counts"]["train"]["images"],
        "dataset_id": prepared.summary["dataset_id"],
        "seed": run.config.seed,
        "steps": summary["steps"],
        "weights_sha256": digest,
        "licence": "Apache-2.0",
    }
    weights.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    return {**summary, "weights": weights.name, "weights_sha256": digest}


def _weights_name(run: Run) -> str:
    return f"{run.config.model.backbone}.safetensors"


def measure_captions(run: Run, prepared: Stage, pretrained: Stage, evaluated: Stage) -> Stage:
    """Measure retrieval between the captions and the images of held-out persons, both ways."""
    config = run.config
    identity = {"pretrained": pretrained.key, "evaluated": evaluated.key}

    def build(folder: Path) -> dict[str, Any]:
        manifest = Manifest.load(run.folder(prepared))
        gallery = load_embeddings(run.folder(evaluated) / "gallery.safetensors")
        by_image = read_captions(manifest.root, list(gallery.paths))
        texts = sorted(set(by_image))
        clip = build_clip(config.model, config.data.height, config.data.width, load_weights=False)
        clip.load_state_dict(read_tensors(run.folder(pretrained) / _weights_name(run)))
        words = encode_captions(clip, config.model.backbone, texts).numpy()
        joint = gallery.features["joint"]
        scores = words @ (joint / np.linalg.norm(joint, axis=1, keepdims=True)).T
        right = np.array(texts)[:, None] == np.array(by_image)[None]
        figures = caption_retrieval(scores, right)
        rows = np.linspace(0, len(texts) - 1, min(SHOWN_CAPTIONS, len(texts))).astype(int)
        picture = draw_caption_lists(
            [texts[row] for row in rows],
            scores[rows],
            right[rows],
            lambda item: read_image(manifest.root, gallery.paths[item]),
        )
        save_png(folder / "captions.png", picture)
        (folder / "captions.json").write_text(json.dumps(figures, indent=2))
        return {"captions": figures}

    return run.build_stage("captions", identity, build, _caption_metrics)


def _caption_metrics(summary: dict[str, Any]) -> dict[str, float]:
    return {
        f"{direction}_{name}": value
        for direction, figures in summary["captions"].items()
        for name, value in figures.items()
    }
