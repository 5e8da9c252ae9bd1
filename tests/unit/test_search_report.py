"""What the bench of searches makes of a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipelines.study import Study

from dpmpp_core.config.space import Range, Space
from pipelines.storage import Storage
from tests.bench.search_report import difference, followed, winner, within

SPACE = Space({"metric.lr": Range(low=1e-4, high=1e-1)})
FIGURES = [0.5, 0.4, 0.6, 0.3, 0.7, 0.8]


@pytest.fixture
def one(tmp_path: Path) -> Study:
    """Six trials; all but the start, 0.6, 0.7 and 0.8 are stopped at the rung."""
    start = {"metric.lr": 1e-2}
    study = Study(
        Storage(str(tmp_path)), "t.json", SPACE, start, ("occluded",), (1, 3), "random", 0
    )
    for figure in FIGURES:
        trial = study.ask()
        for epochs in study.rungs:
            if not study.measured(trial.number, epochs, {"occluded": figure}):
                break
    return study


def test_a_rung_costs_its_epochs_and_only_whole_trials_count(one: Study) -> None:
    search = followed(one, budget=14, again=[0.55])
    assert search.steps == [(4, 0.5), (5, 0.5), (9, 0.6), (10, 0.6), (14, 0.7)]
    assert search.best.number == 4 and search.final == 0.7 and search.full == 3
    assert search.reached(0.6) == 9 and search.reached(0.75) == float("inf")
    at = search.at(np.array([3, 4, 8, 14]))
    assert np.isnan(at[0]) and at[1:].tolist() == [0.5, 0.5, 0.7]


def test_what_ends_after_the_budget_does_not_count(one: Study) -> None:
    assert [trial.number for trial in within(one, 13)] == [0, 1, 2, 3]
    assert winner(within(one, 13)).number == 2


def test_the_interval_of_a_paired_difference_is_students() -> None:
    mean, low, high = difference([0.3, 0.5, 0.7], [0.2, 0.3, 0.4])
    assert mean == pytest.approx(0.2) and high - mean == pytest.approx(mean - low)
    assert high - mean == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
