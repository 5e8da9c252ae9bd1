"""Data workers that run a network: features, masks, controls, person masks.

Their processes import this module, so that it loads neither MLflow nor Ray Train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch

from dpmpp_core.config import Config
from dpmpp_core.data.images import read_image, resize
from dpmpp_core.models.encoder import ImageEncoder
from dpmpp_core.models.person_masks import person_masks
from dpmpp_core.models.pixels import to_tensor_batch
from dpmpp_core.models.reid import ReidModel, load_model, start_clip
from dpmpp_core.models.saliency import SaliencyModel
from dpmpp_core.models.saved import read_card
from dpmpp_core.models.sources import GRAPH_SUFFIX, NAME
from dpmpp_core.retrieval import compute_stripe_histogram, to_columns
from pipelines.inference.onnx_model import OnnxModel
from pipelines.runtime.device import assigned_device
from pipelines.runtime.storage import Storage

Columns = dict[str, np.ndarray]


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
        return not self.key and self.storage.endswith(GRAPH_SUFFIX)

    def load(self) -> ReidModel | OnnxModel:
        """Load the model, for one thread, on the GPU of this worker if it has one."""
        torch.set_num_threads(1)
        if self.is_graph:
            return OnnxModel(self.storage, threads=1, device=assigned_device())
        return load_model(self._folder(), assigned_device())

    def read_size(self) -> tuple[int, int]:
        """Return height and width of the pictures of a saved model, in pixels."""
        data = read_card(self._folder(), NAME)["data"]
        return data["height"], data["width"]

    def _folder(self) -> Path:
        if not self.key:
            return Path(self.storage)
        return Storage(self.storage).fetch(self.key) / "model"


class ReadPictures:
    """Data worker: pictures at a model's size, and the baseline's colours.

    Args:
        root: Folder of the images.
        size: Height and width in pixels.
    """

    def __init__(self, root: str, size: tuple[int, int]) -> None:
        torch.set_num_threads(1)
        self._root, self._size = root, size

    def __call__(self, batch: Columns) -> Columns:
        """Add `images`, uint8 [N, H, W, 3], and `colours` of the images `path`."""
        read = [read_image(self._root, path) for path in batch["path"]]
        colours = np.stack([compute_stripe_histogram(image) for image in read])
        images = np.stack([resize(image, *self._size) for image in read])
        return {"row": batch["row"], "images": images, "colours": colours}


class EmbedWithModel:
    """Data worker: features and masks of each metric space, and the baseline's colours.

    Reads the images `path` unless `ReadPictures` did.
    """

    def __init__(self, root: str, model: ModelLocation) -> None:
        self._model = model.load()
        data = self._model.data
        self._read = ReadPictures(root, (data.height, data.width))

    def __call__(self, batch: Columns) -> Columns:
        """Return the columns of the images; masks as `compact_masks`."""
        batch = batch if "images" in batch else self._read(batch)
        embedded = self._model.embed(batch["images"], batch=len(batch["row"]))
        masks = compact_masks(embedded.masks, self._model.mask_values)
        columns: Columns = dict(to_columns(embedded.features, masks))
        if embedded.occluded is not None:
            columns["occluded"] = embedded.occluded
        return {"row": batch["row"], "colours": batch["colours"], **columns}


def compact_masks(masks: Columns, values: Mapping[str, int]) -> Columns:
    """Return masks [N, D] by space as [N, R], without repetitions; see `expand_masks`.

    Args:
        masks: By space, from a model.
        values: R of each space, the model's `mask_values`.
    """
    return {s: np.ascontiguousarray(m[:, :: m.shape[1] // values[s]]) for s, m in masks.items()}


class EmbedControls:
    """Data worker: features of queries under other attention masks than their own.

    Args:
        root: folder of the images.
        model: one that masks attention.
        masked: bool [Q, controls, rows, columns], by query the patches to be masked instead.
    """

    def __init__(self, root: str, model: ModelLocation, masked: np.ndarray) -> None:
        self._model, self._masked = model.load(), masked
        self._read = ReadPictures(root, (self._model.data.height, self._model.data.width))

    def __call__(self, batch: Columns) -> Columns:
        """Return `CONTROL_SPACE` of the images, whose numbers are `row`."""
        assert isinstance(self._model, ReidModel)
        images = (batch if "images" in batch else self._read(batch))["images"]
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
        self._data = config.data
        self._read = ReadPictures(root, (config.data.height, config.data.width))

    @torch.inference_mode()
    def __call__(self, batch: Columns) -> Columns:
        """Return the column `joint` of the images, with test transforms."""
        images = (batch if "images" in batch else self._read(batch))["images"]
        pixels = to_tensor_batch(images, self._data.mean, self._data.std, self._device)
        joint = self._encoder(pixels).joint
        return {"row": batch["row"], "joint": joint.float().cpu().numpy()}


class FindPersons:
    """Data worker: paths -> masks, with the configured provider.

    Args:
        root: The data folder.
        config: The run's configuration.
        grid: Rows and columns of a mask.
        model: Reference of the trained saliency model, for `sps`.
    """

    def __init__(
        self, root: str, config: Config, grid: tuple[int, int], model: ray.ObjectRef | None
    ) -> None:
        torch.set_num_threads(1)
        trained: SaliencyModel | None = None if model is None else ray.get(model)
        self._find = person_masks(config, root, grid, trained, assigned_device())
        self._root, self._data = root, config.data

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the column `mask` of the images `path`."""
        paths = [str(path) for path in batch["path"]]
        size = self._data.height, self._data.width
        images = np.stack([resize(read_image(self._root, path, size), *size) for path in paths])
        return {"row": batch["row"], "mask": self._find(images, paths)}
