"""The whole pipeline, a list of stages: read this file first."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dpmpp_core.config import Config, ModelConfig, fingerprint, load_config
from dpmpp_core.data.donors import list_backgrounds
from dpmpp_core.data.files import resolve_path
from dpmpp_core.data.synthesis import BANDS, PARTS, Band, Part
from dpmpp_core.errors import ConfigError, DataError
from dpmpp_core.models.clip import check_weights, find_tokenizer, grid_size, has_text
from dpmpp_core.models.reid import NAME
from dpmpp_core.models.saved import read_card
from dpmpp_core.redaction import redact
from pipelines.inference.embed import features
from pipelines.inference.onnx_model import SUFFIX, OnnxModel
from pipelines.registry.register import register
from pipelines.runtime.resources import Plan, connect
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking, resolve_tracking
from pipelines.stages.evaluate import evaluate_model
from pipelines.stages.prepare import Source, demo_data, find_data, prepare
from pipelines.stages.pretrain import captions, pretrain
from pipelines.stages.report import build_report
from pipelines.stages.robustness import has_clean_queries, robustness
from pipelines.stages.saliency import saliency
from pipelines.stages.synthesis import SynthesisRequest, synthesize
from pipelines.stages.train import train_metric, train_prompts
from pipelines.training.masks import PATCH

log = logging.getLogger(__name__)

STAGES = (
    "prepare", "saliency", "features", "prompts", "metric", "evaluate", "robustness", "report",
    "register",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What a user asks for; see `dpmpp run --help`."""

    data: str | None = None
    config: str = "demo"
    overrides: list[str] = field(default_factory=list)
    storage: str = "runs"
    tracking_uri: str | None = None
    address: str | None = None
    fresh: bool = False
    model: str | None = None
    bands: tuple[Band, ...] = BANDS
    parts: tuple[Part, ...] = PARTS


def run_pipeline(
    options: Options, until: str = "register", order: SynthesisRequest | None = None
) -> dict[str, Any]:
    """Run the stages up to `until`, reusing what is done; the result that `--json` prints.

    With an `order`, an occluded data set is written after the person masks, and nothing else done.

    Everything a user can get wrong is looked at before anything starts or is written.

    Raises:
        UserError: configuration, weights or data.
    """
    config = with_backgrounds(load_config(options.config, options.overrides))
    with open_session(options, [config], until) as (run, source, _):
        made = _stages(run, source, until, options, order)
        return _result(run) | made


@contextmanager
def open_session(
    options: Options, configs: Sequence[Config], until: str
) -> Iterator[tuple[Run, Source | None, Plan]]:
    """Look at all that a user can get wrong, then connect; MLflow's run ends as the block does.

    Args:
        configs: what is going to be run, each `with_backgrounds`. The first one is the run's own;
            all are of one data set.

    Yields:
        the run, the data unless it is the demo set, and the plan of pipelines side by side.

    Raises:
        UserError: configuration, weights or data.
    """
    for config in configs:
        _check(config, options, until)
    config = configs[0]
    source = find_data(config.data, options.data) if options.data else None
    storage = Storage(options.storage)
    tracking = Tracking(*resolve_tracking(options.tracking_uri, storage))
    plan, side_by_side = connect(options.address, config.cluster)
    run = Run(config, storage, tracking, plan, options.fresh)
    try:
        yield run, source, side_by_side
        tracking.end("FINISHED")
    except KeyboardInterrupt:
        tracking.end("KILLED")
        raise
    except BaseException:
        tracking.end("FAILED")
        raise


def prepared_data(run: Run, source: Source | None) -> Stage:
    """The manifest of the data, or of the demo set, which is drawn where it is not there."""
    return prepare(run, source or find_data(run.config.data, _demo_root(run)))


def _stages(
    run: Run, source: Source | None, until: str, options: Options, order: SynthesisRequest | None
) -> dict[str, Any]:
    """The pipeline. Each stage takes the ones before it that it reads.

    Returns what is no stage's: the occluded data set that was ordered.
    """
    prepared = prepared_data(run, source)
    begin(run, prepared, identity(prepared, run.config))
    if until == "prepare":
        return {}
    if order is not None:
        return {"synthesis": synthesize(run, prepared, saliency(run, prepared), order)}
    if options.model is not None:
        folder = str(Path(options.model).absolute())
        evaluated = evaluate_model(run, prepared, folder, "")
        if until == "robustness":
            masks = saliency(run, prepared)
            hides = options.bands, options.parts
            robustness(run, prepared, masks, evaluated, folder, "", *hides)
        return {}
    if prepared.summary["counts"].get("train", {}).get("images", 0) == 0:
        raise DataError(
            f"{prepared.summary['root']} ({prepared.summary['layout']}) has no training images: "
            "measure an existing model on it with `dpmpp evaluate --model FOLDER`"
        )
    masks = saliency(run, prepared)
    if until == "pretrain":
        pretrained = pretrain(run, prepared, masks)
        evaluated = evaluate_model(run, prepared, run.storage.uri, pretrained.key)
        captions(run, prepared, pretrained, evaluated)
    elif until != "saliency":
        _train_and_measure(run, prepared, masks, until, options)
    return {}


