"""Images -> features and masks, by Ray Data on as many workers as there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from safetensors.torch import save_file

from dpmpp_core.config import Config, DataConfig
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.data.manifest import Manifest
from dpmpp_core.data.plan import class_labels
from dpmpp_core.models.clip import weights_fingerprint
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel, load_model, start_clip
from dpmpp_core.retrieval import (
    Embeddings,
    compute_stripe_histogram,
    from_columns,
    refuse_unusable,
    to_columns,
)
from pipelines.inference.onnx_model import SUFFIX, OnnxModel
from pipelines.runtime.progress import bar
from pipelines.runtime.resources import Plan, create_pool, parse_labels
from pipelines.runtime.run import Run
from pipelines.runtime.stage import Stage
from pipelines.runtime.storage import Storage


class EmbedWithModel:
    """A trained model: features and masks of each metric space, and the baseline's colours."""

    def __init__(self, root: str, storage: str, key: str) -> None:
        self._model = load_trained_model(storage, key)
        self._root = root

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = [read_image(self._root, path) for path in batch["path"]]
        stream_embeddings = self._model.embed(images, batch=len(images))
        columns = to_columns(stream_embeddings.features, stream_embeddings.masks)
        colours = np.stack([compute_stripe_histogram(image) for image in images])
        return {"row": batch["row"], "colours": colours, **columns}


def load_trained_model(storage: str, key: str) -> ReidModel | OnnxModel:
    """The model of a stage, or with an empty key that of `storage`, on one thread.

    There `storage` is the folder of a saved model, or a file of `dpmpp export`.
    """
    torch.set_num_threads(1)
    if not key and storage.endswith(SUFFIX):
        return OnnxModel(storage, threads=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = Storage(storage).fetch(key) / "model" if key else Path(storage)
    return load_model(folder, device)


class EmbedWithPretrained:
    """The encoder that training starts from: joint features, test transforms."""

    def __init__(self, root: str, config: Config) -> None:
        torch.set_num_threads(1)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        encoder = ImageEncoder(start_clip(config).visual, config.model.taps)
        self._encoder = encoder.to(self._device).eval()
        self._root, self._data = root, config.data

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = load_images(self._root, list(batch["path"]), self._data).to(self._device)
        return {"row": batch["row"], "joint": self._encoder(images).joint.float().cpu().numpy()}


def load_images(root: str, paths: list[str], data: DataConfig) -> torch.Tensor:
    """Images with test transforms, normalised float32 [N, 3, height, width]."""
    images = [resize(read_image(root, path), data.height, data.width) for path in paths]
    return to_tensor_batch(np.stack(images), data.mean, data.std)


BATCHES = 256  # planned by one task of Ray Data, so that millions of images are few tasks


def embed_images(
    paths: list[str], worker: type, arguments: tuple, plan: Plan, batch: int, title: str
) -> dict[str, np.ndarray]:
    """Columns of the worker's results, in the order of `paths`."""
    parts = list(stream_embeddings(paths, worker, arguments, plan, batch, title))
    order = np.argsort(np.concatenate([part["row"] for part in parts]))
    names = [name for name in parts[0] if name != "row"]
    return {name: np.concatenate([part[name] for part in parts])[order] for name in names}


def stream_embeddings(
    paths: list[str], worker: type, arguments: tuple, plan: Plan, batch: int, title: str
) -> Iterator[dict[str, np.ndarray]]:
    """Columns of the worker's results as they come, `row` telling which of the paths they are of.

    The paths are cut into the same batches whatever the number of workers, so that the numbers do
    not depend on it.
    """
    if len(paths) <= plan.inline_embed_max_images:
        yield from _embed_in_process(paths, worker, arguments, batch, title)
        return
    rows = batch * BATCHES
    tables = [
        pa.table({"row": np.arange(i, min(i + rows, len(paths))), "path": paths[i : i + rows]})
        for i in range(0, len(paths), rows)
    ]
    most = plan.train_workers if plan.train_gpu else plan.embed_workers
    workers = min(most, -(-len(paths) // batch))
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
    with bar(title, len(paths)) as shown:
        for part in dataset.iter_batches(batch_size=None):
            done += len(part["row"])
            shown.update(done)
            yield {str(name): np.asarray(column) for name, column in part.items()}


def _embed_in_process(
    paths: list[str], worker: type, arguments: tuple, batch: int, title: str
) -> Iterator[dict[str, np.ndarray]]:
    """`stream_embeddings` in this process."""
    threads = torch.get_num_threads()
    try:
        work = worker(*arguments)  # takes one thread, as numbers depend on how many there are
        with bar(title, len(paths)) as shown:
            for start in range(0, len(paths), batch):
                rows = np.arange(start, min(start + batch, len(paths)))
                yield work({"row": rows, "path": np.array(paths[start : start + batch], object)})
                shown.update(int(rows[-1]) + 1)
    finally:
        torch.set_num_threads(threads)


def embed_manifest_rows(
    manifest: Manifest, sets: dict[str, pa.Table], storage: str, key: str, plan: Plan, batch: int
) -> dict[str, tuple[Embeddings, np.ndarray]]:
    """Embed rows of a manifest with a trained model, all sets in one go.

    Args:
        sets: name -> rows of the manifest.
        key: the stage's key in `storage`; empty = `storage` itself is a model folder.

    Returns:
        name -> embeddings, and the colour histograms [N, D] that serve as a baseline.

    Raises:
        WeightsError: an image without usable features or masks, see `refuse_unusable`.
    """
    paths = [path for rows in sets.values() for path in rows["path"].to_pylist()]
    columns = embed_images(
        paths, EmbedWithModel, (manifest.root, storage, key), plan, batch, "embedded"
    )
    refuse_unusable({n: values for n, values in columns.items() if n != "colours"}, paths)
    result, start = {}, 0
    for name, rows in sets.items():
        part = {column: values[start : start + len(rows)] for column, values in columns.items()}
        start += len(rows)
        features, masks = from_columns(part)
        pids, camids = rows["pid"].to_numpy(), rows["camid"].to_numpy()
        made = Embeddings(features, masks, pids, camids, rows["path"].to_pylist())
        result[name] = (made, part["colours"])
    return result


ENCODER_KEYS = {"backbone", "pretrained", "checkpoint", "stride"}
"""What of `config.model` decides the features of the starting encoder."""


def cache_features(run: Run, prepared: Stage) -> Stage:
    """Cache the joint features of the training images for stage 1."""
    manifest = Manifest.load(run.folder(prepared))
    config = run.config
    identity = {
        "dataset": manifest.dataset_id,
        "model": config.model.model_dump(mode="json", include=ENCODER_KEYS),
        "weights": weights_fingerprint(config.model),
        "size": [config.data.height, config.data.width, config.data.mean, config.data.std],
        "seed": config.seed,  # draws the weights that no file gives
    }

    def build(folder: Path) -> dict[str, Any]:
        rows = manifest.subset("train")
        paths = rows["path"].to_pylist()
        size = config.evaluation.batch
        arguments = (manifest.root, config)
        columns = embed_images(
            paths, EmbedWithPretrained, arguments, run.plan, size, "training images"
        )
        refuse_unusable(columns, paths)
        labels, _ = class_labels(rows["pid"].to_numpy())
        joint = torch.from_numpy(columns["joint"])
        save_file(
            {"features": joint, "labels": torch.from_numpy(labels)}, folder / "features.safetensors"
        )
        return {"images": len(joint), "norm_mean": float(joint.norm(dim=1).mean())}

    return run.stage("features", identity, build)
