"""Build gallery indexes with Ray Data, add to them, delete from them, compact and describe them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dpmpp_core.config import ClusterConfig
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
from dpmpp_core.index import ROW_SCHEMA, GalleryIndex, Stored, describe_index
from dpmpp_core.index.manifest import Segment
from dpmpp_core.models.sources import SHIPPED, SHIPPED_WORTH
from dpmpp_core.redaction import redact
from dpmpp_core.retrieval import from_columns, refuse_unusable, to_columns
from pipelines.gallery.selection import match_images
from pipelines.inference.embed import stream_embeddings
from pipelines.registry.models import (
    load_source_model,
    read_model_version,
    resolve_model_source,
)
from pipelines.registry.references import get_registry_uri, use_registry
from pipelines.runtime.resources import connect
from pipelines.runtime.storage import Storage

log = logging.getLogger(__name__)

BATCH_IMAGES = 64  # images a forward pass
# The most images or seconds of work that a killed job has to repeat.
COMMIT_ROWS, COMMIT_SECONDS = 16_384, 60.0
QUARANTINE_FILE = "quarantine.parquet"
FILE = ["image", "bytes", "mtime_ns"]  # columns that tell whether a file is in the index as it is


@dataclass(frozen=True)
class ImageSource:
    """The images to add; see `dpmpp index add --help`."""

    data: str
    split: str = "all"
    labels: str | None = None
    address: str | None = None


def build_index(folder: str, model: str, stored: Stored, images: ImageSource) -> dict[str, Any]:
    """Create an index, or continue one of the same model; return what `add_images` returns.

    Everything that a user can get wrong is checked before anything is written.

    Raises:
        UserError: the model, the data, or a folder with something else in it.
    """
    listing, sightings = find_images(images)
    source = resolve_model_source(model)
    _state_worth(source)
    version = read_model_version(source)
    path = resolve_local_folder(folder)
    if (path / "index.json").exists():
        index = GalleryIndex.open(path)
        index.check(version, f"the model {source}")
        if index.manifest.stored != stored:
            raise DataError(
                f"{folder} stores features as {index.manifest.stored}, not as {stored}: build "
                "another index"
            )
    else:
        index = GalleryIndex.create(path, version, source, stored)
    return _add_sightings(index, source, listing, sightings, images.address)


def add_images(folder: str, images: ImageSource, model: str | None = None) -> dict[str, Any]:
    """Add the images of a data folder that are new or have changed, and new labels of others.

    Args:
        folder: of the index.
        images: the data folder.
        model: where the index's model is now, if not where it was.

    Returns:
        `describe_index` of the index, and: added, replaced (pictures that changed), known (files
        that were not opened or have the same content), relabelled (known ones whose person, camera
        or time changed), quarantined, seconds.

    Raises:
        UserError: the index, its model or the data.
    """
    index = GalleryIndex.open(resolve_local_folder(folder))
    source = resolve_model_source(model or index.manifest.source)
    index.check(read_model_version(source), f"the model {source}")
    listing, sightings = find_images(images)
    _state_worth(source)
    return _add_sightings(index, source, listing, sightings, images.address)


def delete_images(folder: str, images: Sequence[str], pids: Sequence[int]) -> dict[str, Any]:
    """Delete images and persons.

    Args:
        folder: of the index.
        images: as `search` shows them, or the end of such a path from a folder on.
        pids: persons, all of whose images are deleted.

    Raises:
        DataError: the index lacks one of them, or several images end like that; nothing is deleted.
    """
    if not images and not pids:
        raise DataError("nothing to delete: name --image or --pid")
    index = GalleryIndex.open(resolve_local_folder(folder))
    index, gone = index.delete(match_images(index, images, pids), pids)
    return {**describe_index(index), "gone": gone}


def compact_index(folder: str, approximate: bool = False) -> dict[str, Any]:
    """Free the space of deleted rows, and merge small segments; see `GalleryIndex.compact`.

    Args:
        folder: of the index.
        approximate: also write sketches.
    """
    index = GalleryIndex.open(resolve_local_folder(folder))
    before = index.bytes
    index = index.compact(approximate)
    return {**describe_index(index), "bytes_before": before}


def read_index_facts(uri: str) -> dict[str, Any]:
    """Return the facts of an index, local or on S3."""
    return {**describe_index(open_index(uri)), "index": redact(uri)}


def resolve_local_folder(folder: str) -> Path:
    """Return the folder of an index that is to be written to; raise DataError for a URI."""
    if "://" in folder:
        raise DataError(
            f"{folder}: an index is written to in a local folder, and read from anywhere: copy the "
            "finished folder there"
        )
    return Path(resolve_path(folder))


def open_index(uri: str) -> GalleryIndex:
    """Open the index in a local folder, or at `s3://bucket/prefix` after fetching its segments.

    Raises:
        DataError: as `GalleryIndex.open`.
    """
    if "://" not in uri:
        return GalleryIndex.open(resolve_local_folder(uri))
    index = open_remote_index(uri)
    for segment in index.manifest.segments:
        fetch_segment(uri, segment)
    return index


def open_remote_index(uri: str) -> GalleryIndex:
    """Open the index at an S3 URI without fetching segments."""
    data = Storage(uri).read("index.json")
    if data is None:
        raise DataError(f"{uri} holds no index.json: not an index")
    folder = Storage(uri).cached("")
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / "index.json", durable=True) as file:
        file.write_bytes(data)
    return GalleryIndex.open(folder)


def fetch_segment(uri: str, segment: Segment) -> Path:
    """Fetch a segment's files; return the folder of the index in the cache of this node."""
    for name in segment.files:
        file = Storage(uri).fetch_file(f"segments/{name}")
    return file.parent.parent


