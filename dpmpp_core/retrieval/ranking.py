"""Ranking figures of person re-identification: CMC, mAP and mINP, with the junk rule and ties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CMC_RANKS = 50
BLOCK_VALUES = 4_000_000
# From here on one sort of the row costs less than one pass over it for each positive (measured).
MANY_POSITIVES = 64


@dataclass(frozen=True)
class QueryRanks:
    """What each query of [Q] found; zeros and NaN where it has no positive.

    average_precision: float64 in (0, 1], the mean of k / rank over its positives k = 1, 2, ...
    inverse_penalty: float64 in (0, 1], positives / rank of the last one (INP, AGW, TPAMI 2021).
    first_match_rank: int64, rank of the best positive, from 1; 0 if it has none.
    """

    average_precision: Floats
    inverse_penalty: Floats
    first_match_rank: Ints

    @staticmethod
    def joined(blocks: Sequence[QueryRanks]) -> QueryRanks:
        """Blocks of queries as one."""
        return QueryRanks(
            np.concatenate([np.empty(0), *(b.average_precision for b in blocks)]),
            np.concatenate([np.empty(0), *(b.inverse_penalty for b in blocks)]),
            np.concatenate([np.empty(0, np.int64), *(b.first_match_rank for b in blocks)]),
        )


@dataclass(frozen=True)
class RankingResult:
    """Figures over a query set, all fractions in [0, 1].

    mAP, mINP: means over the valid queries (those with a positive).
    cmc: float64 [min(50, G)]; cmc[k - 1] is the share of valid queries with a match in the first k.
    average_precision: float64 [Q], NaN for skipped queries.
    first_match_rank: int64 [Q], from 1, 0 for skipped queries.
    """

    mAP: float
    mINP: float
    cmc: Floats
    num_valid_queries: int
    num_skipped_queries: int
    average_precision: Floats
    first_match_rank: Ints

    def rank(self, k: int) -> float:
        """Share of valid queries with a match in the first k (k beyond the list: its last)."""
        return float(self.cmc[min(k, len(self.cmc)) - 1])

    def metrics(self) -> dict[str, float]:
        """mAP, rank1, rank5, rank10 and mINP by name."""
        ranks = {f"rank{k}": self.rank(k) for k in (1, 5, 10)}
        return {"mAP": self.mAP, **ranks, "mINP": self.mINP}


def evaluate_ranking(
    similarity: Tensor | NDArray[np.floating],
    query_pids: Ints,
    gallery_pids: Ints,
    query_camids: Ints,
    gallery_camids: Ints,
) -> RankingResult:
    """CMC, mAP and mINP of the gallery ranked by falling similarity.

    Junk rule (Market-1501): gallery items with the query's pid AND camera take no part. Queries
    without a positive left are skipped and counted. Ties are pessimistic, so that neither order
    nor constant features can earn anything: a positive ranks behind all other-identity items of at
    least its own score; tied positives take consecutive ranks.

    Args:
        similarity: [Q, G], any floating type and sign, higher is more alike.
        query_pids, query_camids: integers [Q].
        gallery_pids, gallery_camids: integers [G].

    Raises:
        ValueError: shapes that do not fit; NaN or infinity in `similarity` (a fault of the model
            or of the caller, not of the data set).
        DataError: no query has a positive.
    """
    ranks = rank_queries(similarity, query_pids, gallery_pids, query_camids, gallery_camids)
    return summarise(ranks, gallery_size=len(gallery_pids))


def rank_queries(
    similarity: Tensor | NDArray[np.floating],
    query_pids: Ints,
    gallery_pids: Ints,
    query_camids: Ints,
    gallery_camids: Ints,
) -> QueryRanks:
    """The same for each query alone, so that large sets can be ranked in blocks of queries.

    Arguments and ValueErrors as in `evaluate_ranking`.
    """
    shape = tuple(similarity.shape)
    if len(shape) != 2:
        raise ValueError(f"similarity must be [Q, G], got shape {shape}")
    refuse_other_lengths(shape, query_pids, gallery_pids, query_camids, gallery_camids)
    average_precision = np.full(len(query_pids), np.nan)
    inverse_penalty = np.full(len(query_pids), np.nan)
    first_match_rank = np.zeros(len(query_pids), np.int64)
    matches = matching_items(query_pids, gallery_pids, query_camids, gallery_camids)
    for i, (row, (same, positive)) in enumerate(zip(_rows(similarity), matches, strict=True)):
        if not positive.any():
            continue
        ranks = ranks_of_positives(row, same, positive)
        average_precision[i], inverse_penalty[i], first_match_rank[i] = ranks_from_positions(ranks)
    return QueryRanks(average_precision, inverse_penalty, first_match_rank)


def summarise(ranks: QueryRanks, gallery_size: int) -> RankingResult:
    """Means over the valid queries. Raises DataError if there is none."""
    valid = ranks.first_match_rank > 0
    if not valid.any():
        raise DataError(
            f"none of the {len(valid)} queries has a picture of the same person from another "
            "camera in the gallery: nothing can be evaluated; check the pids and camera ids of "
            "query and gallery (data without cameras: give the queries camera 0, the gallery 1)"
        )
    first = ranks.first_match_rank[valid]
    length = min(CMC_RANKS, gallery_size)
    return RankingResult(
        mAP=float(ranks.average_precision[valid].mean()),
        mINP=float(ranks.inverse_penalty[valid].mean()),
        cmc=(first[:, None] <= np.arange(1, length + 1)).mean(0),
        num_valid_queries=int(valid.sum()),
        num_skipped_queries=int((~valid).sum()),
        average_precision=ranks.average_precision,
        first_match_rank=ranks.first_match_rank,
    )


def mean_result(results: Sequence[RankingResult]) -> RankingResult:
    """Mean figures of the same queries ranked several times; first_match_rank is the first's."""
    first = results[0]
    return replace(
        first,
        mAP=float(np.mean([r.mAP for r in results])),
        mINP=float(np.mean([r.mINP for r in results])),
        cmc=np.mean([r.cmc for r in results], axis=0),
        average_precision=np.mean([r.average_precision for r in results], axis=0),
    )


