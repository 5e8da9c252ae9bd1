"""Occlusion to order: pictures of which a wanted share of the person is hidden (ours).

By the patch transfer of training, so what hides the person is the scene of a training image; the
person is the one of the saliency mask, and the share is counted in its patches. What of the person
is hidden is left to the donor's silhouette, or one part is cut away.
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
from dpmpp_core.data.plan import Draw, stream
from dpmpp_core.errors import ConfigError
from dpmpp_core.occlusion.cut import cut_away, lend_scene
from dpmpp_core.occlusion.pairing import place
from dpmpp_core.occlusion.transfer import transfer_patches

Image = NDArray[np.uint8]
CANDIDATES = 256  # donors looked at for a picture: with fewer, small shares find none
MOST_HIDDEN = 90  # percent; beyond, nobody is left to be recognised


class Band(NamedTuple):
    """Share of the person hidden, percent: at least `low`, less than `high`."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


BANDS = tuple(Band(low, low + 10) for low in range(0, 70, 10))


def parse_bands(text: str) -> tuple[Band, ...]:
    """Bands written as `10-20,20-30`; ConfigError says how to write them."""
    bands = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,2})-(\d{1,2})\s*", part)
        band = Band(int(match[1]), int(match[2])) if match else None
        if band is None or not band.low < band.high <= MOST_HIDDEN:
            raise ConfigError(
                f"band {part.strip()!r}: write the percent hidden as LOW-HIGH, such as 10-20, with "
                f"0 <= LOW < HIGH <= {MOST_HIDDEN}"
            )
        bands.append(band)
    if len(set(bands)) < len(bands):
        raise ConfigError(f"bands {text}: one is named twice")
    return tuple(bands)


Part = Literal["any", "top", "bottom", "side"]
PARTS: tuple[Part, ...] = get_args(Part)
DRAWS = {"any": Draw.SYNTHESIS, "top": Draw.CUT_TOP, "bottom": Draw.CUT_BOTTOM,
         "side": Draw.CUT_SIDE}  # fmt: skip


def parse_parts(text: str) -> tuple[Part, ...]:
    """Parts written as `any,top`; ConfigError says which there are."""
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
    """An occluded picture and how it was made."""

    image: Image
    """uint8 [height, width, 3] RGB."""
    donor: str
    """Path of the picture that hides, below the data's root; of a background, its whole path."""
    shift: int
    """Patches by which the person is rolled to the right; of a part that is cut away, the donor."""
    oiou: float | None
    """None where a part is cut away."""
    hidden: float
    """Share of the person's patches that is hidden, in [0, 1]."""


class Synthesiser:
    """Hides images of a data set, each from (seed, image, band, part) alone.

    Args:
        root: folder of the images.
        paths: N paths relative to root.
        masks: bool [N, gh, gw] saliency, True = person; the grid divides the image size.
        lenders: int64 [L] rows whose images may hide others: the training images.
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
        lent = ImageCache(root, [paths[row] for row in lenders], data.height, data.width)
        still = AugmentConfig(pad=0)  # flipped, but not moved: no black edges
        self._donors = Donors(lent, masks[lenders], still, occlusion)
        self._candidates = min(CANDIDATES, len(lenders))

    def clean(self, row: int) -> Image:
        """Image `row`, uint8 [height, width, 3], not to be written to; DataError: not readable."""
        return self._images[row]

    def make(self, row: int, band: Band, part: Part = "any") -> Synthesised | None:
        """Image `row` with a share of its person hidden that lies in the band.

        Args:
            part: of the person that is hidden: `any` = what a donor's silhouette leaves out (as
                `place` chooses it), else one side of an edge (as `cut_away` draws it).

        Returns:
            None if nothing hides such a share: no person in the mask, or for `any` so large a one
            that no donor's shape takes it in, for a part one of so few patches that no whole number
            of them lies in the band.

        Raises:
            DataError: an image cannot be read; names the file.
        """
        rng = stream(self._seed, *band, row, DRAWS[part])
        bank = self._donors.draw(self._candidates, rng)
        sources = [self._donors.source(bank, k) for k in range(self._candidates)]
        itself = np.array([source == self._paths[row] for source in sources])
        person = self._masks[row]
        if part == "any":
            found = place(person, bank.masks, band, rng, itself)
            if found is None:
                return None
            image = self._mixed(row, bank, found.donor, bank.masks[found.donor], found.shift)
            how = found.shift, found.oiou, found.hidden
            return Synthesised(image, sources[found.donor], *how)
        cut = cut_away(person, part, band, rng)
        lender = None if cut is None else lend_scene(person, cut, bank.masks, rng, itself)
        if cut is None or lender is None:
            return None
        image = self._mixed(row, bank, lender.donor, lender.kept, 0, lender.shift)
        hidden = float((person & cut).sum() / person.sum())
        return Synthesised(image, sources[lender.donor], lender.shift, None, hidden)

    def _mixed(
        self,
        row: int,
        bank: OccluderBank,
        donor: int,
        kept: NDArray[np.bool_],
        shift: int,
        donor_shift: int = 0,
    ) -> Image:
        """Image `row`, rolled by `shift` patches, where `kept`; elsewhere the donor, rolled too."""
        pixels = self._donors.picture(bank, donor)
        pixels = np.roll(pixels, donor_shift * pixels.shape[1] // kept.shape[1], axis=1)
        recipient = self.clean(row).transpose(2, 0, 1)
        return transfer_patches(recipient, pixels.transpose(2, 0, 1), kept, shift).transpose(
            1, 2, 0
        )
