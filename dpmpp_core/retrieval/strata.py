"""How sure a figure is, and of which queries it is made: by share hidden, by pair of cameras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.retrieval.bootstrap import bounds
from dpmpp_core.retrieval.evaluation import BLOCK_SCORES, Embeddings, Mode
from dpmpp_core.retrieval.ranking import (
    RankingResult,
    matching_items,
    ranks_from_positions,
    ranks_of_positives,
)
from dpmpp_core.retrieval.similarity import masked_similarity

Floats = NDArray[np.float64]
Bounds = dict[str, float | None]
STEP = 10  # percent of the person, or of the picture, in a bucket


def intervals(
    ranked: Mapping[Mode, RankingResult], pids: NDArray[np.int64]
) -> dict[str, dict[str, Bounds]]:
    """mAP and rank-1 with their 95 % intervals over identities, as `bounds`.

    {"masked": {"mAP": {"mean", "low", "high"}, "rank1": {...}}, "unmasked": {...}, "gain": {...}},
    gain being masked less unmasked, query by query.

    Args:
        ranked: what `rankings` returned.
        pids: int64 [Q], identity of each query.
    """
    masked, unmasked = (_by_query(ranked[mode]) for mode in ("masked", "unmasked"))
    gain = {figure: masked[figure] - unmasked[figure] for figure in masked}
    values = {"masked": masked, "unmasked": unmasked, "gain": gain}
    return {
        name: {figure: bounds(own, pids) for figure, own in by_figure.items()}
        for name, by_figure in values.items()
    }


def right_first(result: RankingResult) -> Floats:
    """1 where the first item is of the query's person, else 0; NaN without a positive. [Q]"""
    first = result.first_match_rank
    return np.where(first > 0, first == 1, np.nan).astype(np.float64)


def by_hidden(
    result: RankingResult, hidden: Floats, pids: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Figures of the queries by what share of them is hidden.

    {"10-20": {"queries", "mAP": {"mean", "low", "high"}, "rank1": {...}}}, percent, the lower edge
    included; buckets without a query are left out, and so are queries without a positive.

    Args:
        hidden: [Q], in [0, 1]; NaN where it is not known.
        pids: int64 [Q].
    """
    figures = _by_query(result)
    known = ~np.isnan(hidden) & ~np.isnan(figures["mAP"])
    # What was written as 0.3 may be read as 0.29999.
    bucket = np.floor(100 * hidden[known] / STEP + 1e-6).astype(np.int64)
    bucket = np.minimum(bucket, 100 // STEP - 1)
    table = {}
    for number in np.unique(bucket):
        rows = np.flatnonzero(known)[bucket == number]
        own = {figure: bounds(values[rows], pids[rows]) for figure, values in figures.items()}
        name = f"{STEP * number}-{STEP * (number + 1)}"
        table[name] = {"queries": len(rows), **own}
    return table


def by_cameras(query: Embeddings, gallery: Embeddings) -> list[dict[str, Any]]:
    """Figures with the queries' masks by camera of the query and of what is to be found.

    A row for each pair of which a query has a positive: {"query_camera", "gallery_camera",
    "queries", "mAP", "rank1"}. The person's pictures of other cameras take no part, those of other
    persons all do, so that pairs can be compared (ours). Ties as in `evaluate_ranking`. Scores are
    made in blocks of queries.

    Raises:
        ValueError: as `masked_similarity`.
    """
    found: dict[tuple[int, int], list[tuple[float, bool]]] = {}
    step = max(1, BLOCK_SCORES // max(1, len(gallery)))
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        features = {space: x[rows] for space, x in query.features.items()}
        masks = {space: m[rows] for space, m in query.masks.items()}
        scores = masked_similarity(features, masks, gallery.features).numpy()
        ids = query.pids[rows], gallery.pids, query.camids[rows], gallery.camids
        matches = matching_items(*ids)
        for row, camid, (same, positive) in zip(scores, query.camids[rows], matches, strict=True):
            cameras = gallery.camids[same]
            for other in np.unique(cameras[positive]):
                ranks = ranks_of_positives(row, same, positive & (cameras == other))
                precision, _, first = ranks_from_positions(ranks)
                found.setdefault((int(camid), int(other)), []).append((precision, first == 1))
    return [
        {
            "query_camera": own,
            "gallery_camera": other,
            "queries": len(values),
            "mAP": float(np.mean([precision for precision, _ in values])),
            "rank1": float(np.mean([first for _, first in values])),
        }
        for (own, other), values in sorted(found.items())
    ]


def _by_query(result: RankingResult) -> dict[str, Floats]:
    return {"mAP": result.average_precision, "rank1": right_first(result)}
