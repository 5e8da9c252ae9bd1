"""The ranking engine against brute force: top-k and figures, any blocks, any storage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from dpmpp_core.errors import DataError
from dpmpp_core.retrieval import (
    Gallery,
    Graph,
    Shortlist,
    compact,
    evaluate_ranking,
    group,
    masked_similarity,
    masked_topk,
    rank_features,
)

CASES = 1500


def brute_scores(query: np.ndarray, mask: np.ndarray | None, gallery: np.ndarray) -> np.ndarray:
    """psi of each pair as written, in float64, to a multiple of 2^-24; 0 where nothing is left."""
    q, g = query.astype(np.float64), gallery.astype(np.float64)
    m = np.ones_like(q) if mask is None else mask.astype(np.float64)
    scores = np.zeros((len(q), len(g)))
    for i in range(len(q)):
        seen = g * m[i]
        length = np.linalg.norm(seen, axis=1)
        scores[i] = seen @ q[i] / np.linalg.norm(q[i]) / np.where(length > 0, length, 1)
    return (np.round(scores * 2**24) / 2**24).astype(np.float32)


def brute_topk(scores: np.ndarray, k: int, allowed: np.ndarray) -> list[list[int]]:
    lists = [
        sorted((j for j in range(len(s)) if ok[j]), key=lambda j: (-s[j], j))[:k]
        for s, ok in zip(scores, allowed, strict=True)
    ]
    return [x + [-1] * (k - len(x)) for x in lists]


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """A small case: few levels, so that ties, duplicates and masked-out items are common."""
    rng = np.random.default_rng(seed)
    q, g, d = rng.integers(1, 5), rng.integers(1, 24), rng.integers(1, 9)
    if seed % 3 == 0:
        query, gallery = rng.standard_normal((q, d)), rng.standard_normal((g, d))
    else:
        query, gallery = rng.integers(-2, 3, (q, d)), rng.integers(-2, 3, (g, d))
        query[~query.any(1)], gallery[~gallery.any(1)] = 1, 1
    gallery = gallery[rng.integers(0, g, g)]  # duplicates
    mask = rng.integers(0, 3, (q, d)).astype(np.float32)
    mask[~mask.any(1)] = 1
    return query.astype(np.float32), None if seed % 5 == 0 else mask, gallery.astype(np.float32)


def stored(gallery: np.ndarray, mask: np.ndarray | None, seed: int) -> Gallery:
    kind = ("float32", "bfloat16", "int8", "float16")[seed % 4]
    usual = None if mask is None or seed % 8 < 4 else mask.mean(0)
    codes = gallery if kind == "float32" else compact(gallery, kind)
    return Gallery({"": codes} if kind == "float32" else codes,
                   None if kind == "float32" else gallery, usual)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of small cases; those that say so use two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_topk_equals_brute_force_in_any_blocks_and_storage() -> None:
    for seed in range(CASES):
        torch.set_num_threads(1 + (seed % 50 == 0))
        query, mask, gallery = drawn(seed)
        rng = np.random.default_rng(seed)
        k, step = int(rng.integers(1, 12)), int(rng.integers(1, 30))
        allowed = np.broadcast_to(rng.random(len(gallery)) < 0.8, (len(query), len(gallery)))
        scores = brute_scores(query, mask, gallery)
        given = allowed[0] if seed % 2 else (lambda r, c: allowed[r, c])  # noqa: B023
        found, indices = masked_topk(query, mask, stored(gallery, mask, seed), k, given, step)
        assert indices.tolist() == brute_topk(scores, k, allowed), seed
        listed = indices.numpy()
        expected = np.where(listed < 0, np.nan, np.take_along_axis(scores, listed.clip(0), 1))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_figures_equal_those_of_the_brute_scores_in_any_blocks_and_storage() -> None:
    compared = 0
    for seed in range(CASES):
        torch.set_num_threads(1 + (seed % 50 == 0))
        query, mask, gallery = drawn(seed)
        rng = np.random.default_rng(seed)
        ids = [rng.integers(0, n, len(x)) for n in (3, 2) for x in (query, gallery)]
        try:
            expected = evaluate_ranking(brute_scores(query, mask, gallery), *ids)
        except DataError:
            with pytest.raises(DataError, match="none of the"):
                rank_features(query, mask, gallery, *ids)
            continue
        compared += 1
        step = int(rng.integers(1, 30))
        found = rank_features(query, mask, stored(gallery, mask, seed), *ids, block_items=step)
        np.testing.assert_array_equal(found.first_match_rank, expected.first_match_rank)
        np.testing.assert_array_equal(found.average_precision, expected.average_precision)
        np.testing.assert_array_equal(found.cmc, expected.cmc)
        assert found.metrics() == expected.metrics()
    assert compared > CASES / 2


def arrays(seed: int, q: int = 7, g: int = 300, d: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(q, d, generator=rng),
        torch.rand(q, d, generator=rng),
        torch.randn(g, d, generator=rng),
    )


def test_scores_are_those_of_masked_similarity_and_spaces_are_averaged() -> None:
    spaces = [dict(zip(("v", "v_p"), x, strict=True))
              for x in zip(arrays(0), arrays(1, d=33), strict=True)]  # fmt: skip
    scores, indices = masked_topk(*spaces, k=300)
    expected = masked_similarity(*spaces)
    torch.testing.assert_close(scores, expected.gather(1, indices), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores, expected.sort(descending=True).values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_scale_of_any_argument_does_not_count(scale: float) -> None:
    query, mask, gallery = arrays(2)
    scores, indices = masked_topk(query, mask, gallery, 20)
    for scaled in ((query * scale, mask, gallery), (query, mask * scale, gallery),
                   (query, mask, gallery * scale)):  # fmt: skip
        found, order = masked_topk(*scaled, 20)
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-6)
        assert torch.equal(order, indices)


def test_bad_rows_and_arguments_are_refused_by_name() -> None:
    query, mask, gallery = arrays(3)
    for position, name in ((0, "query"), (1, "query_mask"), (2, "gallery")):
        for value, why in ((torch.nan, "NaN"), (torch.inf, "NaN"), (0.0, "zero")):
            broken = [query.clone(), mask.clone(), gallery.clone()]
            broken[position][3] = value
            with pytest.raises(ValueError, match=rf"^{name}: row 3 .*{why}"):
                masked_topk(*broken, 5)
    with pytest.raises(ValueError, match="64 dimensions but gallery has 63"):
        masked_topk(query, mask, gallery[:, 1:], 5)
    with pytest.raises(ValueError, match=r"query_mask has shape \(6, 64\)"):
        masked_topk(query, mask[1:], gallery, 5)
    with pytest.raises(ValueError, match="k is 0"):
        masked_topk(query, mask, gallery, 0)
    with pytest.raises(ValueError, match="gallery_camids"):
        ids = np.zeros(7, int), np.zeros(300, int), np.zeros(7, int), np.zeros(9, int)
        rank_features(query, mask, gallery, *ids)


def test_a_shortlist_of_all_lists_finds_what_the_whole_search_finds() -> None:
    for seed in range(4):
        query, mask, gallery = arrays(seed)
        order, sizes = group({"v": gallery, "w": gallery[:, :20]}, lists=9, seed=seed)
        assert sorted(order.tolist()) == list(range(300)) and sizes.sum() == 300
        torch.set_num_threads(1 + seed % 2)
        found, indices = Shortlist(gallery[order], sizes).topk(query, mask, 12, probes=99)
        expected, best = masked_topk(query, mask, gallery, 12)
        assert torch.equal(found, expected) and torch.equal(order[indices], best)


def test_a_shortlist_of_few_lists_finds_what_lies_in_clusters() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 64, generator=rng)
    pids = torch.arange(2000) % 40
    gallery = centres[pids] + 0.5 * torch.randn(2000, 64, generator=rng)
    query = centres + 0.5 * torch.randn(40, 64, generator=rng)
    mask = torch.rand(40, 64, generator=rng)
    order, sizes = group(gallery, lists=40)
    _, found = Shortlist(gallery[order], sizes).topk(query, mask, 10, probes=6)
    _, best = masked_topk(query, mask, gallery, 10)
    hits = (order[found][:, :, None] == best[:, None]).any(2)
    assert hits.float().mean() > 0.95


def test_a_shortlist_finds_by_bands_that_a_mask_hides_and_only_what_is_allowed() -> None:
    """In two spaces, under masks that leave a quarter: sketches know lengths band by band."""
    rng = torch.Generator().manual_seed(1)
    pids = torch.arange(3000) % 60
    spaces = {
        space: torch.randn(60, d, generator=rng)[pids] + 0.7 * torch.randn(3000, d, generator=rng)
        for space, d in (("v", 320), ("w", 75))
    }
    query = {space: x[:40] + 0.3 * torch.randn(x[:40].shape, generator=rng)
             for space, x in spaces.items()}  # fmt: skip
    seen = torch.nn.functional.one_hot(torch.arange(40) % 4, 4) + 0.01
    mask = {"v": seen.repeat_interleave(80, 1), "w": torch.rand(40, 75, generator=rng)}
    order, sizes = group(spaces, lists=30)
    gallery = {space: x[order] for space, x in spaces.items()}
    allowed = torch.rand(3000, generator=rng) < 0.5
    lists = Shortlist(gallery, sizes)
    found, indices = lists.topk(query, mask, 10, probes=99, candidates=60, allowed=allowed)
    expected, best = masked_topk(query, mask, gallery, 10, allowed)
    hits = (indices[:, :, None] == best[:, None]).any(2)
    assert hits.float().mean() > 0.98
    assert allowed[indices].all()
    same = indices == best
    assert torch.equal(found[same], expected[same])
    nothing = lists.topk(query, mask, 10, probes=99, allowed=torch.zeros(3000, dtype=torch.bool))
    assert nothing[0].isnan().all() and (nothing[1] == -1).all()


def test_a_graph_finds_what_the_whole_search_finds() -> None:
    pytest.importorskip("faiss", reason="no faiss: pip install 'dpmpp[graph]'")
    rng = torch.Generator().manual_seed(2)
    pids = torch.arange(2000) % 50
    gallery = {
        space: torch.randn(50, d, generator=rng)[pids] + 0.6 * torch.randn(2000, d, generator=rng)
        for space, d in (("v", 64), ("w", 40))
    }
    query = {space: x[:30] + 0.3 * torch.randn(x[:30].shape, generator=rng)
             for space, x in gallery.items()}  # fmt: skip
    mask = {space: torch.rand(x.shape, generator=rng) for space, x in query.items()}
    graph = Graph(gallery)
    for masks in (mask, None):
        found, indices = graph.topk(query, masks, 10, breadth=400, candidates=200)
        expected, best = masked_topk(query, masks, gallery, 10)
        assert (indices[:, :, None] == best[:, None]).any(2).float().mean() > 0.97
        same = indices == best
        assert torch.equal(found[same], expected[same])


def two_cameras(q_pids: list[int], g_pids: list[int]) -> list[np.ndarray]:
    q, g = np.array(q_pids), np.array(g_pids)
    return [q, g, np.zeros_like(q), np.ones_like(g)]


def test_constant_features_earn_the_worst_rank_in_any_order() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((1, 9), np.float32)
    for _ in range(20):
        ids = two_cameras([1], rng.permutation([1] + [2] * 9).tolist())
        found = rank_features(np.ones((1, 9)), mask, np.full((10, 9), 0.3), *ids, block_items=4)
        assert found.first_match_rank.tolist() == [10]


def test_equal_scores_are_listed_by_index() -> None:
    query, mask, gallery = arrays(4, q=2, g=3)
    copies = gallery.repeat(40, 1)
    for step in (1, 7, 64, 4096):
        _, indices = masked_topk(query, mask, copies, 80, block_items=step)
        for row in indices.tolist():
            assert row == [i for j in row[::40] for i in range(j, 120, 3)][:80]


def test_no_query_identity_in_the_gallery_is_an_error() -> None:
    query, mask, gallery = arrays(5, q=2, g=4)
    with pytest.raises(DataError, match="none of the 2 queries"):
        rank_features(query, mask, gallery, *two_cameras([1, 2], [3, 4, 5, 6]))


def test_features_that_all_point_away_are_ranked_too() -> None:
    query, mask, gallery = arrays(6, q=4, g=40)
    away = -gallery.abs()
    ids = two_cameras([0, 1, 2, 3], [0, 1, 2, 3] * 10)
    scores = masked_similarity(query.abs(), mask, away)
    assert (scores < 0).all()
    found = rank_features(query.abs(), mask, away, *ids)
    assert found.metrics() == evaluate_ranking(scores, *ids).metrics()
