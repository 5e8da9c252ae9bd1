"""What stops at a rung."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from pipelines.tuning.schedulers import Asha
from pipelines.tuning.spaces import TrialRecord


def decisions(scheduler: Asha, figures: list[float], first: int = 0) -> list[bool]:
    """Whether each of several trials continues after its first rung."""
    kept = []
    for number, figure in enumerate(figures, first):
        trial: Any = SimpleNamespace(
            trial_id=str(number), config={"number": number}, last_result={}
        )
        scheduler.on_trial_add(None, trial)
        result = {"epochs": 1, "occluded": figure}
        kept.append(scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE)
    return kept


def test_only_the_best_continue_at_a_rung_and_the_start_always() -> None:
    figures = [0.1, 0.5, 0.4, 0.6, 0.3, 0.7, 0.1]
    # 0.3 and the last 0.1 are below two thirds of those before them.
    kept = decisions(Asha("occluded", 3, 1, 1), figures)
    assert kept == [True, True, True, True, False, True, False]
    scheduler = Asha("occluded", 3, 1, 1)
    assert decisions(scheduler, [0.9, 0.8], 1) == [True, False]
    assert decisions(scheduler, [0.1]) == [True]  # the start


def test_trials_of_a_killed_or_finished_search_count_at_the_rungs() -> None:
    before = [TrialRecord(n, {}, "stopped", {1: {"occluded": 0.5}}) for n in range(3)]
    assert decisions(Asha("occluded", 3, 1, 1, before), [0.4, 0.6], 3) == [False, True]
    scheduler = Asha("occluded", 3, 1, 1)
    restored: Any = SimpleNamespace(
        trial_id="0", config={"number": 1}, last_result={"rungs": {"1": {"occluded": 0.5}}}
    )
    scheduler.on_trial_add(None, restored)
    assert decisions(scheduler, [0.4, 0.6], 1) == [False, True]
