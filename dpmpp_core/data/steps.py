"""One training step as arrays: planned as a whole, computed for one rank.

Everything random - rows, geometry, pairs, erasing - comes from (seed, epoch, step), for the whole
P x K batch and for any number of ranks, so a rank's arrays are a slice of one fixed batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.config import AugmentConfig, DataConfig, OcclusionConfig
from dpmpp_core.data.augment import (
    Geometry,
    apply_to_image,
    apply_to_masks,
    camera_jitter,
    random_erase,
)
from dpmpp_core.data.donors import CACHE_BYTES, Donors, ImageCache, OccluderBank
from dpmpp_core.data.images import Image
from dpmpp_core.data.packed import PackedImages
from dpmpp_core.data.plan import Draw, StepPlan, stream
from dpmpp_core.errors import ConfigError
from dpmpp_core.occlusion.pairing import Pairs, draw_pairs
from dpmpp_core.occlusion.saliency import resample_area
from dpmpp_core.occlusion.synthetic_occluders import paste_synthetic_occluder
from dpmpp_core.occlusion.transfer import transfer_patches, visible_patches

NO_OCCLUSION = -1
"""Donor label of a sample that is not mixed."""
BACKGROUND = -2
"""Donor label of a sample mixed with a picture without people: no class is to be ignored."""


@dataclass(frozen=True)
class TrainingImages:
    """The N images of a training set, read when they are needed.

    Attributes:
        root: folder of the images.
        paths: N paths relative to root.
        labels: int64 [N] class index.
        camids: int64 [N] camera.
        masks: bool [N, gh, gw] saliency on the grid of the transfer, True = person.
        packed: where the images are read from, if not from root.
        bodies: bool [N, gh, gw], True = the person's body, what hides it or not; None = `masks`.

    Raises:
        ValueError: paths, labels, camids and masks differ in length.
    """

    root: str
    paths: Sequence[str]
    labels: NDArray[np.int64]
    camids: NDArray[np.int64]
    masks: NDArray[np.bool_]
    packed: PackedImages | None = None
    bodies: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        counts = len(self.paths), len(self.labels), len(self.camids), len(self.masks)
        if len(set(counts)) > 1:
            raise ValueError(f"paths, labels, camids and masks differ in length: {counts}")


@dataclass(frozen=True)
class _PlannedStep:
    """A whole batch before any pixel is read. The donors are its B samples, then the bank."""

    epoch: int
    step: int
    rows: NDArray[np.int64]  # [B]
    geometries: list[Geometry]
    bank: OccluderBank
    donor_masks: NDArray[np.bool_]  # [B + D, gh, gw] after augmentation
    donor_labels: NDArray[np.int64]  # [B + D]
    bodies: NDArray[np.bool_]  # [B, gh, gw] after augmentation
    pairs: Pairs


@dataclass(frozen=True)
class Mixture:
    """A mixed sample and its parts: images uint8 [H, W, 3], masks bool [gh, gw]."""

    recipient: Image
    donor: Image
    donor_mask: NDArray[np.bool_]
    mixed: Image
    visible: NDArray[np.bool_]
    occlusion_ratio: float
    """Share of the recipient's person that is hidden, in [0, 1]."""


