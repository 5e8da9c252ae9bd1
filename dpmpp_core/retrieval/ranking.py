"""Ranking figures of person re-identification: CMC, mAP and mINP, with the junk rule and ties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmpp_core.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CMC_RANKS = 50
BLOCK_VALUES = 1_000_000  # 4 MB of scores, which fit the caches of a core


@dataclass(frozen=True)
class QueryRanks:
    """Results of each query of [Q]; NaN and 0 without a positive.

    Attributes:
        average_precision: float64 in (0, 1], the mean of k / rank over its positives k = 1, 2, ...
        inverse_penalty: float64 in (0, 1], positives / rank of the last one (INP, AGW, TPAMI 2021).
        first_match_rank: int64, rank of the best positive, from 1.
    """

    average_precision: Floats
    inverse_penalty: Floats
    first_match_rank: Ints

    @staticmethod
    def joined(blocks: Sequence[QueryRanks]) -> QueryRanks:
        """Concatenate blocks of queries."""
        return QueryRanks(
            np.concatenate([np.empty(0), *(b.average_precision for b in blocks)]),
            np.concatenate([np.empty(0), *(b.inverse_penalty for b in blocks)]),
            np.concatenate([np.empty(0, np.int64), *(b.first_match_rank for b in blocks)]),
        )


@dataclass(frozen=True)
class RankingResult:
    """Figures over a query set, all fractions in [0, 1].

    Attributes:
        mAP: mean over the valid queries (those with a positive).
        mINP: likewise.
        cmc: float64 [min(50, G)]; cmc[k - 1] is the share of valid queries with a match in the
            first k.
        num_valid_queries: those with a positive.
        num_skipped_queries: the others.
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
        """Return the share of valid queries with a match in the first k."""
        return float(self.cmc[min(k, len(self.cmc)) - 1])

    def metrics(self) -> dict[str, float]:
        """Return mAP, rank1, rank5, rank10 and mINP by name."""
        ranks = {f"rank{k}": self.rank(k) for k in (1, 5, 10)}
        return {"mAP": self.mAP, **ranks, "mINP": self.mINP}


def evaluate_ranking(
    similarity: Tensor | NDArray[np.floating],
    query_pids: Ints,
    gallery_pids: Ints,
    query_camids: Ints,
    gallery_camids: Ints,
) -> RankingResult:
    """Compute CMC, mAP and mINP of the gallery ranked by falling similarity.

    Similarity is [Q, G], of any floating type and sign; ids are integers [Q] and [G].

    Junk rule (Market-1501): gallery items with the query's pid AND camera take no part. Queries
    without a positive left are skipped and counted. Ties are pessimistic, so neither order nor
    constant features help: a positive ranks after all items of other identities with at least its
    score; tied positives have consecutive ranks.

    Raises:
        ValueError: shapes that do not fit; NaN or infinity in `similarity` (a fault of the model
            or of the caller, not of the data set).
        DataError: no query has a positive.
    """
    shape = tuple(similarity.shape)
    if len(shape) != 2:
        raise ValueError(f"similarity must be [Q, G], got shape {shape}")
    ids = query_pids, gallery_pids, query_camids, gallery_camids
    refuse_other_lengths(shape, *ids)
    pairs = Pairs.of(*ids)
    ranks = []
    for start, scores in _blocks(similarity):
        here = pairs.of_queries(start, start + len(scores))
        of_pairs = scores[here.rows, here.items]
        positives = Positives(here.rows[here.positive], of_pairs[here.positive], len(scores))
        for row in range(len(scores)):
            positives.count_row(row, scores[row])
        positives.count(here.rows, of_pairs, -1)  # pairs of one pid do not count as others
        ranks.append(positives.ranks())
    return summarise(QueryRanks.joined(ranks), gallery_size=len(gallery_pids))


@dataclass(frozen=True)
class Pairs:
    """Pairs of query and gallery item with one pid, by query: int64 [n]; junk if not `positive`."""

    rows: Ints
    items: Ints
    positive: NDArray[np.bool_]

    @staticmethod
    def of(query_pids: Ints, gallery_pids: Ints, query_camids: Ints, gallery_camids: Ints) -> Pairs:
        """Find all pairs."""
        order = np.argsort(gallery_pids, kind="stable")
        pids, camids = gallery_pids[order], gallery_camids[order]
        starts = np.searchsorted(pids, query_pids, side="left")
        sizes = np.searchsorted(pids, query_pids, side="right") - starts
        rows = np.repeat(np.arange(len(query_pids)), sizes)
        place = np.arange(len(rows)) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
        return Pairs(rows, order[place], camids[place] != query_camids[rows])

    def of_queries(self, start: int, stop: int) -> Pairs:
        """Return the pairs of some queries, whose rows begin with 0."""
        part = slice(*np.searchsorted(self.rows, [start, stop]))
        return Pairs(self.rows[part] - start, self.items[part], self.positive[part])


