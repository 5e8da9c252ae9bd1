"""Results of each query, to compare two models on the same queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dpmpp_core.retrieval.evaluation import Embeddings
from dpmpp_core.retrieval.ranking import RankingResult

SCHEMA = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("pid", pa.int64(), nullable=False),
        pa.field("average_precision", pa.float64(), nullable=False),  # NaN without a positive
        pa.field("first_match_rank", pa.int64(), nullable=False),  # from 1; 0 without a positive
    ]
)


@dataclass(frozen=True)
class QueryFigures:
    """Results of the Q queries of one set.

    Attributes:
        paths: Q names.
        pids: int64 [Q].
        average_precision: float64 [Q], NaN without a positive.
        first_match_rank: int64 [Q], from 1; 0 without a positive.
    """

    paths: tuple[str, ...]
    pids: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    first_match_rank: NDArray[np.int64]

    @classmethod
    def of(cls, query: Embeddings, result: RankingResult) -> QueryFigures:
        """Take the results of these queries from their ranking."""
        figures = result.average_precision, result.first_match_rank
        return cls(tuple(query.paths), query.pids, *figures)

    def figure(self, name: str) -> NDArray[np.float64]:
        """Return `mAP` or `rankK` of each query, [Q], NaN without a positive."""
        if name == "mAP":
            return self.average_precision
        first = self.first_match_rank
        within = first <= int(name.removeprefix("rank"))
        return np.where(first > 0, within, np.nan).astype(np.float64)

    def mean(self, name: str) -> float:
        """Return the mean of `figure`, that of the set."""
        return float(np.nanmean(self.figure(name)))


def to_table(sets: Mapping[str, QueryFigures]) -> pa.Table:
    """Convert query sets to one table (SCHEMA)."""
    parts = [
        pa.table(
            [[name] * len(q.paths), q.paths, q.pids, q.average_precision, q.first_match_rank],
            SCHEMA,
        )
        for name, q in sets.items()
    ]
    return pa.concat_tables([SCHEMA.empty_table(), *parts])


def from_table(table: pa.Table) -> dict[str, QueryFigures]:
    """Return the query sets of `to_table`, in their order."""
    sets = {}
    for name in table["set"].unique().to_pylist():
        rows = table.filter(pc.equal(table["set"], name))
        columns = (rows[field].to_numpy() for field in SCHEMA.names[2:])
        sets[name] = QueryFigures(tuple(rows["path"].to_pylist()), *columns)
    return sets
