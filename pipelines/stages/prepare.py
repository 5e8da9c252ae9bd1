"""Inspect every image of a data folder on Ray Data, and write the manifest."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from dpmpp_core import demo
from dpmpp_core.config import DataConfig, DemoConfig
from dpmpp_core.data.files import list_files, listing_fingerprint, resolve_path
from dpmpp_core.data.inspection import inspect_file
from dpmpp_core.data.layouts import Entry, Scan, scan
from dpmpp_core.data.manifest import FORMAT, IMAGE_SCHEMA, INSPECTED_SCHEMA, Manifest
from pipelines.runtime.blocks import map_blocks, read_files
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.resources import parse_labels
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage
from pipelines.stages.inspection_cache import (
    CACHE_SCHEMA,
    FILE,
    FILE_SCHEMA,
    RESULT_SCHEMA,
    InspectionCache,
)

ENTRY_SCHEMA = pa.schema([IMAGE_SCHEMA.field(name) for name in Entry._fields])
log = logging.getLogger(__name__)

MIN_WORKER_IMAGES = 1_000  # a worker takes seconds to start; from a disk it reads 3,000 a second
MIN_TASK_IMAGES, MAX_TASK_IMAGES = 32, 4096  # a killed task inspects its images again
TASKS_PER_WORKER = 8  # if the data has enough images; then no worker waits long for the last one


def demo_data(run: Run) -> Stage:
    """Generate the demo data set."""
    section = run.config.data.demo

    def build(folder: Path) -> dict[str, Any]:
        draw = partial(_on_ray, run.config.cluster.data_nodes)
        summary = draw_demo(folder / "data", section, draw)
        return {"images": dict(summary.images), "identities": summary.identities}

    return run.build_stage("demo-data", {"demo": section}, build)


def draw_demo(
    out: Path,
    section: DemoConfig,
    run: Callable[[list[demo.Task]], Iterable[list[demo.Drawn]]] = demo.draw_here,
) -> demo.DemoSummary:
    """Generate a demo data set into `out`, showing progress; raises as `demo.generate`."""
    images = section.train_identities * section.train_images
    images += section.test_identities * (section.gallery_images + 2 * section.query_images)
    with progress_bar("demo images", images) as shown:
        return demo.generate(out, section, lambda done, _: shown.update(done), run)


def _on_ray(nodes: Sequence[str], tasks: list[demo.Task]) -> Iterator[list[demo.Drawn]]:
    """Draw on all CPUs of the nodes with these labels; yield results as they arrive."""
    draw: Any = ray.remote(demo.draw_shots)
    if nodes:
        draw = draw.options(label_selector=parse_labels(nodes))
    waiting = [draw.remote(task) for task in tasks]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield ray.get(done[0])


@dataclass(frozen=True)
class Source:
    """A data folder that is listed, but of which no file was read.

    Attributes:
        root: Its absolute path or URI.
        fingerprint: Hash of the listing.
        files: Every file of the folder, FILE_SCHEMA.
        scan: The images and the rejected files.
    """

    root: str
    fingerprint: str
    files: pa.Table
    scan: Scan


def find_data(config: DataConfig, root: str) -> Source:
    """List a data folder, a local one or `s3://bucket/prefix`, and recognise its images.

    Raises:
        DataError: There is no such folder, or its layout is unknown.
    """
    root = resolve_path(root)
    listing = list_files(root)
    scanned = scan(root, config.layout, config.occluded_queries, listing, config.camera)
    files = _to_table(listing.files, FILE_SCHEMA)
    return Source(root, listing_fingerprint(listing), files, scanned)


def prepare(run: Run, source: Source) -> Stage:
    """Check every image and write the manifest.

    Raises:
        DataError: Nothing can be learnt or measured on the data.
    """
    root, scanned = source.root, source.scan
    identity = {
        "root": root,
        "listing": source.fingerprint,
        "layout": scanned.layout,
        "occluded_queries": run.config.data.occluded_queries,
        "camera": run.config.data.camera,
        "format": FORMAT,
    }

    def build(folder: Path) -> dict[str, Any]:
        if run.fresh:
            InspectionCache(run.storage, root).clear()
        rows = inspect_all(source, run.storage, run.plan.embed_workers)
        manifest = Manifest.build(root, scanned.layout, rows, scanned.rejected)
        manifest.save(folder)
        if scanned.persons:
            names = pa.table({"pid": [*scanned.persons], "person": [*scanned.persons.values()]})
            pq.write_table(names, folder / "persons.parquet")
        return {
            "dataset_id": manifest.dataset_id,
            "root": root,
            "layout": manifest.layout,
            "counts": manifest.counts(),
            "warnings": list(manifest.warnings),
        }

    return run.build_stage("prepare", identity, build)


def inspect_all(source: Source, storage: Storage, workers: int) -> pa.Table:
    """Return the rows (INSPECTED_SCHEMA, unordered) of all images of a data folder.

    Only files that are not in the inspection cache are read: new and changed ones, and those that
    a killed run did not reach.
    """
    images = _to_table(source.scan.entries, ENTRY_SCHEMA)
    images = images.join(source.files, "path", join_type="inner")
    cache = InspectionCache(storage, source.root)
    todo = images.join(cache.keep(source.files), FILE, join_type="left anti")
    if len(todo) < len(images):
        known = len(images) - len(todo)
        log.info("prepare: %d of %d images are known from before", known, len(images))
    if len(todo):
        _inspect(source.root, todo.select(FILE).sort_by("path"), storage.uri, workers)
    rows = images.join(cache.read(), FILE, join_type="inner")
    if len(rows) != len(images):
        raise RuntimeError(
            f"{storage.location(cache.key)} lacks {len(images) - len(rows)} rows that were just "
            "written: not all nodes share the storage, or another run prepares the same data; "
            "then start again when it has ended"
        )
    return rows.select(INSPECTED_SCHEMA.names).cast(INSPECTED_SCHEMA)


def _inspect(root: str, todo: pa.Table, storage: str, workers: int) -> None:
    """Inspect the files `todo` (FILE_SCHEMA) on Ray Data, and add them to the cache."""
    size = task_images(len(todo), workers)
    blocks = [todo.slice(start, size).combine_chunks() for start in range(0, len(todo), size)]

    def inspect(files: pa.Table) -> pa.Table:
        results = read_files(partial(inspect_file, root), root, files)
        _refuse_absent(root, files["path"].to_pylist())
        columns = [*files.columns, *pa.Table.from_pylist(results, RESULT_SCHEMA).columns]
        InspectionCache(Storage(storage), root).add(pa.table(columns, CACHE_SCHEMA))
        return pa.table({"done": [len(files)]})

    workers = min(workers, -(-len(todo) // MIN_WORKER_IMAGES))
    map_blocks(inspect, blocks, workers, "images checked")


def _refuse_absent(root: str, paths: Sequence[str]) -> None:
    """Raise OSError if none of several listed files is there: they are not bad, the node is."""
    if "://" in root or len(paths) == 1:
        return
    if not any(os.path.lexists(os.path.join(root, path)) for path in paths):
        raise OSError(
            f"node {socket.gethostname()} has none of {len(paths)} files that were listed in "
            f"{root}, such as {paths[0]}: nothing is quarantined; every node needs the data"
        )


def task_images(files: int, workers: int) -> int:
    """Return how many of `files` one task inspects."""
    return min(MAX_TASK_IMAGES, max(MIN_TASK_IMAGES, files // (workers * TASKS_PER_WORKER)))


def _to_table(rows: Sequence[tuple], schema: pa.Schema) -> pa.Table:
    columns: Iterable[tuple] = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema)
