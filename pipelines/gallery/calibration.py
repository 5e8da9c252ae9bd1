"""Calibrate an index: embed validation pictures, score their pairs, fit and store probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmpp_core.config import ClusterConfig
from dpmpp_core.data.files import ensure_writable, write_atomically
from dpmpp_core.data.sightings import Sighting
from dpmpp_core.errors import ArgumentError, DataError
from dpmpp_core.gallery.adding import BATCH_IMAGES
from dpmpp_core.gallery.calibration import CALIBRATION_FILE, check_calibration
from dpmpp_core.index import GalleryIndex, number_names
from dpmpp_core.retrieval import Embeddings, from_columns, refuse_unusable
from dpmpp_core.retrieval.calibration import Calibration, calibrate, score_pairs
from pipelines.gallery.index import (
    EmbedImages,
    ImageSource,
    find_images,
    resolve_local_folder,
)
from pipelines.inference.embed import join_in_order, stream_embeddings
from pipelines.registry.models import read_model_version, resolve_model_source
from pipelines.registry.references import find_registry
from pipelines.reporting.figures import draw_reliability, save_png
from pipelines.runtime.resources import connect
from pipelines.runtime.storage import Storage

PICTURE_FILE = "calibration.png"


def calibrate_index(
    folder: str, images: ImageSource, base_rate: float, model: str | None = None
) -> dict[str, Any]:
    """Fit the probabilities that `search` returns, on pictures of persons not trained on.

    In a known layout queries are paired with the gallery, else all pictures with all. The result
    is stored in the index's folder: calibration.json and a reliability diagram.

    Returns:
        the fields of `Calibration`, and: index, picture.

    Raises:
        UserError: the index, the model, or data with too few persons.
    """
    if not 0 < base_rate < 1:
        raise ArgumentError(f"--base-rate {base_rate}: a share above 0 and below 1 is needed")
    index = GalleryIndex.open(resolve_local_folder(folder))
    ensure_writable(index.folder)
    source = resolve_model_source(model or index.manifest.source)
    index.check(read_model_version(source), f"the model {source}")
    listing, sightings = find_images(images)
    chosen = [
        image for image in sightings.images if image.pid is not None and image.split != "train"
    ]
    if not chosen:
        raise DataError(
            f"{images.data}: the person is known of training images only: give --labels"
        )
    plan, _ = connect(images.address, ClusterConfig())
    paths = [image.path for image in chosen]
    arguments = (listing.root, source, find_registry(source), True)
    columns = join_in_order(
        stream_embeddings(paths, EmbedImages, arguments, plan, BATCH_IMAGES, "embedded")
    )
    good = columns["reason"] == ""
    values = {n: x for n, x in columns.items() if n.startswith(("feature_", "mask_"))}
    values = {name: x[good] for name, x in values.items()}
    kept = [image for image, ok in zip(chosen, good, strict=True) if ok]
    refuse_unusable(values, [image.path for image in kept])
    query, gallery = split_queries_and_gallery(kept, values)
    sha256 = index.manifest.model.weights_sha256
    calibration = calibrate(score_pairs(query, gallery), sha256, base_rate)
    save_png(index.folder / PICTURE_FILE, draw_reliability(calibration))
    with write_atomically(index.folder / CALIBRATION_FILE, durable=True) as file:
        file.write_text(calibration.model_dump_json(indent=1) + "\n")
    return {
        **calibration.model_dump(),
        "index": str(index.folder),
        "picture": str(index.folder / PICTURE_FILE),
    }


def read_calibration(uri: str, weights_sha256: str) -> Calibration | None:
    """Return the calibration of an index, local or on S3; None if there is none.

    Raises:
        DataError: a damaged one, or one of another model.
    """
    value = Storage(uri).read_json(CALIBRATION_FILE)
    if value is None:
        return None
    return check_calibration(value, uri, weights_sha256)


def split_queries_and_gallery(
    images: list[Sighting], values: dict[str, np.ndarray]
) -> tuple[Embeddings, Embeddings]:
    """Return queries and gallery, or all pictures twice where no split is known."""
    persons: dict[Any, int] = number_names({}, [image.pid for image in images])
    cameras: dict[Any, int] = number_names({}, [image.camid for image in images])
    pids = [persons.get(image.pid, image.pid) for image in images]
    camids = [  # each picture of an unknown camera gets its own camera
        -1 - i if image.camid is None else cameras.get(image.camid, image.camid)
        for i, image in enumerate(images)
    ]
    features, masks = from_columns(values)

    def part(rows: np.ndarray) -> Embeddings:
        return Embeddings(
            {space: x[rows] for space, x in features.items()},
            {space: x[rows] for space, x in masks.items()},
            np.array([pids[i] for i in rows], np.int64),
            np.array([camids[i] for i in rows], np.int64),
            [images[i].path for i in rows],
        )

    whole = np.arange(len(images))
    queries = [i for i, image in enumerate(images) if image.split == "query"]
    others = [i for i, image in enumerate(images) if image.split == "gallery"]
    if queries and others:
        return part(np.array(queries)), part(np.array(others))
    return part(whole), part(whole)
