"""Data folder -> manifest, every image looked at once by Ray Data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from dpmpp_core import demo
from dpmpp_core.config import DataConfig, DemoConfig
from dpmpp_core.data.files import FileStat, list_files, listing_fingerprint, resolve_path
from dpmpp_core.data.inspection import inspect_file
from dpmpp_core.data.layouts import Entry, Scan, scan
from dpmpp_core.data.manifest import FORMAT, IMAGE_SCHEMA, INSPECTED_SCHEMA, Manifest
from pipelines.runtime.blocks import map_blocks, read_files
from pipelines.runtime.progress import bar
from pipelines.runtime.resources import parse_labels
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage
from pipelines.stages.inspection_cache import (
    FILE,
    FILE_SCHEMA,
    FOUND_SCHEMA,
    RECORD_SCHEMA,
    InspectionCache,
)

ENTRY_SCHEMA = pa.schema([IMAGE_SCHEMA.field(name) for name in Entry._fields])
log = logging.getLogger(__name__)

ROWS = 32, 4096  # images a task, at least and at most: what a killed one has to look at again
TASKS = 8  # a worker, if that gives them enough images: none then waits long for the last one


def demo_data(run: Run) -> Stage:
    """Generate the demo data set."""
    section = run.config.data.demo

    def build(folder: Path) -> dict[str, Any]:
        draw = partial(_on_ray, run.config.cluster.data_nodes)
        summary = draw_demo(folder / "data", section, draw)
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


def _on_ray(nodes: Sequence[str], tasks: list[demo.Task]) -> Iterator[list[demo.Drawn]]:
    """Draw on all CPUs of the nodes with these labels; results as they come."""
    draw: Any = ray.remote(demo.draw_shots)
    if nodes:
        draw = draw.options(label_selector=parse_labels(nodes))
    waiting = [draw.remote(task) for task in tasks]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield ray.get(done[0])


@dataclass(frozen=True)
class Source:
    """A data folder that was looked through, nothing of it read yet."""

    root: str
    fingerprint: str
    files: pa.Table  # inspected.FILE_SCHEMA, every file of the folder
    scan: Scan


def find_data(config: DataConfig, root: str) -> Source:
    """List a data folder and name its images.

    Args:
        root: a local folder or `s3://bucket/prefix`.

    Raises:
        DataError: no such folder, or an unknown layout.
    """
    root = resolve_path(root)
    listing = list_files(root)
    found = scan(root, config.layout, config.occluded_queries, listing)
    files = pa.table(_columns(FileStat._fields, listing.files), FILE_SCHEMA)
    return Source(root, listing_fingerprint(listing), files, found)


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
        "format": FORMAT,
    }

    def build(folder: Path) -> dict[str, Any]:
        if run.fresh:
            InspectionCache(run.storage, root).forget()
        rows = inspect_all(source, run.storage, run.plan.embed_workers)
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


def inspect_all(source: Source, storage: Storage, workers: int) -> pa.Table:
    """Rows (INSPECTED_SCHEMA, in no certain order) of all images of a data folder.

    Reads the files that the inspection record does not know as they are now: new and changed ones,
    and what a killed run left to do.
    """
    entries = pa.table(_columns(Entry._fields, source.scan.entries), ENTRY_SCHEMA)
    images = entries.join(source.files, "path", join_type="inner")
    record = InspectionCache(storage, source.root)
    todo = images.join(record.keep(source.files), FILE, join_type="left anti")
    if len(todo) < len(images):
        known = len(images) - len(todo)
        log.info("prepare: %d of %d images are known from before", known, len(images))
    if len(todo):
        _inspect(source.root, todo.select(FILE).sort_by("path"), storage.uri, workers)
    rows = images.join(record.read(), FILE, join_type="inner")
    if len(rows) != len(images):
        raise RuntimeError(
            f"{storage.location(record.key)} lacks {len(images) - len(rows)} rows that were just "
            "written. Is the storage a folder that not all nodes share? Does another run prepare "
            "the same data? Start again when it has ended"
        )
    return rows.select(INSPECTED_SCHEMA.names).cast(INSPECTED_SCHEMA)


def _inspect(root: str, todo: pa.Table, storage: str, workers: int) -> None:
    """Look at the files `todo` (FILE_SCHEMA) on Ray Data tasks, each of which records its own."""
    size = block_rows(len(todo), workers)
    blocks = [todo.slice(start, size).combine_chunks() for start in range(0, len(todo), size)]

    def look(files: pa.Table) -> pa.Table:
        found = read_files(partial(inspect_file, root), root, files)
        columns = [*files.columns, *pa.Table.from_pylist(found, FOUND_SCHEMA).columns]
        InspectionCache(Storage(storage), root).add(pa.table(columns, RECORD_SCHEMA))
        return pa.table({"done": [len(files)]})

    map_blocks(look, blocks, workers, "images checked")


def block_rows(files: int, workers: int) -> int:
    """How many files one task looks at."""
    least, most = ROWS
    return min(most, max(least, files // (workers * TASKS)))


def _columns(names: tuple[str, ...], rows: Sequence[tuple]) -> dict[str, list]:
    """Named tuples as columns."""
    columns: Iterable[tuple] = zip(*rows, strict=True) if rows else [()] * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}
