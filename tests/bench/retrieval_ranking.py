"""Ranking side by side with other implementations: scores, figures, memory, re-ranking.

    python -m tests.bench.retrieval_ranking [JOB ...]

Each job runs in a process of its own, whose peak memory is therefore its own, on one thread unless
it says so, and in processor seconds, which other processes on the machine cannot add to.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch

from dpmpp_core.retrieval import evaluate_ranking, masked_similarity, rank_features, rerank
from tests.bench.retrieval_data import Made, in_fresh_process, made, measured
from tests.bench.retrieval_peers import (
    published_loop,
    sorting_evaluator,
    torchmetrics_evaluator,
    torchreid_evaluator,
    torchreid_rerank,
)

MARKET = (3368, 15913, 768, 751, 6)
MSMT = (11659, 82161, 768, 3060, 15)
DUKE = (2210, 17661, 768, 1110, 8)
PART = 100  # queries that a slow peer gets; its time grows with their number


def similarity() -> dict[str, float]:
    """2,210 x 17,661 x 768: ours, the plain cosine, the published loop on 20 queries."""
    data = made(*DUKE)
    query, mask, gallery = (torch.from_numpy(x) for x in data[:3])
    scores, ours = measured(lambda: masked_similarity(query, mask, gallery), 5)
    _, plain = measured(lambda: masked_similarity(query, None, gallery), 5)
    bands = mask[:, :8].repeat_interleave(96, dim=1)
    _, banded = measured(lambda: masked_similarity(query, bands, gallery), 5)
    looped, loop = measured(lambda: published_loop(query[:20], mask[:20], gallery), 2)
    off = (looped - scores[:20]).abs().max()
    return {"ours": ours.cpu, "plain": plain.cpu, "banded": banded.cpu,
            "loop": loop.cpu * len(query) / 20, "off": float(off)}  # fmt: skip


def figures(random: bool = False) -> dict[str, float]:
    """3,368 x 15,913, scores given."""
    data = made(*MARKET)
    scores = masked_similarity(data.query, data.mask, data.gallery).numpy()
    if random:
        scores = np.random.default_rng(0).standard_normal(scores.shape).astype(np.float32)
    found, ours = measured(lambda: evaluate_ranking(scores, *data.ids), 5)
    distances = 1 - scores
    # Once: what sorting costs does not depend on what comes of it.
    peer, sort = measured(lambda: sorting_evaluator(distances, data.ids), 1)
    part = data.ids[0][:PART], data.ids[1], data.ids[2][:PART], data.ids[3]
    ours_part = evaluate_ranking(scores[:PART], *part).metrics()
    share = len(scores) / PART
    reid, torchreid = measured(lambda: torchreid_evaluator(distances[:PART], part), 1)
    metrics, torchmetrics = measured(lambda: torchmetrics_evaluator(scores[:PART], part), 1)
    differ = {k: abs(found.metrics()[k] - v) for k, v in peer.items()}
    for other in (reid, metrics):
        differ |= {f"{k} part": abs(ours_part[k] - v) for k, v in other.items()}
    return {"ours": ours.cpu, "numpy": sort.cpu, "torchreid": torchreid.cpu * share,
            "torchmetrics": torchmetrics.cpu * share, "off": max(differ.values()),
            **found.metrics()}  # fmt: skip


def figures_of_random_scores() -> dict[str, float]:
    """The same of noise: each query's worst positive stands near the end."""
    return figures(random=True)


def market() -> dict[str, float]:
    """3,368 x 15,913 from features with masks: time and memory."""
    return _features(MARKET)


def market_peer() -> dict[str, float]:
    """The same: all scores, then the NumPy evaluator."""
    data = made(*MARKET)

    def peer() -> dict[str, float]:
        scores = masked_similarity(data.query, data.mask, data.gallery)
        return sorting_evaluator((1 - scores).numpy(), data.ids)

    found, cost = measured(peer, 1)
    return {**cost._asdict(), **found}


def msmt() -> dict[str, float]:
    """11,659 x 82,161 from features."""
    return _features(MSMT)


def msmt_wall() -> dict[str, float]:
    """The same on all cores, in wall seconds."""
    return _features(MSMT, threads=None)