def matching_items(
    query_pids: Ints, gallery_pids: Ints, query_camids: Ints, gallery_camids: Ints
) -> Iterator[tuple[Ints, NDArray[np.bool_]]]:
    """For each query: the gallery items of its pid, and which are positives (the rest is junk)."""
    order = np.argsort(gallery_pids, kind="stable")
    pids, camids = gallery_pids[order], gallery_camids[order]
    starts = np.searchsorted(pids, query_pids, side="left")
    ends = np.searchsorted(pids, query_pids, side="right")
    for start, end, camid in zip(starts, ends, query_camids, strict=True):
        yield order[start:end], camids[start:end] != camid


def ranks_from_positions(ranks: Ints) -> tuple[float, float, int]:
    """Average precision, inverse penalty and rank of the first, from a query's ascending ranks."""
    found = np.arange(1, len(ranks) + 1)
    return float(np.mean(found / ranks)), float(len(ranks) / ranks[-1]), int(ranks[0])


def ranks_of_positives(row: NDArray[np.floating], same: Ints, positive: NDArray[np.bool_]) -> Ints:
    """Ascending ranks (from 1) of a query's positives. Sorts them only, counts all others."""
    of_same = row[same]
    own = np.sort(of_same[positive])[::-1]
    if len(own) < MANY_POSITIVES:
        at_least = np.array([np.count_nonzero(row >= score) for score in own])
    else:
        at_least = len(row) - np.searchsorted(np.sort(row), own)
    # Positives and junk are of the query's pid: what remains are valid items that beat or tie.
    others = at_least - (len(same) - np.searchsorted(np.sort(of_same), own))
    return others + np.arange(1, len(own) + 1)


def _rows(similarity: Tensor | NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    """Rows as NumPy floats. Converted and checked in blocks: no second copy of the whole."""
    step = max(1, BLOCK_VALUES // max(1, similarity.shape[1]))
    for start in range(0, similarity.shape[0], step):
        block = similarity[start : start + step]
        if isinstance(block, Tensor):
            wide = torch.promote_types(block.dtype, torch.float32)
            block = block.detach().to("cpu", wide).numpy()
        block = block.astype(np.promote_types(block.dtype, np.float32), copy=False)
        finite = np.isfinite(block)
        if not finite.all():
            row, item = np.argwhere(~finite)[0]
            raise ValueError(
                f"similarity: query {start + row}, gallery item {item} is {block[row, item]}; "
                "a ranking of such scores would mean nothing. Check the model's features"
            )
        yield from block


def refuse_other_lengths(
    shape: tuple[int, ...],
    query_pids: Ints,
    gallery_pids: Ints,
    query_camids: Ints,
    gallery_camids: Ints,
) -> None:
    """Raise ValueError unless the ids fit scores of `shape` (Q, G)."""
    for name, values, size in (
        ("query_pids", query_pids, shape[0]),
        ("query_camids", query_camids, shape[0]),
        ("gallery_pids", gallery_pids, shape[1]),
        ("gallery_camids", gallery_camids, shape[1]),
    ):
        if values.shape != (size,):
            raise ValueError(f"{name} has shape {values.shape}, {shape} scores need ({size},)")
