"""Re-ranking against a plain transcription of the published algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpmpp_core.retrieval import masked_similarity, masked_topk, reranking
from dpmpp_core.retrieval.reranking import rerank


def transcribed(d: np.ndarray, queries: int, k1: int, k2: int, weight: float) -> np.ndarray:
    """Zhong et al. (CVPR 2017), item by item, dense, from all distances d: [Q, G]."""
    e = d**2 / (d**2).max(axis=1, keepdims=True)
    rank = np.argsort(d, axis=1, kind="stable")

    def mutual(i: int, k: int) -> list[int]:
        return [j for j in rank[i, : k + 1] if i in rank[j, : k + 1]]

    v = np.zeros_like(e)
    for i in range(len(d)):
        own = mutual(i, k1)
        expanded = set(own)
        for j in own:
            theirs = mutual(j, round(k1 / 2))
            if len(set(theirs) & set(own)) > 2 / 3 * len(theirs):
                expanded |= set(theirs)
        chosen = sorted(expanded)
        v[i, chosen] = np.exp(-e[i, chosen]) / np.exp(-e[i, chosen]).sum()
    if k2 > 1:
        v = np.stack([v[rank[i, :k2]].mean(axis=0) for i in range(len(d))])
    common = np.minimum(v[:queries, None], v[None]).sum(2)
    jaccard = 1 - common / (2 - common)
    return ((1 - weight) * jaccard + weight * e[:queries])[:, queries:]


def clustered(seed: int, queries: int, items: int, width: int = 24) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, width, generator=rng)
    return [
        f(n, width)
        for n in (queries, items)
        for f in (
            lambda n, d: (
                centres[torch.randint(0, 8, (n,), generator=rng)] + torch.randn(n, d, generator=rng)
            ),
            lambda n, d: torch.rand(n, d, generator=rng) + 0.01,
        )
    ]


def distances(query, mask, gallery, gallery_mask) -> np.ndarray:  # type: ignore[no-untyped-def]
    x, m = torch.cat([query, gallery]).double(), torch.cat([mask, gallery_mask]).double()
    s = masked_similarity(x, m, x).numpy()
    d = 1 - (s + s.T) / 2
    np.fill_diagonal(d, 0)
    return d


@pytest.mark.parametrize("k1, k2, weight", [(20, 6, 0.3), (6, 3, 0.0), (3, 1, 1.0), (5, 8, 0.5)])
@pytest.mark.parametrize("block", [7, 2048])
def test_rerank_equals_the_transcription(
    k1: int, k2: int, weight: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranking, "BLOCK", block)
    monkeypatch.setattr(reranking, "BLOCK_ROWS", block)
    for seed in range(3):
        arrays = clustered(seed, 9, 60)
        expected = transcribed(distances(*arrays), 9, k1, k2, weight)
        found, indices = rerank(*arrays, k1, k2, weight, top=60)
        assert np.array_equal(np.sort(indices, 1), np.tile(np.arange(60), (9, 1)))
        np.testing.assert_allclose(found, np.take_along_axis(expected, indices, 1), atol=1e-5)
        assert (np.diff(found, axis=1) >= 0).all()


def test_only_the_top_is_ordered_anew() -> None:
    query, mask, gallery, gallery_mask = clustered(4, 5, 50)
    expected = transcribed(distances(query, mask, gallery, gallery_mask), 5, 6, 3, 0.3)
    found, indices = rerank(query, mask, gallery, gallery_mask, 6, 3, top=10)
    by_distance = np.argsort(distances(query, mask, gallery, gallery_mask)[:5, 5:], axis=1)
    np.testing.assert_array_equal(np.sort(indices, 1), np.sort(by_distance[:, :10], 1))
    np.testing.assert_allclose(found, np.take_along_axis(expected, indices, 1), atol=1e-5)


def test_without_masks_and_with_all_of_the_weight_the_order_is_that_of_the_cosine() -> None:
    query, _, gallery, _ = clustered(5, 5, 50)
    _, indices = rerank(query, None, gallery, None, weight=1.0, top=20)
    np.testing.assert_array_equal(indices, masked_topk(query, None, gallery, 20)[1].numpy())


def test_shared_neighbours_lift_a_far_picture_of_the_same_person() -> None:
    """A chain of pictures leads from the query to one that a stranger stands nearer than."""
    angles = np.radians([0, 4, 8, 12, 16, -13, -17, -21, -25])
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    query, gallery = x[:1], x[1:]
    plain = masked_topk(query, None, gallery, 8)[1][0].tolist()
    better = rerank(query, None, gallery, None, k1=4, k2=2, weight=0.1)[1][0].tolist()
    assert plain.index(3) > plain.index(4) and better.index(3) < better.index(4)


def test_arguments_that_make_no_sense_are_refused() -> None:
    arrays = clustered(6, 3, 9)
    for change in ({"k1": 0}, {"k2": 0}, {"top": 0}, {"weight": 1.1}):
        with pytest.raises(ValueError, match="at least 1"):
            rerank(*arrays, **change)
    arrays[2][4] = torch.nan
    with pytest.raises(ValueError, match="gallery: row 4"):
        rerank(*arrays)


@pytest.mark.parametrize("equal", [30, 60])
def test_equal_items_at_the_end_of_the_gallery_have_finite_distances(equal: int) -> None:
    """More of them than k1; or all, queries too, where every distance is 0 in truth."""
    query, mask, gallery, gallery_mask = clustered(7, 9, 60)
    gallery[-equal:], gallery_mask[-equal:] = gallery[0], gallery_mask[0]
    if equal == len(gallery):
        query[:], mask[:] = gallery[0], gallery_mask[0]
    found, indices = rerank(query, mask, gallery, gallery_mask, 20, 6, top=60)
    items = reranking._Items(query, mask, gallery, gallery_mask)
    nearest = reranking._neighbours(items, 21, 60).items
    assert np.array_equal(nearest[:, 0], np.arange(69))  # each item itself, before its equals
    assert np.isfinite(found).all()
    assert np.array_equal(np.sort(indices, 1), np.tile(np.arange(60), (9, 1)))
