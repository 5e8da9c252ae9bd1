"""Approximate search in an index on disk beside the exact search of the same index.

    python -m tests.bench.index_approximate [--rows 100000 1000000] [--folder /tmp]

Generated people (`retrieval_data.py`) in two metric spaces; masks as trained ones are, and masks
that leave three bands of ten. Each way of searching runs in fresh processes, in turn (ABAB), whose
files are first evicted from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dpmpp_core.index import ROW_SCHEMA, GalleryIndex, ModelVersion, search
from dpmpp_core.retrieval.sketches import CANDIDATE_SHARE, MIN_CANDIDATES, WIDTH
from tests.bench.index_speed import LOT, SPACES
from tests.bench.retrieval_data import Cost, in_fresh_process, made, measured
from tests.bench.timing import write

QUERIES, K, ROUNDS = 64, 10, 2
MODEL = ModelVersion(weights_sha256="a" * 64, spaces=SPACES)
MASKS = ("trained", "bands")
WAYS = ("exact", "approximate")
Figures = dict[str, Any]


def split(x: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of each metric space."""
    first, second = SPACES
    return {first: x[:, : SPACES[first]], second: x[:, SPACES[first] :]}


def fill(folder: Path, rows: int) -> None:
    """An index of so many rows, and queries and masks in the files beside it."""
    data = made(QUERIES, rows, sum(SPACES.values()), rows // 20, 20)
    rng = np.random.default_rng(1)
    seen = np.full((QUERIES, 10), 0.02, np.float32)
    for row in seen:
        row[rng.choice(10, 3, replace=False)] = 1
    bands = np.repeat(seen, data.query.shape[1] // 10, axis=1)
    np.savez(folder / "queries.npz", query=data.query, trained=data.mask, bands=bands)
    index = GalleryIndex.create(folder / "index", MODEL, "m")
    for start in range(0, rows, LOT):
        part = slice(start, min(start + LOT, rows))
        names = [f"{i}.jpg" for i in range(part.start, part.stop)]
        columns = {"image": names, "sha256": names, "bytes": [1] * len(names),
                   "mtime_ns": [1] * len(names), "pid": data.ids[1][part],
                   "camid": data.ids[3][part], "time": [None] * len(names)}  # fmt: skip
        index, _ = index.append(
            MODEL, pa.table(columns, schema=ROW_SCHEMA), split(data.gallery[part])
        )


def build(folder: str) -> Figures:
    """Compact the index, then write sketches; run in a process of its own."""
    index = GalleryIndex.open(Path(folder) / "index")
    compacted, compacting = measured(index.compact, 1)
    before = compacted.bytes
    sketched, building = measured(lambda: compacted.compact(approximate=True), 1)
    return {"compact": compacting.wall, "build": building.wall, "cpu": building.cpu,
            "memory": building.memory, "bytes": before,
            "sketch_bytes": sketched.bytes - before}  # fmt: skip


def run(folder: str, way: str) -> Figures:
    """Open the index and search it, one query at a time, then all together."""
    torch.set_num_threads(1)
    stored = np.load(Path(folder) / "queries.npz")
    query, masks = stored["query"], {name: stored[name] for name in MASKS}
    for file in (Path(folder) / "index" / "segments").iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    opened: list[GalleryIndex] = []

    def ask(rows: slice, mask: np.ndarray) -> Any:
        if not opened:
            opened.append(GalleryIndex.open(Path(folder) / "index"))
        found = search(opened[0], split(query[rows]), split(mask[rows]), K,
                       approximate=way == "approximate")  # fmt: skip
        opened[0].take(found.positions.ravel())
        return found

    each = [seconds(lambda i=i: ask(slice(i, i + 1), masks["trained"])) for i in range(21)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, many = {}, {}
    for name, mask in masks.items():
        found[name], many[name] = measured(lambda m=mask: ask(slice(None), m), 1)
    return {"wall": each[0].wall, "first": each[0].cpu, "each": median(x.cpu for x in each[1:]),
            "together": many["trained"].cpu / QUERIES, "memory": memory / 1024,
            "scored": found["trained"].scored,
            "positions": {name: x.positions.tolist() for name, x in found.items()}}  # fmt: skip


def seconds(call: Callable[[], Any]) -> Cost:
    return measured(call, 1)[1]


def recall(found: Figures, exact: Figures, masks: str) -> float:
    mine, best = (np.array(x["positions"][masks]) for x in (found, exact))
    return float((mine[:, :, None] == best[:, None]).any(1).mean())


def measure(rows: int, folder: str | None) -> list[str]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        module = "tests.bench.index_approximate"
        in_fresh_process(module, "--here", "fill", place, str(rows))
        built = in_fresh_process(module, "--here", "build", place)
        runs = [(way, in_fresh_process(module, "--here", "run", place, way))
                for _ in range(ROUNDS) for way in WAYS]  # fmt: skip
    lines = []
    for way in WAYS:
        own = [figures for name, figures in runs if name == way]
        cells = [f"{1e3 * min(x[key] for x in own):,.0f}"
                 for key in ("wall", "first", "each", "together")]  # fmt: skip
        recalls = [f"{recall(own[0], runs[0][1], name):.3f}" for name in MASKS]
        lines.append(
            f"| {rows:,} | {way} | {' | '.join(cells)} | {own[0]['scored']:,} | "
            f"{' | '.join(recalls)} | {min(x['memory'] for x in own):,.0f} |"
        )
    note = (
        f"{rows:,} rows: {built['bytes'] / 1e9:.2f} GB, sketches {built['sketch_bytes'] / 1e9:.2f} "
        f"GB; compacting took {built['compact']:.0f} s, sketches {built['build']:.0f} s "
        f"({built['cpu']:.0f} s of processor) and {built['memory']:.0f} MiB more, mapped pages "
        "included."
    )
    return [*lines, note]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--folder", help="Where the indexes are made. Default: a temporary one.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured_rows = [measure(rows, arguments.folder) for rows in arguments.rows]
    columns = ("rows", "search", "open and first, wall ms", "the same, ms", "median of 20, ms",
               f"of {QUERIES} together, ms", "scored exactly",
               *(f"recall@10, {name}" for name in MASKS), "peak MiB")  # fmt: skip
    sizes = " ".join(map(str, arguments.rows))
    write(
        "index-approximate",
        f"python -m tests.bench.index_approximate --rows {sizes}",
        [
            f"{sum(SPACES.values())} dimensions in two spaces, float32; {QUERIES} masked queries. "
            f"Sketches: {WIDTH} directions in bfloat16; one row in {CANDIDATE_SHARE} and at least "
            f"{MIN_CANDIDATES} are scored exactly. Processor time of one thread a query, so that "
            "other work on the machine counts little, but for the wall time of the first, which "
            "such work lengthens; fresh processes, the index evicted from the page cache before, "
            f"the best of {ROUNDS}. Peak MiB: of one query after the other, mapped pages "
            "included. Masks: `trained` as trained generators make them, `bands` leave three of "
            "ten.",
            "",
            f"| {' | '.join(columns)} |",
            f"|---:|---|{'---:|' * (len(columns) - 2)}",
            *(line for lines in measured_rows for line in lines[:-1]),
            "",
            *(lines[-1] + "\n" for lines in measured_rows),
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        _, _, job, place, *more = sys.argv
        if job == "fill":
            fill(Path(place), int(more[0]))
            print("{}")
        else:
            print(json.dumps(build(place) if job == "build" else run(place, *more)))
    else:
        main()
