"""What an index on disk costs: to fill, open, search and compact, against what memory allows.

    python -m tests.bench.index_speed [--rows 200000] [--folder /tmp]

Random features of the default model's spaces. The limit of a search is the time to read the
features once from memory (a sum over them, the same threads). Each search is the best of five
after one that fills the page cache.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dpmpp_core.index import ROW_SCHEMA, GalleryIndex, ModelVersion, RowFilter, Stored, search
from pipelines.runtime.tracking import environment
from tests.bench.timing import RESULTS

SPACES = {"bands": 768, "joint": 512}  # 1280 dimensions
STORED: tuple[Stored, ...] = ("float32", "bfloat16", "int8")
LOT = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", help="Where the indexes are made. Default: a temporary one.")
    arguments = parser.parse_args()
    columns = "stored", "GB", "add, rows/s", "open, ms", "add the same, s", "1 query, ms"
    columns += "limit, ms", "x limit", "64 queries, ms", "one camera, ms", "compact, s"
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for stored in STORED:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            cells = measure(Path(folder) / "index", stored, arguments.rows)
        lines.append(f"| {stored} | {' | '.join(cells)} |")
    write(arguments.rows, lines)


def measure(folder: Path, stored: Stored, rows: int) -> list[str]:
    model = ModelVersion(weights_sha256="a" * 64, spaces=SPACES)
    GalleryIndex.create(folder, model, "m", stored)
    seconds = 0.0
    for start in range(0, rows, LOT):
        table, features = lot(start, min(LOT, rows - start))
        index = GalleryIndex.open(folder)
        seconds += timed(lambda: index.append(model, table, features))  # noqa: B023
    again = timed(lambda: index.append(model, table, features))
    opening = min(timed(lambda: GalleryIndex.open(folder)) for _ in range(5))
    index = GalleryIndex.open(folder)
    one, many = questions(1), questions(64)
    search(index, *one, 20)
    single = min(timed(lambda: search(index, *one, 20)) for _ in range(5))
    several = min(timed(lambda: search(index, *many, 20)) for _ in range(2))
    camera = min(timed(lambda: search(index, *one, 20, RowFilter(cameras=[3]))) for _ in range(3))
    blocks = [x for block in index.blocks() for x in block.features.values()]
    limit = min(timed(lambda: [as_words(x).sum() for x in blocks]) for _ in range(5))
    size = index.bytes
    index.delete(images=[f"{i}.jpg" for i in range(0, rows, 10)])
    compacting = timed(index.compact)
    shutil.rmtree(folder)
    return [f"{size / 1e9:.2f}", f"{rows / seconds:,.0f}", f"{1000 * opening:.1f}", f"{again:.2f}",
            f"{1000 * single:.0f}", f"{1000 * limit:.0f}", f"{single / limit:.1f}",
            f"{1000 * several:.0f}", f"{1000 * camera:.0f}", f"{compacting:.1f}"]  # fmt: skip


def as_words(x: torch.Tensor) -> torch.Tensor:
    """The same memory as float32, which is summed as fast as it is read."""
    return x.reshape(-1).view(torch.float32)


def lot(start: int, count: int) -> tuple[pa.Table, dict[str, np.ndarray]]:
    rng = np.random.default_rng(start)
    names = [f"{i}.jpg" for i in range(start, start + count)]
    columns: dict[str, Any] = {
        "image": names,
        "sha256": [f"{i:064}" for i in range(start, start + count)],
        "bytes": np.ones(count, np.int64),
        "mtime_ns": np.ones(count, np.int64),
        "pid": rng.integers(0, 1000, count),
        "camid": rng.integers(0, 10, count),
        "time": rng.integers(0, 10**9, count),
    }
    features = {s: rng.standard_normal((count, d), np.float32) for s, d in SPACES.items()}
    return pa.table(columns, schema=ROW_SCHEMA), features


def questions(count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    queries = {s: rng.standard_normal((count, d), np.float32) for s, d in SPACES.items()}
    masks = {s: rng.uniform(0.01, 1, (count, d)).astype(np.float32) for s, d in SPACES.items()}
    return queries, masks


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write(rows: int, lines: list[str]) -> None:
    packages = ", ".join(f"{k} {v}" for k, v in environment()["packages"].items())
    text = [
        "# The index on disk",
        "",
        f"`python -m tests.bench.index_speed --rows {rows}`, {date.today()}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}; {packages}.",
        "",
        f"{rows:,} rows of {sum(SPACES.values())} dimensions in two spaces, masked queries, the "
        f"best 20, lots of {LOT:,}.",
        "",
        *lines,
        "",
    ]
    (RESULTS / "index.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
