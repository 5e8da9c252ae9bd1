"""Add the images of a folder to an index: those that are new or have changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpmpp_core.data.files import (
    FileListing,
    Rejected,
    ensure_writable,
    list_files,
    resolve_path,
    write_atomically,
)
from dpmpp_core.data.inspection import inspect_picture
from dpmpp_core.data.manifest import QUARANTINE_SCHEMA
from dpmpp_core.data.names import canonical
from dpmpp_core.data.scenes import scene_hint
from dpmpp_core.data.sightings import LABELS, Sighting, Sightings, find_sightings, read_labels
from dpmpp_core.errors import DataError
from dpmpp_core.gallery.queries import ExportedModel
from dpmpp_core.index import ROW_SCHEMA, GalleryIndex, LabelNames, describe_index
from dpmpp_core.models.reid import ReidModel
from dpmpp_core.redaction import redact
from dpmpp_core.retrieval import from_columns, refuse_unusable, to_columns

log = logging.getLogger(__name__)

BATCH_IMAGES = 64  # images a forward pass
# The most images or seconds of work that a killed job has to repeat.
COMMIT_ROWS, COMMIT_SECONDS = 16_384, 60.0
QUARANTINE_FILE = "quarantine.parquet"
FILE = ["image", "bytes", "mtime_ns"]  # columns that tell whether a file is in the index as it is
Columns = dict[str, np.ndarray]


def find_labelled_images(
    data: str,
    split: str = "all",
    labels: str | None = None,
    layout: str = "auto",
    camera: str | None = None,
) -> tuple[FileListing, Sightings]:
    """List a data folder, and parse or read the labels of its images.

    Args:
        data: folder, or `s3://bucket/prefix`.
        split: see `find_sightings`.
        labels: CSV file of `read_labels`.
        layout: see `find_sightings`.
        camera: see `find_sightings`.

    Raises:
        DataError: as `list_files`, `read_labels` and `find_sightings`.
    """
    listing = list_files(resolve_path(data))
    read = None
    if labels is not None:
        try:
            read = read_labels(Path(labels).expanduser().read_bytes(), labels)
        except OSError as error:
            raise DataError(f"{labels} cannot be read: {error.strerror}") from None
    return listing, find_sightings(listing, split, read, layout, camera)


def embed_files(
    model: ReidModel | ExportedModel, root: str, batch: Mapping[str, np.ndarray], masks: bool
) -> Columns:
    """Inspect the files of a batch, and embed the good ones.

    Args:
        model: the model.
        root: of the paths.
        batch: the columns `row`, which is returned, and `path`.
        masks: whether masks are returned too.

    Returns:
        the columns row, sha256, reason, detail, width, height, features and, with `masks`, masks;
        features and masks of bad images are zeros.
    """
    inspected = [inspect_picture(root, path) for path in batch["path"]]
    pictures = [picture for _, picture in inspected if picture is not None]
    good = np.array([picture is not None for _, picture in inspected])
    embedded = model.embed(pictures, batch=BATCH_IMAGES)
    columns = {}
    for name, values in to_columns(embedded.features, embedded.masks if masks else {}).items():
        columns[name] = np.zeros((len(good), values.shape[1]), np.float32)
        columns[name][good] = values
    texts = {
        name: np.array([row[name] for row, _ in inspected], object)
        for name in ("sha256", "reason", "detail")
    }
    sizes = {
        name: np.array([row[name] for row, _ in inspected], np.int32)
        for name in ("width", "height")
    }
    return {"row": batch["row"], **texts, **sizes, **columns}


def add_sightings(
    index: GalleryIndex,
    listing: FileListing,
    sightings: Sightings,
    stream: Callable[[list[str]], Iterable[Columns]],
) -> tuple[GalleryIndex, dict[str, Any]]:
    """Add images that are new or have changed, and new labels of others.

    Args:
        index: the index.
        listing: of the data folder.
        sightings: its images.
        stream: paths of images -> the columns of `embed_files` in parts of any order, where `row`
            is the number of the path.

    Returns:
        the index, and `describe_index` of it with: added, replaced (pictures that changed), known
        (files that were not opened or have the same content), relabelled, quarantined, hint
        (`scene_hint`), seconds.

    Raises:
        UserError: nothing can be written to the folder; a model that returns unusable features;
            labels as `number_names`.
    """
    start = time.monotonic()
    ensure_writable(index.folder)
    stored = index.images()
    labels = {label for image in sightings.images for label in (image.pid, image.camid)}
    if index.manifest.names != LabelNames() or any(isinstance(label, str) for label in labels):
        index = index.add_names(sightings.images)
    images, twice = _list_images(index, stored["image"].to_pylist(), listing, sightings.images)
    new = images.join(stored, FILE, join_type="left anti")
    new = new.select(images.column_names).sort_by("path")
    known = images.join(stored, FILE, join_type="left semi").select(["image", *LABELS])
    index, relabelled = index.relabel(known)
    writer = _IndexWriter(index, [*(Rejected(*row) for row in sightings.rejected), *twice])
    if len(new):
        if len(known):
            log.info("index: %d of %d images are in it", len(known), len(images))
        for part in stream(new["path"].to_pylist()):
            writer.take(part, new)
        writer.commit()
    quarantine = [row._asdict() for row in sorted(writer.rejected)]
    with write_atomically(index.folder / QUARANTINE_FILE, durable=True) as file:
        pq.write_table(pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA), file)
    return writer.index, {
        **describe_index(writer.index),
        "root": redact(listing.root),
        "layout": sightings.layout,
        "added": writer.added,
        "replaced": writer.replaced,
        "known": len(known) + writer.known,
        "relabelled": relabelled,
        "quarantined": quarantine,
        "hint": scene_hint(writer.wide, writer.read, redact(listing.root)),
        "seconds": round(time.monotonic() - start, 2),
    }


def _list_images(
    index: GalleryIndex, stored: Sequence[str], listing: FileListing, images: Sequence[Sighting]
) -> tuple[pa.Table, list[Rejected]]:
    """Return `path` and the columns of ROW_SCHEMA but `sha256`, and files that are there twice.

    An image that is `stored` under another spelling, as through a link, keeps that name.
    """
    persons: dict[Any, int] = index.manifest.names.persons
    cameras: dict[Any, int] = index.manifest.names.cameras
    names = {canonical(name): name for name in stored}
    stats = {file.path: file for file in listing.files}
    root = listing.root.rstrip("/")
    rows: dict[str, dict[str, Any]] = {}
    twice = []
    for image in images:
        name = canonical(f"{root}/{image.path}")
        if name in rows:
            detail = f"a link leads to {rows[name]['path']}, which is taken"
            twice.append(Rejected(image.path, "same_file", detail))
            continue
        stat = stats[image.path]
        rows[name] = {
            "path": image.path, "image": names.get(name, name), "bytes": stat.size,
            "mtime_ns": stat.mtime_ns, "time": image.time,
            "pid": persons.get(image.pid, image.pid),  # that of a name, or the number itself
            "camid": cameras.get(image.camid, image.camid),
        }  # fmt: skip
    fields = [ROW_SCHEMA.field(name) for name in ROW_SCHEMA.names if name != "sha256"]
    schema = pa.schema([pa.field("path", pa.string()), *fields])
    return pa.Table.from_pylist(list(rows.values()), schema), twice


class _IndexWriter:
    """Gather the columns of workers, and append them to the index in large parts."""

    def __init__(self, index: GalleryIndex, rejected: list[Rejected]) -> None:
        self.index, self.rejected = index, rejected
        self.added = self.replaced = self.known = 0
        self.read = self.wide = 0  # good pictures, and those of them that are wider than high
        self._rows: list[pa.Table] = []
        self._features: list[dict[str, np.ndarray]] = []
        self._last = time.monotonic()

    def take(self, part: dict[str, np.ndarray], new: pa.Table) -> None:
        """Take the columns of a batch, see `EmbedImages`; `row` is a row of `new`."""
        rows = new.take(pa.array(part["row"]))
        good = part["reason"] == ""
        bad = zip(rows["path"].to_pylist(), part["reason"], part["detail"], good, strict=True)
        self.rejected += [Rejected(path, reason, why) for path, reason, why, ok in bad if not ok]
        self.read += int(good.sum())
        self.wide += int((part["width"] > part["height"])[good].sum())
        features = {n: x[good] for n, x in part.items() if n.startswith("feature_")}
        rows = rows.append_column("sha256", pa.array(part["sha256"], pa.string()))
        rows = rows.filter(pa.array(good)).select(ROW_SCHEMA.names)
        refuse_unusable(features, rows["image"].to_pylist())
        self._rows.append(rows)
        self._features.append(features)
        waiting = sum(map(len, self._rows))
        if waiting >= COMMIT_ROWS or time.monotonic() - self._last > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Append the gathered rows to the index."""
        rows = pa.concat_tables(self._rows) if self._rows else ROW_SCHEMA.empty_table()
        if len(rows):
            names = self._features[0]
            joined = {n: np.concatenate([part[n] for part in self._features]) for n in names}
            features, _ = from_columns(joined)
            self.index, done = self.index.append(
                self.index.manifest.model, rows, cast(dict[str, np.ndarray], features)
            )
            self.added += done.added
            self.replaced += done.replaced
            self.known += done.known
        self._rows, self._features, self._last = [], [], time.monotonic()
