"""The trials of a search, on Ray Tune.

Each trial has a Ray Train run inside. Its state is that of its stages, and a JSON file of what it
has measured, its Tune checkpoint.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray.data
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dpmpp_core.config import Config
from dpmpp_core.config.schedule import shorten_schedule, split_into_segments
from dpmpp_core.config.space import apply_changes
from dpmpp_core.data.synthesis import PARTS, Band
from dpmpp_core.retrieval.objectives import OBJECTIVES, compute_objectives
from pipelines.inference.workers import ModelLocation
from pipelines.runtime.resources import Plan, set_up_data
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from pipelines.runtime.tuner import build_tuner, failure_reason, run_tuner
from pipelines.stages.robustness import measure_robustness
from pipelines.stages.saliency import compute_person_masks
from pipelines.tuning.measured import (
    EPOCHS_KEY,
    FACTOR_KEY,
    FIRST_RUNG_KEY,
    MEMBER_KEY,
    NUMBER_KEY,
    RUNGS_KEY,
    load_measured,
    report_measured,
)
from pipelines.tuning.progress import SearchProgress
from pipelines.tuning.schedulers import Asha, Population
from pipelines.tuning.spaces import (
    RATES_KEY,
    SearchSpec,
    State,
    TrialRecord,
    build_searcher,
)
from pipelines.tuning.stage_locks import hold_lock
from pipelines.workflows.session import resolve_backgrounds
from pipelines.workflows.trial_pool import learn_prompts, train_and_evaluate

log = logging.getLogger(__name__)

OCCLUSION_BANDS = Band(20, 40), Band(40, 60)  # percent of the person, in validation queries


@dataclass(frozen=True)
class SearchContext:
    """What all trials of a search share; it is sent to the processes that run them.

    Attributes:
        base: the configuration that the search starts from.
        validation: the manifest with held-out identities as its test set.
        occluder_masks: person masks for the occlusion of validation queries, in all trials.
        locks: the actor that `hold_lock` takes.
    """

    base: Config
    validation: Stage
    occluder_masks: Stage
    storage: str
    plan: Plan
    spec: SearchSpec
    locks: Any

    def measure(self, config: Config, holder: str, until: int | None = None) -> dict[str, float]:
        """Train, and return the objectives in [0, 1]; only the driver logs to MLflow.

        Args:
            config: of the trial.
            holder: the trial's id.
            until: train the first segments of `metric.rates`, up to this epoch.
        """
        lock = partial(hold_lock, self.locks, holder)
        storage = Storage(self.storage)
        with lock("training", self.plan.trials):
            run = Run(config, storage, Tracking(""), self.plan, lock=lock)
            masks = compute_person_masks(run, self.validation)
            prompts = learn_prompts(run, self.validation, masks)
            metric, evaluated = train_and_evaluate(run, self.validation, masks, prompts, until)
            base = replace(run, config=self.base)  # the same occlusions for every trial
            model = ModelLocation(storage.uri, metric.key)
            hidden = measure_robustness(
                base, self.validation, self.occluder_masks, evaluated, model, OCCLUSION_BANDS, PARTS
            )
        return compute_objectives(evaluated.summary["metrics"], hidden.summary["measured"])


def run_search(
    run: Run, context: SearchContext, name: str, total: int, progress: SearchProgress
) -> list[TrialRecord]:
    """Run trials until there are `total`; return all, in the order of their numbers.

    A search with more trials than a finished one continues it with a further Tuner, whose searcher
    has learnt from the earlier trials.

    Raises:
        KeyboardInterrupt: stopped before all were done.
    """
    records: list[TrialRecord] = []
    while len(records) < total:
        tuner = _build_search_tuner(run, context, f"{name}/tune-{len(records):04d}", total, records)
        latest: dict[str, TrialRecord] = {}

        def watch(trials: Sequence[Trial], before=tuple(records), latest=latest) -> None:
            ended = []
            for trial in trials:
                earlier = latest.get(trial.trial_id)
                if earlier is None or earlier.state == "running":
                    latest[trial.trial_id] = record_trial(trial, context.spec)
                    if earlier is not None and trial.is_finished():
                        ended.append(trial.trial_id)
            progress.update([*before, *latest.values()])
            for trial_id in ended:
                context.locks.release.remote(trial_id)  # its process may have died
                progress.end(latest[trial_id])
                log_trial(run, name, latest[trial_id])

        with progress:
            run_tuner(tuner, watch)
        if not latest or any(record.state == "running" for record in latest.values()):
            raise KeyboardInterrupt
        records += sorted(latest.values(), key=lambda record: record.number)
    return records


def _build_search_tuner(
    run: Run, context: SearchContext, key: str, total: int, records: Sequence[TrialRecord]
) -> tune.Tuner:
    spec, concurrent = context.spec, context.plan.trials
    searcher = build_searcher(spec, records)
    config = tune.TuneConfig(
        search_alg=searcher,
        scheduler=build_scheduler(spec, concurrent, records),
        num_samples=total - len(records),
        max_concurrent_trials=concurrent,
        reuse_actors=True,
    )
    population: dict[str, Any] = {}
    if spec.scheduler == "pbt":  # which takes no searcher: this one draws the first population
        drawn = [searcher.suggest(str(number)) for number in range(total)]
        members = tune.grid_search([{NUMBER_KEY: 0}, *drawn[1:]])
        population = {MEMBER_KEY: members, FACTOR_KEY: spec.start[RATES_KEY][0]}
        config = tune.TuneConfig(scheduler=config.scheduler, reuse_actors=True)
    trainable = tune.with_parameters(_run_trial, context=context)
    stop = {EPOCHS_KEY: spec.rungs[-1]}
    cluster = context.base.cluster
    return build_tuner(run.storage, key, trainable, cluster, config, population, stop)


def build_scheduler(
    spec: SearchSpec, max_concurrent: int, records: Sequence[TrialRecord] = ()
) -> TrialScheduler:
    """Return Tune's scheduler of a search that has these trials already."""
    # Tune draws a trial's bracket and a population's changes from the process's own generators.
    random.seed(spec.seed)
    np.random.seed(spec.seed)  # noqa: NPY002
    first, epochs = spec.objectives[0], spec.rungs[-1]
    if spec.scheduler == "asha":
        return Asha(first, epochs, spec.rungs[0], spec.brackets, records)
    if spec.scheduler == "pbt":
        return Population(first, spec.rungs[0], max_concurrent)
    return FIFOScheduler()


