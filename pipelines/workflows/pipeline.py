"""The pipeline, declared as a list of stages: read this file first.

It imports what a stage needs when the stage runs: the command line shows the stages at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmpp_core.models.weights import has_text

if TYPE_CHECKING:
    from dpmpp_core.config import Config
    from pipelines.inference.workers import ModelLocation
    from pipelines.runtime.run import Run
    from pipelines.runtime.stage import Stage
    from pipelines.stages.prepare import Source
    from pipelines.workflows.options import Options


@dataclass
class Pipeline:
    """A pipeline while it runs.

    Attributes:
        until: the stage that was requested.
        source: the listed data; None = the demo set.
        done: the finished stages by name.
        extra: results that belong to no stage's folder.
    """

    run: Run
    options: Options
    until: str
    source: Source | None
    done: dict[str, Stage] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageSpec:
    """A stage as the pipeline declares it.

    Attributes:
        help: what it does, for the command line and the documentation.
        run: takes the pipeline with the finished stages; None = there was nothing to do.
        needs: the stages whose results it reads, or that come before it.
        applies: whether the stage is part of a pipeline with this configuration, these options and
            this requested stage; if not, it is left out together with its needs.
        reads: the sections and keys of the configuration that decide its result.
    """

    name: str
    help: str
    run: Callable[[Pipeline], Stage | None]
    needs: tuple[str, ...] = ()
    applies: Callable[[Config, Options, str], bool] = lambda config, options, until: True
    reads: tuple[str, ...] = ()


def _prepare(p: Pipeline) -> Stage:
    from dpmpp_core.errors import DataError
    from pipelines.workflows.session import compute_run_name, open_tracking_run, prepare_data

    prepared = prepare_data(p.run, p.source)
    open_tracking_run(p.run, prepared, compute_run_name(prepared, p.run.config), p.options.config)
    trains = p.until not in ("prepare", "synthesis") and p.options.model is None
    counts = prepared.summary["counts"]
    if trains and counts.get("train", {}).get("images", 0) == 0:
        left_out = ", ".join(f"{n} {reason}" for reason, n in counts["quarantined"].items())
        raise DataError(
            f"{prepared.summary['root']} ({prepared.summary['layout']}) has no training images "
            f"(left out: {left_out or 'none'}): measure an existing model on it with `dpmpp "
            "evaluate --model FOLDER`"
        )
    if p.until == "robustness":
        from pipelines.stages.robustness import require_lenders

        require_lenders(p.run.config, prepared)
    return prepared


def _saliency(p: Pipeline) -> Stage:
    from pipelines.stages.saliency import compute_person_masks

    return compute_person_masks(p.run, p.done["prepare"])


def _features(p: Pipeline) -> Stage:
    from pipelines.inference.embed import cache_features

    return cache_features(p.run, p.done["prepare"])


def _prompts(p: Pipeline) -> Stage:
    from pipelines.stages.train import train_prompts

    return train_prompts(p.run, p.done["prepare"], p.done["saliency"], p.done["features"])


def _metric(p: Pipeline) -> Stage:
    from pipelines.stages.train import train_metric

    return train_metric(p.run, p.done["prepare"], p.done["saliency"], p.done.get("prompts"))


def _pretrain(p: Pipeline) -> Stage:
    from pipelines.stages.pretrain import pretrain

    return pretrain(p.run, p.done["prepare"], p.done["saliency"])


def _head(p: Pipeline) -> Stage:
    from pipelines.stages.pretrain import train_head

    return train_head(p.run, p.done["prepare"], p.done["saliency"])


def _evaluate(p: Pipeline) -> Stage:
    from pipelines.stages.evaluate import evaluate_model, record_results

    evaluated = evaluate_model(p.run, p.done["prepare"], _model_location(p))
    if "metric" in p.done:
        record_results(p.run, p.done["prepare"], p.done["metric"], evaluated)
    return evaluated


def _captions(p: Pipeline) -> Stage:
    from pipelines.stages.pretrain import measure_captions

    return measure_captions(p.run, p.done["prepare"], p.done["pretrain"], p.done["evaluate"])


def _robustness(p: Pipeline) -> Stage | None:
    from dpmpp_core.data.synthesis import BANDS, PARTS
    from pipelines.stages.robustness import has_clean_queries, measure_robustness

    done, options = p.done, p.options
    if p.until != "robustness" and not has_clean_queries(done["prepare"]):
        return None
    return measure_robustness(
        p.run, done["prepare"], done["saliency"], done["evaluate"], _model_location(p),
        options.bands or BANDS, options.parts or PARTS,
    )  # fmt: skip


def _report(p: Pipeline) -> Stage:
    from pipelines.stages.report import build_report

    done = p.done
    return build_report(
        p.run, done["prepare"], done["saliency"], done["metric"], done["evaluate"],
        done.get("robustness"),
    )  # fmt: skip


def _register(p: Pipeline) -> Stage:
    from pipelines.registry.register import register

    return register(p.run, p.done["prepare"], p.done["metric"], p.done["evaluate"])


def _synthesis(p: Pipeline) -> None:
    from pipelines.stages.synthesis import synthesize

    assert p.options.synthesis is not None
    masks = p.done["saliency"]
    p.extra["synthesis"] = synthesize(p.run, p.done["prepare"], masks, p.options.synthesis)


def _model_location(p: Pipeline) -> ModelLocation:
    """Return the location of the model that is measured."""
    from pipelines.inference.workers import ModelLocation

    if p.options.model is not None:
        return ModelLocation(str(Path(p.options.model).absolute()))
    trained = p.done["metric" if "metric" in p.done else "pretrain"]
    return ModelLocation(p.run.storage.uri, trained.key)


def _has_text(config: Config, options: Options, until: str) -> bool:
    return has_text(config.model)


def _trains_metric(config: Config, options: Options, until: str) -> bool:
    return options.model is None and not _pretrains(config, options, until)


def _pretrains(config: Config, options: Options, until: str) -> bool:
    return until in ("pretrain", "captions")


def _measures_robustness(config: Config, options: Options, until: str) -> bool:
    return until == "robustness" or config.evaluation.robustness


_SIZE = ("data.height", "data.width")
_PIXELS = (*_SIZE, "data.mean", "data.std")
_TRAINING = ("model", "augment", "occlusion", *_PIXELS, "seed")
_ENCODER = ("model.backbone", "model.pretrained", "model.checkpoint", "model.stride")
_TEXT = ("model.prompt", "model.prompt_tokens", "model.normalise_text")

STAGES = (
    StageSpec("prepare", "Check the images and write the manifest.", _prepare,
              reads=("data.layout", "data.camera", "data.occluded_queries", "data.demo")),
    StageSpec("saliency", "Compute the person masks (stage 0).", _saliency, ("prepare",),
              reads=("saliency", "model", *_PIXELS, "augment.flip", "augment.pad",
                     "metric.precision", "seed")),
    StageSpec("features", "Embed the training images with the encoder that training starts from.",
              _features, ("prepare",), _has_text, (*_ENCODER, *_PIXELS, "seed")),
    StageSpec("prompts", "Learn the text prototypes (stage 1).",
              _prompts, ("prepare", "saliency", "features"), _has_text,
              ("prompts", *_ENCODER, *_TEXT, "seed")),
    StageSpec("metric", "Train the model (stage 2).",
              _metric, ("prepare", "saliency", "prompts"), _trains_metric, ("metric", *_TRAINING)),
    StageSpec("pretrain", "Train a small CLIP on generated people.",
              _pretrain, ("prepare", "saliency"), _pretrains,
              ("pretrain", *_TRAINING, "metric.precision")),
    StageSpec("head", "Train the visibility head on generated people.",
              _head, ("prepare", "saliency"), reads=("head", *_TRAINING, "metric.precision")),
    StageSpec("evaluate", "Measure a model: the one trained on the data, or any saved one.",
              _evaluate, ("prepare", "metric", "pretrain"),
              reads=("evaluation.batch", "evaluation.shots", "seed")),
    StageSpec("captions", "Measure how well the pretrained CLIP matches captions to images.",
              _captions, ("pretrain", "evaluate"), reads=(*_ENCODER, *_SIZE)),
    StageSpec("robustness", "Measure a model on clean queries occluded more and more: mAP and "
              "rank-1 by part and share.",
              _robustness, ("prepare", "evaluate", "saliency"), _measures_robustness,
              ("evaluation.robustness", "evaluation.batch", *_SIZE, "occlusion.backgrounds",
               "occlusion.background_share", "seed")),
    StageSpec("report", "Write the report; nothing is registered.",
              _report, ("prepare", "saliency", "metric", "evaluate", "robustness")),
    StageSpec("register", "Register the model in MLflow, as the candidate.",
              _register, ("prepare", "metric", "evaluate", "report")),
    StageSpec("synthesis", "Write a data set with occluded queries, in Market-1501 layout.",
              _synthesis, ("prepare", "saliency"),
              reads=(*_SIZE, "occlusion.backgrounds", "occlusion.background_share", "seed")),
)  # fmt: skip
STAGE = {spec.name: spec for spec in STAGES}


def list_readers(key: str) -> list[str]:
    """Return the names of the stages whose result a configuration key decides."""
    return [
        spec.name for spec in STAGES
        if any(key == name or key.startswith(f"{name}.") for name in spec.reads)
    ]  # fmt: skip


def plan_stages(config: Config, options: Options, until: str) -> list[StageSpec]:
    """Return `until` and the stages that it needs, each one after its own needs."""
    planned: dict[str, StageSpec] = {}

    def add(spec: StageSpec) -> None:
        if spec.name not in planned and spec.applies(config, options, until):
            for name in spec.needs:
                add(STAGE[name])
            planned[spec.name] = spec

    add(STAGE[until])
    return list(planned.values())


def run_pipeline(options: Options, until: str = "register") -> dict[str, Any]:
    """Run `until` and the stages that it needs, reusing finished ones.

    Everything that a user can get wrong is checked before anything is started or written.

    Returns:
        what `--json` prints.

    Raises:
        UserError: configuration, weights or data.
    """
    from dpmpp_core.errors import ConfigError
    from pipelines.workflows.next_steps import list_next_steps
    from pipelines.workflows.session import load_run_config, open_session

    config = load_run_config(options)
    if options.model is not None:
        from pipelines.registry.models import fetch_model, resolve_model_source

        options = replace(options, model=str(fetch_model(resolve_model_source(options.model))))
    if until in ("features", "prompts") and not _has_text(config, options, until):
        raise ConfigError(
            f"model.backbone {config.model.backbone} has no text tower, so there are no prompts to "
            "learn: continue with `dpmpp train`, or take an open_clip backbone"
        )
    planned = plan_stages(config, options, until)
    encoder_users = {"features", "metric", "pretrain", "head"}
    if config.saliency.provider in ("sps", "attention"):
        encoder_users.add("saliency")
    loads_encoder = not encoder_users.isdisjoint(spec.name for spec in planned)
    with open_session(options, [config], loads_encoder) as (run, source, _):
        pipeline = Pipeline(run, options, until, source)
        for spec in planned:
            stage = spec.run(pipeline)
            if stage is not None:
                pipeline.done[spec.name] = stage
        if "metric" in pipeline.done:
            pipeline.extra["next"] = list_next_steps(run, pipeline.done)
        return _collect_result(run) | pipeline.extra


def _collect_result(run: Run) -> dict[str, Any]:
    """Return one machine-readable object, and write it; absent stages leave their keys out."""
    import pyarrow.parquet as pq

    from dpmpp_core.redaction import redact
    from pipelines.workflows.session import compute_run_name

    by_name = {stage.name: stage for stage in run.stages}
    prepared = by_name["prepare"]
    quarantine = pq.read_table(run.folder(prepared) / "quarantine.parquet").to_pylist()
    name = compute_run_name(prepared, run.config)
    result: dict[str, Any] = {
        "run": name,
        "run_id": run.tracking.run_id,
        "tracking_uri": redact(run.tracking.uri),
        "dataset_id": prepared.summary["dataset_id"],
        "counts": prepared.summary["counts"],
        "warnings": prepared.summary["warnings"],
        "quarantined": quarantine,
        "stages": [
            {"name": s.name, "seconds": s.seconds, "reused": s.reused, "key": s.key}
            for s in run.stages
        ],
    }
    readers: dict[str, Callable[[Stage], dict[str, Any]]] = {
        "metric": lambda s: {
            "weights_sha256": s.summary["weights_sha256"],
            "model": str(run.folder(s) / "model"),
        },
        "pretrain": lambda s: {
            "weights": str(run.folder(s) / s.summary["weights"]),
            "weights_sha256": s.summary["weights_sha256"],
            "model": str(run.folder(s) / "model"),
        },
        "head": lambda s: {
            "weights": str(run.folder(s) / s.summary["weights"]),
            "weights_sha256": s.summary["weights_sha256"],
        },
        "captions": lambda s: {"captions": s.summary["captions"]},
        "evaluate": lambda s: s.summary,
        "robustness": lambda s: {"robustness": s.summary["measured"], "curve": str(run.folder(s))},
        "report": lambda s: {"report": run.storage.location(f"{name}/report.html")},
        "register": lambda s: {"model_uri": s.summary["model_uri"]},
    }
    for stage, read in readers.items():
        if stage in by_name:
            result |= read(by_name[stage])
    if "report" in by_name:
        page = (run.folder(by_name["report"]) / "report.html").read_bytes()
        run.storage.write(f"{name}/report.html", page)
    run.storage.write(f"{name}/result.json", json.dumps(result, indent=2).encode())
    run.storage.write(f"{name}/config.yaml", redact(run.config.to_yaml()).encode())
    return result
