"""Pictures of which a wanted share of the person is hidden (ours).

They come from the patch transfer of training, so the scene of a training image hides the person.
The share is counted in patches of the saliency mask. The donor's silhouette decides what is hidden,
or one part is cut away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from dpmpp_core.config import AugmentConfig, DataConfig, OcclusionConfig
from dpmpp_core.data.donors import Donors, ImageCache, OccluderBank
from dpmpp_core.data.images import Image
from dpmpp_core.data.plan import Draw, stream
from dpmpp_core.errors import ConfigError
from dpmpp_core.occlusion.cut import cut_away, lend_scene
from dpmpp_core.occlusion.pairing import place
from dpmpp_core.occlusion.transfer import transfer_patches

CANDIDATES = 256  # donors compared per picture: with fewer, none may hide a small share
MAX_HIDDEN_PERCENT = 90  # beyond, nothing of the person is left to be recognised


class Band(NamedTuple):
    """Share of the person hidden, percent: at least `low`, less than `high`."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


BANDS = tuple(Band(low, low + 10) for low in range(0, 70, 10))


def parse_bands(text: str) -> tuple[Band, ...]:
    """Parse bands written as `10-20,20-30`; ConfigError for anything else."""
    bands = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,2})-(\d{1,2})\s*", part)
        band = Band(int(match[1]), int(match[2])) if match else None
        if band is None or not band.low < band.high <= MAX_HIDDEN_PERCENT:
            raise ConfigError(
                f"band {part.strip()!r}: write the percent hidden as LOW-HIGH, such as 10-20, with "
                f"0 <= LOW < HIGH <= {MAX_HIDDEN_PERCENT}"
            )
        bands.append(band)
    if len(set(bands)) < len(bands):
        raise ConfigError(f"bands {text}: one is named twice")
    return tuple(bands)


Part = Literal["any", "top", "bottom", "side"]
PARTS: tuple[Part, ...] = get_args(Part)
CLEAN_QUERIES = "clean"  # in place of a part: the queries of which nothing is hidden
DRAWS = {"any": Draw.SYNTHESIS, "top": Draw.CUT_TOP, "bottom": Draw.CUT_BOTTOM,
         "side": Draw.CUT_SIDE}  # fmt: skip


def parse_parts(text: str) -> tuple[Part, ...]:
    """Parse parts written as `any,top`; ConfigError for an unknown one."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in PARTS:
            raise ConfigError(
                f"part {part!r}: write some of {','.join(PARTS)}; any = what a donor's silhouette "
                "leaves out"
            )
    if len(set(parts)) < len(parts):
        raise ConfigError(f"parts {text}: one is named twice")
    return cast(tuple[Part, ...], tuple(parts))


@dataclass(frozen=True)
class Synthesised:
    """An occluded picture and its origin."""

    image: Image
    """uint8 [height, width, 3] RGB."""
    donor: str
    """Path of the picture that hides, below the data's root; of a background, its whole path."""
    shift: int
    """Patches by which the person is rolled to the right; where a part is cut away, the donor."""
    oiou: float | None
    """None where a part is cut away."""
    occlusion_ratio: float
    """Share of the person's patches that is hidden, in [0, 1]."""


class Synthesiser:
    """Hides images of a data set, each from (seed, image, band, part) alone.

    Args:
        root: folder of the images.
        paths: N paths relative to root.
        masks: bool [N, gh, gw] saliency, True = person; the grid divides the image size.
        lenders: int64 [L] rows whose images may hide others: the training images.
        data: size of the images.
        occlusion: `backgrounds` and `background_share` are read.
        seed: non-negative.

    Raises:
        DataError: the folder of backgrounds cannot be read or holds no image.
    """

    def __init__(
        self,
        root: str,
        paths: Sequence[str],
        masks: NDArray[np.bool_],
        lenders: NDArray[np.int64],
        data: DataConfig,
        occlusion: OcclusionConfig,
        seed: int,
    ) -> None:
        self._paths, self._masks, self._seed = paths, masks, seed
        self._images = ImageCache(root, paths, data.height, data.width)
        donors = ImageCache(root, [paths[row] for row in lenders], data.height, data.width)
        flip_only = AugmentConfig(pad=0)  # without black edges
        self._donors = Donors(donors, masks[lenders], flip_only, occlusion)
        self._candidates = min(CANDIDATES, len(lenders))

    def clean(self, row: int) -> Image:
        """Return image `row`, uint8 [height, width, 3], read-only; DataError if not readable."""
        return self._images[row]

    def make(self, row: int, band: Band, part: Part = "any") -> Synthesised | None:
        """Hide a share of the person of image `row` that lies in the band.

        Args:
            row: number of the image.
            band: share of the person to hide.
            part: of the person that is hidden: `any` = what a donor's silhouette leaves out (as
                `place` chooses it), else one side of an edge (as `cut_away` draws it).

        Returns:
            None if nothing hides such a share: the mask shows no person, or for `any` a larger one
            than any donor's shape, or so few patches that no whole number lies in the band.

        Raises:
            DataError: an image cannot be read; names the file.
        """
        rng = stream(self._seed, *band, row, DRAWS[part])
        bank = self._donors.draw(self._candidates, rng)
        sources = [self._donors.source(bank, k) for k in range(self._candidates)]
        itself = np.array([source == self._paths[row] for source in sources])
        person = self._masks[row]
        if part == "any":
            placement = place(person, bank.masks, band, rng, itself)
            if placement is None:
                return None
            donor, shift = placement.donor, placement.shift
            image = self._mix(row, bank, donor, bank.masks[donor], shift)
            ratio = placement.occlusion_ratio
            return Synthesised(image, sources[donor], shift, placement.oiou, ratio)
        cut = cut_away(person, part, band, rng)
        lender = None if cut is None else lend_scene(person, cut, bank.masks, rng, itself)
        if cut is None or lender is None:
            return None
        image = self._mix(row, bank, lender.donor, lender.kept, 0, lender.shift)
        ratio = float((person & cut).sum() / person.sum())
        return Synthesised(image, sources[lender.donor], lender.shift, None, ratio)

    def _mix(
        self,
        row: int,
        bank: OccluderBank,
        donor: int,
        kept: NDArray[np.bool_],
        shift: int,
        donor_shift: int = 0,
    ) -> Image:
        """Show image `row`, rolled by `shift` patches, where `kept`, else the donor, rolled too."""
        pixels = self._donors.picture(bank, donor)
        pixels = np.roll(pixels, donor_shift * pixels.shape[1] // kept.shape[1], axis=1)
        channels = self.clean(row).transpose(2, 0, 1), pixels.transpose(2, 0, 1)
        return transfer_patches(*channels, kept, shift).transpose(1, 2, 0)
