"""`dpmpp tune`: search configurations, measured on identities held out of the training set.

A trial is the pipeline's own stages with a changed configuration, so what trials have in common is
made once, and a trial that was killed goes on where it was.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpmpp_core.config import Config, fingerprint, load_config
from dpmpp_core.config.space import as_overrides, load_space
from dpmpp_core.data.hidden import hidden_shares
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.validation import hold_out
from dpmpp_core.errors import ConfigError, DataError
from dpmpp_core.redaction import redact
from pipelines.cluster import Plan
from pipelines.population import RATES
from pipelines.robustness import has_clean_queries
from pipelines.run import Options, begin, opened, prepared_data, with_backgrounds
from pipelines.saliency import saliency
from pipelines.stage import Run, Stage
from pipelines.study import ALGORITHMS, REDUCTION, Study
from pipelines.tracking import look_up
from pipelines.tune_report import render
from pipelines.tune_trials import MEASURE, OBJECTIVES, Ground, recorded, run_search

log = logging.getLogger(__name__)

BEST = "best.yaml"
SHORTEST = 2  # epochs; after one, the warm-up's, nothing can be told


@dataclass(frozen=True)
class Request:
    """What to search.

    Attributes:
        space: name of a shipped space, or a YAML file.
        trials: how many in all, the starting configuration being the first.
        epochs: of the longest training, whose schedule is squeezed into them; None = a third of
            the configuration's.
        rungs: how often a trial is measured at most: after these epochs, after a third of them,
            ..., but not before SHORTEST; 1 = no trial is stopped early. With pbt the parts of the
            training, each of which is a trial.
        brackets: trial n is not measured at the first n % brackets rungs (Hyperband).
        objectives: what to maximise, of OBJECTIVES; two give a Pareto front.
        share: of the training identities, held out to measure on.
        side_by_side: trials at a time; None = what the machine or cluster has room for.
    """

    space: str = "default"
    trials: int = 12
    epochs: int | None = None
    algorithm: str = "tpe"
    rungs: int = 2
    brackets: int = 1
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
        for name in ("trials", "epochs", "rungs", "brackets", "side_by_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: 1 or more")
        if self.members and (self.rungs < 2 or self.members < 2 or self.trials % self.rungs):
            raise ConfigError(
                f"--algorithm pbt --trials {self.trials} --rungs {self.rungs}: trials are members "
                "times parts of the training (rungs), each 2 or more, such as 12 and 3"
            )
        if self.brackets > (1 if self.members else self.rungs):
            raise ConfigError(f"--brackets {self.brackets}: at most --rungs, and 1 with pbt")

    @property
    def members(self) -> int:
        """Of a population; 0 = there is none."""
        return self.trials // self.rungs if self.algorithm == "pbt" else 0


def search(options: Options, request: Request) -> dict[str, Any]:
    """Try configurations until there are `request.trials`; the result that `--json` prints.

    The same search started again goes on where it was, with more trials if more are asked for.

    Raises:
        UserError: configuration, space, weights or data; more trials at a time than there is room.
    """
    base = with_backgrounds(load_config(options.config, options.overrides))
    space = load_space(request.space)
    space.check(options.config, options.overrides)
    rungs = rung_epochs(base.metric.epochs, request)
    keys = [*space, RATES] if request.members else [*space]
    if request.members and (RATES in space or len(base.metric.rates) > 1):
        raise ConfigError(f"{RATES}: `--algorithm pbt` finds it; leave it out of space and recipe")
    with opened(options, [base], "evaluate") as (run, source, room):
        grows = base.cluster.autoscaled and options.address is not None
        plan = _side_by_side(room, request.side_by_side, grows)
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
            {key: look_up(base.model_dump(mode="json"), key) for key in keys},
            request.objectives,
            rungs,
            request.algorithm,
            request.seed,
            request.members,
            request.brackets,
        )
        run_search(run, ground, study, name, options, request.trials)
        return _written(run, ground, study, name, options, request)


def rung_epochs(epochs: int, request: Request) -> list[int]:
    """Epochs after which a trial is measured, ascending.

    Args:
        epochs: of the configuration.

    Raises:
        ConfigError: more are asked for than that.
    """
    most = max(1, round(epochs / REDUCTION)) if request.epochs is None else request.epochs
    if most > epochs:
        raise ConfigError(f"--epochs {most}: at most metric.epochs, which is {epochs}")
    if request.members:
        part = max(1, round(most / request.rungs))
        if part * request.rungs > epochs:
            raise ConfigError(f"--rungs {request.rungs}: at most metric.epochs, which is {epochs}")
        return [part * number for number in range(1, request.rungs + 1)]
    shorter = {round(most / REDUCTION**i) for i in range(1, request.rungs)}
    return [*sorted(rung for rung in shorter if SHORTEST <= rung < most), most]


def _identity(base: Config, validation: Stage, request: Request, *parts: Any) -> str:
    values = base.model_dump(mode="json", exclude={"name", "cluster", "tracking"})
    how = [
        request.algorithm,
        request.members,
        request.brackets,
        request.objectives,
        request.seed,
        MEASURE,
    ]
    return fingerprint(values, validation.summary["dataset_id"], how, *parts)[:12]


def _side_by_side(room: Plan, asked: int | None, grows: bool) -> Plan:
    if asked is None or asked <= room.trials or grows:
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
    run.publish(name, files)
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
        "start": [trial for trial in study.trials if trial.unchanged][-1].last,
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
    for name in ("space", "trials", "epochs", "algorithm", "rungs", "brackets", "share", "seed"):
        if getattr(request, name) != getattr(usual, name):
            words.append(f"--{name} {getattr(request, name)}")
    if request.objectives != usual.objectives:
        words.append(f"--objectives {','.join(request.objectives)}")
    return " ".join(words)
