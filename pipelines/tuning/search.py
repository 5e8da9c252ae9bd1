"""`dpmpp tune`: search configurations, measured on identities held out of the training set.

Ray Tune runs the search. A trial is the pipeline's own stages with a changed configuration, so
what trials have in common is built once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import dpmpp_core
from dpmpp_core.config import Config, fingerprint, load_config
from dpmpp_core.config.space import as_overrides, load_space
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.occlusion_ratios import occlusion_ratios
from dpmpp_core.data.validation import hold_out
from dpmpp_core.errors import ConfigError, DataError
from dpmpp_core.redaction import redact
from dpmpp_core.retrieval.objectives import OBJECTIVES
from pipelines.runtime.resources import Plan
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.tracking import look_up
from pipelines.stages.robustness import has_clean_queries
from pipelines.stages.saliency import compute_person_masks
from pipelines.tuning.progress import SearchProgress
from pipelines.tuning.report import compute_importances, render_report
from pipelines.tuning.schedulers import REDUCTION_FACTOR
from pipelines.tuning.spaces import (
    RATES_KEY,
    SCHEDULERS,
    SEARCHERS,
    SearchSpec,
    TrialRecord,
    select_pareto_front,
)
from pipelines.tuning.stage_locks import start_stage_locks
from pipelines.tuning.trials import SearchContext, log_trial, run_search
from pipelines.workflows.options import Options
from pipelines.workflows.session import (
    load_run_config,
    open_session,
    open_tracking_run,
    prepare_data,
)
from pipelines.workflows.trial_pool import learn_prompts

log = logging.getLogger(__name__)

BEST_FILE = "best.yaml"
MIN_GRACE_EPOCHS = 2  # the first is the warm-up, after which trials cannot be compared
OBJECTIVES_VERSION = 2  # searches that measured other objectives are not continued


@dataclass(frozen=True, kw_only=True)
class TuningRequest:
    """The options of `dpmpp tune`.

    Attributes:
        space: name of a shipped space, or a YAML file.
        trials: how many in all, the first being the start configuration; with pbt the population.
        epochs: of the longest training, whose schedule is scaled to them; None = a third of
            the configuration's.
        grace_period: epochs before which ASHA stops no trial; None = a third of `epochs`, but no
            rung before MIN_GRACE_EPOCHS.
        brackets: of ASHA, each of which begins a rung later.
        perturbation_interval: epochs of a segment of pbt; `epochs` is rounded to a multiple of it;
            None = a third.
        objectives: what to maximise, of OBJECTIVES; two give a Pareto front.
        share: of the training identities, held out to measure on.
        max_concurrent: trials at a time; None = what the machine or cluster has resources for.
    """

    space: str = "default"
    trials: int = 12
    epochs: int | None = None
    searcher: str = "tpe"
    scheduler: str = "asha"
    grace_period: int | None = None
    brackets: int = 1
    perturbation_interval: int | None = None
    objectives: tuple[str, ...] = ("occluded",)
    share: float = 0.25
    seed: int = 0
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("searcher", SEARCHERS), ("scheduler", SCHEDULERS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"--{name} {value}: one of {', '.join(known)}")
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or not self.objectives or len({*self.objectives}) < len(self.objectives):
            named = ",".join(self.objectives) or "nothing"
            raise ConfigError(f"--objectives {named}: one or two of {', '.join(OBJECTIVES)}")
        if not 0 < self.share < 1:
            raise ConfigError(f"--share {self.share}: a share of the identities, between 0 and 1")
        numbers = ("trials", "epochs", "grace_period", "brackets", "perturbation_interval")
        for name in (*numbers, "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{_format_option(name)} {value}: 1 or more")
        if self.scheduler == "pbt" and self.trials < 2:
            raise ConfigError(f"--trials {self.trials}: a population (pbt) has 2 or more members")
        owners = {"grace_period": "asha", "brackets": "asha", "perturbation_interval": "pbt"}
        for name, owner in owners.items():
            if self.scheduler != owner and getattr(self, name) not in (None, 1):
                raise ConfigError(
                    f"{_format_option(name)} is an option of --scheduler {owner}: leave it out "
                    f"with {self.scheduler}"
                )


def search(options: Options, request: TuningRequest) -> dict[str, Any]:
    """Try configurations until there are `request.trials`; return what `--json` prints.

    The same search started again continues where it was, with more trials if more are requested.

    Raises:
        UserError: configuration, space, weights or data; too few resources for so many trials
            at a time.
    """
    base = load_run_config(options)
    space = load_space(request.space)
    space.check(options.config, options.overrides)
    rungs = compute_rungs(base.metric.epochs, request)
    population = request.scheduler == "pbt"
    if population and (RATES_KEY in space or len(base.metric.rates) > 1):
        raise ConfigError(
            f"{RATES_KEY}: `--scheduler pbt` searches it; leave it out of space and recipe"
        )
    values = base.model_dump(mode="json")
    spec = SearchSpec(
        space=space,
        start={key: look_up(values, key) for key in [*space, *([RATES_KEY] if population else [])]},
        objectives=request.objectives, rungs=tuple(rungs), searcher=request.searcher,
        scheduler=request.scheduler, brackets=request.brackets, seed=request.seed,
    )  # fmt: skip
    with open_session(options, [base]) as (run, source, side_by_side):
        grows = base.cluster.autoscaled and options.address is not None
        plan = _limit_trials(side_by_side, request.max_concurrent, grows)
        prepared = prepare_data(run, source)
        validation = hold_out_identities(run, prepared, request)
        name = f"tune-{base.name}-{_fingerprint_search(base, validation, request, spec)}"
        open_tracking_run(run, prepared, name, options.config)
        hiding = compute_person_masks(run, validation)
        learn_prompts(run, validation, hiding)  # here, where its progress is shown
        locks = start_stage_locks()
        context = SearchContext(base, validation, hiding, run.storage.uri, plan, spec, locks)
        log.info("Ray: %s", plan)
        progress = SearchProgress(spec, request.trials)
        records = run_search(run, context, name, request.trials, progress)
        return _publish_results(run, context, records, name, options, request)


def compute_rungs(epochs: int, request: TuningRequest) -> list[int]:
    """Return the epochs after which a trial is measured, ascending: rungs, or segments of pbt.

    Args:
        epochs: of the configuration.
        request: its scheduler and epochs.

    Raises:
        ConfigError: more are requested than that.
    """
    most = max(1, round(epochs / REDUCTION_FACTOR)) if request.epochs is None else request.epochs
    if most > epochs:
        raise ConfigError(f"--epochs {most}: at most metric.epochs, which is {epochs}")
    third = round(most / REDUCTION_FACTOR)
    if request.scheduler == "fifo":
        return [most]
    if request.scheduler == "pbt":
        interval = request.perturbation_interval or max(1, third)
        segments = max(2, round(most / interval))
        if interval * segments > epochs:
            raise ConfigError(
                f"--perturbation-interval {interval}: {segments} segments of so many epochs are "
                f"more than metric.epochs, which is {epochs}"
            )
        return [interval * number for number in range(1, segments + 1)]
    grace = request.grace_period or (third if third >= MIN_GRACE_EPOCHS else most)
    if grace > most:
        raise ConfigError(f"--grace-period {grace}: at most the epochs of a trial, {most}")
    rungs = []
    while grace < most:
        rungs.append(grace)
        grace *= REDUCTION_FACTOR
    if request.brackets > len(rungs) + 1:
        raise ConfigError(
            f"--brackets {request.brackets}: at most {len(rungs) + 1}, as each begins a rung later"
        )
    return [*rungs, most]


def _fingerprint_search(
    base: Config, validation: Stage, request: TuningRequest, spec: SearchSpec
) -> str:
    values = base.model_dump(mode="json", exclude={"name", "cluster", "tracking"})
    settings = [
        request.searcher,
        request.scheduler,
        request.brackets,
        request.objectives,
        request.seed,
    ]
    settings += [spec.rungs, OBJECTIVES_VERSION, dpmpp_core.__version__]
    if request.scheduler == "pbt":
        settings.append(request.trials)
    data = validation.summary["dataset_id"]
    return fingerprint(values, data, settings, spec.space.to_json())[:12]


def _limit_trials(most: Plan, requested: int | None, grows: bool) -> Plan:
    if requested is None or requested <= most.trials or grows:
        return most if requested is None else replace(most, trials=requested)
    raise ConfigError(
        f"--max-concurrent {requested}: there are resources for {most}; {requested} would need "
        f"{requested} x {most.train_workers} x {most.train_cpus} CPUs to train on: lower it, or "
        "cluster.train_workers"
    )


def hold_out_identities(run: Run, prepared: Stage, request: TuningRequest) -> Stage:
    """Build the manifest to search on, which holds no test image."""
    identity = {"prepare": prepared.key, "share": request.share, "seed": request.seed}

    def build(folder: Path) -> dict[str, Any]:
        whole = Manifest.load(run.folder(prepared))
        hidden = occlusion_ratios(whole.root, whole.images["path"].to_pylist())
        manifest = hold_out(whole, request.share, request.seed, hidden)
        manifest.save(folder)
        return {
            "dataset_id": manifest.dataset_id,
            "root": manifest.root,
            "layout": manifest.layout,
            "counts": manifest.counts(),
            "warnings": [],
        }

    stage = run.build_stage("validation", identity, build)
    if not has_clean_queries(stage):
        raise DataError(
            f"{stage.summary['root']}: no held-out query is clean, so none can be occluded by a "
            "known share: hold out more (--share)"
        )
    return stage


def _publish_results(
    run: Run,
    context: SearchContext,
    records: Sequence[TrialRecord],
    name: str,
    options: Options,
    request: TuningRequest,
) -> dict[str, Any]:
    """Put table, pictures and the best configurations into the storage and into MLflow."""
    for record in records:
        log_trial(run, name, record)  # those that a killed driver did not
    spec, summary = context.spec, context.validation.summary
    front = select_pareto_front(spec, records)
    files = render_report(spec, records, _build_command(options, request), summary["counts"])
    for record in front:
        file = BEST_FILE if record is front[0] else f"pareto-{record.number}.yaml"
        changes = [*options.overrides, *as_overrides(record.changes)]
        config = load_config(options.config, [*changes, f"name={context.base.name}-tuned"])
        files[file] = redact(config.to_yaml()).encode()
    run.publish(name, files)
    if front:
        run.tracking.log_final_metrics(
            {f"best_{key}": value for key, value in front[0].last.items()}
        )
    return {
        "search": name,
        "data": options.data,
        "run_id": run.tracking.run_id,
        "tracking_uri": redact(run.tracking.uri),
        "dataset_id": summary["dataset_id"],
        "counts": summary["counts"],
        "objectives": list(spec.objectives),
        "trials": [asdict(record) for record in records],
        "front": [record.number for record in front],
        "start": records[0].last,
        "best": front[0].last if front else None,
        "best_changes": front[0].changes if front else None,
        "importance": compute_importances(spec, records),
        "failed": {} if front else {f"trial {r.number}": r.reason for r in records},
        "folder": run.storage.location(name),
        "config": run.storage.location(f"{name}/{BEST_FILE}") if front else None,
    }


def _build_command(options: Options, request: TuningRequest) -> str:
    """Return the command that runs the same search again."""
    words = ["dpmpp tune", *options.overrides, f"--config {options.config}"]
    words += [] if options.data is None else [f"--data {Path(options.data).name}"]
    for one in fields(TuningRequest):
        value = getattr(request, one.name)
        if value != one.default and one.name != "max_concurrent":
            text = ",".join(value) if isinstance(value, tuple) else value
            words.append(f"{_format_option(one.name)} {text}")
    return " ".join(words)


def _format_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