class EmbedImages:
    """A worker that inspects images, and embeds the good ones.

    Args:
        registry: URI of the registry that holds the model.
    """

    def __init__(self, root: str, source: str, registry: str, masks: bool = False) -> None:
        torch.set_num_threads(1)
        with use_registry(registry):
            self._model = load_source_model(source)
        self._root, self._masks = root, masks

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns row, sha256, reason, detail, width, height, features and masks.

        Masks come with `masks`. Features and masks of bad images are zeros.
        """
        inspected = [inspect_picture(self._root, path) for path in batch["path"]]
        pictures = [picture for _, picture in inspected if picture is not None]
        good = np.array([picture is not None for _, picture in inspected])
        embedded = self._model.embed(pictures, batch=BATCH_IMAGES)
        columns = {}
        for name, values in to_columns(
            embedded.features, embedded.masks if self._masks else {}
        ).items():
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


def _state_worth(source: str) -> None:
    """Log what the package's own model is worth, which is taken where none is named."""
    if source == SHIPPED:
        log.info("model: %s", SHIPPED_WORTH)


def find_images(images: ImageSource) -> tuple[FileListing, Sightings]:
    """List a data folder, and parse or read the labels of its images."""
    listing = list_files(resolve_path(images.data))
    labels = None
    if images.labels is not None:
        try:
            labels = read_labels(Path(images.labels).read_bytes(), images.labels)
        except OSError as error:
            raise DataError(f"{images.labels} cannot be read: {error.strerror}") from None
    return listing, find_sightings(listing, images.split, labels)


def _add_sightings(
    index: GalleryIndex,
    source: str,
    listing: FileListing,
    sightings: Sightings,
    address: str | None,
) -> dict[str, Any]:
    start = time.monotonic()
    ensure_writable(index.folder)
    stored = index.images()
    images, twice = _list_images(stored["image"].to_pylist(), listing, sightings.images)
    new = images.join(stored, FILE, join_type="left anti")
    new = new.select(images.column_names).sort_by("path")
    known = images.join(stored, FILE, join_type="left semi").select(["image", *LABELS])
    index, relabelled = index.relabel(known)
    writer = _IndexWriter(index, [*(Rejected(*row) for row in sightings.rejected), *twice])
    if len(new):
        if len(known):
            log.info("index: %d of %d images are in it", len(known), len(images))
        plan, _ = connect(address, ClusterConfig())
        paths = new["path"].to_pylist()
        arguments = (listing.root, source, get_registry_uri())
        for part in stream_embeddings(
            paths, EmbedImages, arguments, plan, BATCH_IMAGES, "images indexed"
        ):
            writer.take(part, new)
        writer.commit()
    quarantine = [row._asdict() for row in sorted(writer.rejected)]
    with write_atomically(index.folder / QUARANTINE_FILE, durable=True) as file:
        pq.write_table(pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA), file)
    return {
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
    stored: Sequence[str], listing: FileListing, images: Sequence[Sighting]
) -> tuple[pa.Table, list[Rejected]]:
    """Return `path` and the columns of ROW_SCHEMA but `sha256`, and files that are there twice.

    An image that is `stored` under another spelling, as through a link, keeps that name.
    """
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
            "mtime_ns": stat.mtime_ns, "pid": image.pid, "camid": image.camid, "time": image.time,
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
