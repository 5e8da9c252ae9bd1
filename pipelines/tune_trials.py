"""The trials of a search: what each computes, and Ray Tune, which runs several side by side.

Each has a Ray Train run inside. What to try and what to stop the study decides; Tune's own state is
thrown away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dpmpp_core.config import Config, MetricConfig, load_config
from dpmpp_core.config.space import as_overrides
from dpmpp_core.data.synthesis import PARTS, Band
from dpmpp_core.errors import DataError
from pipelines.cluster import Plan, pace
from pipelines.robustness import CLEAN, robustness
from pipelines.run import Options, learn_prompts, train_and_evaluate, with_backgrounds
from pipelines.saliency import saliency
from pipelines.stage import Run, Stage, Unfinished
from pipelines.storage import Storage
from pipelines.study import Study, Tried
from pipelines.tracking import Tracking
from pipelines.trials import reason, room
from pipelines.tune_report import Shown

log = logging.getLogger(__name__)

OBJECTIVES = ("occluded", "holistic")
HIDDEN = Band(20, 40), Band(40, 60)  # of the person, in validation queries
MEASURE = 2  # of `objectives`: figures of another one are not gone on with
FOLDER = "tune"


@dataclass(frozen=True)
class Ground:
    """What all trials of a search share; goes to the processes that run them.

    Attributes:
        base: the configuration that the search starts from.
        validation: the manifest with held-out identities as its test set.
        hiding: person masks with which the validation's queries are hidden, for all trials alike.
    """

    base: Config
    validation: Stage
    hiding: Stage
    storage: str
    plan: Plan

    def run(self, config: Config, build: bool = True) -> Run:
        """Silent: only the driver talks to MLflow."""
        return Run(config, Storage(self.storage), Tracking(""), self.plan, build=build)

    def shared(self, config: Config) -> tuple[Stage, Stage | None]:
        """Person masks and prompts of a configuration; made, and said so, where they are not."""
        try:
            return self._shared(self.run(config, build=False))
        except Unfinished:
            return self._shared(self.run(config))

    def _shared(self, run: Run) -> tuple[Stage, Stage | None]:
        masks = saliency(run, self.validation)
        return masks, learn_prompts(run, self.validation, masks)

    def measure(
        self, config: Config, build: bool = True, until: int | None = None
    ) -> dict[str, float]:
        """Train, and the objectives in [0, 1]; Unfinished if it is to be found, not built.

        Args:
            until: train the first of the parts of `metric.rates`, up to this epoch.
        """
        run = self.run(config, build)
        metric, evaluated = train_and_evaluate(run, self.validation, *self.shared(config), until)
        base = replace(run, config=self.base)  # so that every trial's queries are hidden alike
        model = run.storage.uri, metric.key
        hidden = robustness(base, self.validation, self.hiding, evaluated, *model, HIDDEN, PARTS)
        return objectives(evaluated.summary["metrics"], hidden.summary["measured"])


def objectives(metrics: dict[str, Any], hidden: dict[str, Any]) -> dict[str, float]:
    """Masked mAP of hidden queries and of clean ones.

    `occluded` is a mean over queries. That of a hidden one is the mean over parts and bands, that
    of a really occluded one its own: of a few such the mAP depends on the training's seed alone,
    so they must not weigh more than they are.
    """
    made = [
        figure["mAP_masked"]
        for part, bands in hidden.items()
        if part != CLEAN
        for figure in bands.values()
        if figure["mAP_masked"] is not None
    ]
    parts = [(float(np.mean(made)), hidden[CLEAN]["queries"])] if made else []
    if "occluded" in metrics:
        real = metrics["occluded"]
        parts.append((real["masked"]["mAP"], real["num_queries"]))
    if not parts:
        raise DataError("not one validation query could be hidden: see `dpmpp saliency`")
    figures, queries = zip(*parts, strict=True)
    return {
        "occluded": float(np.average(figures, weights=queries)),
        "holistic": float(metrics["holistic"]["masked"]["mAP"]),
    }


def shortened(config: Config, epochs: int) -> Config:
    """The same training in fewer epochs: its schedule is squeezed, not cut."""
    metric, share = config.metric, epochs / config.metric.epochs
    changes = {
        "epochs": epochs,
        "warmup_epochs": round(metric.warmup_epochs * share),
        "milestones": sorted({max(1, round(m * share)) for m in metric.milestones}),
    }
    short = MetricConfig.model_validate({**metric.model_dump(), **changes})
    return config if epochs == metric.epochs else config.model_copy(update={"metric": short})


def in_parts(config: Config, parts: int) -> Config:
    """The same training, cut into parts whose rates may be changed."""
    metric = config.metric
    if len(metric.rates) == parts:
        return config
    cut = metric.model_copy(update={"rates": metric.rates * parts})
    return config.model_copy(update={"metric": cut})


def run_search(
    run: Run, ground: Ground, study: Study, name: str, options: Options, total: int
) -> None:
    """Run trials until there are `total`, `ground.plan.trials` at a time.

    Raises:
        KeyboardInterrupt: stopped before all were done.
    """
    finished = sum(trial.state != "running" for trial in study.trials)
    log.info("search: %d of %d trials are finished", finished, total)
    if finished >= total:
        return
    run.storage.delete(FOLDER)

    def configured(trial: Tried) -> Config:
        changes = [*options.overrides, *as_overrides(trial.changes)]
        return with_backgrounds(load_config(options.config, changes))

    with Shown(study, total) as shown:

        def ended(trial: Tried) -> None:
            shown.ended(trial)
            recorded(run, name, trial)

        asking = Asking(study, ground, total, configured, ended)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_run, ground=ground), room(ground.base.cluster)
            ),
            tune_config=tune.TuneConfig(
                search_alg=asking,
                scheduler=Stopping(asking),
                num_samples=total - finished,
                max_concurrent_trials=ground.plan.trials,
            ),
            run_config=tune.RunConfig(
                name=FOLDER,
                storage_path=run.storage.base,
                storage_filesystem=None if run.storage.is_local else run.storage.filesystem,
                callbacks=[Failures(asking)],
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        tuner.fit()
    if sum(trial.state != "running" for trial in study.trials) < total:
        raise KeyboardInterrupt  # Tune answers Ctrl-C by returning what there is
    run.storage.delete(FOLDER)


def recorded(run: Run, name: str, trial: Tried) -> None:
    """The trial as a nested run of MLflow; once, however often it is called."""
    changes = {key: str(value) for key, value in trial.changes.items()}
    figures = {**trial.last, "epochs": max(trial.rungs, default=0)}
    run.tracking.trial(name, f"trial {trial.number}", {**changes, "state": trial.state}, figures)


def _run(settings: dict[str, Any], ground: Ground) -> None:
    """A trial, in its own process: one report a rung."""
    pace(ray.data.DataContext.get_current())
    config = Config.model_validate_json(settings["config"])
    for epochs in settings["rungs"]:
        if settings["parts"]:
            part = in_parts(shortened(config, settings["epochs"]), settings["parts"])
            found = ground.measure(part, until=epochs)
        else:
            found = ground.measure(shortened(config, epochs))
        tune.report({"epochs": epochs, **found})


class Asking(Searcher):
    """Tune's way to the study; makes what a trial shares with others before it starts.

    By this process alone, one after the other: two trials that need the same stage must not both
    make it.
    """

    def __init__(
        self,
        study: Study,
        ground: Ground,
        total: int,
        configured: Callable[[Tried], Config],
        ended: Callable[[Tried], None],
    ) -> None:
        super().__init__(metric=study.objectives[0], mode="max")
        self._study, self._ground, self._total = study, ground, total
        self._configured, self._ended = configured, ended
        self._numbers: dict[str, int] = {}  # Tune's trial id -> the study's number

    def suggest(self, trial_id: str) -> Any:
        """Settings of `_run` for the next trial."""
        while self._study.unfinished or len(self._study.trials) < self._total:
            trial = self._study.ask()
            if trial is None:
                return None  # Tune asks again
            self._numbers[trial_id] = trial.number
            try:
                config = self._configured(trial)  # keys valid each alone may not go together
                self._ground.shared(config)
            except Exception as error:
                self.failed(trial_id, error)
                continue
            rungs = self._study.rungs
            return {
                "config": config.model_dump_json(),
                "rungs": self._study.rungs_of(trial),
                "epochs": rungs[-1],
                "parts": len(rungs) if self._study.members else 0,
            }
        return Searcher.FINISHED

    def measured(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Record a rung; whether the trial goes on."""
        values = {name: result[name] for name in OBJECTIVES}
        return self._study.measured(self._numbers[trial_id], result["epochs"], values)

    def failed(self, trial_id: str, error: Any) -> None:
        """Record why a trial came to nothing; the search goes on."""
        trial = self._study.failed(self._numbers[trial_id], reason(error))
        log.warning("trial %d failed: %s", trial.number, trial.reason)
        self._ended(trial)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Failures come with their reason by `failed`."""
        if not error:
            self._ended(self._study.trials[self._numbers[trial_id]])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study keeps its own journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is gone on with by its journal."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its configuration, of which nothing is read again


class Stopping(FIFOScheduler):
    """Ends a trial at a rung where the study says so."""

    def __init__(self, asking: Asking) -> None:
        super().__init__()
        self._asking = asking

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self._asking.measured(trial.trial_id, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class Failures(tune.Callback):
    """Hands the reason of a failure on."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        file = Path(trial.error_file)  # here and now; in the storage it is later
        self._asking.failed(trial.trial_id, file.read_text() if file.exists() else "no reason told")
