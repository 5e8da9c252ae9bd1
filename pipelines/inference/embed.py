"""Embed images on Ray Data workers, or in this process where there are few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from dpmpp_core.config import Config
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.plan import class_labels
from dpmpp_core.models.clip import weights_fingerprint
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel, load_model, start_clip
from dpmpp_core.models.tensors import write_tensors
from dpmpp_core.retrieval import (
    Controls,
    Embeddings,
    compute_stripe_histogram,
    exchanges,
    from_columns,
    refuse_unusable,
    to_columns,
)
from pipelines.inference.onnx_model import SUFFIX, OnnxModel
from pipelines.runtime.device import assigned_device
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.resources import Plan, create_pool, parse_labels
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage


@dataclass(frozen=True)
class ModelLocation:
    """Where a trained model is, for workers on any node.

    Attributes:
        storage: URI of the storage; with an empty key, the folder of a saved model or a file of
            `dpmpp export`.
        key: Key of the stage that trained it.
    """

    storage: str
    key: str = ""

    @property
    def is_graph(self) -> bool:
        """Whether it is a file of `dpmpp export`."""
        return not self.key and self.storage.endswith(SUFFIX)

    def load(self) -> ReidModel | OnnxModel:
        """Load the model, for one thread."""
        torch.set_num_threads(1)
        if self.is_graph:
            return OnnxModel(self.storage, threads=1)
        device = assigned_device()
        stage = Storage(self.storage).fetch(self.key) if self.key else None
        return load_model(stage / "model" if stage else Path(self.storage), device)


class EmbedWithModel:
    """Data worker: features and masks of each metric space, and the baseline's colours."""

    def __init__(self, root: str, model: ModelLocation) -> None:
        self._model = model.load()
        self._root = root

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns of the images `path`."""
        images = [read_image(self._root, path) for path in batch["path"]]
        embedded = self._model.embed(images, batch=len(images))
        columns: dict[str, np.ndarray] = dict(to_columns(embedded.features, embedded.masks))
        if embedded.occluded is not None:
            columns["occluded"] = embedded.occluded
        colours = np.stack([compute_stripe_histogram(image) for image in images])
        return {"row": batch["row"], "colours": colours, **columns}


class EmbedControls:
    """Data worker: features of queries under other attention masks than their own.

    Args:
        root: folder of the images.
        model: one that masks attention.
        masked: bool [Q, controls, rows, columns], by query the patches to be masked instead.
    """

    def __init__(self, root: str, model: ModelLocation, masked: np.ndarray) -> None:
        self._model, self._root, self._masked = model.load(), root, masked

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return `CONTROL_SPACE` of the images `path`, whose numbers are `row`."""
        assert isinstance(self._model, ReidModel)
        images = [read_image(self._root, path) for path in batch["path"]]
        columns = {"row": batch["row"]}
        for control in range(self._masked.shape[1]):
            masked = self._masked[batch["row"], control]
            features = self._model.embed(images, len(images), masked).features
            columns |= {f"{control}_{space}": values for space, values in features.items()}
        return columns


class EmbedWithPretrained:
    """Data worker: joint features of the encoder that training starts from."""

    def __init__(self, root: str, config: Config) -> None:
        torch.set_num_threads(1)
        self._device = torch.device(assigned_device())
        encoder = ImageEncoder(start_clip(config).visual, config.model.taps)
        self._encoder = encoder.to(self._device).eval()
        self._root, self._data = root, config.data

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the column `joint` of the images `path`, with test transforms."""
        height, width = self._data.height, self._data.width
        images = [resize(read_image(self._root, path), height, width) for path in batch["path"]]
        pixels = to_tensor_batch(np.stack(images), self._data.mean, self._data.std)
        joint = self._encoder(pixels.to(self._device)).joint
        return {"row": batch["row"], "joint": joint.float().cpu().numpy()}


BATCHES_PER_TASK = 256  # of Ray Data, so that millions of images are few tasks


def embed_images(
    paths: list[str], worker: type, arguments: tuple, plan: Plan, batch: int, title: str
) -> dict[str, np.ndarray]:
    """Return the columns of the worker's results, in the order of `paths`."""
    parts = list(stream_embeddings(paths, worker, arguments, plan, batch, title))
    order = np.argsort(np.concatenate([part["row"] for part in parts]))
    names = [name for name in parts[0] if name != "row"]
    return {name: np.concatenate([part[name] for part in parts])[order] for name in names}


