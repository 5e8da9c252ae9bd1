"""Ray workers that share the segments of an index and search them in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from dpmpp_core.config import ClusterConfig
from dpmpp_core.gallery.queries import QueryEmbeddings
from dpmpp_core.index import (
    GalleryIndex,
    ModelVersion,
    RowFilter,
    SearchResult,
    merge_results,
    search,
)
from pipelines.gallery.index import fetch_segment
from pipelines.runtime.resources import connect

MAX_RESTARTS = 3  # of a shard's worker


@ray.remote(
    num_cpus=0,
    max_restarts=MAX_RESTARTS,
    max_task_retries=MAX_RESTARTS,
    scheduling_strategy="SPREAD",
)
class Shard:
    """A worker that searches some segments; Ray restarts a killed one, and retries its calls."""

    def __init__(self, uri: str, manifest: dict[str, Any], files: Sequence[str]) -> None:
        self._uri, self._manifest, self._files = uri, manifest, files
        self._opened: GalleryIndex | None = None

    def search(
        self,
        features: dict,
        masks: dict,
        k: int,
        where: RowFilter,
        model: ModelVersion,
        approximate: bool,
    ) -> SearchResult:
        """Return the k best of these segments."""
        index = self._index()
        index.check(model, "the query")
        return search(index, features, masks, k, where, self._files, approximate)

    def take(self, positions: np.ndarray) -> pa.Table:
        """Return the rows at these positions."""
        return self._index().take(positions)

    def _index(self) -> GalleryIndex:
        """Open the index at the first search, so that the caller gets the error."""
        if self._opened is None:
            from dpmpp_core.index.manifest import Manifest

            torch.set_num_threads(1)
            manifest = Manifest.model_validate(self._manifest)
            folder = Path(self._uri)
            if "://" in self._uri:
                for segment in manifest.segments:
                    if segment.file in self._files:
                        folder = fetch_segment(self._uri, segment)
            self._opened = GalleryIndex(folder, manifest)
        return self._opened


class Shards:
    """Workers that share an index's segments.

    Scores depend only on the pair, and each shard lists its k best, so the k best of all are those
    of a search on one machine.
    """

    def __init__(
        self,
        uri: str,
        index: GalleryIndex,
        count: int,
        address: str | None,
        approximate: bool = False,
    ) -> None:
        connect(address, ClusterConfig())
        self._index, self._approximate = index, approximate
        self._files = _divide_segments(index, count)
        manifest = index.manifest.model_dump()
        self._workers = [
            Shard.remote(uri, manifest, files)  # type: ignore[attr-defined]
            for files in self._files
        ]

    def search(
        self, query: QueryEmbeddings, k: int, where: RowFilter
    ) -> tuple[SearchResult, pa.Table]:
        """Return the k best of each query, and their rows, query by query."""
        features, masks = ray.put(query.features), ray.put(query.masks)
        model, approximate = self._index.manifest.model, self._approximate
        parts = [
            worker.search.remote(features, masks, k, where, model, approximate)
            for worker in self._workers
        ]
        results = merge_results(ray.get(parts), k)
        wanted = results.positions[results.positions >= 0]
        owners = self._owners(wanted)
        waiting = {
            number: self._workers[number].take.remote(wanted[owners == number])
            for number in np.unique(owners).tolist()
        }
        tables = [ray.get(rows) for rows in waiting.values()]
        places = [np.flatnonzero(owners == number) for number in waiting]
        if not tables:
            return results, self._index.take(wanted)
        order = np.argsort(np.concatenate(places))
        return results, pa.concat_tables(tables).take(pa.array(order))

    def _owners(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of the worker that has each position."""
        segments = self._index.manifest.segments
        ends = np.cumsum([segment.rows for segment in segments])
        shard_of = {file: number for number, files in enumerate(self._files) for file in files}
        owners = np.array([shard_of[segment.file] for segment in segments], np.int64)
        return owners[np.searchsorted(ends, positions, side="right")]


def _divide_segments(index: GalleryIndex, count: int) -> list[list[str]]:
    """Divide segments among at most `count` shards, about as many rows each; return their files."""
    shards: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for segment in sorted(index.manifest.segments, key=lambda s: -s.rows):
        least = loads.index(min(loads))
        shards[least].append(segment.file)
        loads[least] += segment.rows
    return [files for files in shards if files] or [[]]
