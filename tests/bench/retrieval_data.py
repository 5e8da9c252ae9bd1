"""Made-up features that lie as those of a trained model do, of any size; and fair measurements.

Identities are Gaussian centres, pictures lie around them, and each camera shifts all of its own.
Variances fall as 1 / i over the principal directions, as in deep features, so that some thirty of
them hold most of it; a random rotation mixes all dimensions, which come out alike, as after a
batch normalisation. How far pictures lie from their centre differs from picture to picture
(log-normal), which gives easy and hopeless ones. A mask is a sigmoid of a part that all queries
share and a part of its own, as measured on trained mask generators: most of it is the same for all.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
Ids = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Made(NamedTuple):
    """query, mask [Q, D], gallery [G, D] float32; ids: pids and camids as `rank_features`; usual:
    the mean of masks of other queries, [D]."""

    query: np.ndarray
    mask: np.ndarray
    gallery: np.ndarray
    ids: Ids
    usual: np.ndarray


def made(queries: int, items: int, width: int, pids: int, cameras: int, seed: int = 0) -> Made:
    """A benchmark of these sizes; a tenth of the gallery are people that no query asks for."""
    rng = np.random.default_rng(seed)
    scale = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32)
    centres = rng.standard_normal((pids + pids // 10, width), dtype=np.float32) * scale
    shifts = 0.3 * rng.standard_normal((cameras, width), dtype=np.float32) * scale

    def drawn(of: np.ndarray, camids: np.ndarray, hardness: float) -> np.ndarray:
        x = np.empty((len(of), width), np.float32)
        for start in range(0, len(of), 65536):
            part = slice(start, start + 65536)
            y = rng.standard_normal((len(of[part]), width), dtype=np.float32)
            y *= np.exp(0.35 * rng.standard_normal((len(y), 1), dtype=np.float32)) * hardness
            np.matmul(y * scale + centres[of[part]] + shifts[camids[part]], turn, out=x[part])
        return x

    q_pids, g_pids = rng.integers(0, pids, queries), rng.integers(0, len(centres), items)
    q_cams, g_cams = rng.integers(0, cameras, queries), rng.integers(0, cameras, items)
    shared = 1.2 * rng.standard_normal((1, width), dtype=np.float32)
    own = 0.5 * rng.standard_normal((queries, width), dtype=np.float32)
    mask = 1 / (1 + np.exp(-shared - own))
    others = 0.5 * rng.standard_normal((1000, width), dtype=np.float32)
    usual = (1 / (1 + np.exp(-shared - others))).mean(0)
    query, gallery = drawn(q_pids, q_cams, 0.9), drawn(g_pids, g_cams, 0.7)
    return Made(query, mask, gallery, (q_pids, g_pids, q_cams, g_cams), usual)


class Cost(NamedTuple):
    """Seconds of processor and of wall, and MiB of memory above what was there before."""

    cpu: float
    wall: float
    memory: float


def measured(call: Callable[[], Any], rounds: int = 3) -> tuple[Any, Cost]:
    """What `call` returns and the least cost of it in `rounds`; memory is that of the first."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall, memory = float("inf"), float("inf"), 0.0
    found = None
    for i in range(rounds):
        start, begun = time.process_time(), time.perf_counter()
        found = call()
        cpu = min(cpu, time.process_time() - start)
        wall = min(wall, time.perf_counter() - begun)
        if i == 0:
            memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return found, Cost(cpu, wall, memory)


def in_fresh_process(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON that `python -m MODULE ARGUMENTS` prints last: its peak memory is its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
