"""Search spaces on Optuna: how a trial draws, the searcher, the study of finished trials."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from dpmpp_core.config.space import Choices, Parameter, Space
from pipelines.tuning.measured import NUMBER_KEY

SEARCHERS = ("tpe", "random")
SCHEDULERS = ("asha", "pbt", "fifo")
STARTUP_TRIALS = 5  # drawn at random before TPE starts
RATES_KEY = "metric.rates"
STUDY_NAME = "search"

warnings.filterwarnings("ignore", category=ExperimentalWarning)  # Optuna's `group` and plots
warnings.filterwarnings("ignore", message="Define-by-run")  # TPE samples inside it

State = Literal["running", "done", "stopped", "failed"]


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        number: 0 is the start configuration, unchanged.
        changes: configuration key -> value.
        state: stopped = the scheduler ended it before its last epoch.
        rungs: epochs trained -> objective -> value in [0, 1], larger is better.
        reason: why it failed.
    """

    number: int
    changes: dict[str, Any]
    state: State
    rungs: dict[int, dict[str, float]] = field(default_factory=dict)
    reason: str = ""

    @property
    def last(self) -> dict[str, float]:
        """Objectives after the longest training; empty before the first."""
        return self.rungs[max(self.rungs)] if self.rungs else {}


@dataclass(frozen=True)
class SearchSpec:
    """The search: space, objectives, and the settings of Tune and Optuna.

    Attributes:
        start: values of the space's keys in the start configuration.
        objectives: names, all to be maximised; the scheduler goes by the first.
        rungs: epochs after which a trial is measured, ascending.
        brackets: of ASHA.
    """

    space: Space
    start: Mapping[str, Any]
    objectives: tuple[str, ...]
    rungs: tuple[int, ...]
    searcher: str = "tpe"
    scheduler: str = "asha"
    brackets: int = 1
    seed: int = 0

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw one trial's values; this makes it a space as `OptunaSearch` takes one.

        A start outside the space cannot be expressed in it: that trial draws nothing.
        """
        inside = trial.number > 0 or self.contains(self.start)
        return {NUMBER_KEY: trial.number, **(self.draw(trial) if inside else {})}

    def draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return a value for each key, as the configuration has it."""
        return {key: _draw_value(trial, key, parameter) for key, parameter in self.space.items()}

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Return whether a configuration with these values could have been drawn."""
        return all(parameter.contains(values[key]) for key, parameter in self.space.items())

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values in Optuna's form: choices as JSON text, since they may be lists."""
        return {
            key: json.dumps(values[key]) if isinstance(parameter, Choices) else values[key]
            for key, parameter in self.space.items()
        }


def _draw_value(trial: optuna.Trial, key: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Choices):
        texts = [json.dumps(choice) for choice in parameter.choices]
        return json.loads(trial.suggest_categorical(key, texts))
    low, high, log = parameter.low, parameter.high, parameter.log
    if parameter.whole:
        return trial.suggest_int(key, int(low), int(high), log=log)
    drawn = float(f"{trial.suggest_float(key, low, high, log=log):.4g}")  # short enough to read
    return min(max(drawn, low), high)


def build_searcher(spec: SearchSpec, records: Sequence[TrialRecord] = ()) -> OptunaSearch:
    """Build the searcher for Ray Tune, which draws the configurations of the next trials.

    With TPE it learns from `records`. The first trial that it draws has the number `len(records)`,
    under NUMBER_KEY in its configuration. Trial 0 is the start configuration, even if that lies
    outside the space. The same `spec`, `records` and order of results give the same draws.

    Args:
        spec: space, start configuration, objectives (all maximised), kind of searcher.
        records: trials that have ended, by number: 0, 1, 2, ... Failed ones count as such, and
            stopped ones as pruned.

    Raises:
        KeyError: `spec.start` lacks a key of the space, or a measured trial lacks an objective.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = InMemoryStorage()
    build_study(spec, records, spec.objectives, storage)
    several = len(spec.objectives) > 1
    begins = not records and spec.contains(spec.start)
    return OptunaSearch(
        spec,
        metric=list(spec.objectives) if several else spec.objectives[0],
        mode=["max"] * len(spec.objectives) if several else "max",
        points_to_evaluate=[spec.params(spec.start)] if begins else None,
        sampler=_build_sampler(spec, len(records)),
        storage=storage,
        study_name=STUDY_NAME,
    )


def _build_sampler(spec: SearchSpec, finished: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([spec.seed, finished]).generate_state(1)[0])
    if spec.searcher == "random":
        return RandomSampler(seed)
    return TPESampler(
        n_startup_trials=STARTUP_TRIALS,
        multivariate=True,
        group=True,  # else a start outside the space would make TPE univariate
        constant_liar=True,
        seed=seed,
    )


def build_study(
    spec: SearchSpec,
    records: Sequence[TrialRecord],
    objectives: Sequence[str],
    storage: BaseStorage | None = None,
) -> optuna.Study:
    """Return finished trials as an Optuna study; its trials have the records' order.

    Trials outside the space have no parameters there. Stopped ones are pruned, which Optuna gives
    no values where there are several objectives.
    """
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY_NAME,
        sampler=RandomSampler(0),
        directions=["maximize"] * len(objectives),
    )
    for record in records:
        values = {**spec.start, **record.changes}
        inside = spec.contains(values)
        notes = {"reason": record.reason, **record.last, "epochs": max(record.rungs, default=0)}
        notes |= {key: v for key, v in record.changes.items() if key not in spec.space}
        study.enqueue_trial(spec.params(values) if inside else {}, user_attrs=notes)
        trial = study.ask()
        if inside:
            spec.draw(trial)
        if len(objectives) == 1:
            for epochs, measured in record.rungs.items():
                trial.report(measured[objectives[0]], epochs)
        if record.state == "done":
            study.tell(trial, [record.last[name] for name in objectives])
        else:
            failed = record.state == "failed"
            study.tell(trial, state=TrialState.FAIL if failed else TrialState.PRUNED)
    return study


def select_pareto_front(spec: SearchSpec, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return Optuna's best trials, best in the first objective first; of equals the earliest."""
    best = build_study(spec, records, spec.objectives).best_trials
    ranked = sorted(best, key=lambda t: ([-value for value in t.values], t.number))
    earliest = {tuple(trial.values): trial.number for trial in reversed(ranked)}
    return [records[number] for number in reversed(earliest.values())]
