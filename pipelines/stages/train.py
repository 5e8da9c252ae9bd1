"""Stages 1 and 2: what is trained, from what, and what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpmpp_core.config import MetricConfig
from dpmpp_core.data.files import list_files, listing_fingerprint
from dpmpp_core.models.clip import weights_fingerprint
from dpmpp_core.models.reid import save_model
from dpmpp_core.models.tensors import refuse_non_finite, write_tensors
from dpmpp_core.models.weights import head_fingerprint
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.prompts import PromptTask
from pipelines.inference.embed import ENCODER_KEYS
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage, stage_key
from pipelines.training.driver import TrainingSegment, fit
from pipelines.training.training_set import TrainingSet

TEXT_KEYS = {"prompt_tokens", "prompt", "normalise_text"}
CHECKPOINT = "checkpoint"


def train_prompts(run: Run, prepared: Stage, saliency: Stage, features: Stage) -> Stage:
    """Train stage 1, the identities' prompts, on one worker; store `texts.safetensors`."""
    config = run.config
    identity = {
        "features": features.key,
        "prompts": config.prompts,
        "model": config.model.model_dump(mode="json", include=ENCODER_KEYS | TEXT_KEYS),
        "weights": weights_fingerprint(config.model),
        "seed": config.seed,
    }
    key = stage_key("prompts", identity)

    def build(folder: Path) -> dict[str, Any]:
        training_set = TrainingSet(config, run.storage.uri, prepared.key, saliency.key)
        task, summary = fit(run, "prompts", training_set, features.key, key)
        assert isinstance(task, PromptTask)
        results = task.results()
        refuse_non_finite(results, "the text prototypes of stage 1")
        write_tensors(results, folder / "texts.safetensors")
        return {**summary, "identities": len(results["texts"]), "scale": float(results["scale"])}

    return run.build_stage("prompts", identity, build)


def train_metric(
    run: Run, prepared: Stage, saliency: Stage, prompts: Stage | None, until: int | None = None
) -> Stage:
    """Train stage 2, encoder, mask generator and prototypes; store the model folder.

    Args:
        run: The run that the stage is part of.
        prepared: The data.
        saliency: The person masks.
        prompts: The prototypes; None for a backbone without text.
        until: End after so many epochs, at the end of one of the equal segments of `metric.rates`,
            with a checkpoint. The segment starts from the checkpoint of the one before; trainings
            whose rates differ later share their first segments.
    """
    config = run.config
    inputs = prompts.key if prompts else ""
    backgrounds = config.occlusion.backgrounds
    identity = {
        "dataset": prepared.summary["dataset_id"],
        "saliency": saliency.key,
        "prompts": inputs,
        "model": config.model,
        "weights": weights_fingerprint(config.model),
        "head": head_fingerprint(config.model),
        "metric": config.metric if until is None else restrict_rates(config.metric, until),
        "augment": config.augment,
        "occlusion": config.occlusion,
        "backgrounds": listing_fingerprint(list_files(backgrounds)) if backgrounds else None,
        "size": [config.data.height, config.data.width, config.data.mean, config.data.std],
        "seed": config.seed,
        "workers": run.plan.train_workers,
    } | ({} if until is None else {"until": until})
    key = stage_key("metric", identity)

    def segment(folder: Path) -> TrainingSegment | None:
        if until is None:
            return None
        before = until - config.metric.epochs // len(config.metric.rates)
        start = ""
        if before > 0:
            start = f"{train_metric(run, prepared, saliency, prompts, before).key}/{CHECKPOINT}"
        return TrainingSegment(until, start, folder / CHECKPOINT)

    def build(folder: Path) -> dict[str, Any]:
        training_set = TrainingSet(config, run.storage.uri, prepared.key, saliency.key)
        task, summary = fit(run, "metric", training_set, inputs, key, segment(folder))
        assert isinstance(task, MetricTask)
        facts = {
            "dataset": prepared.summary["dataset_id"],
            "identities": len(task.texts),
            "config": config.name,
            "seed": config.seed,
        }
        digest = save_model(task.model, folder / "model", facts)
        return {
            **summary,
            "weights_sha256": digest,
            "identities": len(task.texts),
            "first_epoch": {name: list(w) for name, w in task.first_epoch().items()},
        }

    return run.build_stage("metric", identity, build)


def restrict_rates(section: MetricConfig, until: int) -> MetricConfig:
    """Return the section with only the rates of its first epochs, the last of them repeated."""
    rates = section.rates
    used = rates[: -(-until * len(rates) // section.epochs)]
    return section.model_copy(update={"rates": used + used[-1:] * (len(rates) - len(used))})
