"""Data folder -> manifest, every image looked at by Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import TaskPoolStrategy

from dpmpp_core.config import DataConfig, DemoConfig
from dpmpp_core.data import demo
from dpmpp_core.data.files import list_files, listing_fingerprint
from dpmpp_core.data.inspection import inspect
from dpmpp_core.data.layouts import Entry, Scan, scan
from dpmpp_core.data.manifest import Manifest
from pipelines.progress import bar
from pipelines.stage import Run, Stage

ROWS = 256  # images a task


def demo_data(run: Run) -> Stage:
    """Generate the demo data set."""
    section = run.config.data.demo

    def build(folder: Path) -> dict[str, Any]:
        summary = draw_demo(folder / "data", section, _on_ray)
        return {"images": dict(summary.images), "identities": summary.identities}

    return run.stage("demo-data", {"demo": section}, build)


def draw_demo(
    out: Path,
    section: DemoConfig,
    run: Callable[[list[demo.Task]], Iterable[list[demo.Drawn]]] = demo.draw_here,
) -> demo.DemoSummary:
    """Generate a demo data set into `out`, showing progress; raises as `demo.generate`."""
    images = section.train_identities * section.train_images
    images += section.test_identities * (section.gallery_images + 2 * section.query_images)
    with bar("demo images", images) as shown:
        return demo.generate(out, section, lambda done, _: shown.update(done), run)


def _on_ray(tasks: list[demo.Task]) -> Iterator[list[demo.Drawn]]:
    """Draw on all CPUs of the machine or cluster; results as they come."""
    draw = ray.remote(demo.draw_shots)
    waiting = [draw.remote(task) for task in tasks]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield ray.get(done[0])


@dataclass(frozen=True)
class Source:
    """A data folder that was looked through, nothing of it read yet."""

    root: str
    fingerprint: str
    scan: Scan


def find_data(config: DataConfig, root: str) -> Source:
    """List a data folder and name its images.

    Args:
        root: a local folder or `s3://bucket/prefix`.

    Raises:
        DataError: no such folder, or an unknown layout.
    """
    root = absolute(root)
    listing = list_files(root)
    found = scan(root, config.layout, config.occluded_queries, listing)
    return Source(root, listing_fingerprint(listing), found)


def absolute(root: str) -> str:
    """A folder as workers elsewhere find it: an absolute path, or the URI as it is."""
    return root if "://" in root else str(Path(root).expanduser().absolute())


def prepare(run: Run, source: Source) -> Stage:
    """Check every image and write the manifest.

    Raises:
        DataError: a data set that nothing can be learnt or measured on.
    """
    root, found = source.root, source.scan
    identity = {
        "root": root,
        "listing": source.fingerprint,
        "layout": found.layout,
        "occluded_queries": run.config.data.occluded_queries,
    }

    def build(folder: Path) -> dict[str, Any]:
        rows = inspect_all(root, found.entries, run.plan.embed_workers)
        manifest = Manifest.build(root, found.layout, rows, found.rejected)
        manifest.save(folder)
        return {
            "dataset_id": manifest.dataset_id,
            "root": root,
            "layout": manifest.layout,
            "counts": manifest.counts(),
            "warnings": list(manifest.warnings),
        }

    return run.stage("prepare", identity, build)


def inspect_all(root: str, entries: list[Entry], workers: int) -> list[dict[str, Any]]:
    """Inspect every entry on Ray Data tasks; rows in no certain order."""
    if not entries:
        return []
    tables = [
        pa.Table.from_pylist([entry._asdict() for entry in entries[i : i + ROWS]])
        for i in range(0, len(entries), ROWS)
    ]

    def look(table: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([inspect(root, Entry(**row)) for row in table.to_pylist()])

    dataset = ray.data.from_arrow(tables).map_batches(
        look, batch_size=None, batch_format="pyarrow", compute=TaskPoolStrategy(size=workers)
    )
    rows: list[dict[str, Any]] = []
    with bar("images checked", len(entries)) as shown:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            rows.extend(table.to_pylist())
            shown.update(len(rows))
    return rows
