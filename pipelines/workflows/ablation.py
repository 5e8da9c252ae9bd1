"""What each part of the method is worth: a grid of variants x seeds, ending in one table."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpmpp_core.config import Config
from dpmpp_core.config.grid import Grid, load_grid
from dpmpp_core.data.synthesis import BANDS, PARTS
from dpmpp_core.redaction import redact
from dpmpp_core.retrieval import rank_by_mode
from pipelines.inference.embeddings_file import load_embeddings
from pipelines.inference.workers import ModelLocation
from pipelines.reporting.ablation_table import (
    TABLE,
    Ablation,
    Measured,
    collect_by_variant,
    render_ablation,
)
from pipelines.reporting.mlflow_record import headline_metrics
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.stages.robustness import has_clean_queries, measure_robustness
from pipelines.stages.saliency import compute_person_masks
from pipelines.workflows.options import Options
from pipelines.workflows.session import (
    compute_run_name,
    load_run_config,
    open_session,
    open_tracking_run,
    prepare_data,
)
from pipelines.workflows.trial_pool import Trial, learn_prompts, run_trials

QUERY_SETS = ("occluded", "holistic")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AblationRequest:
    """What to compare.

    Attributes:
        grid: name of a shipped grid, or a YAML file.
        seeds: of the training, for `plain` and `full`.
        few_seeds: for all others; a part of `seeds`, or the same.
        variants: names; none = all of the grid. `plain` and `full` always take part.
    """

    grid: str = "method"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    few_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    variants: tuple[str, ...] = ()


def ablate(options: Options, request: AblationRequest) -> dict[str, Any]:
    """Train and measure every variant with every seed; return what `--json` prints.

    Finished trials are reused. What several trials start from - manifest, person masks, features,
    prompts - is built once, by this process. A trial that fails is left out of the table and named.

    Raises:
        UserError: grid, configuration, weights or data.
    """
    grid = load_grid(request.grid)
    grid.check(request.variants)
    cases = _load_configs(grid, options, request)
    full = cases[grid.full, request.seeds[0]]
    with open_session(options, [full, *cases.values()]) as (run, source, side_by_side):
        prepared = prepare_data(run, source)
        name = f"ablation-{compute_run_name(prepared, *cases.values())}"
        open_tracking_run(run, prepared, name, options.config)
        trials = {case: _build_trial(run, prepared, case, config) for case, config in cases.items()}
        log.info("Ray: %s", side_by_side)
        failed = run_trials(list(trials.values()), run.storage, side_by_side)
        done = {case: trial for case, trial in trials.items() if trial.name not in failed}
        measured = [_measure(run, *case, trial) for case, trial in done.items()]
        for one in measured:
            changes = {"variant": one.variant, "seed": str(one.seed)}
            run.tracking.log_trial(name, f"{one.variant} {one.seed}", changes, one.figures)
        drawn = [(v, request.seeds[0]) for v in grid.curves if (v, request.seeds[0]) in done]
        drawn = drawn if has_clean_queries(prepared) else []
        curves = {v: _measure_curve(run, done[v, seed], options) for v, seed in drawn}
        command, counts = _build_command(options, request), prepared.summary["counts"]
        ablation = Ablation(command, grid, measured, curves, failed, counts)
        run.publish(name, render_ablation(ablation) if measured else {})
        return _collect_result(run, prepared, name, ablation) | {"seeds": list(request.seeds)}


def _load_configs(
    grid: Grid, options: Options, request: AblationRequest
) -> dict[tuple[str, int], Config]:
    """Map (variant, seed) to its validated configuration, in the grid's order."""
    chosen = {*request.variants, grid.plain, grid.full} if request.variants else {*grid.variants}
    cases = {}
    for name in (name for name in grid.variants if name in chosen):
        seeds = request.seeds if name in (grid.plain, grid.full) else request.few_seeds
        for seed in seeds:
            changes = [*grid.overrides(name), *options.overrides, f"seed={seed}"]
            cases[name, seed] = load_run_config(options, changes)
    return cases


def _build_trial(run: Run, prepared: Stage, case: tuple[str, int], config: Config) -> Trial:
    """Return the case with the stages that it shares with others, which are built here."""
    shared = replace(run, config=config)  # the same list of stages, MLflow run and storage
    masks = compute_person_masks(shared, prepared)
    prompts = learn_prompts(shared, prepared, masks)
    return Trial(f"{case[0]} {case[1]}", config, prepared, masks, prompts)


def _measure(run: Run, variant: str, seed: int, trial: Trial) -> Measured:
    """Rank a finished trial again from its embeddings: the table needs each query."""
    metric, evaluated = trial.stages(run.storage, run.plan)
    folder = run.folder(evaluated)
    gallery = load_embeddings(folder / "gallery.safetensors")
    ranked, pids = {}, {}
    for name in QUERY_SETS:
        if (folder / f"{name}.safetensors").exists():
            query = load_embeddings(folder / f"{name}.safetensors")
            ranked[name], pids[name] = rank_by_mode(query, gallery, seed), query.pids
    seconds = metric.seconds + evaluated.seconds
    figures = {**headline_metrics(evaluated.summary["metrics"]), "seconds": seconds}
    digest, warnings = metric.summary["weights_sha256"], metric.summary["warnings"]
    return Measured(variant, seed, ranked, pids, figures, seconds, digest, warnings)


def _measure_curve(run: Run, trial: Trial, options: Options) -> dict[str, Any]:
    """Measure the trial's model while more and more of the person is occluded, by part."""
    metric, evaluated = trial.stages(run.storage, run.plan)
    curve = measure_robustness(
        replace(run, config=trial.config), trial.prepared, trial.masks, evaluated,
        ModelLocation(run.storage.uri, metric.key), options.bands or BANDS, options.parts or PARTS,
    )  # fmt: skip
    return curve.summary["measured"]


def _collect_result(run: Run, prepared: Stage, name: str, ablation: Ablation) -> dict[str, Any]:
    measured = ablation.measured
    return {
        "ablation": name,
        "run_id": run.tracking.run_id,
        "tracking_uri": redact(run.tracking.uri),
        "dataset_id": prepared.summary["dataset_id"],
        "counts": ablation.counts,
        "variants": collect_by_variant(ablation),
        "weights_sha256": {f"{m.variant} {m.seed}": m.weights_sha256 for m in measured},
        "warnings": [f"{m.variant} {m.seed}: {w}" for m in measured for w in m.warnings],
        "failed": ablation.failed,
        "folder": run.storage.location(name),
        "table": run.storage.location(f"{name}/{TABLE}"),
    }


def _build_command(options: Options, request: AblationRequest) -> str:
    """Return the command that builds the same table again."""
    words = ["dpmpp ablate", *options.overrides, f"--config {options.config}"]
    words += [] if request.grid == "method" else [f"--grid {request.grid}"]
    words += [] if options.data is None else [f"--data {Path(options.data).name}"]
    words += [f"--seeds {','.join(map(str, request.seeds))}"]
    if request.few_seeds != request.seeds:
        words += [f"--few-seeds {','.join(map(str, request.few_seeds))}"]
    words += [f"--variants {','.join(request.variants)}"] if request.variants else []
    words += [] if not options.bands else [f"--bands {','.join(map(str, options.bands))}"]
    words += [] if not options.parts else [f"--parts {','.join(options.parts)}"]
    return " ".join(words)
