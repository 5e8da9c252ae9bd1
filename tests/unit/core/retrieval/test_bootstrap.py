"""The interval of a paired gain: exact cases, groups kept whole, and that it covers the truth."""

import numpy as np
import pytest

from dpmpp_core.retrieval import bootstrap
from dpmpp_core.retrieval.bootstrap import paired_bootstrap


def world(rng, truth=0.02, people=60):
    """Gains of 1 to 7 queries a person; half of what a query gains is its person's."""
    sizes = rng.integers(1, 8, people)
    groups = np.repeat(np.arange(people), sizes)
    own = rng.normal(0, 0.1, people)[groups]
    return truth + own + rng.normal(0, 0.1, len(groups)), groups


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng, hits, single = np.random.default_rng(0), 0, 0
    for repeat in range(400):
        gains, groups = world(rng)
        _, low, high = paired_bootstrap(gains, groups, draws=400, seed=repeat)
        hits += low <= 0.02 <= high
        _, low, high = paired_bootstrap(gains, np.arange(len(gains)), draws=400, seed=repeat)
        single += low <= 0.02 <= high
    assert 0.91 <= hits / 400 <= 0.98
    assert single / 400 < 0.85  # pictures drawn singly: too sure of itself


def test_mean_is_over_queries_and_those_without_a_positive_take_no_part():
    gains = np.array([0.1, 0.3, np.nan, -0.1, np.nan])
    groups = np.array(["a", "a", "a", "b", "c"])
    found = paired_bootstrap(gains, groups)
    assert found.mean == pytest.approx(0.1)
    # Of two groups four samples are equally likely: (a, a), (a, b), (b, a), (b, b).
    assert (found.low, found.high) == pytest.approx((-0.1, 0.2))
    assert found == paired_bootstrap(gains[[0, 1, 3]], groups[[0, 1, 3]])


def test_equal_gains_have_no_spread_and_order_and_names_do_not_matter():
    assert paired_bootstrap(np.full(6, 0.25), np.arange(6) // 2) == (0.25, 0.25, 0.25)
    gains, groups = world(np.random.default_rng(1))
    one = paired_bootstrap(gains, groups, 2000)
    order = np.random.default_rng(2).permutation(len(gains))
    assert paired_bootstrap(gains[order], groups[order] + 100, 2000) == pytest.approx(one)
    assert one != paired_bootstrap(gains, groups, 2000, seed=1)
    assert one.low < one.mean < one.high


def test_blocks_give_what_one_piece_gives(monkeypatch):
    gains, groups = world(np.random.default_rng(1))
    whole = paired_bootstrap(gains, groups, 500)
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 7 * 60)
    assert paired_bootstrap(gains, groups, 500) == whole


@pytest.mark.parametrize(
    ("gains", "groups", "draws", "says"),
    [
        ([0.1, 0.2], [1], 10, "one a query"),
        ([[0.1], [0.2]], [[1], [2]], 10, "one a query"),
        ([0.1, np.inf], [1, 2], 10, "infinite"),
        ([0.1, np.nan], [1, 2], 10, "1 groups"),
        ([], [], 10, "0 groups"),
        ([0.1, 0.2], [1, 2], 0, "draws 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(gains, groups, draws, says):
    with pytest.raises(ValueError, match=says):
        paired_bootstrap(gains, np.array(groups), draws)
