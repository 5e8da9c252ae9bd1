"""Stages 0, 1 and 2: what is trained, from what, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dpmpp_core.config import MetricConfig
from dpmpp_core.data.files import list_files, listing_fingerprint
from dpmpp_core.models.clip import weights_fingerprint
from dpmpp_core.models.reid import save_model
from dpmpp_core.models.saliency import SaliencyModel
from dpmpp_core.models.tensors import refuse_non_finite
from dpmpp_core.tasks.metric import MetricTask
from dpmpp_core.tasks.prompts import PromptTask
from dpmpp_core.tasks.saliency import SaliencyTask
from pipelines.inference.embed import ENCODER_KEYS
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage, stage_key
from pipelines.training.driver import TrainingSegment, fit
from pipelines.training.training_set import TrainingSet


def train_saliency(run: Run, prepared: Stage, key: str) -> tuple[SaliencyModel, dict[str, Any]]:
    """Stage 0: learn where the person is; the model and a summary for the stage of that key."""
    training_set = TrainingSet(run.config, run.storage.uri, prepared.key, None, "saliency")
    task, summary = fit(run, "saliency", training_set, prepared.key, key)
    assert isinstance(task, SaliencyTask)
    return task.model, summary


TEXT_KEYS = {"prompt_tokens", "prompt", "normalise_text"}
CHECKPOINT = "checkpoint"


def train_prompts(run: Run, prepared: Stage, saliency: Stage, features: Stage) -> Stage:
    """Stage 1: learn the identities' prompts; leaves `texts.safetensors`.

    On one worker whatever the cluster.
    """
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
        save_file(results, folder / "texts.safetensors")
        return {**summary, "identities": len(results["texts"]), "scale": float(results["scale"])}

    return run.stage("prompts", identity, build)


def _backgrounds(root: str | None) -> str | None:
    """Fingerprint of the folder of backgrounds: other pictures make another model."""
    return listing_fingerprint(list_files(root)) if root else None


def train_metric(
    run: Run, prepared: Stage, saliency: Stage, prompts: Stage | None, until: int | None = None
) -> Stage:
    """Stage 2: learn encoder, mask generator and prototypes; leaves the model folder.

    Args:
        prompts: None for a backbone without text.
        until: leave it after so many epochs, the end of one of the equal parts of `metric.rates`,
            with a checkpoint. It begins with the one that the part before left; trainings whose
            rates part later share what they have in common.
    """
    config = run.config
    inputs = prompts.key if prompts else ""
    identity = {
        "dataset": prepared.summary["dataset_id"],
        "saliency": saliency.key,
        "prompts": inputs,
        "model": config.model,
        "weights": weights_fingerprint(config.model),
        "metric": config.metric if until is None else rates_until(config.metric, until),
        "augment": config.augment,
        "occlusion": config.occlusion,
        "backgrounds": _backgrounds(config.occlusion.backgrounds),
        "size": [config.data.height, config.data.width, config.data.mean, config.data.std],
        "seed": config.seed,
        "workers": run.plan.train_workers,
    } | ({} if until is None else {"until": until})
    key = stage_key("metric", identity)

    def part(folder: Path) -> TrainingSegment | None:
        if until is None:
            return None
        before = until - config.metric.epochs // len(config.metric.rates)
        start = ""
        if before > 0:
            start = f"{train_metric(run, prepared, saliency, prompts, before).key}/{CHECKPOINT}"
        return TrainingSegment(until, start, folder / CHECKPOINT)

    def build(folder: Path) -> dict[str, Any]:
        training_set = TrainingSet(config, run.storage.uri, prepared.key, saliency.key)
        task, summary = fit(run, "metric", training_set, inputs, key, part(folder))
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

    return run.stage("metric", identity, build)


def rates_until(section: MetricConfig, until: int) -> MetricConfig:
    """The section with what of its rates matters in the first epochs; the last one goes on."""
    rates = section.rates
    used = rates[: -(-until * len(rates) // section.epochs)]
    return section.model_copy(update={"rates": used + used[-1:] * (len(rates) - len(used))})