def _features(sizes: tuple[int, ...], threads: int | None = 1) -> dict[str, float]:
    data = made(*sizes)
    if threads is None:
        torch.set_num_threads(2)
    found, cost = measured(lambda: rank_features(*data[:3], *data.ids), 1)
    found, again = measured(lambda: rank_features(*data[:3], *data.ids), 2 if threads else 1)
    products = _products(data.query, data.mask, data.gallery)
    return {"cpu": min(cost.cpu, again.cpu), "wall": min(cost.wall, again.wall),
            "memory": cost.memory, **products, **found.metrics()}  # fmt: skip


def _products(query: np.ndarray, mask: np.ndarray, gallery: np.ndarray) -> dict[str, float]:
    """What the two matrix products alone take, in blocks of the same size."""
    q, m, g = (torch.from_numpy(x) for x in (query, mask, gallery))
    out = torch.empty(512, 4096), torch.empty(512, 4096)
    start, begun = time.process_time(), time.perf_counter()
    for j in range(0, len(g), 4096):
        items = g[j : j + 4096].T
        for i in range(0, len(q), 512):
            for x, to in zip((q, m), out, strict=True):
                rows = x[i : i + 512]
                torch.mm(rows, items, out=to[: len(rows), : items.shape[1]])
    return {"products_cpu": time.process_time() - start,
            "products_wall": time.perf_counter() - begun}  # fmt: skip


def reranking_half() -> dict[str, float]:
    """1,684 x 7,957, whole lists too, which tell how far off any distance is."""
    data, gallery_mask = _with_gallery_masks(1684, 7957, 768, 751, 6)
    figures, peer = _beside_torchreid(data, gallery_mask)
    found, ours = measured(
        lambda: rerank(data.query, data.mask, data.gallery, gallery_mask, top=7957), 1
    )
    off = np.abs(np.take_along_axis(peer, found[1], 1) - found[0])
    return figures | {"ours_all": ours.cpu, "off": float(off.max()),
                      "share_off": float((off > 1e-5).mean())}  # fmt: skip


def reranking() -> dict[str, float]:
    """3,368 x 15,913, the best hundred of each query."""
    return _beside_torchreid(*_with_gallery_masks(*MARKET))[0]


def _with_gallery_masks(*size: int) -> tuple[Made, np.ndarray]:
    data = made(*size)
    masks = np.random.default_rng(1).permutation(np.resize(data.mask, data.gallery.shape))
    return data, masks


def _beside_torchreid(data: Made, gallery_mask: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """The best hundred from features, by us, and by torchreid from distances made for it."""
    _, ours = measured(lambda: rerank(data.query, data.mask, data.gallery, gallery_mask), 1)

    def distances() -> np.ndarray:
        x = np.concatenate([data.query, data.gallery])
        scores = masked_similarity(x, np.concatenate([data.mask, gallery_mask]), x)
        d = 1 - (scores + scores.T).numpy() / 2
        np.fill_diagonal(d, 0)
        return d

    d, making = measured(distances, 1)
    size = len(data.query)
    peer, theirs = measured(
        lambda: torchreid_rerank(d[:size, :size], d[:size, size:], d[size:, size:], 20, 6, 0.3), 1
    )
    return {"ours": ours.cpu, "memory": ours.memory, "making": making.cpu,
            "torchreid": theirs.cpu, "torchreid_memory": theirs.memory}, peer  # fmt: skip


JOBS = (similarity, figures, figures_of_random_scores, market, market_peer, msmt, msmt_wall,
        reranking_half, reranking)  # fmt: skip


def run(names: list[str]) -> dict[str, dict[str, float]]:
    """Results of the named jobs, each from a process of its own."""
    return {name: in_fresh_process("tests.bench.retrieval_ranking", "--here", name)
            for name in names}  # fmt: skip


if __name__ == "__main__":
    by_name = {job.__name__: job for job in JOBS}
    if sys.argv[1:2] == ["--here"]:
        torch.set_num_threads(1)
        print(json.dumps(by_name[sys.argv[2]]()))
    else:
        print(json.dumps(run(sys.argv[1:] or list(by_name)), indent=1))