class StepMaker:
    """Computes the arrays of any training step, on any machine, in any order.

    Args:
        images: the training set.
        plan: which rows form a step; its seed is the seed of everything here.
        data: size of the images.
        augment: how they are augmented.
        occlusion: how they are mixed.
        cache_bytes: at most so many bytes of decoded and resized images are kept; a result never
            depends on it.
        twins: whether a step also holds its mixed images without their donors.
        visibility: whether a step also holds what a visibility head learns from.
        attention_masks: shares of the samples with the true and the predicted attention mask; None
            = a step holds no attention masks.

    Raises:
        ConfigError: the grid of the masks does not divide the image size.
    """

    def __init__(
        self,
        images: TrainingImages,
        plan: StepPlan,
        data: DataConfig,
        augment: AugmentConfig,
        occlusion: OcclusionConfig,
        cache_bytes: int = CACHE_BYTES,
        twins: bool = False,
        visibility: bool = False,
        attention_masks: tuple[float, float] | None = None,
    ) -> None:
        _, rows, columns = images.masks.shape
        if data.height % rows or data.width % columns:
            raise ConfigError(
                f"data.height {data.height} and data.width {data.width} must be whole multiples of "
                f"the {rows}x{columns} patches that are transferred: use multiples of 16"
            )
        self._labels, self._camids, self._masks = images.labels, images.camids, images.masks
        self._bodies = images.bodies
        self._plan, self._data, self._augment, self._occlusion = plan, data, augment, occlusion
        self._images = ImageCache(
            images.root, images.paths, data.height, data.width, cache_bytes, packed=images.packed
        )
        self._donors = Donors(self._images, images.masks, augment, occlusion)
        self._twins, self._visibility = twins, visibility
        self._attention_masks = attention_masks

    def make(self, global_step: int, rank: int = 0, world: int = 1) -> dict[str, NDArray]:
        """Compute the arrays of one rank: b = P * K / world samples, whole identities.

        A sample is first augmented, then mixed with its donor or else perhaps erased. The batch is
        cut in the order of the ranks.

        Args:
            global_step: steps before it in the whole training.
            rank: of the train worker.
            world: number of train workers.

        Returns:
            images uint8 [b, height, width, 3] RGB;
            labels int64 [b] class index of the identity that is kept;
            camids int64 [b] camera of the image in `rows`;
            donor_labels int64 [b] class index of the donor, NO_OCCLUSION (-1) = not mixed,
                BACKGROUND (-2) = mixed with a picture without people;
            rows int64 [b] row numbers in the training set;
            step int64, the global step;
            with `visibility` also visible bool [b, gh, gw], patches that show the person: the mask,
                less what the donor or the erasing hides; occluded, the rest of the body; foreign,
                patches of the donor or erased ones; covered uint8 [b / 2, height, width, 3], every
                second image before mixing, behind a synthetic occluder; covered_visible,
                covered_occluded and covered_foreign bool [b / 2, gh, gw];
            with `attention_masks` also masked bool [b, gh, gw], the occluded patches or none, and
                known bool [b], False = the predicted ones are masked;
            with `twins` also twins, as images: the mixed ones as they were before, the rest black.

        Raises:
            ConfigError: the P identities are not the same number for each rank.
            DataError: an image cannot be read; names the file.
        """
        if self._plan.identities % world:
            raise ConfigError(
                f"metric.identities {self._plan.identities} cannot be shared by {world} train "
                "workers: make it a multiple of cluster.train_workers"
            )
        planned = self._plan_step(*divmod(global_step, self._plan.steps_per_epoch))
        rows, pairs, masks = planned.rows, planned.pairs, planned.donor_masks
        share = len(rows) // world
        samples = range(rank * share, (rank + 1) * share)
        part = slice(samples.start, samples.stop)

        images = np.empty((share, self._data.height, self._data.width, 3), np.uint8)
        twins = np.zeros_like(images) if self._twins else None
        visible = masks[part].copy()
        foreign = np.zeros_like(visible)
        for k, i in enumerate(samples):
            if pairs.donor[i] >= 0:
                mixture = self._mix(planned, i)
                images[k], visible[k] = mixture.mixed, mixture.visible
                foreign[k] = ~mixture.donor_mask
                if twins is not None:
                    twins[k] = mixture.recipient
            else:
                whole = self._picture(planned, i)
                rng = stream(self._plan.seed, planned.epoch, planned.step, i, Draw.ERASING)
                erased = rng.random() < self._augment.erase
                images[k] = random_erase(whole, rng) if erased else whole
                foreign[k] = _changed(whole, images[k], visible.shape[1:])
                visible[k] &= ~foreign[k]
            if self._augment.camera:  # one camera records recipient and donor alike
                rng = stream(self._plan.seed, planned.epoch, planned.step, i, Draw.CAMERA)
                images[k] = camera_jitter(images[k], self._augment.camera, rng)
        donor_labels = np.where(pairs.donor >= 0, planned.donor_labels[pairs.donor], NO_OCCLUSION)
        return {
            "images": images,
            "labels": self._labels[rows[part]],
            "camids": self._camids[rows[part]],
            "donor_labels": donor_labels[part],
            "rows": rows[part],
            "step": np.array(global_step, np.int64),
            **({} if twins is None else {"twins": twins}),
            **self._label_patches(planned, samples, visible, foreign),
        }

    def _label_patches(
        self,
        planned: _PlannedStep,
        samples: range,
        visible: NDArray[np.bool_],
        foreign: NDArray[np.bool_],
    ) -> dict[str, NDArray]:
        if not self._visibility and self._attention_masks is None:
            return {}
        shifts = planned.pairs.shift
        bodies = [np.roll(planned.bodies[i], shifts[i], axis=1) for i in samples]
        occluded = np.stack(bodies) & ~visible
        arrays: dict[str, NDArray] = {}
        if self._visibility:
            arrays = {"visible": visible, "occluded": occluded, "foreign": foreign}
            arrays |= self._cover(planned, samples)
        if self._attention_masks is not None:
            true, predicted = self._attention_masks
            place = self._plan.seed, planned.epoch, planned.step
            draws = np.array([stream(*place, i, Draw.ATTENTION_MASK).random() for i in samples])
            arrays["masked"] = occluded & (draws < true)[:, None, None]
            arrays["known"] = (draws < true) | (draws >= true + predicted)
        return arrays

    def mixed_pairs(self, global_step: int) -> list[Mixture]:
        """Return the mixed samples of a step, to be shown."""
        planned = self._plan_step(*divmod(global_step, self._plan.steps_per_epoch))
        return [self._mix(planned, int(i)) for i in np.flatnonzero(planned.pairs.donor >= 0)]

    def _mix(self, planned: _PlannedStep, sample: int) -> Mixture:
        pairs, masks = planned.pairs, planned.donor_masks
        j, shift = int(pairs.donor[sample]), int(pairs.shift[sample])
        recipient, donor = self._picture(planned, sample), self._picture(planned, j)
        channels = recipient.transpose(2, 0, 1), donor.transpose(2, 0, 1)
        mixed = transfer_patches(*channels, masks[j], shift).transpose(1, 2, 0)
        visible = visible_patches(masks[sample], masks[j], shift)
        ratio = float(pairs.occlusion_ratio[sample])
        return Mixture(recipient, donor, masks[j], mixed, visible, ratio)

    def _plan_step(self, epoch: int, step: int) -> _PlannedStep:
        seed, pad = self._plan.seed, self._augment.pad
        height, width = self._data.height, self._data.width
        rows = self._plan.rows(epoch, step)
        geometries = [
            Geometry.draw(self._augment, stream(seed, epoch, step, i, Draw.GEOMETRY))
            for i in range(len(rows))
        ]
        masks = bodies = apply_to_masks(self._masks[rows], geometries, pad, height, width)
        if self._bodies is not None:
            bodies = apply_to_masks(self._bodies[rows], geometries, pad, height, width)
        bank = self._donors.draw(self._occlusion.bank, stream(seed, epoch, step, 0, Draw.BANK))
        donor_masks = np.concatenate([masks, bank.masks])
        # The row of a background is that of its mask; its picture belongs to no row.
        shown = np.where(bank.backgrounds < 0, bank.rows, -1)
        excluded = rows[:, None] == np.concatenate([rows, shown])[None, :]
        rng = stream(seed, epoch, step, 0, Draw.PAIRING)
        pairs = draw_pairs(masks, self._occlusion, rng, donor_masks, excluded)
        bank_labels = np.where(bank.backgrounds < 0, self._labels[bank.rows], BACKGROUND)
        labels = np.concatenate([self._labels[rows], bank_labels])
        return _PlannedStep(epoch, step, rows, geometries, bank, donor_masks, labels, bodies, pairs)

    def _picture(self, planned: _PlannedStep, donor: int) -> Image:
        if donor >= len(planned.rows):
            return self._donors.picture(planned.bank, donor - len(planned.rows))
        image = self._images[int(planned.rows[donor])]
        return apply_to_image(image, planned.geometries[donor], self._augment.pad)

    def _cover(self, planned: _PlannedStep, samples: range) -> dict[str, NDArray]:
        """Return every second sample before mixing, behind a synthetic occluder.

        Half of them is enough, since only patch visibility is learnt from them.
        """
        images, visible, occluded, foreign = [], [], [], []
        for i in (i for i in samples if i % 2 == 0):
            rng = stream(self._plan.seed, planned.epoch, planned.step, i, Draw.OCCLUDER_TEXTURE)
            other = self._images[int(rng.integers(len(self._labels)))]
            image, front = paste_synthetic_occluder(self._picture(planned, i), other, rng)
            grid = planned.bodies.shape[1:]
            covered = resample_area(front[None].astype(np.float32), grid)[0] > 0.5
            images.append(image)
            foreign.append(covered)
            visible.append(planned.donor_masks[i] & ~covered)
            occluded.append(planned.bodies[i] & ~visible[-1])
        return {
            "covered": np.stack(images),
            "covered_visible": np.stack(visible),
            "covered_occluded": np.stack(occluded),
            "covered_foreign": np.stack(foreign),
        }


def _changed(before: Image, after: Image, grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the patches of which more than half the pixels differ, bool [gh, gw]."""
    (rows, columns), (height, width) = grid, before.shape[:2]
    channels = before != after
    # `channels.any(axis=2)` takes nine times longer.
    differs = channels[..., 0] | channels[..., 1] | channels[..., 2]
    strips = differs.view(np.uint8).reshape(rows, height // rows, width).sum(1, np.uint32)
    counts = strips.reshape(rows, columns, width // columns).sum(2)
    return counts * 2 > (height // rows) * (width // columns)
