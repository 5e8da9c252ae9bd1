"""Search in large galleries: exact against faiss' flat index, in lists against faiss' lists.

    python -m tests.bench.retrieval_search [JOB ...]

One thread and processor seconds for queries, all cores for what is built before.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import hnswlib
import numpy as np
import torch
from usearch.index import Index

from dpmpp_core.retrieval import Gallery, Graph, Shortlist, compact, group, masked_topk
from dpmpp_core.retrieval.gallery import Storage
from dpmpp_core.retrieval.graph import EFFORT
from tests.bench.retrieval_data import Made, in_fresh_process, made, measured

WIDTH = 1280  # 768 + 512, both spaces of ViT-B/16
QUERIES = 100
K = 10
PROBES = (32, 64, 128, 256, 512, 640, 768)
BREADTHS = (64, 128, 256, 512, 768, 1024, 1536)


def _recall(found: np.ndarray, best: np.ndarray) -> float:
    return float((found[:, :, None] == best[:, None]).any(1).mean())


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _each(search: Callable[[slice], object], queries: int) -> float:
    """Processor seconds of a query, one after the other, the first to warm up."""
    search(slice(0, 1))
    start = time.process_time()
    for i in range(queries):
        search(slice(i, i + 1))
    return (time.process_time() - start) / queries


def million(items: int = 1_000_000) -> dict[str, object]:
    """10^6 x 1280, float32: one query at a time; exact, then in lists."""
    data = made(QUERIES, items, WIDTH, items // 20, 20)
    exact, ready = _exact(data)
    x, query, mask = data.gallery, _unit(data.query), data.mask
    best = masked_topk(query, mask, x, K)[1].numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    _, plain = faiss.knn(query, x, K, metric=faiss.METRIC_INNER_PRODUCT)
    (order, sizes), grouping = measured(lambda gallery=x: group(gallery), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "by_list.npy"
        by_list = np.lib.format.open_memmap(path, "w+", np.float32, x.shape)
        for start in range(0, items, 65536):
            by_list[start : start + 65536] = x[order[start : start + 65536]]
        del x
        data = data._replace(gallery=by_list)
        lists, preparing = measured(lambda: Shortlist(by_list, sizes), 1)
        theirs = _ivf(by_list, np.add.reduceat(by_list, lists.starts[:-1], axis=0))
        place = order.numpy()
        found = [_in_lists(lists, theirs, query, mask, p, place, best, plain) for p in PROBES]
    return {"exact": exact, "ready": ready, "grouping": grouping.cpu, "items": items,
            "preparing": preparing.cpu, "lists": found,
            "sketch": lists.sketches.bytes / items}  # fmt: skip


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


def _in_lists(
    ours: Shortlist,
    theirs: faiss.IndexIVFFlat,
    query: np.ndarray,
    mask: np.ndarray,
    probes: int,
    place: np.ndarray,
    best: np.ndarray,
    plain: np.ndarray,
) -> tuple[int, float, float, float, float]:
    """probes, recall and seconds of ours (masked), the same of faiss (unmasked)."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    theirs.nprobe = probes
    mine = ours.topk(query, mask, K, probes)[1].numpy()
    seconds = _each(lambda r: ours.topk(query[r], mask[r], K, probes), QUERIES)
    other = theirs.search(query, K)[1]
    their_seconds = _each(lambda r: theirs.search(query[r], K), QUERIES)
    return (
        probes,
        _recall(place[mine], best),
        seconds,
        _recall(place[other], plain),
        their_seconds,
    )


def _ivf(x: np.ndarray, centres: np.ndarray) -> faiss.IndexIVFFlat:
    """faiss' inverted file with the same centres."""
    quantizer = faiss.IndexFlatIP(x.shape[1])
    quantizer.add(_unit(centres))
    index = faiss.IndexIVFFlat(quantizer, x.shape[1], len(centres), faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    for start in range(0, len(x), 65536):
        index.add(np.ascontiguousarray(x[start : start + 65536]))
    return index


def graphs(items: int = 100_000) -> dict[str, object]:
    """10^5 x 1280 along graphs: ours, masked, against faiss' own of float32, unmasked."""
    data = made(QUERIES, items, WIDTH, items // 20, 20)
    best = masked_topk(data.query, data.mask, data.gallery, K)[1].numpy()
    x, query = data.gallery, _unit(data.query)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    _, plain = faiss.knn(query, x, K, metric=faiss.METRIC_INNER_PRODUCT)
    ours, building = measured(lambda: Graph(x), 1)
    theirs = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
    theirs.hnsw.efConstruction = EFFORT
    _, their_building = measured(lambda: theirs.add(x), 1)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows = []
    for breadth in BREADTHS:
        _, mine = ours.topk(query, data.mask, K, breadth, 50)
        seconds = _each(lambda r, b=breadth: ours.topk(query[r], data.mask[r], K, b, 50), QUERIES)
        theirs.hnsw.efSearch = breadth
        _, other = theirs.search(query, K)
        their_seconds = _each(lambda r: theirs.search(query[r], K), QUERIES)
        rows.append([breadth, _recall(mine.numpy(), best), seconds, _recall(other, plain),
                     their_seconds])  # fmt: skip
    return {"rows": rows, "building": building.cpu, "their_building": their_building.cpu}


def numerators(items: int = 20_000) -> dict[str, object]:
    """Libraries as shortlists of the numerator <q * m, g>, the best R scored exactly."""
    data = made(QUERIES, items, WIDTH, items // 20, 20)
    best = masked_topk(data.query, data.mask, data.gallery, K)[1].numpy()
    x, asked = _unit(data.gallery), _unit(_unit(data.query) * data.mask)
    found = {}
    hnsw = hnswlib.Index("ip", WIDTH)
    hnsw.init_index(items, M=16, ef_construction=100)
    start = time.process_time()
    hnsw.add_items(x)
    building = {"hnswlib": time.process_time() - start}
    start = time.process_time()
    other = Index(ndim=WIDTH, metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    other.add(np.arange(items), x)
    building["usearch"] = time.process_time() - start
    for kept in (10, 100, 1000):
        _, ids = faiss.knn(asked, x, kept, metric=faiss.METRIC_INNER_PRODUCT)
        found[f"faiss flat, R = {kept}"] = (_recall(ids, best), None)
        hnsw.set_ef(max(kept, 100))
        ids, _ = hnsw.knn_query(asked, kept)
        seconds = _each(lambda r, n=kept: hnsw.knn_query(asked[r], n, num_threads=1), QUERIES)
        found[f"hnswlib, R = {kept}"] = (_recall(ids.astype(np.int64), best), seconds)
        ids = np.stack([other.search(q, kept).keys for q in asked]).astype(np.int64)
        seconds = _each(lambda r, n=kept: other.search(asked[r], n, threads=1), QUERIES)
        found[f"usearch, R = {kept}"] = (_recall(ids, best), seconds)
    return {"building": building, "found": found}


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


JOBS = (million, graphs, numerators, scale)


def run(names: list[str]) -> dict[str, dict[str, object]]:
    """Results of the named jobs, each from a process of its own."""
    return {n: in_fresh_process("tests.bench.retrieval_search", "--here", n) for n in names}


if __name__ == "__main__":
    by_name = {job.__name__: job for job in JOBS}
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(by_name[sys.argv[2]](*map(int, sys.argv[3:]))))
    else:
        print(json.dumps(run(sys.argv[1:] or list(by_name)), indent=1))