class Positives:
    """Scores of each query's positives, and counts of others that reach them.

    Args:
        rows: int64 [P], the query of each positive, ascending.
        scores: float [P].
        size: number of queries.
    """

    def __init__(self, rows: Ints, scores: NDArray[np.floating], size: int) -> None:
        self.scores = scores[np.lexsort((scores, rows))]
        self.starts = np.searchsorted(rows, np.arange(size + 1))
        # The least score of a query's positives; lower scores do not matter.
        self.lowest = np.full(size, np.inf, scores.dtype)
        some = self.starts[:-1] < self.starts[1:]
        self.lowest[some] = self.scores[self.starts[:-1][some]]
        # Of a query's positives, rising: the number of others that reach this one, not the next.
        self.reached = np.zeros(len(scores), np.int64)

    def places(
        self, rows: Ints, scores: NDArray[np.floating], side: Literal["left", "right"]
    ) -> Ints:
        """Place scores of the queries `rows` (ascending) among all positives: int64 [n]."""
        places = np.empty(len(rows), np.int64)
        cuts = np.flatnonzero(np.diff(rows, prepend=-1, append=-1))
        for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            row = rows[start]
            first = self.starts[row]
            of_query = self.scores[first : self.starts[row + 1]]
            places[start:stop] = of_query.searchsorted(scores[start:stop], side) + first
        return places

    def count(self, rows: Ints, scores: NDArray[np.floating], weight: int = 1) -> None:
        """Count scores of the queries `rows` (ascending), but those below `lowest`."""
        enough = scores >= self.lowest[rows]
        rows, scores = rows[enough], scores[enough]
        self.count_places(self.places(rows, scores, "right"), weight)

    def count_places(self, places: Ints, weight: int = 1) -> None:
        """Count scores whose `places` (after what they reach) are known."""
        self.reached += weight * np.bincount(places - 1, minlength=len(self.reached))

    def count_row(self, row: int, scores: NDArray[np.floating]) -> None:
        """Count all scores of one query, [G]; those below all its positives do not matter."""
        part = slice(self.starts[row], self.starts[row + 1])
        positives = self.scores[part]
        # As `scores[mask]`, but without a branch per score, which half of them would mispredict.
        kept = scores.take(np.flatnonzero(scores >= self.lowest[row]))
        # One positive compared with n scores costs as much as sorting 64 + n / 96 (measured).
        if len(positives) * (64 + len(kept) / 96) < len(kept):
            reaching = np.array([np.count_nonzero(kept >= p) for p in positives], np.int64)
        else:
            reaching = len(kept) - np.sort(kept).searchsorted(positives)
        self.reached[part] -= np.diff(reaching, append=0)

    def ranks(self) -> QueryRanks:
        """Return the results of every query, after all others were counted."""
        size = len(self.lowest)
        average_precision, inverse_penalty = np.full(size, np.nan), np.full(size, np.nan)
        first_match_rank = np.zeros(size, np.int64)
        for i, (start, stop) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            if start == stop:
                continue
            hits = np.arange(1, stop - start + 1)
            ranks = self.reached[start:stop][::-1].cumsum() + hits  # best positive first
            average_precision[i] = (hits / ranks).sum() / len(ranks)
            inverse_penalty[i] = len(ranks) / ranks[-1]
            first_match_rank[i] = ranks[0]
        return QueryRanks(average_precision, inverse_penalty, first_match_rank)


def summarise(ranks: QueryRanks, gallery_size: int) -> RankingResult:
    """Average over the valid queries; DataError if there is none."""
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
    """Average the same queries ranked several times; first_match_rank is that of the first."""
    first = results[0]
    return replace(
        first,
        mAP=float(np.mean([r.mAP for r in results])),
        mINP=float(np.mean([r.mINP for r in results])),
        cmc=np.mean([r.cmc for r in results], axis=0),
        average_precision=np.mean([r.average_precision for r in results], axis=0),
    )


def _blocks(
    similarity: Tensor | NDArray[np.floating],
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Yield first row and NumPy floats of blocks of rows, checked and converted one by one."""
    step = max(1, BLOCK_VALUES // max(1, similarity.shape[1]))
    for start in range(0, similarity.shape[0], step):
        block = similarity[start : start + step]
        if isinstance(block, Tensor):
            wide = torch.promote_types(block.dtype, torch.float32)
            block = block.detach().to("cpu", wide).numpy()
        block = block.astype(np.promote_types(block.dtype, np.float32), copy=False)
        # NaN and infinity survive any sum: one pass that writes nothing.
        if not np.isfinite(block.sum()) and not (finite := np.isfinite(block)).all():
            row, item = np.argwhere(~finite)[0]
            raise ValueError(
                f"similarity: query {start + row}, gallery item {item} is {block[row, item]}; "
                "such scores cannot be ranked. Check the model's features"
            )
        yield start, block


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
