"""Tune's schedulers, with a start configuration that is never stopped.

Tune restores a search without the state of its scheduler, so each takes it from the trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from pipelines.tuning.measured import (
    EPOCHS_KEY,
    FACTOR_KEY,
    FIRST_RUNG_KEY,
    MEMBER_KEY,
    NUMBER_KEY,
    RUNGS_KEY,
)
from pipelines.tuning.spaces import TrialRecord

REDUCTION_FACTOR = 3  # one in so many continues at a rung, and trains so many times as long
RATE_FACTORS = (1.25, 0.8)  # on the learning rates of a copy (Jaderberg et al. 2017)
REPLACED_SHARE = 0.25  # of a population, replaced by copies of as many of the best


class Asha(ASHAScheduler):
    """ASHA (Li et al. 2020); the start is trained to the end, as the best is compared with it.

    Args:
        records: trials of the Tuners before this one, whose results count at the rungs.
    """

    def __init__(
        self,
        objective: str,
        epochs: int,
        grace_period: int,
        brackets: int,
        records: Sequence[TrialRecord] = (),
    ) -> None:
        super().__init__(
            time_attr=EPOCHS_KEY,
            metric=objective,
            mode="max",
            max_t=epochs,
            grace_period=grace_period,
            reduction_factor=REDUCTION_FACTOR,
            brackets=brackets,
        )
        for record, bracket in product(records, self._brackets):
            finished: Any = SimpleNamespace(trial_id=f"trial {record.number}")
            for rung, values in record.rungs.items():
                bracket.on_result(finished, rung, values[objective])

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Put the trial into a bracket, whose rungs it is measured at; restore its results."""
        super().on_trial_add(tune_controller, trial)
        bracket = self._trial_info[trial.trial_id]
        trial.config[FIRST_RUNG_KEY] = self._brackets.index(bracket)
        for epochs, values in trial.last_result.get(RUNGS_KEY, {}).items():
            super().on_trial_result(tune_controller, trial, {**values, EPOCHS_KEY: int(epochs)})

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return the decision on a result; the start always continues."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return decision if trial.config[NUMBER_KEY] else TrialScheduler.CONTINUE


class Population(PopulationBasedTraining):
    """Synchronous PBT (Jaderberg et al. 2017) over a factor of the learning rates.

    Args:
        interval: epochs of a segment, after which the worst are replaced.
        max_concurrent: members that train at a time; the others are paused.
    """

    def __init__(self, objective: str, interval: int, max_concurrent: int) -> None:
        super().__init__(
            time_attr=EPOCHS_KEY,
            metric=objective,
            mode="max",
            perturbation_interval=interval,
            hyperparam_mutations={FACTOR_KEY: tune.uniform(*sorted(RATE_FACTORS))},
            quantile_fraction=REPLACED_SHARE,
            resample_probability=0,
            perturbation_factors=RATE_FACTORS,
            synch=True,
        )
        self._max_concurrent = max_concurrent

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Keep the member paused until it is chosen, at the segment that it has reached."""
        super().on_trial_add(tune_controller, trial)
        trial.config.update(trial.config.pop(MEMBER_KEY, {}))
        if trial.is_finished():
            tune_controller.get_live_trials().discard(trial)  # or the others would wait for it
            return
        if EPOCHS_KEY in trial.last_result:
            epochs = trial.last_result[EPOCHS_KEY]
            self._save_trial_state(self._trial_state[trial], epochs, trial.last_result, trial)
        trial.set_status(Trial.PAUSED)
        reached = [s.last_train_time for t, s in self._trial_state.items() if not t.is_finished()]
        self._next_perturbation_sync = min(reached) + self._perturbation_interval

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Stop waiting for a failed member."""
        super().on_trial_error(tune_controller, trial)
        tune_controller.get_live_trials().discard(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the next member to train; None if as many train as may."""
        trials = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
        if sum(trial.status != Trial.PAUSED for trial in trials) >= self._max_concurrent:
            return None
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen is None and trials and all(trial.status == Trial.PAUSED for trial in trials):
            # The last one of a segment failed, so no result has ended it.
            self.on_trial_result(tune_controller, trials[0], trials[0].last_result)
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _quantiles(self) -> tuple[list[Trial], list[Trial]]:
        """Return the worst, the start excepted, and the best, which may be copied."""
        lower, upper = super()._quantiles()
        scores = {trial: state.last_score for trial, state in self._trial_state.items()}
        ranked = [
            trial
            for trial in sorted(scores, key=lambda trial: scores[trial] or 0.0)
            if trial.config[NUMBER_KEY] and trial not in upper and not trial.is_finished()
        ]
        return ranked[: len(lower)], upper

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        """Return the donor's configuration at another factor; the member keeps its number."""
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return {**config, NUMBER_KEY: trial.config[NUMBER_KEY]}, operations
