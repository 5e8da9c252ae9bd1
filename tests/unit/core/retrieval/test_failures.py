"""The worst queries: their order, their items and their ranks."""

from __future__ import annotations

import numpy as np
import pytest

from dpmpp_core.retrieval import (
    Controls,
    Embeddings,
    QueryFigures,
    find_worst_queries,
    masked_similarity,
    rank_by_mode,
)


def embeddings(seed: int, pids: list[int], camid: int, noise: float) -> Embeddings:
    rng = np.random.default_rng(seed)
    features = np.eye(8, dtype=np.float32)[pids] + noise * rng.random((len(pids), 8))
    masks = rng.uniform(0.2, 1, (len(pids), 8)).astype(np.float32)
    paths = [f"{camid}/{i}.jpg" for i in range(len(pids))]
    return Embeddings(
        {"v": features.astype(np.float32)}, {"v": masks}, np.array(pids),
        np.full(len(pids), camid), paths,
    )  # fmt: skip


def measure(query: Embeddings, gallery: Embeddings) -> QueryFigures:
    return QueryFigures.of(query, rank_by_mode(query, gallery, 0, ("masked",))["masked"])


@pytest.mark.parametrize("seed", range(3))
def test_they_are_the_last_ranks_one_per_person(seed: int) -> None:
    query = embeddings(seed, [0, 0, 1, 1, 2, 3, 4, 5], 0, noise=3.0)
    gallery = embeddings(seed + 10, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1], 1, noise=3.0)
    figures = measure(query, gallery)
    worst = find_worst_queries(query, gallery, figures, 3)
    scores = masked_similarity(query.features, query.masks, gallery.features).numpy()
    last = {int(p): figures.first_match_rank[query.pids == p].max() for p in query.pids}
    expected = sorted((rank for rank in last.values() if rank > 1), reverse=True)[:3]
    assert [failure.rank for failure in worst] == expected
    persons = query.pids[[failure.query for failure in worst]].tolist()
    assert len(set(persons)) == len(persons)
    for failure, pid in zip(worst, persons, strict=True):
        row = scores[failure.query]
        assert gallery.pids[failure.right] == pid != gallery.pids[failure.wrong]
        assert row[failure.right] == row[gallery.pids == pid].max()
        assert failure.rank == 1 + (row[gallery.pids != pid] >= row[failure.right]).sum()
        assert row[failure.wrong] == row[gallery.pids != pid].max()
        assert failure.positives == (gallery.pids == pid).sum() and failure.candidates == 10


def test_ranks_without_masks_are_those_of_the_controls_where_attention_is_masked() -> None:
    query, gallery = embeddings(1, [0, 1], 0, 0.0), embeddings(2, [0, 1, 2], 1, 0.0)
    swapped = {"v": query.features["v"][::-1].copy()}  # with its mask, each finds the other
    occluded = np.zeros((2, 2, 2), np.float32)
    fields = {"masks": query.masks, "pids": query.pids, "camids": query.camids}
    hard = Embeddings(swapped, paths=query.paths, occluded=occluded, **fields)
    figures = measure(hard, gallery)
    assert [f.rank_unmasked for f in find_worst_queries(hard, gallery, figures, 9)] == [None, None]
    controls = Controls(query.features, [])
    known = Embeddings(swapped, paths=query.paths, occluded=occluded, controls=controls, **fields)
    worst = find_worst_queries(known, gallery, figures, 9)
    assert [(f.rank_unmasked, f.rank > 1) for f in worst] == [(1, True), (1, True)]


def test_junk_is_no_candidate_and_right_queries_are_no_failures() -> None:
    query, gallery = embeddings(1, [0, 1], 0, 0.0), embeddings(2, [0, 1, 2, 0], 1, 0.0)
    assert find_worst_queries(query, gallery, measure(query, gallery), 5) == []
    gallery.camids[3] = 0  # of person 0, by the camera of its query
    gallery.features["v"][0] = gallery.features["v"][2]
    (failure,) = find_worst_queries(query, gallery, measure(query, gallery), 5)
    assert (failure.query, failure.right, failure.positives, failure.candidates) == (0, 0, 1, 3)


def test_figures_of_other_queries_are_refused() -> None:
    query, gallery = embeddings(1, [0, 1], 0, 0.0), embeddings(2, [0, 1, 2], 1, 0.0)
    other = embeddings(1, [0], 0, 0.0)
    with pytest.raises(ValueError, match="other queries"):
        find_worst_queries(query, gallery, measure(other, gallery), 5)
