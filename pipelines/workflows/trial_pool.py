"""Many configurations trained and measured at the same time: Ray Tune trials.

A trial is the last stages of a pipeline: what several have in common is built before. Its state is
that of its stages, so a comparison that was killed continues, and Tune's own state is deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray.data
from ray import tune

from dpmpp_core.config import Config
from dpmpp_core.models.weights import has_text
from pipelines.inference.embed import cache_features
from pipelines.inference.workers import ModelLocation
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.resources import Plan, set_up_data
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage, StageNotFoundError
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from pipelines.runtime.tuner import build_tuner, failure_reason, run_tuner
from pipelines.stages.evaluate import evaluate_model
from pipelines.stages.train import train_metric, train_prompts

log = logging.getLogger(__name__)

TUNE_FOLDER = "tune"


def learn_prompts(run: Run, prepared: Stage, masks: Stage) -> Stage | None:
    """Run stage 1 and the features that it needs; None for a backbone without text."""
    if not has_text(run.config.model):
        return None
    return train_prompts(run, prepared, masks, cache_features(run, prepared))


def train_and_evaluate(
    run: Run, prepared: Stage, masks: Stage, prompts: Stage | None, until: int | None = None
) -> tuple[Stage, Stage]:
    """Run stage 2, or its first `until` epochs, and the evaluation of its model."""
    metric = train_metric(run, prepared, masks, prompts, until)
    return metric, evaluate_model(run, prepared, ModelLocation(run.storage.uri, metric.key))


@dataclass(frozen=True)
class Trial:
    """One configuration, and the finished stages that it starts from."""

    name: str
    config: Config
    prepared: Stage
    masks: Stage
    prompts: Stage | None

    def stages(self, storage: Storage, plan: Plan, build: bool = False) -> tuple[Stage, Stage]:
        """Return the trial's model and its evaluation; nothing is logged, as only the driver does.

        Raises:
            StageNotFoundError: not finished, and `build` is off.
        """
        run = Run(self.config, storage, Tracking(""), plan, build=build)
        return train_and_evaluate(run, self.prepared, self.masks, self.prompts)

    def first_missing(self, storage: Storage, plan: Plan) -> str | None:
        """Return the key of the first stage that is not there; None for a finished trial."""
        try:
            self.stages(storage, plan)
        except StageNotFoundError as stage:
            return str(stage)
        return None


def run_trials(trials: Sequence[Trial], storage: Storage, plan: Plan) -> dict[str, str]:
    """Build what is not finished, `plan.trials` at a time; return name -> reason of failures.

    Seed by seed, so that a comparison cut short has all variants with the first seeds. Trials with
    the same stages are run once. One that fails does not stop the others.

    Raises:
        KeyboardInterrupt: stopped before all were done.
    """
    missing = {trial.name: trial.first_missing(storage, plan) for trial in trials}
    finished = sum(key is None for key in missing.values())
    log.info("trials: %d of %d are finished already", finished, len(trials))
    alike = {missing[trial.name]: trial for trial in trials if missing[trial.name] is not None}
    if not alike:
        return {}
    pending = sorted(alike.values(), key=lambda trial: trial.config.seed)
    storage.delete(TUNE_FOLDER)
    reasons: dict[str | None, str] = {}
    tuner = build_tuner(
        storage,
        TUNE_FOLDER,
        tune.with_parameters(_run_trial, trials=pending, storage=storage.uri, plan=plan),
        pending[0].config.cluster,
        tune.TuneConfig(max_concurrent_trials=plan.trials, reuse_actors=True),
        {"number": tune.grid_search(list(range(len(pending))))},
    )
    with progress_bar("trials", len(pending)) as shown:
        ended: set[int] = set()

        def watch(running: Sequence[Any]) -> None:
            for one in running:
                number = one.config["number"]
                if one.is_finished() and number not in ended:
                    ended.add(number)
                    name, reason = pending[number].name, failure_reason(one)
                    state, of = "failed" if reason else "done", f"{len(ended)} of {len(pending)}"
                    log.info("trial %s: %s (%s)", name, state, of)
                    shown.update(len(ended), name)
                    if reason:
                        reasons[missing[name]] = reason

        run_tuner(tuner, watch)
    failed = {name: reasons[key] for name, key in missing.items() if key in reasons}
    if any(t.name not in failed and t.first_missing(storage, plan) for t in pending):
        raise KeyboardInterrupt  # on Ctrl-C Tune returns what there is
    for name, reason in failed.items():
        log.warning("trials: %s failed: %s", name, reason)
    storage.delete(TUNE_FOLDER)
    return failed


def _run_trial(
    settings: dict[str, Any], trials: Sequence[Trial], storage: str, plan: Plan
) -> dict[str, Any]:
    trial = trials[settings["number"]]
    set_up_data(ray.data.DataContext.get_current(), trial.config.cluster.data_nodes)
    trial.stages(Storage(storage), plan, build=True)
    return {"finished": True}
