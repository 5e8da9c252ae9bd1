"""One training step as arrays: planned as a whole, made for one rank.

Everything random - rows, geometry, pairs, erasing - comes from (seed, epoch, step), for the whole
P x K batch and whatever the number of ranks, so a rank's arrays are a slice of one fixed batch.
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
from dpmpp_core.data.packed import PackedImages
from dpmpp_core.data.plan import Draw, StepPlan, stream
from dpmpp_core.errors import ConfigError
from dpmpp_core.occlusion.pairing import Pairs, draw_pairs
from dpmpp_core.occlusion.surfaces import paste_synthetic_occluder
from dpmpp_core.occlusion.transfer import transfer_patches, visible_patches

Image = NDArray[np.uint8]
NO_OCCLUSION = -1
"""Donor label of a sample that is not mixed."""
BACKGROUND = -2
"""Donor label of a sample mixed with a picture without people: no class is to be ignored."""


@dataclass(frozen=True)
class _Planned:
    """A whole batch on paper, no pixel touched. The donors are its B samples, then the bank."""

    epoch: int
    step: int
    rows: NDArray[np.int64]  # [B]
    geometries: list[Geometry]
    bank: OccluderBank
    donor_masks: NDArray[np.bool_]  # [B + D, gh, gw] after augmentation
    donor_labels: NDArray[np.int64]  # [B + D]
    pairs: Pairs


@dataclass(frozen=True)
class Mixture:
    """A mixed sample and what it is made of: images uint8 [H, W, 3], masks bool [gh, gw]."""

    recipient: Image
    donor: Image
    donor_mask: NDArray[np.bool_]
    mixed: Image
    visible: NDArray[np.bool_]
    hidden: float
    """Share of the recipient's person that is hidden, in [0, 1]."""


