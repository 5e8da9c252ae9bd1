"""Probabilities mean what they say, on persons that were not fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmpp_core.errors import DataError
from dpmpp_core.retrieval import Embeddings
from dpmpp_core.retrieval.calibration import (
    Calibration,
    Fit,
    Pairs,
    calibrate,
    compute_thresholds,
    fit_scores,
    score_pairs,
)

TRUE = Fit(slope=6.0, offset=-1.5)


def drawn(count=40_000, base_rate=0.5, seed=0, persons=50):
    """Pairs whose labels are drawn with the probabilities of TRUE at that base rate."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-0.9, 0.99, count)
    same = rng.random(count) < TRUE.probability(scores, base_rate)
    first = rng.integers(0, persons, count)
    second = np.where(same, first, (first + rng.integers(1, persons, count)) % persons)
    return Pairs(scores, same, first, second)


def test_the_truth_is_found_again():
    pairs = drawn()
    odds = pairs.same.mean()
    fit = fit_scores(pairs.scores, pairs.same)
    scores = np.linspace(-0.9, 0.98, 50)
    told = fit.probability(scores, odds)
    assert np.abs(told - TRUE.probability(scores, 0.5)).max() < 0.02


def test_of_pairs_called_likely_so_many_are_of_one_person():
    made = calibrate(drawn(), "a" * 64, base_rate=0.01)
    assert made.held_out["ece"] < 0.02
    assert made.held_out["ece_stated"] < 0.005
    assert made.held_out["log_loss"] < made.held_out["log_loss_prior"]
    assert made.held_out["log_loss_stated"] < made.held_out["log_loss_prior_stated"]
    for told, true, count in made.reliability:
        assert abs(told - true) < 0.06 + 1 / np.sqrt(count)
    assert Calibration.model_validate_json(made.model_dump_json()) == made


@given(st.floats(0.1, 99), st.floats(-50, 50), st.floats(1e-6, 1 - 1e-6))
def test_a_higher_score_is_never_less_likely(slope, offset, rate):
    told = Fit(slope=slope, offset=offset).probability(np.linspace(-1, 1, 200), rate)
    assert (np.diff(told) >= 0).all()
    assert ((told >= 0) & (told <= 1)).all()


def test_the_base_rate_moves_the_odds_and_nothing_else():
    scores = np.linspace(-0.9, 0.9, 20)
    odds = [TRUE.probability(scores, rate) for rate in (0.5, 0.01)]
    ratio = (odds[0] / (1 - odds[0])) / (odds[1] / (1 - odds[1]))
    assert ratio == pytest.approx(np.full(20, 99.0))
    with pytest.raises(DataError, match="base rate 0"):
        TRUE.probability(scores, 0)


def test_a_threshold_lets_no_more_pass_than_it_says():
    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(size=5000), 2) / 5  # with ties
    same = rng.random(5000) < 0.3
    found = compute_thresholds(scores, same)
    assert [t.false_accept <= rate for t, rate in zip(found, (0.1, 0.03, 0.01), strict=False)]
    for row in found:
        assert row.false_accept == (scores[~same] >= row.score).mean()
        assert row.false_reject == (scores[same] < row.score).mean()
    assert len(found) == 4  # a rate of 0.001 would be told by three pairs


def test_persons_told_apart_without_a_mistake_have_a_finite_fit():
    fit = fit_scores(np.array([-0.5, -0.4, 0.8, 0.9]), np.array([False, False, True, True]))
    told = fit.probability(np.array([-0.5, 0.9]), 0.5)
    assert told[0] < 0.2 and told[1] > 0.8


def test_scores_that_fall_are_refused():
    pairs = drawn()
    with pytest.raises(DataError, match="cannot calibrate"):
        fit_scores(-pairs.scores, pairs.same)


def test_too_few_persons_are_refused():
    with pytest.raises(DataError, match="3 persons with pairs"):
        calibrate(drawn(persons=3), "a" * 64)


def test_pairs_are_those_of_the_evaluation():
    features = {"visual": np.eye(4, 3, dtype=np.float32) + 0.1}
    masks = {"visual": np.ones((4, 3), np.float32)}
    pids, camids = np.array([1, 1, 1, 2]), np.array([1, 1, 2, 1])
    side = Embeddings(features, masks, pids, camids, list("abcd"))
    pairs = score_pairs(side, side)
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (1, 1), (1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 2), (2, 1), (2, 1), (2, 1)
    ]  # fmt: skip
    assert pairs.same.sum() == 4
    assert np.array_equal(pairs.same, pairs.first == pairs.second)
