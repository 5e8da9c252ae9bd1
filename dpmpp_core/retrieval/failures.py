"""The queries whose person comes last, and what was ranked above."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpmpp_core.retrieval.evaluation import Embeddings
from dpmpp_core.retrieval.feature_ranks import rank_features
from dpmpp_core.retrieval.masks import expand_masks
from dpmpp_core.retrieval.queries import QueryFigures
from dpmpp_core.retrieval.ranking import Pairs
from dpmpp_core.retrieval.similarity import masked_similarity


@dataclass(frozen=True)
class Failure:
    """A query whose first item is another person.

    Attributes:
        query: row of the query.
        wrong: gallery row of the best item of another person.
        right: gallery row of the person's best item.
        rank: of that item with the query's mask, from 1.
        rank_unmasked: without masks; None where that was not measured.
        candidates: items of the ranking, junk left out.
        positives: items of the person among them.
    """

    query: int
    wrong: int
    right: int
    rank: int
    rank_unmasked: int | None
    candidates: int
    positives: int


def find_worst_queries(
    query: Embeddings, gallery: Embeddings, figures: QueryFigures, count: int
) -> list[Failure]:
    """Return the worst queries, at most one per person, worst first (ours).

    The worst has its first right item at the last rank; equal ranks go by average precision, then
    by their order. Queries with a right item first, or without any, are no failures.

    Args:
        query: the embedded queries.
        gallery: the embedded gallery.
        figures: of these queries in the same order, ranked with their masks.
        count: at most so many.

    Raises:
        ValueError: the figures are of other queries.
    """
    if tuple(query.paths) != figures.paths:
        raise ValueError("the figures are of other queries than the embeddings")
    ranks, precision = figures.first_match_rank, figures.average_precision
    rows: list[int] = []
    for row in np.lexsort((precision, -ranks)).tolist():
        if len(rows) < count and ranks[row] > 1 and query.pids[row] not in query.pids[rows]:
            rows.append(row)
    if not rows:
        return []
    without = _rank_unmasked(query, gallery, rows)
    features = {space: x[rows] for space, x in query.features.items()}
    masks = expand_masks({space: m[rows] for space, m in query.masks.items()}, query.features)
    scores = masked_similarity(features, masks, gallery.features).numpy()
    pairs = Pairs.of(query.pids[rows], gallery.pids, query.camids[rows], gallery.camids)
    failures = []
    for i, row in enumerate(rows):
        of_person = pairs.rows == i
        right = pairs.items[of_person & pairs.positive]
        others = scores[i].copy()
        others[pairs.items[of_person]] = -np.inf
        failures.append(
            Failure(
                query=row,
                wrong=int(others.argmax()),
                right=int(right[scores[i, right].argmax()]),
                rank=int(ranks[row]),
                rank_unmasked=without[i],
                candidates=int(len(gallery) - of_person.sum() + len(right)),
                positives=len(right),
            )
        )
    return failures


def _rank_unmasked(query: Embeddings, gallery: Embeddings, rows: list[int]) -> list[int | None]:
    """Return the ranks of the best right items without masks, None where they are not known."""
    if query.occluded is not None and query.controls is None:
        return [None] * len(rows)
    plain = query.controls.unmasked if query.controls else query.features
    ranked = rank_features(
        {space: x[rows] for space, x in plain.items()}, None, gallery.features,
        query.pids[rows], gallery.pids, query.camids[rows], gallery.camids,
    )  # fmt: skip
    return [int(rank) for rank in ranked.first_match_rank]
