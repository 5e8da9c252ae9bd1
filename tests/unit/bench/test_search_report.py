"""What the bench of searches makes of a search."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.tuning.spaces import TrialRecord
from tests.bench.search_report import difference, followed, winner, within

FIGURES = [0.5, 0.4, 0.6, 0.3, 0.7, 0.8]
STOPPED = {1, 3, 5}


@pytest.fixture
def one() -> list[TrialRecord]:
    """Six trials; the second, fourth and last are stopped at the rung."""
    return [
        TrialRecord(
            number,
            {},
            "stopped" if number in STOPPED else "done",
            {epochs: {"occluded": figure} for epochs in ((1,) if number in STOPPED else (1, 3))},
        )
        for number, figure in enumerate(FIGURES)
    ]


def test_a_rung_costs_its_epochs_and_only_whole_trials_count(one: list[TrialRecord]) -> None:
    search = followed(one, budget=14, again=[0.55])
    assert search.steps == [(4, 0.5), (5, 0.5), (9, 0.6), (10, 0.6), (14, 0.7)]
    assert search.best.number == 4 and search.final == 0.7 and search.full == 3
    assert search.reached(0.6) == 9 and search.reached(0.75) == float("inf")
    at = search.at(np.array([3, 4, 8, 14]))
    assert np.isnan(at[0]) and at[1:].tolist() == [0.5, 0.5, 0.7]


def test_what_ends_after_the_budget_does_not_count(one: list[TrialRecord]) -> None:
    assert [trial.number for trial in within(one, 13)] == [0, 1, 2, 3]
    assert winner(within(one, 13)).number == 2


def test_the_interval_of_a_paired_difference_is_students() -> None:
    mean, low, high = difference([0.3, 0.5, 0.7], [0.2, 0.3, 0.4])
    assert mean == pytest.approx(0.2) and high - mean == pytest.approx(mean - low)
    assert high - mean == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
