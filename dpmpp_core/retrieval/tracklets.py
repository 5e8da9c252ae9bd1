"""Several pictures of one query person as one masked query (ours; DPM names it future work).

A frame's mask is the reliability of its dimensions:

    f_d = sum_i m_id f_id / sum_i m_id      m_d = max_i m_id      f_i of unit length

A dimension is reliable if any frame shows it, so the mask is the union of the frames' masks in the
sense of fuzzy sets. The probabilistic union, 1 - prod_i (1 - m_id), takes frames as independent.
Those of one camera are not: copies of a frame would raise its mask, and all masks approach 1 as
frames are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.errors import DataError
from dpmpp_core.retrieval.bootstrap import bootstrap_bounds
from dpmpp_core.retrieval.evaluation import Embeddings, Matrix
from dpmpp_core.retrieval.feature_ranks import rank_features
from dpmpp_core.retrieval.masks import expand_masks
from dpmpp_core.retrieval.ranking import Pairs, RankingResult, evaluate_ranking
from dpmpp_core.retrieval.similarity import masked_similarity
from dpmpp_core.retrieval.strata import BLOCK_SCORES, is_first_correct

Rows = NDArray[np.int64]
Spaces = Mapping[str, Matrix]
Fused = tuple[dict[str, Matrix], dict[str, Matrix]]
FUSION_METHODS = ("fused", "mean", "best", "late", "single")


def fuse(features: Spaces, masks: Spaces, rows: Rows) -> Fused:
    """Fuse tracklets to single queries; a tracklet of one picture is that picture.

    Args:
        features: metric space -> [N, D], any length but zero.
        masks: the same spaces -> [N, D], >= 0.
        rows: int64 [T, k], the k pictures of each tracklet.

    Returns:
        features and masks by space, float32 [T, D]; only directions of features count.
    """
    fused, union = {}, {}
    for space in features:
        mask = masks[space][rows].astype(np.float64)  # [T, k, D]
        total = mask.sum(axis=1, keepdims=True)
        # A dimension hidden in all frames keeps mask 0, so its value does not matter.
        weights = np.divide(mask, total, out=np.full_like(mask, 1 / rows.shape[1]), where=total > 0)
        fused[space] = (weights * _unit(features[space])[rows]).sum(axis=1).astype(np.float32)
        union[space] = mask.max(axis=1).astype(np.float32)
    return fused, union


def draw_tracklets(
    pids: NDArray[np.int64], camids: NDArray[np.int64], k: int, seed: int
) -> NDArray[np.int64]:
    """Draw k pictures of one person and camera at a time: int64 [T, k], rows of the query set.

    The pictures of a person and camera are shuffled, in the same order for any k, and cut into
    pieces of k; the rest takes no part. So two tracklets of 2 form one of 4, if there are as many.
    Raises ValueError if k is not positive.
    """
    if k < 1:
        raise ValueError(f"tracklets of {k} pictures: at least 1 is needed")
    pairs = np.stack([pids, camids], axis=1)
    _, group = np.unique(pairs, axis=0, return_inverse=True)
    order = np.random.default_rng(np.random.SeedSequence((seed, len(pids)))).permutation(len(pids))
    order = order[np.argsort(group.reshape(-1)[order], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(group.reshape(-1)[order])) + 1)
    pieces = [rows[: len(rows) // k * k].reshape(-1, k) for rows in groups]
    return np.concatenate(pieces).astype(np.int64)


def evaluate_tracklets(
    query: Embeddings, gallery: Embeddings, shots: tuple[int, ...], seed: int
) -> dict[str, Any]:
    """Compute figures of tracklets by number of pictures (`shots`), with controls.

    {"4": {"tracklets", "persons", METHOD: {"mAP", "rank1"}, "gain": {METHOD: {"mean", "low",
    "high"}}}}, in [0, 1]. `gain` is the average precision of `fused` less that of the other methods
    on the same tracklets, with its 95 % interval over persons, as `bootstrap_bounds`. Methods:
    `fused` as `fuse`; `mean`, plain mean of unit features and of masks; `best`, the frame with the
    largest mean mask; `late`, mean of the frames' scores; `single`, each frame alone, mean of their
    figures. Numbers without tracklets that have a positive are left out.
    """
    measured = {}
    for k in shots:
        rows = draw_tracklets(query.pids, query.camids, k, seed)
        try:
            ranked = rank_tracklets(query, gallery, rows) if len(rows) else None
        except DataError:  # these persons are not in the gallery
            ranked = None
        if ranked is not None:
            measured[str(k)] = _summarise_tracklets(ranked, query.pids[rows[:, 0]])
    return measured


Ranked = tuple[NDArray[np.float64], NDArray[np.float64]]  # average precision, right at rank 1; [T]


def rank_tracklets(query: Embeddings, gallery: Embeddings, rows: Rows) -> dict[str, Ranked]:
    """Rank the tracklets `rows` of `draw_tracklets` by each of `FUSION_METHODS`.

    Returns:
        method -> (average precision, 1 where the first item is right), float64 [T] each; NaN where
        the tracklet has no positive.

    Raises:
        ValueError: as `masked_similarity`.
        DataError: no tracklet has a positive.
    """

    def rank(fused: Fused, members: Rows) -> Ranked:
        ids = query.pids[members], gallery.pids, query.camids[members], gallery.camids
        return _by_query(rank_features(*fused, gallery.features, *ids))

    masks = query.full_masks()
    methods: dict[str, Callable[[Spaces, Spaces, Rows], Fused]] = {
        "fused": fuse, "mean": _mean, "best": _best,
    }  # fmt: skip
    ranked = {
        name: rank(method(query.features, masks, rows), rows[:, 0])
        for name, method in methods.items()
    }
    ranked["late"] = _late(query, gallery, rows)
    flat = rows.reshape(-1)
    single = rank(_take(query.features, masks, flat), flat)
    precision, first = (values.reshape(rows.shape).mean(axis=1) for values in single)
    return ranked | {"single": (precision, first)}


def _by_query(result: RankingResult) -> Ranked:
    return result.average_precision, is_first_correct(result)


def _summarise_tracklets(ranked: Mapping[str, Ranked], pids: Rows) -> dict[str, Any]:
    """Average over the tracklets of `pids`; those without a positive are not counted."""
    fused = ranked["fused"][0]
    valid = ~np.isnan(fused)
    numbers: dict[str, Any] = {
        "tracklets": int(valid.sum()),
        "persons": len(np.unique(pids[valid])),
        **{
            method: {"mAP": float(np.nanmean(precision)), "rank1": float(np.nanmean(first))}
            for method, (precision, first) in ranked.items()
        },
    }
    gains = {name: fused - precision for name, (precision, _) in ranked.items() if name != "fused"}
    return numbers | {"gain": {name: bootstrap_bounds(x, pids) for name, x in gains.items()}}


def _late(query: Embeddings, gallery: Embeddings, rows: Rows) -> Ranked:
    count, k = rows.shape
    pids, camids = query.pids[rows[:, 0]], query.camids[rows[:, 0]]
    pairs = Pairs.of(pids, gallery.pids, camids, gallery.camids)
    valid = np.unique(pairs.rows[pairs.positive])
    precision, first = np.full(count, np.nan), np.full(count, np.nan)
    step = max(1, BLOCK_SCORES // max(1, len(gallery) * k))
    for start in range(0, len(valid), step):
        part = valid[start : start + step]
        features, masks = _take(query.features, query.masks, rows[part].reshape(-1))
        masks = expand_masks(masks, features)
        scores = masked_similarity(features, masks, gallery.features)
        mean = scores.reshape(len(part), k, -1).mean(dim=1)
        ids = pids[part], gallery.pids, camids[part], gallery.camids
        precision[part], first[part] = _by_query(evaluate_ranking(mean, *ids))
    return precision, first


def _mean(features: Spaces, masks: Spaces, rows: Rows) -> Fused:
    return (
        {s: _unit(x)[rows].mean(axis=1).astype(np.float32) for s, x in features.items()},
        {s: m[rows].mean(axis=1) for s, m in masks.items()},
    )


def _best(features: Spaces, masks: Spaces, rows: Rows) -> Fused:
    trust = np.mean([mask.mean(axis=1) for mask in masks.values()], axis=0)  # [N]
    chosen = rows[np.arange(len(rows)), trust[rows].argmax(axis=1)]
    return _take(features, masks, chosen)


def _take(features: Spaces, masks: Spaces, rows: Rows) -> Fused:
    return {s: x[rows] for s, x in features.items()}, {s: m[rows] for s, m in masks.items()}


def _unit(features: Matrix) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, lengths, out=wide, where=lengths > 0)
