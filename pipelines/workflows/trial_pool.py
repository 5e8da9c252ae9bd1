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
from pipelines.runtime.progress import bar
from pipelines.runtime.resources import Plan, throttle
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage, StageNotFoundError
from pipelines.runtime.storage import Storage
from pipelines.runtime.tracking import Tracking
from pipelines.runtime.tuner import build_tuner, failure_reason, run_tuner
from pipelines.workflows.pipeline import train_and_evaluate

log = logging.getLogger(__name__)

FOLDER = "tune"


@dataclass(frozen=True)
class Trial:
    """One configuration, and the finished stages that it starts from."""

    name: str
    config: Config
    prepared: Stage
    masks: Stage
    prompts: Stage | None

    def stages(self, storage: Storage, plan: Plan, build: bool = False) -> tuple[Stage, Stage]:
        """The trial's model and its evaluation; Unfinished if they are to be found, not built.

        Silent: only the driver talks to MLflow.
        """
        run = Run(self.config, storage, Tracking(""), plan, build=build)
        return train_and_evaluate(run, self.prepared, self.masks, self.prompts)

    def missing(self, storage: Storage, plan: Plan) -> str | None:
        """Key of the first stage that is not there, None for a finished trial."""
        try:
            self.stages(storage, plan)
        except StageNotFoundError as stage:
            return str(stage)
        return None


def run_trials(trials: Sequence[Trial], storage: Storage, plan: Plan) -> dict[str, str]:
    """Build what is not finished, `plan.trials` at a time; name -> why it failed.

    Seed by seed, so that a search that is cut short has compared all with the first seeds. Trials
    that come to the same are run once. One that fails does not stop the others.

    Raises:
        KeyboardInterrupt: stopped before all were done.
    """
    missing = {trial.name: trial.missing(storage, plan) for trial in trials}
    finished = sum(key is None for key in missing.values())
    log.info("trials: %d of %d are finished already", finished, len(trials))
    alike = {missing[trial.name]: trial for trial in trials if missing[trial.name] is not None}
    if not alike:
        return {}
    pending = sorted(alike.values(), key=lambda trial: trial.config.seed)
    storage.delete(FOLDER)
    reasons: dict[str | None, str] = {}
    tuner = build_tuner(
        storage,
        FOLDER,
        tune.with_parameters(_run, trials=pending, storage=storage.uri, plan=plan),
        pending[0].config.cluster,
        tune.TuneConfig(max_concurrent_trials=plan.trials, reuse_actors=True),
        {"number": tune.grid_search(list(range(len(pending))))},
    )
    with bar("trials", len(pending)) as shown:
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
    if any(t.name not in failed and t.missing(storage, plan) for t in pending):
        raise KeyboardInterrupt  # Tune answers Ctrl-C by returning what there is
    for name, reason in failed.items():
        log.warning("trials: %s failed: %s", name, reason)
    storage.delete(FOLDER)
    return failed


def _run(
    settings: dict[str, Any], trials: Sequence[Trial], storage: str, plan: Plan
) -> dict[str, Any]:
    throttle(ray.data.DataContext.get_current())
    trials[settings["number"]].stages(Storage(storage), plan, build=True)
    return {"finished": True}
