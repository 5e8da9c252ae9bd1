"""Start a run of a pipeline: its options, their checks, the session on Ray and MLflow."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpmpp_core.config import Config, ModelConfig, fingerprint, load_config
from dpmpp_core.config.schedule import find_long_warmups
from dpmpp_core.data.donors import list_backgrounds
from dpmpp_core.data.files import resolve_path
from dpmpp_core.errors import ArgumentError, ConfigError
from dpmpp_core.models.clip import check_weights, find_tokenizer, grid_size
from dpmpp_core.models.saved import read_card
from dpmpp_core.models.sources import GRAPH_SUFFIX, NAME
from dpmpp_core.models.weights import has_text
from pipelines.inference.onnx_model import OnnxModel
from pipelines.runtime.nodes import check_nodes
from pipelines.runtime.resources import Plan, connect
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking, resolve_tracking
from pipelines.stages.prepare import Source, demo_data, find_data, prepare
from pipelines.training.masks import PATCH
from pipelines.workflows.options import Options

log = logging.getLogger(__name__)


@contextmanager
def open_session(
    options: Options, configs: Sequence[Config], loads_encoder: bool = True
) -> Iterator[tuple[Run, Source | None, Plan]]:
    """Check everything that a user can get wrong, then connect; MLflow's run ends with the block.

    Args:
        options: those of the run.
        configs: all that will run, see `load_run_config`; the first one is the run's own.
        loads_encoder: whether a stage loads the weights that training starts from.

    Yields:
        the run, the data unless it is the demo set, and the plan of pipelines side by side.

    Raises:
        UserError: configuration, weights or data.
    """
    for config in configs:
        _check(config, options, loads_encoder)
    config = configs[0]
    stages = ("prompts", "metric") if has_text(config.model) else ("metric",)
    for sentence in find_long_warmups(config, stages):
        log.warning("configuration: %s", sentence)
    source = find_data(config.data, options.data) if options.data else None
    storage = Storage(options.storage)
    storage.ensure_writable()
    tracking = Tracking(*resolve_tracking(options.tracking_uri, storage))
    tracking.check(config.tracking.experiment)
    plan, side_by_side = connect(options.address, config.cluster)
    if options.address is not None:
        pools = config.cluster.data_nodes, config.cluster.train_nodes
        if source is None:
            check_nodes(None, storage.uri, pools)
        else:
            check_nodes(source.root, storage.uri, pools, source.files["path"][0].as_py())
    run = Run(config, storage, tracking, plan, options.fresh, lock=storage.hold)
    try:
        yield run, source, side_by_side
        tracking.end("FINISHED")
    except KeyboardInterrupt:
        tracking.end("KILLED")
        raise
    except BaseException:
        tracking.end("FAILED")
        raise


def prepare_data(run: Run, source: Source | None) -> Stage:
    """Return the manifest of the data, or of the demo set, which is generated if it is missing."""
    return prepare(run, source or find_data(run.config.data, find_demo_root(run)))


def find_demo_root(run: Run) -> str:
    """Return where the run's demo set is, which is generated if it is missing."""
    return run.storage.location(demo_data(run).key) + "/data"


def open_tracking_run(run: Run, prepared: Stage, name: str, recipe: str) -> None:
    """Log the warnings of the data, and open the MLflow run of that name and recipe."""
    summary = prepared.summary
    for warning in summary["warnings"]:
        log.warning("data: %s", warning)
    data = {"id": summary["dataset_id"], "root": summary["root"], "counts": summary["counts"]}
    if any(stage.name == "demo-data" for stage in run.stages):
        data["name"] = "demo"
    run.tracking.begin(run.config, name, data, run.fresh, recipe)


def compute_run_name(prepared: Stage, *configs: Config) -> str:
    """Return `NAME-HASH`, the hash of the configurations and the data."""
    values = [c.model_dump(mode="json", exclude={"name", "cluster", "tracking"}) for c in configs]
    digest = fingerprint(*values, prepared.summary["dataset_id"])
    return f"{configs[0].name}-{digest[:12]}"


def load_run_config(options: Options, overrides: Sequence[str] | None = None) -> Config:
    """Read the configuration of a run, named after its data, with `resolve_backgrounds`.

    Args:
        options: those of the run.
        overrides: in place of those of the options.

    Raises:
        ConfigError: a wrong key or value.
        ArgumentError: a recipe of published data without `--data`.
    """
    config = load_config(options.config, options.overrides if overrides is None else overrides)
    if options.data is None:
        if config.data.layout != "auto":
            raise ArgumentError(
                f"--data is needed: the configuration {options.config} is for a data set in the "
                f"layout {config.data.layout}; `dpmpp demo` needs none"
            )
        log.info("no --data: people are drawn, as in `dpmpp demo`")
    elif config.name == "demo":
        config = _name_after(config, Path(options.data).name)
    return resolve_backgrounds(config)


def _name_after(config: Config, folder: str) -> Config:
    """Return the demo's configuration with the names of other data, for its run and its model."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder).strip("-._") or "data"
    tracking = config.tracking
    if tracking.model_name == "dpmpp-demo":
        tracking = tracking.model_copy(update={"model_name": f"dpmpp-{name}"})
    return config.model_copy(update={"name": name, "tracking": tracking})


def resolve_backgrounds(config: Config) -> Config:
    """Return the configuration with an absolute path of backgrounds, which are there."""
    root = config.occlusion.backgrounds
    if not root:
        return config
    list_backgrounds(resolve_path(root))
    occlusion = config.occlusion.model_copy(update={"backgrounds": resolve_path(root)})
    return config.model_copy(update={"occlusion": occlusion})


def _check(config: Config, options: Options, loads_encoder: bool) -> None:
    """Refuse what would fail later."""
    if options.model is None:
        if loads_encoder:
            _check_encoder(config.model)
    elif options.model.endswith(GRAPH_SUFFIX):
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


def _check_encoder(config: ModelConfig) -> None:
    if has_text(config):
        find_tokenizer(config.backbone)
    check_weights(config)


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