class StepMaker:
    """Makes the arrays of any training step, on any machine, in any order.

    Args:
        root: folder of the images.
        paths: N paths relative to root, one a training row.
        labels: int64 [N] class index.
        camids: int64 [N] camera.
        masks: bool [N, gh, gw] saliency, True = person.
        plan: which rows make a step; its seed is the seed of everything here.
        grid: (gh, gw) patches of the transfer; must divide the image's height and width.
        cache_bytes: at most so many bytes of decoded and resized images are kept; a result never
            depends on it.
        twins: whether a step also holds its mixed images without their donors.
        covered: whether a step also holds images behind made-up surfaces.
        packed: where the images are read from, if not from root.

    Raises:
        ConfigError: the grid does not divide the image size.
        ValueError: labels, camids, masks or paths differ in length, or masks in grid.
    """

    def __init__(
        self,
        root: str,
        paths: Sequence[str],
        labels: NDArray[np.int64],
        camids: NDArray[np.int64],
        masks: NDArray[np.bool_],
        plan: StepPlan,
        data: DataConfig,
        augment: AugmentConfig,
        occlusion: OcclusionConfig,
        grid: tuple[int, int],
        cache_bytes: int = CACHE_BYTES,
        twins: bool = False,
        covered: bool = False,
        packed: PackedImages | None = None,
    ) -> None:
        if data.height % grid[0] or data.width % grid[1]:
            raise ConfigError(
                f"data.height {data.height} and data.width {data.width} must be whole multiples of "
                f"the {grid[0]}x{grid[1]} patches that are transferred: use multiples of 16"
            )
        counts = len(paths), len(labels), len(camids), len(masks)
        if len(set(counts)) > 1:
            raise ValueError(f"paths, labels, camids and masks differ in length: {counts}")
        if masks.shape[1:] != grid:
            raise ValueError(f"masks are {masks.shape[1:]}, the grid is {grid}")
        self._labels, self._camids, self._masks, self._plan = labels, camids, masks, plan
        self._data, self._augment, self._occlusion = data, augment, occlusion
        self._images = ImageCache(root, paths, data.height, data.width, cache_bytes, packed=packed)
        self._donors = Donors(self._images, masks, augment, occlusion)
        self._twins, self._covered = twins, covered

    def make(self, global_step: int, rank: int = 0, world: int = 1) -> dict[str, NDArray]:
        """The arrays of one rank; b = P * K / world, whole identities, in the order of the ranks.

        A sample is first augmented, then mixed with its donor or else perhaps erased.

        Returns:
            images uint8 [b, height, width, 3] RGB;
            labels int64 [b] class index of the identity that is kept;
            camids int64 [b] camera of the image in `rows`;
            donor_labels int64 [b] class index of the donor, CLEAN (-1) = not mixed, BACKGROUND (-2)
                = mixed with a picture without people;
            visible bool [b, gh, gw] patches that show the person: the mask, less what the donor or
                the erasing hides;
            rows int64 [b] row numbers in the training set;
            step int64, the global step;
            with `covered` also covered uint8 [b / 2, height, width, 3], every second image as it
                was before, behind a made-up surface, and covered_visible bool [b / 2, gh, gw];
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
        own = slice(rank * share, (rank + 1) * share)

        images = np.empty((share, self._data.height, self._data.width, 3), np.uint8)
        twins = np.zeros_like(images) if self._twins else None
        visible = masks[: len(rows)][own].copy()
        for k, i in enumerate(range(len(rows))[own]):
            if pairs.donor[i] >= 0:
                mixture = self._mix(planned, i)
                images[k], visible[k] = mixture.mixed, mixture.visible
                if twins is not None:
                    twins[k] = mixture.recipient
            else:
                whole = self._picture(planned, i)
                images[k] = self._maybe_erase(whole, planned, i)
                visible[k] &= ~_changed(whole, images[k], visible.shape[1:])
            if self._augment.camera:  # one camera records recipient and donor alike
                rng = stream(self._plan.seed, planned.epoch, planned.step, i, Draw.CAMERA)
                images[k] = camera_jitter(images[k], self._augment.camera, rng)
        donor_labels = np.where(pairs.donor >= 0, planned.donor_labels[pairs.donor], NO_OCCLUSION)
        return {
            "images": images,
            "labels": self._labels[rows[own]],
            "camids": self._camids[rows[own]],
            "donor_labels": donor_labels[own],
            "visible": visible,
            "rows": rows[own],
            "step": np.array(global_step, np.int64),
            **({} if twins is None else {"twins": twins}),
            **(self._cover(planned, range(len(rows))[own]) if self._covered else {}),
        }

    def mixed_pairs(self, global_step: int) -> list[Mixture]:
        """The mixed samples of a step, for showing: who lent what to whom."""
        planned = self._plan_step(*divmod(global_step, self._plan.steps_per_epoch))
        return [self._mix(planned, int(i)) for i in np.flatnonzero(planned.pairs.donor >= 0)]

    def _mix(self, planned: _Planned, sample: int) -> Mixture:
        pairs, masks = planned.pairs, planned.donor_masks
        j, shift = int(pairs.donor[sample]), int(pairs.shift[sample])
        recipient, donor = self._picture(planned, sample), self._picture(planned, j)
        channels = recipient.transpose(2, 0, 1), donor.transpose(2, 0, 1)
        mixed = transfer_patches(*channels, masks[j], shift).transpose(1, 2, 0)
        visible = visible_patches(masks[sample], masks[j], shift)
        return Mixture(recipient, donor, masks[j], mixed, visible, float(pairs.hidden[sample]))

    def _plan_step(self, epoch: int, step: int) -> _Planned:
        seed, pad = self._plan.seed, self._augment.pad
        height, width = self._data.height, self._data.width
        rows = self._plan.rows(epoch, step)
        geometries = [
            Geometry.draw(self._augment, stream(seed, epoch, step, i, Draw.GEOMETRY))
            for i in range(len(rows))
        ]
        masks = apply_to_masks(self._masks[rows], geometries, pad, height, width)
        bank = self._donors.draw(self._occlusion.bank, stream(seed, epoch, step, 0, Draw.BANK))
        donor_masks = np.concatenate([masks, bank.masks])
        # The row of a background is that of its mask; its picture is nobody's.
        shown = np.where(bank.backgrounds < 0, bank.rows, -1)
        excluded = rows[:, None] == np.concatenate([rows, shown])[None, :]
        rng = stream(seed, epoch, step, 0, Draw.PAIRING)
        pairs = draw_pairs(masks, self._occlusion, rng, donor_masks, excluded)
        bank_labels = np.where(bank.backgrounds < 0, self._labels[bank.rows], BACKGROUND)
        labels = np.concatenate([self._labels[rows], bank_labels])
        return _Planned(epoch, step, rows, geometries, bank, donor_masks, labels, pairs)

    def _picture(self, planned: _Planned, donor: int) -> Image:
        """Augmented pixels of a sample, or of a donor of the bank."""
        if donor >= len(planned.rows):
            return self._donors.picture(planned.bank, donor - len(planned.rows))
        image = self._images[int(planned.rows[donor])]
        return apply_to_image(image, planned.geometries[donor], self._augment.pad)

    def _maybe_erase(self, image: Image, planned: _Planned, item: int) -> Image:
        rng = stream(self._plan.seed, planned.epoch, planned.step, item, Draw.ERASING)
        return random_erase(image, rng) if rng.random() < self._augment.erase else image

    def _cover(self, planned: _Planned, samples: range) -> dict[str, NDArray]:
        """Samples as they were before, behind made-up surfaces, and what they show of the person.

        Every second one: they only teach what is seen.
        """
        images, visible = [], []
        for i in (i for i in samples if i % 2 == 0):
            rng = stream(self._plan.seed, planned.epoch, planned.step, i, Draw.SURFACE)
            whole = self._picture(planned, i)
            images.append(paste_synthetic_occluder(whole, rng))
            mask = planned.donor_masks[i]
            visible.append(mask & ~_changed(whole, images[-1], mask.shape))
        return {"covered": np.stack(images), "covered_visible": np.stack(visible)}


def _changed(before: Image, after: Image, grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """Patches of which more than half the pixels differ, bool [gh, gw]."""
    (rows, columns), (height, width) = grid, before.shape[:2]
    channels = before != after
    # `channels.any(axis=2)` takes nine times longer.
    differs = channels[..., 0] | channels[..., 1] | channels[..., 2]
    strips = differs.view(np.uint8).reshape(rows, height // rows, width).sum(1, np.uint32)
    counts = strips.reshape(rows, columns, width // columns).sum(2)
    return counts * 2 > (height // rows) * (width // columns)