def _train_and_measure(
    run: Run, prepared: Stage, masks: Stage, until: str, options: Options
) -> None:
    prompts = learn_prompts(run, prepared, masks)
    if until == "prompts":
        return
    if until == "metric":
        train_metric(run, prepared, masks, prompts)
        return
    metric, evaluated = train_and_evaluate(run, prepared, masks, prompts)
    run.tracking.metrics(evaluated.summary["metrics"])
    if until == "evaluate":
        return
    curve = None
    if until == "robustness" or (run.config.evaluation.robustness and has_clean_queries(prepared)):
        model = run.storage.uri, metric.key
        hides = options.bands, options.parts
        curve = robustness(run, prepared, masks, evaluated, *model, *hides)
    if until == "robustness":
        return
    build_report(run, prepared, masks, metric, evaluated, curve)
    if until == "report":
        return
    register(run, prepared, metric, evaluated)


def learn_prompts(run: Run, prepared: Stage, masks: Stage) -> Stage | None:
    """Stage 1, for a backbone that has text."""
    if not has_text(run.config.model):
        return None
    return train_prompts(run, prepared, masks, features(run, prepared))


def train_and_evaluate(
    run: Run, prepared: Stage, masks: Stage, prompts: Stage | None, until: int | None = None
) -> tuple[Stage, Stage]:
    """Stage 2, or its first epochs, and the evaluation of its model."""
    metric = train_metric(run, prepared, masks, prompts, until)
    return metric, evaluate_model(run, prepared, run.storage.uri, metric.key)


def _demo_root(run: Run) -> str:
    return run.storage.location(demo_data(run).key) + "/data"


def with_backgrounds(config: Config) -> Config:
    """The configuration with backgrounds that are there and that workers elsewhere find."""
    root = config.occlusion.backgrounds
    if not root:
        return config
    list_backgrounds(resolve_path(root))
    occlusion = config.occlusion.model_copy(update={"backgrounds": resolve_path(root)})
    return config.model_copy(update={"occlusion": occlusion})


def _check(config: Config, options: Options, until: str) -> None:
    """Refuse what would fail later."""
    if options.model is None:
        looks = config.saliency.provider in ("sps", "attention")  # with the starting encoder
        needing = "saliency" if looks else "features"
        if until == "pretrain" or STAGES.index(until) >= STAGES.index(needing):
            _check_model(config.model, until)
    elif options.model.endswith(SUFFIX):
        OnnxModel(options.model)
    else:
        read_card(Path(options.model), NAME)
    grid_size(config.model, config.data.height, config.data.width)
    if config.data.height % PATCH or config.data.width % PATCH:
        raise ConfigError(
            f"data.height and data.width: whole multiples of {PATCH} pixels are needed"
        )
    for workers in config.cluster.worker_counts:
        _check_shares(config, workers)


def _check_shares(config: Config, workers: int) -> None:
    """Refuse batches that so many train workers cannot share."""
    parts = config.metric.accumulate
    shared = {"metric.identities": config.metric.identities}
    if config.saliency.provider == "sps":
        shared["saliency.identities"] = config.saliency.identities
    for key, identities in shared.items():
        if identities % workers:
            raise ConfigError(
                f"{key} {identities} cannot be shared by {workers} train workers "
                "(cluster.train_workers, cluster.min_train_workers): make it a multiple"
            )
    if config.metric.identities % (workers * parts):
        raise ConfigError(
            f"metric.identities {config.metric.identities} cannot be taken in metric.accumulate "
            f"{parts} parts by each of {workers} train workers (cluster.train_workers, "
            f"cluster.min_train_workers): make it a multiple of {workers * parts}"
        )


def _check_model(config: ModelConfig, until: str) -> None:
    if has_text(config):
        find_tokenizer(config.backbone)
    elif until in ("features", "prompts"):
        raise ConfigError(
            f"model.backbone {config.backbone} has no text tower, so there are no prompts to "
            "learn: go on with `dpmpp train`, or take an open_clip backbone"
        )
    check_weights(config)


def begin(run: Run, prepared: Stage, name: str) -> None:
    """Say what is odd about the data, and open the MLflow run of that name."""
    summary = prepared.summary
    for warning in summary["warnings"]:
        log.warning("data: %s", warning)
    data = {"id": summary["dataset_id"], "root": summary["root"], "counts": summary["counts"]}
    run.tracking.begin(run.config, name, data, run.fresh)


def identity(prepared: Stage, *configs: Config) -> str:
    """`NAME-HASH`, the hash of the configurations and the data."""
    values = [c.model_dump(mode="json", exclude={"name", "cluster", "tracking"}) for c in configs]
    digest = fingerprint(*values, prepared.summary["dataset_id"])
    return f"{configs[0].name}-{digest[:12]}"


def _result(run: Run) -> dict[str, Any]:
    """One machine-readable object; absent stages leave their keys out."""
    by_name = {stage.name: stage for stage in run.stages}
    prepared = by_name["prepare"]
    quarantine = pq.read_table(run.folder(prepared) / "quarantine.parquet").to_pylist()
    name = identity(prepared, run.config)
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
