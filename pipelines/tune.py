"""`dpmpp tune`: search configurations, measured on identities held out of the training set.

A trial is the pipeline's own stages with a changed configuration, so what trials have in common is
made once, and a trial that was killed goes on where it was. Ray Tune runs several side by side,
each with a Ray Train run inside; what to try and what to stop the study decides.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dpmpp_core.config import Config, MetricConfig, fingerprint, load_config
from dpmpp_core.config.space import as_overrides, load_space
from dpmpp_core.data.hidden import hidden_shares
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.synthesis import PARTS, Band
from dpmpp_core.data.validation import hold_out
from dpmpp_core.errors import ConfigError, DataError
from dpmpp_core.redaction import redact
from pipelines.cluster import Plan, pace
from pipelines.robustness import CLEAN, has_clean_queries, robustness
from pipelines.run import (
    Options,
    begin,
    learn_prompts,
    opened,
    prepared_data,
    train_and_evaluate,
    with_backgrounds,
)
from pipelines.saliency import saliency
from pipelines.stage import Run, Stage, Unfinished
from pipelines.storage import Storage
from pipelines.study import ALGORITHMS, REDUCTION, Study, Tried
from pipelines.tracking import Tracking, look_up
from pipelines.trials import TRIAL_CPUS, reason
from pipelines.tune_report import Shown, render

log = logging.getLogger(__name__)

OBJECTIVES = ("occluded", "holistic")
HIDDEN = Band(20, 40), Band(40, 60)  # of the person, in validation queries
FOLDER = "tune"
BEST = "best.yaml"


@dataclass(frozen=True)
class Request:
    """What to search.

    Attributes:
        space: name of a shipped space, or a YAML file.
        trials: how many in all, the starting configuration being the first.
        rungs: how often a trial is measured: after all epochs, after a third of them, ...; 1 = no
            trial is stopped early.
        objectives: what to maximise, of OBJECTIVES; two give a Pareto front.
        share: of the training identities, held out to measure on.
        side_by_side: trials at a time; None = what the machine or cluster has room for.
    """

    space: str = "default"
    trials: int = 12
    algorithm: str = "tpe"
    rungs: int = 2
    objectives: tuple[str, ...] = ("occluded",)
    share: float = 0.25
    seed: int = 0
    side_by_side: int | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ConfigError(f"--algorithm {self.algorithm}: one of {', '.join(ALGORITHMS)}")
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or not self.objectives or len({*self.objectives}) < len(self.objectives):
            named = ",".join(self.objectives) or "nothing"
            raise ConfigError(f"--objectives {named}: one or two of {', '.join(OBJECTIVES)}")
        if not 0 < self.share < 1:
            raise ConfigError(f"--share {self.share}: a share of the identities, between 0 and 1")
        for name in ("trials", "rungs", "side_by_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: 1 or more")


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

    def measure(self, config: Config, build: bool = True) -> dict[str, float]:
        """Train, and the objectives in [0, 1]; Unfinished if it is to be found, not built."""
        run = self.run(config, build)
        metric, evaluated = train_and_evaluate(run, self.validation, *self.shared(config))
        base = replace(run, config=self.base)  # so that every trial's queries are hidden alike
        model = run.storage.uri, metric.key
        hidden = robustness(base, self.validation, self.hiding, evaluated, *model, HIDDEN, PARTS)
        return objectives(evaluated.summary["metrics"], hidden.summary["measured"])


def objectives(metrics: dict[str, Any], hidden: dict[str, Any]) -> dict[str, float]:
    """Masked mAP of hidden queries and of clean ones.

    `occluded` is the mean over parts and bands; where the data has really occluded queries, the
    mean of that and theirs.
    """
    made = [
        figure["mAP_masked"]
        for part, bands in hidden.items()
        if part != CLEAN
        for figure in bands.values()
        if figure["mAP_masked"] is not None
    ]
    occluded = [float(np.mean(made))] if made else []
    occluded += [metrics["occluded"]["masked"]["mAP"]] if "occluded" in metrics else []
    if not occluded:
        raise DataError("not one validation query could be hidden: see `dpmpp saliency`")
    return {
        "occluded": float(np.mean(occluded)),
        "holistic": float(metrics["holistic"]["masked"]["mAP"]),
    }


def search(options: Options, request: Request) -> dict[str, Any]:
    """Try configurations until there are `request.trials`; the result that `--json` prints.

    The same search started again goes on where it was, with more trials if more are asked for.

    Raises:
        UserError: configuration, space, weights or data; more trials at a time than there is room.
    """
    base = with_backgrounds(load_config(options.config, options.overrides))
    space = load_space(request.space)
    space.check(options.config, options.overrides)
    rungs = rung_epochs(base.metric.epochs, request.rungs)
    with opened(options, [base], "evaluate") as (run, source, room):
        plan = _side_by_side(room, request.side_by_side)
        prepared = prepared_data(run, source)
        validation = hold_out_identities(run, prepared, request)
        name = f"tune-{base.name}-{_identity(base, validation, request, space.to_json(), rungs)}"
        begin(run, prepared, name)
        hiding = saliency(run, validation)
        ground = Ground(base, validation, hiding, run.storage.uri, plan)
        log.info("Ray: %s", plan)
        study = Study(
            run.storage,
            f"{name}/trials.json",
            space,
            {key: look_up(base.model_dump(mode="json"), key) for key in space},
            request.objectives,
            rungs,
            request.algorithm,
            request.seed,
        )
        run_search(run, ground, study, name, options, request.trials)
        return _written(run, ground, study, name, options, request)


def rung_epochs(epochs: int, rungs: int) -> list[int]:
    """Epochs after which a trial is measured, the last being all."""
    return sorted({max(1, round(epochs / REDUCTION**i)) for i in range(rungs)})


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


def _identity(base: Config, validation: Stage, request: Request, *parts: Any) -> str:
    values = base.model_dump(mode="json", exclude={"name", "cluster", "tracking"})
    how = [request.algorithm, request.objectives, request.seed]
    return fingerprint(values, validation.summary["dataset_id"], how, *parts)[:12]


def _side_by_side(room: Plan, asked: int | None) -> Plan:
    if asked is None or asked <= room.trials:
        return room if asked is None else replace(room, trials=asked)
    raise ConfigError(
        f"--side-by-side {asked}: there is room for {room}; {asked} would need "
        f"{asked} x {room.train_workers} x {room.train_cpus} CPUs to train on: lower it, or "
        "cluster.train_workers"
    )


def hold_out_identities(run: Run, prepared: Stage, request: Request) -> Stage:
    """The manifest to search on: no test image is in it."""
    identity = {"prepare": prepared.key, "share": request.share, "seed": request.seed}

    def build(folder: Path) -> dict[str, Any]:
        whole = Manifest.load(run.folder(prepared))
        hidden = hidden_shares(whole.root, whole.images["path"].to_pylist())
        manifest = hold_out(whole, request.share, request.seed, hidden)
        manifest.save(folder)
        return {
            "dataset_id": manifest.dataset_id,
            "root": manifest.root,
            "layout": manifest.layout,
            "counts": manifest.counts(),
            "warnings": [],
        }

    stage = run.stage("validation", identity, build)
    if not has_clean_queries(stage):
        raise DataError(
            f"{stage.summary['root']}: no held-out query is clean, so none can be hidden by a "
            "known share: hold out more (--share)"
        )
    return stage


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
            tune.with_resources(tune.with_parameters(_run, ground=ground), {"CPU": TRIAL_CPUS}),
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
        tune.report({"epochs": epochs, **ground.measure(shortened(config, epochs))})


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
            self._numbers[trial_id] = trial.number
            try:
                config = self._configured(trial)  # keys valid each alone may not go together
                self._ground.shared(config)
            except Exception as error:
                self.failed(trial_id, error)
                continue
            return {"config": config.model_dump_json(), "rungs": list(self._study.rungs)}
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
        self._asking.failed(trial.trial_id, trial.get_error() or "its process was lost")


def _written(
    run: Run, ground: Ground, study: Study, name: str, options: Options, request: Request
) -> dict[str, Any]:
    """Table, pictures and the best configurations, in the storage and in MLflow."""
    for trial in study.trials:
        recorded(run, name, trial)  # those that a killed driver did not
    front = study.front()
    files = render(study, _command(options, request), ground.validation.summary["counts"])
    for trial in front:
        file = BEST if trial is front[0] else f"pareto-{trial.number}.yaml"
        changes = [*options.overrides, *as_overrides(trial.changes)]
        config = load_config(options.config, [*changes, f"name={ground.base.name}-tuned"])
        files[file] = redact(config.to_yaml()).encode()
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            run.storage.write(f"{name}/{file}", content)
            path = Path(folder) / file
            path.write_bytes(content)
            run.tracking.artifact(path, file)
    if front:
        run.tracking.metrics({f"best_{key}": value for key, value in front[0].last.items()})
    return {
        "search": name,
        "run_id": run.tracking.run_id,
        "tracking_uri": redact(run.tracking.uri),
        "dataset_id": ground.validation.summary["dataset_id"],
        "counts": ground.validation.summary["counts"],
        "objectives": list(study.objectives),
        "trials": [asdict(trial) for trial in study.trials],
        "front": [trial.number for trial in front],
        "start": study.trials[0].last,
        "best": front[0].last if front else None,
        "best_changes": front[0].changes if front else None,
        "importance": study.importance(),
        "failed": {} if front else {f"trial {t.number}": t.reason for t in study.trials},
        "folder": run.storage.location(name),
        "config": run.storage.location(f"{name}/{BEST}") if front else None,
    }


def _command(options: Options, request: Request) -> str:
    """What makes the same search again."""
    words = ["dpmpp tune", *options.overrides, f"--config {options.config}"]
    words += [] if options.data is None else [f"--data {Path(options.data).name}"]
    usual = Request()
    for name in ("space", "trials", "algorithm", "rungs", "share", "seed"):
        if getattr(request, name) != getattr(usual, name):
            words.append(f"--{name} {getattr(request, name)}")
    if request.objectives != usual.objectives:
        words.append(f"--objectives {','.join(request.objectives)}")
    return " ".join(words)
