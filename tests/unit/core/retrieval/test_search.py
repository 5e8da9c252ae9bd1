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
    compact,
    evaluate_ranking,
    masked_similarity,
    masked_topk,
    rank_features,
)
from dpmpp_core.retrieval.sketches import Sketches, pick

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


@pytest.mark.parametrize("mask", [None, 1.0])
def test_codes_of_signs_whose_rounding_errors_agree_are_ranked_exactly(mask: float | None) -> None:
    rng = np.random.default_rng(0)
    query = rng.choice([-1.0, 1.0], (50, 768)).astype(np.float32)
    flipped = np.where(rng.random((3000, 768)) < 0.1, -1, 1)
    gallery = (query[rng.integers(0, 50, 3000)] * flipped).astype(np.float32)
    masks = None if mask is None else np.full_like(query, mask)
    expected = brute_topk(brute_scores(query, masks, gallery), 1, np.ones((50, 3000), bool))
    for step in (7, 64, 1000, 4096):
        assert masked_topk(query, masks, gallery, 1, block_items=step)[1].tolist() == expected


def test_tiny_features_under_a_mask_with_a_tiny_floor_are_ranked_exactly() -> None:
    rng = np.random.default_rng(0)
    query = rng.standard_normal((20, 64)).astype(np.float32)
    gallery = (1e-6 / 8 * rng.standard_normal((2000, 64))).astype(np.float32)
    gallery[:, 0] = 0  # what is left of an item is under the floor of the mask
    mask = np.full_like(query, 1e-9)
    mask[:, 0] = 1
    expected = brute_topk(brute_scores(query, mask, gallery), 5, np.ones((20, 2000), bool))
    for step in (7, 1000, 4096):
        assert masked_topk(query, mask, gallery, 5, block_items=step)[1].tolist() == expected


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


def test_masks_of_bands_are_ranked_exactly() -> None:
    """More queries than are read in pieces, so that lengths are sums over bands."""
    query, mask, gallery = (x.numpy() for x in arrays(3, q=12))
    mask = np.repeat(mask[:, :4], 16, axis=1)
    scores = brute_scores(query, mask, gallery)
    rng = np.random.default_rng(4)
    ids = [rng.integers(0, 3, n) for n in (12, 300, 12, 300)]
    found = rank_features(query, mask, gallery, *ids, block_items=128)
    expected = evaluate_ranking(scores, *ids)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    _, items = masked_topk(query, mask, gallery, 5, block_items=128)
    assert items.tolist() == brute_topk(scores, 5, np.ones(scores.shape, bool))


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


def people(size: int, persons: int, seed: int) -> dict[str, Tensor]:
    """Features of two spaces that lie around the centres of so many persons."""
    rng = torch.Generator().manual_seed(seed)
    pids = torch.arange(size) % persons
    return {
        space: torch.randn(persons, d, generator=rng)[pids]
        + 0.6 * torch.randn(size, d, generator=rng)
        for space, d in (("v", 320), ("w", 75))
    }


@pytest.mark.parametrize("masks", ["none", "bands", "soft"])
def test_candidates_by_sketches_hold_nearly_all_of_the_best(masks: str) -> None:
    """Of two spaces, in parts, also under masks that leave a quarter of a person."""
    gallery, rng = people(6000, 60, seed=1), torch.Generator().manual_seed(2)
    query = {s: x[:40] + 0.3 * torch.randn(x[:40].shape, generator=rng) for s, x in gallery.items()}
    seen = torch.nn.functional.one_hot(torch.arange(40) % 4, 4) + 0.01
    mask = {
        "none": None,
        "bands": {"v": seen.repeat_interleave(80, 1), "w": torch.ones(40, 75)},
        "soft": {s: torch.rand(x.shape, generator=rng) for s, x in query.items()},
    }[masks]
    whole = Gallery(gallery)
    allowed = torch.rand(6000, generator=rng).numpy() < 0.5
    _, best = masked_topk(query, mask, whole, 10, allowed)
    parts = [{s: x[i : i + 1700] for s, x in gallery.items()} for i in range(0, 6000, 1700)]
    sketches = Sketches.create(parts)
    assert sketches.codes.shape == (6000, 256) and sketches.codes.dtype == torch.bfloat16
    found = list(sketches.candidates(whole.query(query, mask), 10, allowed))
    assert [len(items) for items in found] == [400] * 40
    assert all(allowed[items].all() and (np.diff(items) > 0).all() for items in found)
    hits = [np.isin(own, items).mean() for own, items in zip(best.numpy(), found, strict=True)]
    assert np.mean(hits) > 0.98
    picked = pick(parts, found[0])
    assert all(torch.equal(picked[s], x[found[0]]) for s, x in gallery.items())


def test_few_items_that_may_be_found_are_all_candidates() -> None:
    gallery = people(900, 30, seed=3)
    sketches, whole = Sketches.create([gallery]), Gallery(gallery)
    query = whole.query({s: x[:2] for s, x in gallery.items()}, None)
    for shown in (0, 1, 400):
        items = np.arange(899, 899 - shown, -1)[::-1]
        found = sketches.candidates(query, 5, np.isin(np.arange(900), items))
        assert [own.tolist() for own in found] == [items.tolist()] * 2
    many = sketches.candidates(query, 700, np.ones(900, bool))
    assert [len(own) for own in many] == [700, 700]


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