def stream_embeddings(
    paths: list[str], worker: type, arguments: tuple, plan: Plan, batch: int, title: str
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of the worker's results as they arrive; `row` is the number of the path.

    The batches do not depend on the number of workers, so that the results do not either.
    """
    if len(paths) <= plan.inline_embed_max_images:
        yield from _embed_in_process(paths, worker, arguments, batch, title)
        return
    rows = batch * BATCHES_PER_TASK
    tables = [
        pa.table({"row": np.arange(i, min(i + rows, len(paths))), "path": paths[i : i + rows]})
        for i in range(0, len(paths), rows)
    ]
    workers = plan.train_workers if plan.train_gpu else plan.embed_workers
    workers = min(workers, -(-len(paths) // batch))
    batches = ray.data.from_arrow(tables).repartition(target_num_rows_per_block=batch)
    dataset = batches.map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=None,
        compute=create_pool(workers),
        num_cpus=1,
        num_gpus=1 if plan.train_gpu else 0,
    )
    dataset.context.execution_options.label_selector = parse_labels(plan.embed_nodes) or None
    done = 0
    with progress_bar(title, len(paths)) as shown:
        for part in dataset.iter_batches(batch_size=None):
            done += len(part["row"])
            shown.update(done)
            yield {str(name): np.asarray(column) for name, column in part.items()}


def _embed_in_process(
    paths: list[str], worker: type, arguments: tuple, batch: int, title: str
) -> Iterator[dict[str, np.ndarray]]:
    threads = torch.get_num_threads()
    try:
        work = worker(*arguments)  # sets one thread, since results depend on their number
        with progress_bar(title, len(paths)) as shown:
            for start in range(0, len(paths), batch):
                rows = np.arange(start, min(start + batch, len(paths)))
                yield work({"row": rows, "path": np.array(paths[start : start + batch], object)})
                shown.update(int(rows[-1]) + 1)
    finally:
        torch.set_num_threads(threads)


def embed_manifest_rows(
    manifest: Manifest,
    sets: dict[str, pa.Table],
    model: ModelLocation,
    plan: Plan,
    batch: int,
    seed: int,
) -> dict[str, tuple[Embeddings, np.ndarray]]:
    """Embed several sets of a manifest's rows with a trained model.

    Args:
        manifest: The data set.
        sets: Rows by name of the set; all but `gallery` are queries, which get their controls.
        model: The model.
        plan: Sizes of the pools.
        batch: Images per forward pass.
        seed: Of the exchanges between queries.

    Returns:
        By name of the set, embeddings and the colour histograms [N, D] of the baseline.

    Raises:
        WeightsError: An image has no usable features or masks, see `refuse_unusable`.
    """
    paths = [path for rows in sets.values() for path in rows["path"].to_pylist()]
    columns = embed_images(paths, EmbedWithModel, (manifest.root, model), plan, batch, "embedded")
    refuse_unusable({n: columns[n] for n in columns if n not in ("colours", "occluded")}, paths)
    result, start = {}, 0
    for name, rows in sets.items():
        part = {column: values[start : start + len(rows)] for column, values in columns.items()}
        start += len(rows)
        embeddings = build_embeddings(rows, part)
        if name != "gallery":
            embeddings = add_controls(embeddings, manifest.root, model, plan, batch, seed)
        result[name] = (embeddings, part["colours"])
    return result


def build_embeddings(rows: pa.Table, columns: dict[str, np.ndarray]) -> Embeddings:
    """Combine a manifest's rows with the columns of their features and masks."""
    features, masks = from_columns(columns)
    pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
    paths, occluded = rows["path"].to_pylist(), columns.get("occluded")
    return Embeddings(features, masks, pids, camids, paths, occluded)


def add_controls(
    queries: Embeddings, root: str, model: ModelLocation, plan: Plan, batch: int, seed: int
) -> Embeddings:
    """Embed queries again under no attention mask and those of others, if the model has masks.

    The graph of an exported model takes no other mask, so its queries get no controls.
    """
    if queries.occluded is None or not len(queries) or model.is_graph:
        return queries
    own = queries.occluded > 0.5
    masked = np.stack([np.zeros_like(own), *(own[o] for o in exchanges(len(own), seed))], axis=1)
    columns = embed_images(
        list(queries.paths), EmbedControls, (root, model, masked), plan, batch, "controls"
    )
    features = [{s: columns[f"{i}_{s}"] for s in queries.features} for i in range(masked.shape[1])]
    return replace(queries, controls=Controls(features[0], features[1:]))


ENCODER_KEYS = {"backbone", "pretrained", "checkpoint", "stride"}
"""Keys of `config.model` that determine the features of the starting encoder."""


def cache_features(run: Run, prepared: Stage) -> Stage:
    """Cache the joint features of the training images for stage 1."""
    manifest = Manifest.load(run.folder(prepared))
    config = run.config
    identity = {
        "dataset": manifest.dataset_id,
        "model": config.model.model_dump(mode="json", include=ENCODER_KEYS),
        "weights": weights_fingerprint(config.model),
        "size": [config.data.height, config.data.width, config.data.mean, config.data.std],
        "seed": config.seed,  # initialises the weights that are in no file
    }

    def build(folder: Path) -> dict[str, Any]:
        rows = manifest.subset("train")
        paths = rows["path"].to_pylist()
        arguments, batch = (manifest.root, config), config.evaluation.batch
        columns = embed_images(
            paths, EmbedWithPretrained, arguments, run.plan, batch, "training images"
        )
        refuse_unusable(columns, paths)
        labels, _ = class_labels(rows["pid"].to_numpy())
        joint = torch.from_numpy(columns["joint"])
        write_tensors(
            {"features": joint, "labels": torch.from_numpy(labels)}, folder / "features.safetensors"
        )
        return {"images": len(joint), "norm_mean": float(joint.norm(dim=1).mean())}

    return run.build_stage("features", identity, build)
