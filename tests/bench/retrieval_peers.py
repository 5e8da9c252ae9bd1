"""What others do: their packages where these can be had, else their algorithm written down."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.bench.retrieval_data import Ids

PEERS = Path(__file__).parents[2] / ".peers"


def published_loop(query: Tensor, mask: Tensor, gallery: Tensor) -> Tensor:
    """The masked metric as DPM's code has it: one query after the other, the gallery anew."""
    q, g = normalize(query), normalize(gallery)
    return torch.stack([normalize(g * m) @ x for x, m in zip(q, mask, strict=True)])


def sorting_evaluator(distances: np.ndarray, ids: Ids) -> dict[str, float]:
    """CMC, mAP and mINP in the way of TransReID and its family: all rows sorted, NumPy."""
    q_pids, g_pids, q_cams, g_cams = ids
    order = np.argsort(distances, axis=1)
    matches = (g_pids[order] == q_pids[:, None]).astype(np.int32)
    curves, precisions, penalties = [], [], []
    for i, row in enumerate(order):
        junk = (g_pids[row] == q_pids[i]) & (g_cams[row] == q_cams[i])
        found = matches[i][~junk]
        if not found.any():
            continue
        hits = found.cumsum()
        last = np.flatnonzero(found)[-1]
        penalties.append(hits[last] / (last + 1.0))
        curves.append(np.minimum(hits, 1)[:50])
        precision = hits / np.arange(1, len(hits) + 1.0)
        precisions.append((precision * found).sum() / found.sum())
    return {
        "mAP": float(np.mean(precisions)),
        "rank1": float(np.mean([c[0] for c in curves])),
        "mINP": float(np.mean(penalties)),
    }


def torchmetrics_evaluator(scores: np.ndarray, ids: Ids) -> dict[str, float]:
    """torchmetrics' functions, query by query; it has no junk rule, so junk is left out before."""
    from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

    q_pids, g_pids, q_cams, g_cams = ids
    precisions, firsts = [], []
    for i, row in enumerate(scores):
        same = g_pids == q_pids[i]
        valid = ~(same & (g_cams == q_cams[i]))
        target = torch.from_numpy(same[valid])
        if not target.any():
            continue
        # Scores below zero would count as not found.
        values = torch.from_numpy(row[valid]) + 2
        precisions.append(float(retrieval_average_precision(values, target)))
        firsts.append(float(retrieval_hit_rate(values, target, top_k=1)))
    return {"mAP": float(np.mean(precisions)), "rank1": float(np.mean(firsts))}


def torchreid_evaluator(distances: np.ndarray, ids: Ids) -> dict[str, float]:
    """The evaluator of torchreid's PyPI package, which comes without the Cython one."""
    cmc, mean_ap = _torchreid("metrics/rank.py").evaluate_rank(
        distances, *ids, max_rank=50, use_cython=False
    )
    return {"mAP": float(mean_ap), "rank1": float(cmc[0])}


def torchreid_rerank(
    query: np.ndarray, between: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float
) -> np.ndarray:
    """Its k-reciprocal re-ranking: from distances [Q, Q], [Q, G] and [G, G] to [Q, G]."""
    return _torchreid("utils/rerank.py").re_ranking(between, query, gallery, k1, k2, weight)


def _torchreid(file: str) -> ModuleType:
    """One file of torchreid: importing the package needs some twenty others."""
    name = "torchreid_" + Path(file).stem
    if name not in sys.modules:
        path = PEERS / "torchreid/reid" / file
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]
