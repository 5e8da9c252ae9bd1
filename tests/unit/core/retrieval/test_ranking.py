"""CMC, mAP and mINP against a plain reference, ties and the traps of other evaluators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpmpp_core.errors import DataError
from dpmpp_core.retrieval import evaluate_ranking, ranking


def brute_force(scores, q_pids, g_pids, q_cams, g_cams):  # type: ignore[no-untyped-def]
    """Sort the valid items, others before positives at equal score; then read the list off."""
    precisions, penalties, firsts = [], [], []
    for i in range(len(q_pids)):
        valid = [j for j in range(len(g_pids)) if (g_pids[j], g_cams[j]) != (q_pids[i], q_cams[i])]
        valid.sort(key=lambda j: (-scores[i][j], g_pids[j] == q_pids[i]))
        ranks = [r for r, j in enumerate(valid, 1) if g_pids[j] == q_pids[i]]
        if ranks:
            precisions.append(np.mean([k / r for k, r in enumerate(ranks, 1)]))
            penalties.append(len(ranks) / ranks[-1])
            firsts.append(ranks[0])
    return precisions, penalties, firsts


@st.composite
def cases(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """Few values everywhere: junk, ties, missing identities and negative scores are common."""
    q, g = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    scores = rng.integers(-levels, levels, (q, g)) / levels
    pids, cams = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    return (
        scores,
        rng.integers(0, pids, q),
        rng.integers(0, pids + 1, g) - draw(st.integers(0, 1)),
        rng.integers(0, cams, q),
        rng.integers(0, cams, g),
    )


@settings(max_examples=500, deadline=None)
@given(case=cases(), block=st.sampled_from([1, 20, 10**6]))
def test_evaluator_equals_brute_force(case, block: int) -> None:  # type: ignore[no-untyped-def]
    precisions, penalties, firsts = brute_force(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "BLOCK_VALUES", block)
        if not precisions:
            with pytest.raises(DataError, match="none of the"):
                evaluate_ranking(*case)
            return
        result = evaluate_ranking(*case)
    assert result.mAP == pytest.approx(np.mean(precisions))
    assert result.mINP == pytest.approx(np.mean(penalties))
    curve = [np.mean([f <= k for f in firsts]) for k in range(1, min(50, len(case[2])) + 1)]
    np.testing.assert_allclose(result.cmc, curve)
    assert result.num_valid_queries == len(firsts)
    assert result.num_skipped_queries == len(case[1]) - len(firsts)
    valid = result.first_match_rank > 0
    np.testing.assert_array_equal(result.first_match_rank[valid], firsts)
    np.testing.assert_allclose(result.average_precision[valid], precisions)
    assert np.isnan(result.average_precision[~valid]).all()


@settings(max_examples=100, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**32))
def test_order_of_the_gallery_changes_nothing(case, seed: int) -> None:  # type: ignore[no-untyped-def]
    scores, q_pids, g_pids, q_cams, g_cams = case
    assume(brute_force(*case)[0])
    order = np.random.default_rng(seed).permutation(len(g_pids))
    before = evaluate_ranking(*case)
    after = evaluate_ranking(scores[:, order], q_pids, g_pids[order], q_cams, g_cams[order])
    np.testing.assert_array_equal(before.average_precision, after.average_precision)
    np.testing.assert_array_equal(before.first_match_rank, after.first_match_rank)


def two_cameras(q_pids: list[int], g_pids: list[int]):  # type: ignore[no-untyped-def]
    q, g = np.array(q_pids), np.array(g_pids)
    return q, g, np.zeros_like(q), np.ones_like(g)


@pytest.mark.parametrize("persons", [200, 2])
def test_few_positives_of_many_items_and_many_are_counted_alike(persons: int) -> None:
    """The former are compared with all scores, the latter found among sorted ones."""
    rng = np.random.default_rng(persons)
    case = (
        rng.integers(-50, 50, (5, 600)) / 50,
        *(rng.integers(0, persons, n) for n in (5, 600)),
        *(rng.integers(0, 3, n) for n in (5, 600)),
    )
    precisions, penalties, firsts = brute_force(*case)
    result = evaluate_ranking(*case)
    assert result.first_match_rank[result.first_match_rank > 0].tolist() == firsts
    assert result.mAP == pytest.approx(np.mean(precisions))
    assert result.mINP == pytest.approx(np.mean(penalties))


def test_worked_example() -> None:
    pids = two_cameras([1], [1, 2, 1, 3, 1])
    result = evaluate_ranking(np.array([[0.9, 0.8, 0.7, 0.6, 0.5]]), *pids)
    assert result.mAP == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert result.mINP == pytest.approx(3 / 5)
    np.testing.assert_array_equal(result.cmc, np.ones(5))
    assert result.metrics().keys() == {"mAP", "rank1", "rank5", "rank10", "mINP"}
    assert result.rank(10) == 1.0


def test_constant_embeddings_earn_the_worst_rank() -> None:
    result = evaluate_ranking(np.ones((1, 10)), *two_cameras([1], [1] + [2] * 9))
    assert result.first_match_rank.tolist() == [10]
    assert result.mAP == pytest.approx(0.1)


def test_negative_similarities_count_as_any_other() -> None:
    scores = np.random.default_rng(0).random((4, 20))
    pids = two_cameras([0, 1, 2, 3], [0, 1, 2, 3] * 5)
    assert evaluate_ranking(scores - 5, *pids).mAP == evaluate_ranking(scores, *pids).mAP


def test_junk_neither_helps_nor_stands_in_the_way() -> None:
    q_pids, g_pids = np.array([1]), np.array([1, 1, 2])
    q_cams, g_cams = np.array([0]), np.array([0, 1, 0])
    result = evaluate_ranking(np.array([[0.9, 0.8, 0.1]]), q_pids, g_pids, q_cams, g_cams)
    assert result.mAP == 1.0 and result.first_match_rank.tolist() == [1]


def test_queries_without_a_positive_are_skipped_and_counted() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    result = evaluate_ranking(scores, *two_cameras([7, 1, 8], [1, 2]))
    assert (result.num_valid_queries, result.num_skipped_queries) == (1, 2)
    assert result.mAP == 1.0
    assert result.first_match_rank.tolist() == [0, 1, 0]


@pytest.mark.parametrize("queries", [[], [7], [7, 8]])
def test_no_valid_query_is_an_error_of_the_data(queries: list[int]) -> None:
    q = np.array(queries, np.int64)
    scores = np.ones((len(q), 2))
    with pytest.raises(DataError, match="gallery"):
        evaluate_ranking(scores, q, np.array([1, 2]), np.zeros_like(q), np.ones(2, np.int64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["numpy", "tensor", "bfloat16"])
@pytest.mark.parametrize("block", [1, 10**6])
def test_scores_that_are_not_finite_are_refused(
    bad: float, kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "BLOCK_VALUES", block)
    scores = torch.rand(3, 4)
    scores[1, 2] = bad
    given_scores = scores.numpy() if kind == "numpy" else scores
    if kind == "bfloat16":
        given_scores = scores.bfloat16()
    with pytest.raises(ValueError, match="query 1, gallery item 2"):
        evaluate_ranking(given_scores, *two_cameras([1, 2, 1], [1, 2, 1, 2]))


def test_all_nan_does_not_give_a_plausible_score() -> None:
    with pytest.raises(ValueError, match="nan"):
        evaluate_ranking(np.full((2, 4), np.nan), *two_cameras([1, 2], [1, 2, 1, 2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_floating_types_are_ranked_exactly(dtype: torch.dtype) -> None:
    scores = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    pids = two_cameras(list(range(5)), list(range(5)) * 6)
    result = evaluate_ranking(scores.requires_grad_(), *pids)
    assert result.mAP == pytest.approx(np.mean(brute_force(scores.tolist(), *pids)[0]))


@pytest.mark.parametrize("size", [1, 49, 50, 51])
def test_cmc_ends_at_fifty_or_the_gallery(size: int) -> None:
    scores = np.random.default_rng(0).random((1, size))
    result = evaluate_ranking(scores, *two_cameras([1], [1] * size))
    assert len(result.cmc) == min(50, size)
    assert (np.diff(result.cmc) >= 0).all()


def test_lengths_that_do_not_fit_are_named() -> None:
    q_pids, g_pids, q_cams, g_cams = two_cameras([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="gallery_camids"):
        evaluate_ranking(np.ones((2, 3)), q_pids, g_pids, q_cams, g_cams[:2])
