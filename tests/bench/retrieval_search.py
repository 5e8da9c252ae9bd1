"""Exact search in large galleries against faiss' flat index.

    python -m tests.bench.retrieval_search [JOB ...]

One thread and processor seconds for queries, all cores for what is built before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import faiss
import torch

from dpmpp_core.retrieval import Gallery, compact, masked_topk
from dpmpp_core.retrieval.gallery import Storage
from tests.bench.retrieval_data import Made, in_fresh_process, made, measured

WIDTH = 1280  # 768 + 512, both spaces of ViT-B/16
QUERIES = 100
K = 10


def _each(search: Callable[[slice], object], queries: int) -> float:
    """Processor seconds of a query, one after the other, the first to warm up."""
    search(slice(0, 1))
    start = time.process_time()
    for i in range(queries):
        search(slice(i, i + 1))
    return (time.process_time() - start) / queries


def million(items: int = 1_000_000) -> dict[str, object]:
    """10^6 x 1280, float32: one query at a time."""
    exact, ready = _exact(made(QUERIES, items, WIDTH, items // 20, 20))
    return {"exact": exact, "ready": ready, "items": items}


def _exact(data: Made) -> tuple[dict[str, float], float]:
    """Processor seconds of an exact search of one query, and to make the gallery ready."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    query, mask, x = data[:3]
    gallery, ready = measured(lambda: Gallery(x, usual_mask=data.usual), 1)
    bare = Gallery(x)
    searches = {
        "ours": lambda r: masked_topk(query[r], mask[r], gallery, K),
        "ours, usual mask unknown": lambda r: masked_topk(query[r], mask[r], bare, K),
        "ours unmasked": lambda r: masked_topk(query[r], None, gallery, K),
        "faiss flat": lambda r: faiss.knn(query[r], x, K, metric=faiss.METRIC_INNER_PRODUCT),
    }
    seconds = {name: [_each(search, 4) for _ in range(3)] for name, search in searches.items()}
    torch.set_num_threads(2)
    faiss.omp_set_num_threads(2)
    return {name: min(values) for name, values in seconds.items()}, ready.cpu


def scale() -> dict[str, object]:
    """Seconds a query and bytes an item, by size and storage."""
    rows = [
        _scaled(items, storage)
        for items in (10_000, 100_000, 400_000)
        for storage in ("float32", "bfloat16", "int8")
    ]
    return {"rows": rows}


def _scaled(items: int, storage: Storage) -> tuple[int, str, float, float, float]:
    data = made(64, items, WIDTH, items // 20, 20)
    torch.set_num_threads(1)
    compacted = None if storage == "float32" else compact(data.gallery, storage)[""]
    gallery = (
        Gallery(data.gallery, None, data.usual)
        if compacted is None
        else Gallery(compacted, data.gallery, data.usual)
    )
    one = _each(lambda r: masked_topk(data.query[r], data.mask[r], gallery, K), 5)
    _, many = measured(lambda: masked_topk(data.query, data.mask, gallery, K), 1)
    return items, storage, one, many.cpu / 64, gallery.scanned_bytes / items


JOBS = (million, scale)


def run(names: list[str]) -> dict[str, dict[str, object]]:
    """Results of the named jobs, each from a process of its own."""
    return {n: in_fresh_process("tests.bench.retrieval_search", "--here", n) for n in names}


if __name__ == "__main__":
    by_name = {job.__name__: job for job in JOBS}
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(by_name[sys.argv[2]](*map(int, sys.argv[3:]))))
    else:
        print(json.dumps(run(sys.argv[1:] or list(by_name)), indent=1))
