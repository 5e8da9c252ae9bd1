"""What each part of the method is worth: a grid of variants x seeds, ending in one table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.config import Config, fingerprint, load_config
from dpmpp_core.config.grid import Grid, load_grid
from dpmpp_core.retrieval import Mode, RankingResult, rankings
from pipelines.ablation_table import write_ablation
from pipelines.cluster import Plan
from pipelines.evaluate import QUERY_SETS, load_embeddings
from pipelines.prepare import Source
from pipelines.robustness import has_clean_queries, robustness
from pipelines.run import Options, learn_prompts, opened, prepared_data
from pipelines.saliency import saliency
from pipelines.stage import Run, Stage
from pipelines.trials import Trial, run_trials

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """One variant with one seed.

    Attributes:
        ranked: query set -> mode -> what each query found.
        pids: query set -> int64 [Q].
        seconds: of its stages 2 and evaluation, when they were made.
    """

    variant: str
    seed: int
    ranked: dict[str, dict[Mode, RankingResult]]
    pids: dict[str, NDArray[np.int64]]
    seconds: float
    weights_sha256: str
    warnings: list[str]


@dataclass(frozen=True)
class Request:
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


def ablate(options: Options, request: Request) -> dict[str, Any]:
    """Train and measure every variant with every seed; the result that `--json` prints.

    Finished trials are reused. What several trials start from - manifest, person masks, features,
    prompts - is made once, by this process. A trial that fails is left out of the table and named.

    Raises:
        UserError: grid, configuration, weights or data.
    """
    grid = load_grid(request.grid)
    grid.check(request.variants)
    cases = _cases(grid, options, request)
    with opened(options, list(cases.values())) as (run, trial_plan, source):
        result = _ablate(run, trial_plan, source, grid, cases, options, request)
    return result


def _cases(grid: Grid, options: Options, request: Request) -> dict[tuple[str, int], Config]:
    """(variant, seed) -> configuration, in the grid's order; all are validated."""
    chosen = {*request.variants, grid.plain, grid.full} if request.variants else {*grid.variants}
    cases = {}
    for name in grid.variants:
        seeds = request.seeds if name in (grid.plain, grid.full) else request.few_seeds
        for seed in seeds if name in chosen else ():
            changes = [*grid.overrides(name), *options.overrides, f"seed={seed}"]
            cases[name, seed] = load_config(options.config, changes)
    return cases


def _ablate(
    run: Run,
    trial_plan: Plan,
    source: Source | None,
    grid: Grid,
    cases: dict[tuple[str, int], Config],
    options: Options,
    request: Request,
) -> dict[str, Any]:
    prepared = prepared_data(run, source)
    identity = fingerprint(
        *(c.model_dump(mode="json", exclude={"name", "cluster", "tracking"})
          for c in cases.values()),
        prepared.summary["dataset_id"],
    )  # fmt: skip
    name = f"ablation-{run.config.name}-{identity[:12]}"
    summary = prepared.summary
    data = {"id": summary["dataset_id"], "root": summary["root"], "counts": summary["counts"]}
    run.tracking.begin(run.config, name, data, run.fresh)

    trials = {case: _trial(run, prepared, case, config) for case, config in cases.items()}
    log.info("Ray: %s", trial_plan)
    failed = run_trials(list(trials.values()), run.storage, trial_plan)
    measured = [
        _measured(run, trial_plan, *case, trial)
        for case, trial in trials.items()
        if trial.name not in failed
    ]
    for one in measured:
        run.tracking.trial(f"{one.variant} {one.seed}", _changes(grid, one), _numbers(one))
    curves = _curves(run, grid, trials, failed, trial_plan, options, request.seeds[0])
    facts = {"command": _command(options, request), "data": data, "failed": failed}
    paths = write_ablation(run.storage, f"{name}", grid, measured, curves, facts)
    for path in paths.values():
        run.tracking.artifact(path, path.name)
    result = {"ablation": name, "run_id": run.tracking.run_id, "tracking_uri": run.tracking.uri}
    return result | {
        "dataset_id": summary["dataset_id"],
        "counts": summary["counts"],
        "seeds": list(request.seeds),
        "variants": variants_by_seed(grid, measured),
        "weights_sha256": {f"{m.variant} {m.seed}": m.weights_sha256 for m in measured},
        "failed": failed,
        **{kind: str(path) for kind, path in paths.items()},
    }
