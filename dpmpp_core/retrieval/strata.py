"""Confidence intervals of figures, and figures by share hidden and by pair of cameras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.retrieval.bootstrap import bootstrap_bounds
from dpmpp_core.retrieval.evaluation import Embeddings, Mode
from dpmpp_core.retrieval.masks import expand_masks
from dpmpp_core.retrieval.ranking import Pairs, RankingResult
from dpmpp_core.retrieval.similarity import masked_similarity

Floats = NDArray[np.float64]
Bounds = dict[str, float | None]
STEP = 10  # percent of the person, or of the picture, in a bucket
BLOCK_SCORES = 16_000_000  # in memory at a time: 64 MB


def compute_intervals(
    ranked: Mapping[Mode, RankingResult], pids: NDArray[np.int64]
) -> dict[str, dict[str, Bounds]]:
    """Compute mAP and rank-1 with their 95 % intervals over identities, as `bootstrap_bounds`.

    From the results of `rank_by_mode` of queries with identities int64 [Q]: {"masked": {"mAP":
    {"mean", "low", "high"}, "rank1": {...}}, "unmasked": {...}, "gain": {...}}; gain is masked less
    unmasked, query by query. The last two are left out where `ranked` has no unmasked.
    """
    masked = _by_query(ranked["masked"])
    values = {"masked": masked}
    if "unmasked" in ranked:
        unmasked = _by_query(ranked["unmasked"])
        values["unmasked"] = unmasked
        values["gain"] = {figure: masked[figure] - unmasked[figure] for figure in masked}
    return {
        name: {figure: bootstrap_bounds(x, pids) for figure, x in by_figure.items()}
        for name, by_figure in values.items()
    }


def is_first_correct(result: RankingResult) -> Floats:
    """Return 1 where the first item is of the query's person, else 0; NaN without a positive."""
    first = result.first_match_rank
    return np.where(first > 0, first == 1, np.nan).astype(np.float64)


def evaluate_by_occlusion(
    result: RankingResult, ratios: Floats, pids: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Compute figures of the queries by occlusion ratio.

    {"10-20": {"queries", "mAP": {"mean", "low", "high"}, "rank1": {...}}}, percent, the lower edge
    included; buckets without a query are left out, and so are queries without a positive.

    Args:
        result: the ranking of the queries.
        ratios: [Q], in [0, 1]; NaN where it is not known.
        pids: int64 [Q].
    """
    figures = _by_query(result)
    known = ~np.isnan(ratios) & ~np.isnan(figures["mAP"])
    # A ratio written as 0.3 may be read as 0.29999.
    bucket = np.floor(100 * ratios[known] / STEP + 1e-6).astype(np.int64)
    bucket = np.minimum(bucket, 100 // STEP - 1)
    table = {}
    for number in np.unique(bucket):
        rows = np.flatnonzero(known)[bucket == number]
        intervals = {name: bootstrap_bounds(x[rows], pids[rows]) for name, x in figures.items()}
        bounds = f"{STEP * number}-{STEP * (number + 1)}"
        table[bounds] = {"queries": len(rows), **intervals}
    return table


def evaluate_by_camera_pair(query: Embeddings, gallery: Embeddings) -> list[dict[str, Any]]:
    """Compute figures with the queries' masks by camera of the query and of its positives.

    A row for each pair of which a query has a positive: {"query_camera", "gallery_camera",
    "queries", "mAP", "rank1"}. The person's pictures of other cameras take no part, those of other
    persons all do, so that pairs can be compared (ours). Ties as in `evaluate_ranking`. Scores are
    computed in blocks of queries.

    Raises:
        ValueError: as `masked_similarity`.
    """
    ids = query.pids, gallery.pids, query.camids, gallery.camids
    pairs = Pairs.of(*ids)
    results: dict[tuple[int, int], list[tuple[float, bool]]] = {}
    step = max(1, BLOCK_SCORES // max(1, len(gallery)))
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        features = {space: x[rows] for space, x in query.features.items()}
        masks = expand_masks({s: m[rows] for s, m in query.masks.items()}, query.features)
        scores = masked_similarity(features, masks, gallery.features).numpy()
        here = pairs.of_queries(start, start + len(scores))
        ends = np.searchsorted(here.rows, np.arange(len(scores) + 1))
        for row, camid in enumerate(query.camids[rows].tolist()):
            part = slice(ends[row], ends[row + 1])
            items, positive = here.items[part], here.positive[part]
            for other, ranks in _ranks(scores[row], items, positive, gallery.camids).items():
                precision = float(np.mean(np.arange(1, len(ranks) + 1) / ranks))
                results.setdefault((camid, other), []).append((precision, ranks[0] == 1))
    return [
        {
            "query_camera": camid,
            "gallery_camera": other,
            "queries": len(values),
            "mAP": float(np.mean([precision for precision, _ in values])),
            "rank1": float(np.mean([first for _, first in values])),
        }
        for (camid, other), values in sorted(results.items())
    ]


def _ranks(
    row: NDArray[np.float32],
    same: NDArray[np.int64],
    positive: NDArray[np.bool_],
    camids: NDArray[np.int64],
) -> dict[int, NDArray[np.int64]]:
    """Return camera -> ascending ranks of its positives among these and all other persons.

    `row` [G] has the scores of one query, `same` the gallery's pictures of the query's person,
    `positive` which of them are no junk.
    """
    if not positive.any():
        return {}
    of_same, cameras = row[same], camids[same]
    reached = np.sort(row[row >= of_same[positive].min()])
    sorted_same = np.sort(of_same)
    ranks = {}
    for camera in np.unique(cameras[positive]).tolist():
        scores = np.sort(of_same[positive & (cameras == camera)])[::-1]
        others = len(reached) - np.searchsorted(reached, scores)
        others -= len(sorted_same) - np.searchsorted(sorted_same, scores)
        ranks[camera] = others + np.arange(1, len(scores) + 1)
    return ranks


def _by_query(result: RankingResult) -> dict[str, Floats]:
    return {"mAP": result.average_precision, "rank1": is_first_correct(result)}
