"""Build gallery indexes with Ray Data, add to them, delete from them, compact and describe them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpmpp_core.config import ClusterConfig
from dpmpp_core.data.files import FileListing, resolve_path, write_atomically
from dpmpp_core.data.sightings import Label, Sightings
from dpmpp_core.errors import DataError
from dpmpp_core.gallery.adding import (
    BATCH_IMAGES,
    add_sightings,
    embed_files,
    find_labelled_images,
)
from dpmpp_core.index import GalleryIndex, Stored, describe_index, find_number
from dpmpp_core.index.manifest import Segment
from dpmpp_core.models.sources import SHIPPED, SHIPPED_WORTH
from dpmpp_core.redaction import redact
from pipelines.gallery.selection import match_images
from pipelines.inference.embed import stream_embeddings
from pipelines.registry.models import (
    load_source_model,
    read_model_version,
    resolve_model_source,
)
from pipelines.registry.references import find_registry, use_registry
from pipelines.runtime.resources import connect
from pipelines.runtime.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSource:
    """The images to add; see `dpmpp index add --help`."""

    data: str
    split: str = "all"
    labels: str | None = None
    address: str | None = None
    layout: str = "auto"
    camera: str | None = None


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


def delete_images(folder: str, images: Sequence[str], pids: Sequence[Label]) -> dict[str, Any]:
    """Delete images and persons.

    Args:
        folder: of the index.
        images: as `search` shows them, or the end of such a path from a folder on.
        pids: persons, by number or name, all of whose images are deleted.

    Raises:
        DataError: the index lacks one of them, or several images end like that; nothing is deleted.
    """
    if not images and not pids:
        raise DataError("nothing to delete: name --image or --pid")
    index = GalleryIndex.open(resolve_local_folder(folder))
    names = index.manifest.names.persons
    persons = {find_number(label, names, "--pid"): label for label in pids}
    index, gone = index.delete(match_images(index, images, persons), persons)
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
        registry: URI of the registry that holds the model; None = it is not in one.
    """

    def __init__(self, root: str, source: str, registry: str | None, masks: bool = False) -> None:
        torch.set_num_threads(1)
        with use_registry(registry):
            self._model = load_source_model(source)
        self._root, self._masks = root, masks

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns of `embed_files`."""
        return embed_files(self._model, self._root, batch, self._masks)


def _state_worth(source: str) -> None:
    """Log what the package's own model is worth, which is taken where none is named."""
    if source == SHIPPED:
        log.info("model: %s", SHIPPED_WORTH)


def find_images(images: ImageSource) -> tuple[FileListing, Sightings]:
    """List a data folder, and parse or read the labels of its images."""
    return find_labelled_images(
        images.data, images.split, images.labels, images.layout, images.camera
    )


def _add_sightings(
    index: GalleryIndex,
    source: str,
    listing: FileListing,
    sightings: Sightings,
    address: str | None,
) -> dict[str, Any]:
    def stream(paths: list[str]) -> Iterator[dict[str, np.ndarray]]:
        plan, _ = connect(address, ClusterConfig())
        arguments = (listing.root, source, find_registry(source))
        yield from stream_embeddings(
            paths, EmbedImages, arguments, plan, BATCH_IMAGES, "images indexed"
        )

    return add_sightings(index, listing, sightings, stream)[1]