def record_trial(trial: Trial, spec: SearchSpec) -> TrialRecord:
    """Return the record of a trial of Tune."""
    config, result = trial.config, trial.last_result
    rungs = {
        int(epochs): {name: values[name] for name in OBJECTIVES}
        for epochs, values in result.get(RUNGS_KEY, {}).items()
    }
    changes = select_changes(config, spec)
    rates = result.get("rates", [])
    if any(rate != spec.start[RATES_KEY][0] for rate in rates):
        changes[RATES_KEY] = rates
    state: State = "running"
    if trial.status == Trial.ERROR:
        state = "failed"
    elif trial.status == Trial.TERMINATED:
        state = "done" if spec.rungs[-1] in rungs else "stopped"
    return TrialRecord(config[NUMBER_KEY], changes, state, rungs, failure_reason(trial))


def select_changes(config: Mapping[str, Any], spec: SearchSpec) -> dict[str, Any]:
    """Return the configuration keys that a trial changes; none for the start."""
    if config[NUMBER_KEY] == 0:
        return {}
    return {key: config[key] for key in spec.space if key in config}


def log_trial(run: Run, name: str, record: TrialRecord) -> None:
    """Log the trial as a nested run of MLflow; once, however often it is called."""
    changes = {key: str(value) for key, value in record.changes.items()}
    figures = {**record.last, "epochs": max(record.rungs, default=0)}
    params = {**changes, "state": record.state}
    run.tracking.log_trial(name, f"trial {record.number}", params, figures)


def _run_trial(config: dict[str, Any], context: SearchContext) -> None:
    """Run a trial, in its own process, with one report per rung."""
    set_up_data(ray.data.DataContext.get_current(), context.base.cluster.data_nodes)
    spec, holder = context.spec, tune.get_context().get_trial_id()
    measured = load_measured()
    changes = select_changes(config, spec)
    changed = resolve_backgrounds(apply_changes(context.base, changes))
    for epochs in spec.rungs[config.get(FIRST_RUNG_KEY, 0) :]:
        if str(epochs) in measured[RUNGS_KEY]:
            continue
        if spec.scheduler == "pbt":
            rates = [*measured["rates"], float(f"{config[FACTOR_KEY]:.4g}")]
            short = shorten_schedule(changed, spec.rungs[-1])
            segment = split_into_segments(short, rates, len(spec.rungs))
            values = context.measure(segment, holder, until=epochs)
            measured["rates"] = rates
        else:
            values = context.measure(shorten_schedule(changed, epochs), holder)
        measured[RUNGS_KEY][str(epochs)] = values
        report_measured(epochs, measured)
