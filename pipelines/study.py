"""The state of a search: which trials there were, what they measured, what to try next.

Kept in a journal that is written whenever it changes, so that a search whose driver is killed goes
on where it was. What is tried next depends on (seed, trial's number, what has been measured).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from dpmpp_core.config.space import Choices, Parameter, Space
from pipelines.population import RATES, descend, over
from pipelines.storage import Storage

ALGORITHMS = ("tpe", "random", "pbt")
State = Literal["running", "done", "stopped", "failed"]
STARTUP = 5  # trials drawn at random before TPE has something to go by
LEAST = 8  # fully trained trials that tell which keys matter
REDUCTION = 3  # one in so many goes on at a rung, and trains so many times as long


@dataclass
class Tried:
    """One trial.

    Attributes:
        number: 0 is the configuration that the search starts from, unchanged.
        changes: configuration key -> value.
        parent: number of the trial that it goes on from (PBT); None = it begins anew.
        state: stopped = it was not among the best at a rung.
        rungs: epochs trained -> objective -> value, larger is better.
        reason: why it failed.
    """

    number: int
    changes: dict[str, Any]
    state: State = "running"
    rungs: dict[int, dict[str, float]] = field(default_factory=dict)
    reason: str = ""
    parent: int | None = None

    @property
    def unchanged(self) -> bool:
        """Whether this is the configuration that the search starts from."""
        return not self.changes

    @property
    def last(self) -> dict[str, float]:
        """What was measured after the longest training; empty before the first."""
        return self.rungs[max(self.rungs)] if self.rungs else {}


class Study:
    """The trials of a search and the sampler that proposes new ones.

    Args:
        storage, key: where the journal is; one that is there is gone on with.
        start: values of the space's keys in the configuration that the search starts from, and of
            a population's rates.
        objectives: names, all to be maximised; the first decides at the rungs.
        rungs: epochs after which a trial is measured, ascending.
        brackets: trial n is not measured at the first n % brackets rungs (Hyperband, Li et al.
            2018), so that what learns slowly has its chance.
        members: of a population (PBT), whose trials train from one rung to the next; 0 = none.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        space: Space,
        start: dict[str, Any],
        objectives: Sequence[str],
        rungs: Sequence[int],
        algorithm: str,
        seed: int,
        members: int = 0,
        brackets: int = 1,
    ) -> None:
        self._storage, self._key = storage, key
        self._space, self.start = space, start
        self.objectives, self.rungs = tuple(objectives), tuple(rungs)
        self._algorithm, self._seed = algorithm, seed
        self.members, self._brackets = members, brackets
        self.trials = _read(storage, key)
        self.unfinished = [trial for trial in self.trials if trial.state == "running"]

    def ask(self) -> Tried | None:
        """The next trial: one that a killed driver left, else a new one; None = not yet."""
        if self.unfinished:
            return self.unfinished.pop(0)
        if self.members and not over(self.trials, len(self.trials), self.members):
            return None
        trial = self._descended() or self._new()
        self.trials.append(trial)
        self._write()
        return trial

    def _new(self) -> Tried:
        number = len(self.trials)
        member = number % self.members if self.members else number
        return Tried(number, self._proposed(number) if member else {})

    def _descended(self) -> Tried | None:
        """The next member of the population that goes on from one of the generation before."""
        number, size = len(self.trials), self.members
        if number < size or not size:
            return None
        first, rates = self.objectives[0], self.start[RATES] * len(self.rungs)
        descent = descend(self.trials, number, size, first, rates, self._seed)
        return descent and Tried(number, descent[1], parent=descent[0])

    def rungs_of(self, trial: Tried) -> list[int]:
        """Epochs after which this trial is measured."""
        if not self.members:
            return list(self.rungs[trial.number % self._brackets :])
        return [self.rungs[trial.number // self.members]]

    def measured(self, number: int, epochs: int, values: dict[str, float]) -> bool:
        """Record a rung; whether the trial goes on to the next one.

        It does if it is among the best third of what has been measured at this rung so far (ASHA,
        Li et al. 2020). The first trial always does: the best is compared with it.
        """
        trial = self.trials[number]
        if epochs in trial.rungs:  # measured before its driver was killed, and gone on with
            return True
        trial.rungs[epochs] = values
        if epochs == self.rungs_of(trial)[-1]:
            trial.state = "done"
        elif not trial.unchanged and values[self.objectives[0]] < self._bar(epochs):
            trial.state = "stopped"
        self._write()
        return trial.state != "stopped"

    def _bar(self, epochs: int) -> float:
        """What is enough to go on at a rung."""
        first = self.objectives[0]
        here = [trial.rungs[epochs][first] for trial in self.trials if epochs in trial.rungs]
        return sorted(here, reverse=True)[max(1, len(here) // REDUCTION) - 1]

    def failed(self, number: int, reason: str) -> Tried:
        """Record why a trial came to nothing."""
        trial = self.trials[number]
        trial.state, trial.reason = "failed", reason
        self._write()
        return trial

    @property
    def keys(self) -> list[str]:
        """What is searched."""
        return list(self._space)

    def full(self) -> list[Tried]:
        """Trials that were trained to the end."""
        return [t for t in self.trials if t.state == "done" and self.rungs[-1] in t.rungs]

    def front(self) -> list[Tried]:
        """The Pareto front of `full`, best in the first objective first; of one objective the best.

        Of equals the earliest.
        """
        trials = sorted(self.full(), key=lambda t: [-t.last[name] for name in self.objectives])
        kept: list[Tried] = []
        for trial in trials:
            values = [trial.last[name] for name in self.objectives]
            better = [[k.last[name] for name in self.objectives] for k in kept]
            if not any(np.all(np.array(other) >= values) for other in better):
                kept.append(trial)
        return kept

    def importance(self) -> dict[str, float]:
        """Share of the first objective's variation that each key explains (PED-ANOVA, Watanabe et
        al. 2023); empty for fewer than LEAST trials, or if all came to the same."""
        trials = self.full()
        if len(trials) < LEAST or len({t.last[self.objectives[0]] for t in trials}) < 2:
            return {}
        study = self._optuna(self.objectives[:1], trials)
        best = max(0.1, 4 / len(trials))  # of one or two trials nothing can be told
        evaluator = PedAnovaImportanceEvaluator(target_quantile=best, evaluate_on_local=False)
        return dict(get_param_importances(study, evaluator=evaluator))

    def height(self, key: str, value: Any) -> float:
        """Where a value lies in its key's range or list, in [0, 1] for all but the start's."""
        parameter = self._space[key]
        if isinstance(parameter, Choices):
            known = list(parameter.choices)
            return known.index(value) / (len(known) - 1) if value in known else -0.05
        scale = np.log if parameter.log else float
        low, high = scale(parameter.low), scale(parameter.high)
        return float(np.clip((scale(value) - low) / (high - low), -0.05, 1.05))

    def _proposed(self, number: int) -> dict[str, Any]:
        """Draws come from (seed, number), so a search that goes on draws what it would have."""
        study = self._optuna(self.objectives, self.trials)
        asked = study.ask({key: _distribution(p) for key, p in self._space.items()})
        return {key: _value(self._space[key], asked.params[key]) for key in self._space}

    def _optuna(self, objectives: Sequence[str], trials: Sequence[Tried]) -> optuna.Study:
        """The trials as Optuna has them."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            directions=["maximize"] * len(objectives), sampler=self._sampler(len(self.trials))
        )
        distributions = {key: _distribution(p) for key, p in self._space.items()}
        for trial in trials:
            values = self.start | trial.changes
            inside = all(p.contains(values[key]) for key, p in self._space.items())
            if trial.state == "failed" or not inside:
                continue  # a start outside the space tells the sampler nothing
            params = {key: _key(p, values[key]) for key, p in self._space.items()}
            state = _state(trial, objectives)
            study.add_trial(create_trial(params=params, distributions=distributions, **state))
        return study

    def _sampler(self, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        if self._algorithm != "tpe":
            return RandomSampler(seed=seed)
        return TPESampler(
            n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=seed
        )

    def _write(self) -> None:
        rows = [asdict(trial) for trial in self.trials]
        self._storage.write(self._key, json.dumps({"trials": rows}, indent=1).encode())


def _read(storage: Storage, key: str) -> list[Tried]:
    journal = storage.read_json(key) or {"trials": []}
    trials = [Tried(**row) for row in journal["trials"]]
    for trial in trials:
        trial.rungs = {int(epochs): values for epochs, values in trial.rungs.items()}
    return trials


def _state(trial: Tried, objectives: Sequence[str]) -> dict[str, Any]:
    """How the trial stands, in Optuna's words, which has no stopped ones for several objectives."""
    values = [trial.last[name] for name in objectives] if trial.last else None
    if values is None or trial.state == "running":  # TPE keeps away from these
        return {"state": TrialState.RUNNING}
    if trial.state == "stopped" and len(objectives) == 1:
        steps = {epochs: found[objectives[0]] for epochs, found in trial.rungs.items()}
        return {"state": TrialState.PRUNED, "intermediate_values": steps}
    return {"state": TrialState.COMPLETE, "values": values}


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, Choices):
        return CategoricalDistribution([json.dumps(choice) for choice in parameter.choices])
    if parameter.whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _key(parameter: Parameter, value: Any) -> Any:
    """A configuration value as Optuna has it: choices as JSON text, as they may be lists."""
    return json.dumps(value) if isinstance(parameter, Choices) else value


def _value(parameter: Parameter, drawn: Any) -> Any:
    """The reverse; numbers with four digits, which people can read and write."""
    if isinstance(parameter, Choices):
        return json.loads(drawn)
    if parameter.whole:
        return drawn
    return min(max(float(f"{drawn:.4g}"), parameter.low), parameter.high)
