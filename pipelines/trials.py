"""Many configurations trained and measured side by side: Ray Tune trials, a Ray Train run in each.

A trial is the last stages of a pipeline: what several have in common is made before. Its state is
that of its stages, so a search that was killed goes on where it was, and Tune's own is thrown away.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray.data
from ray import tune

from dpmpp_core.config import ClusterConfig, Config
from dpmpp_core.redaction import redact
from pipelines.cluster import Plan, pace, selector
from pipelines.progress import Bar, bar
from pipelines.run import train_and_evaluate
from pipelines.stage import Run, Stage, Unfinished
from pipelines.storage import Storage
from pipelines.tracking import Tracking

log = logging.getLogger(__name__)

FOLDER = "tune"
TRIAL_CPUS = 0.1  # the trial itself only waits for the workers that it starts


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
        except Unfinished as stage:
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
    with bar("trials", len(pending)) as shown:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_run, trials=pending, storage=storage.uri, plan=plan),
                room(pending[0].config.cluster),
            ),
            param_space={"number": tune.grid_search(list(range(len(pending))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=plan.trials, reuse_actors=True),
            run_config=tune.RunConfig(
                name=FOLDER,
                storage_path=storage.base,
                storage_filesystem=None if storage.is_local else storage.filesystem,
                callbacks=[_Shown(shown, [trial.name for trial in pending])],
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        results = tuner.fit()
    reasons = {
        missing[pending[result.config["number"]].name]: reason(result.error)
        for result in (results[i] for i in range(len(results)))
        if result.error is not None and result.config is not None
    }
    failed = {name: reasons[key] for name, key in missing.items() if key in reasons}
    if any(t.name not in failed and t.missing(storage, plan) for t in pending):
        raise KeyboardInterrupt  # Tune answers Ctrl-C by returning what there is
    for name, reason in failed.items():
        log.warning("trials: %s failed: %s", name, reason)
    storage.delete(FOLDER)
    return failed


def room(config: ClusterConfig) -> tune.PlacementGroupFactory:
    """What a trial itself takes, and where: on a node that trains it would leave too little of the
    CPUs that a train worker asks for."""
    where: dict[str, Any] = {}
    if config.data_nodes:
        where = {"bundle_label_selector": [selector(config.data_nodes)]}
    return tune.PlacementGroupFactory([{"CPU": TRIAL_CPUS}], **where)


def _run(
    settings: dict[str, Any], trials: Sequence[Trial], storage: str, plan: Plan
) -> dict[str, Any]:
    pace(ray.data.DataContext.get_current())
    trials[settings["number"]].stages(Storage(storage), plan, build=True)
    return {"finished": True}


class _Shown(tune.Callback):
    """Moves the bar, and says which trial ended."""

    def __init__(self, shown: Bar, names: list[str]) -> None:
        self._shown, self._names, self._done = shown, names, 0

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._ended(trial, "done")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._ended(trial, "failed")

    def _ended(self, trial: Any, how: str) -> None:
        self._done += 1
        name = self._names[trial.config["number"]]
        log.info("trial %s: %s (%d of %d)", name, how, self._done, len(self._names))
        self._shown.update(self._done, name)


def reason(error: Any) -> str:
    """The last line of a remote traceback: what went wrong."""
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
