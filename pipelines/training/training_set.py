"""The training images on any node: rows, plan of the steps, step maker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from dpmpp_core.config import Config
from dpmpp_core.data.captions import read_captions
from dpmpp_core.data.donors import CACHE_BYTES
from dpmpp_core.data.given_masks import GivenMasks
from dpmpp_core.data.manifest import Manifest, load_split
from dpmpp_core.data.packed import PackedImages
from dpmpp_core.data.plan import StepPlan, class_labels
from dpmpp_core.data.steps import StepMaker, TrainingImages
from dpmpp_core.data.synthesis import Synthesiser
from dpmpp_core.errors import ConfigError
from dpmpp_core.models.weights import find_head_lr
from pipelines.runtime.storage import Storage
from pipelines.training.masks import load_masks, transfer_grid


@dataclass(frozen=True)
class TrainingSet:
    """Training images for workers on any node.

    Attributes:
        config: The run's configuration.
        storage: URI of the storage.
        prepared: Key of the stage `prepare`.
        saliency: Key of the stage `saliency`; None while stage 0 itself trains. Without masks
            nothing is mixed and nothing erased.
        section: Section of the configuration that holds the batch size.
    """

    config: Config
    storage: str
    prepared: str
    saliency: str | None
    section: Literal["saliency", "metric", "pretrain", "head"] = "metric"

    def table(self) -> tuple[str, pa.Table]:
        """Return the root and the rows of the training images in the manifest."""
        return load_split(Storage(self.storage).fetch(self.prepared), "train")

    def is_packed(self, root: str) -> bool:
        """Return whether its images, which are below `root`, are read from shards."""
        pack = self.config.data.pack
        return "://" in root if pack is None else pack

    @property
    def shards(self) -> str:
        """Key of the folder of the shards."""
        return f"packed/{self.prepared.rpartition('/')[2]}"

    def shard(self, number: int) -> str:
        """Return the key of a shard."""
        return f"{self.shards}/shard-{number:05}.arrow"

    def _packed(self, root: str, paths: list[str]) -> PackedImages | None:
        if not self.is_packed(root):
            return None
        storage = Storage(self.storage)
        return PackedImages(paths, lambda number: storage.fetch_file(self.shard(number)))

    def rows(self) -> tuple[str, list[str], np.ndarray, np.ndarray]:
        """Return root, paths, class labels int64 [N] and cameras int64 [N] of the images."""
        root, table = self.table()
        labels, _ = class_labels(table["pid"].to_numpy())
        return root, table["path"].to_pylist(), labels, table["camid"].to_numpy()

    def classes(self) -> int:
        """Return the number of training identities."""
        return int(self.rows()[2].max()) + 1

    def captions(self) -> list[str]:
        """Return the caption of each training identity, in the order of the class labels."""
        root, paths, labels, _ = self.rows()
        _, first = np.unique(labels, return_index=True)
        return read_captions(root, [paths[row] for row in first])

    def plan(self) -> StepPlan:
        """Return the identity-balanced batches of every epoch."""
        _, _, labels, camids = self.rows()
        return self._plan(labels, camids)

    def _plan(self, labels: np.ndarray, camids: np.ndarray) -> StepPlan:
        section = getattr(self.config, self.section)
        by_images = self.section == "metric" and self.config.metric.sampling == "images"
        plan = StepPlan(
            labels, camids, section.identities, section.images, self.config.seed,
            by_images=by_images,
        )  # fmt: skip
        parts = self.config.metric.accumulate if self.section == "metric" else 1
        if plan.identities % parts:
            raise ConfigError(
                f"the {plan.identities} identities of the training set cannot be taken in "
                f"metric.accumulate {parts} parts: set metric.identities to a multiple of {parts} "
                f"below {plan.identities}, or metric.accumulate=1"
            )
        return plan

    def build_step_maker(self, cache_bytes: int = CACHE_BYTES) -> StepMaker:
        """Build what makes the arrays of a step, on the calling machine; see `StepMaker`."""
        root, paths, labels, camids = self.rows()
        grid = transfer_grid(self.config)
        plan = self._plan(labels, camids)
        data, augment, occlusion = self.config.data, self.config.augment, self.config.occlusion
        if self.saliency:
            masks = load_masks(Storage(self.storage).fetch(self.saliency), paths, grid)
        else:
            masks = np.zeros((len(paths), *grid), np.bool_)  # empty masks are never paired
            augment = augment.model_copy(update={"erase": 0.0})
        bodies = None
        if self.section == "head":
            bodies = GivenMasks(root, grid, "body_mask")(np.empty(0, np.uint8), paths)
        packed = self._packed(root, paths)
        images = TrainingImages(root, paths, labels, camids, masks, packed, bodies)
        return StepMaker(
            images,
            plan,
            data,
            augment,
            occlusion,
            cache_bytes,
            twins=self.has_twins,
            visibility=self.has_visibility,
            attention_masks=self.attention_masks,
        )

    @property
    def has_twins(self) -> bool:
        """Whether a step also holds its mixed images without their donors."""
        return self.section == "metric" and self.config.metric.loss.visibility > 0

    @property
    def has_visibility(self) -> bool:
        """Whether a step also holds what a visibility head learns from."""
        model = self.config.model
        has_head = bool(model.bands or model.attention_mask_depth)
        learns = self.section == "metric" and has_head and find_head_lr(self.config) > 0
        return self.section == "head" or learns

    @property
    def attention_masks(self) -> tuple[float, float] | None:
        """Shares of samples with the true and the predicted attention mask; None without masks."""
        if self.section != "metric" or self.config.model.attention_mask_depth is None:
            return None
        return self.config.metric.true_masks, self.config.metric.predicted_masks

    def step_bytes(self) -> int:
        """Return the bytes of the images of a whole step."""
        section, data = getattr(self.config, self.section), self.config.data
        images = section.identities * section.images
        images += self.has_twins * images + self.has_visibility * images // 2
        return images * data.height * data.width * 3

    def build_synthesiser(self) -> Synthesiser:
        """Build what hides any image of the manifest behind training images.

        Where there are none, behind backgrounds only, in the shapes of gallery images: the scene
        of a gallery image would lead a query to that image.
        """
        assert self.saliency is not None
        manifest = Manifest.load(Storage(self.storage).fetch(self.prepared))
        paths = manifest.images["path"].to_pylist()
        masks = load_masks(
            Storage(self.storage).fetch(self.saliency), paths, transfer_grid(self.config)
        )
        lenders = np.flatnonzero(manifest.images["split"].to_numpy() == "train")
        data, occlusion = self.config.data, self.config.occlusion
        if not len(lenders) and occlusion.backgrounds:
            lenders = np.flatnonzero(manifest.images["split"].to_numpy() == "gallery")
            occlusion = occlusion.model_copy(update={"background_share": 1.0})
        return Synthesiser(manifest.root, paths, masks, lenders, data, occlusion, self.config.seed)
