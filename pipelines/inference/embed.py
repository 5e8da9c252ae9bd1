"""Embed images on Ray Data workers, or in this process where there are few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.plan import class_labels
from dpmpp_core.models.clip import weights_fingerprint
from dpmpp_core.models.tensors import write_tensors
from dpmpp_core.retrieval import (
    Controls,
    Embeddings,
    exchanges,
    from_columns,
    refuse_unusable,
)
from pipelines.inference.workers import (
    Columns,
    EmbedControls,
    EmbedWithModel,
    EmbedWithPretrained,
    ModelLocation,
    ReadPictures,
)
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.resources import Plan, create_pool, parse_labels
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage

BATCHES_PER_TASK = 256  # of Ray Data, so that millions of images are few tasks
Reader = tuple[type, tuple[Any, ...]]  # a worker for CPUs and its arguments


def join_in_order(parts: Iterable[Columns]) -> Columns:
    """Return the columns that `stream_embeddings` yields, in the order of its paths."""
    first, *more = parts
    columns = {
        name: np.concatenate([first[name], *(part[name] for part in more)]) for name in first
    }
    order = np.argsort(columns.pop("row"))
    return {name: column[order] for name, column in columns.items()}


def stream_embeddings(
    paths: list[str],
    worker: type,
    arguments: tuple,
    plan: Plan,
    batch: int,
    title: str,
    reader: Reader | None = None,
    on_gpu: bool = True,
) -> Iterator[Columns]:
    """Yield the columns of the worker's results as they arrive; `row` is the number of the path.

    The batches do not depend on the number of workers, so that the results do not either.

    Args:
        paths: Images.
        worker: Class of the data worker.
        arguments: Of its constructor.
        plan: Sizes of the pools.
        batch: Images per call.
        title: Of the progress bar.
        reader: Where workers have a GPU, what reads the images for them on all CPUs, so that the
            GPU does not wait; elsewhere the worker reads them itself.
        on_gpu: Whether the worker computes on a GPU, if the plan has them.
    """
    if len(paths) <= plan.inline_embed_max_images:
        yield from _embed_in_process(paths, worker, arguments, batch, title)
        return
    rows = batch * BATCHES_PER_TASK
    tables = [
        pa.table({"row": np.arange(i, min(i + rows, len(paths))), "path": paths[i : i + rows]})
        for i in range(0, len(paths), rows)
    ]
    on_gpu = on_gpu and plan.train_gpu
    most = -(-len(paths) // batch)
    dataset = ray.data.from_arrow(tables).repartition(target_num_rows_per_block=batch)
    if on_gpu and reader is not None:
        dataset = dataset.map_batches(
            reader[0],
            fn_constructor_args=reader[1],
            batch_size=None,
            compute=create_pool(min(plan.embed_workers, most)),
            num_cpus=1,
        )
    dataset = dataset.map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=None,
        compute=create_pool(min(plan.train_workers if on_gpu else plan.embed_workers, most)),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
    )
    if on_gpu or not plan.train_gpu:  # else on the nodes that read images, as all data workers
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
    columns = join_in_order(stream_embeddings(
        paths, EmbedWithModel, (manifest.root, model), plan, batch, "embedded",
        _reader(manifest.root, model, plan),
    ))  # fmt: skip
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


def _reader(root: str, model: ModelLocation, plan: Plan) -> Reader | None:
    """Return what reads pictures for a model on a GPU; a graph reads them itself."""
    if not plan.train_gpu or model.is_graph:
        return None
    return ReadPictures, (root, model.read_size())


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
    columns = join_in_order(stream_embeddings(
        list(queries.paths), EmbedControls, (root, model, masked), plan, batch, "controls",
        _reader(root, model, plan),
    ))  # fmt: skip
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
        columns = join_in_order(stream_embeddings(
            paths, EmbedWithPretrained, arguments, run.plan, batch, "training images",
            (ReadPictures, (manifest.root, (config.data.height, config.data.width))),
        ))  # fmt: skip
        refuse_unusable(columns, paths)
        labels, _ = class_labels(rows["pid"].to_numpy())
        joint = torch.from_numpy(columns["joint"])
        write_tensors(
            {"features": joint, "labels": torch.from_numpy(labels)}, folder / "features.safetensors"
        )
        return {"images": len(joint), "norm_mean": float(joint.norm(dim=1).mean())}

    return run.build_stage("features", identity, build)
