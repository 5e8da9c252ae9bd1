"""Patch masks of persons, and a segmentation without any trained model (ours).

It is a soft segmentation in the manner of GrabCut (Rother et al. 2004) that takes milliseconds. An
affinity matrix, as in spectral segmentation (Shi and Malik 2000), compares all pixels of a
thumbnail in colour and place. A prior of where people stand in a crop gives each pixel's odds of
being person. These are corrected a few times by how much it resembles the person and the background
so far.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

PIXELS = 2  # thumbnail pixels per patch side: finer is slower and follows texture, not people
COLOUR_SCALE = 0.2  # of the image's colour spread: pixels that near look alike, in the dark as well
LIGHTNESS = 0.6  # weight of lightness relative to hue: shadows fall on people and streets alike
PLACE_SCALE = 0.2  # of the image's height and width
EVIDENCE = 1.5  # weight of the likelihood ratio against the prior
BIAS = 1.0  # log odds against person in the prior: else the street next to the legs is included
ROUNDS = 6
BLUR = 0.7  # patches; of attention
SHARE_RANGE = (0.5, 1.7)  # times the target ratio: bounds of the share called person

# Half the width of a person, of the image's width, at heights from the top (0) to the bottom (1).
BODY_HEIGHT = (0.0, 0.08, 0.16, 0.25, 0.6, 0.9, 1.0)
BODY_HALF_WIDTH = (0.10, 0.16, 0.20, 0.26, 0.28, 0.30, 0.25)


def spectral_saliency(
    image: NDArray[np.uint8], grid: tuple[int, int], target_ratio: float
) -> NDArray[np.bool_]:
    """Find the patches that show the person in the middle of a crop, without a model (ours).

    The share of person patches is that with odds above one, kept within 0.5 to 1.7 times
    `target_ratio`.

    Args:
        image: uint8 [H, W, 3] RGB, any size.
        grid: (gh, gw) patches.
        target_ratio: in [0, 1]; SPT trains towards 0.3.

    Returns:
        bool [gh, gw], True = person.
    """
    height, width = grid[0] * PIXELS, grid[1] * PIXELS
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    alike = _resemblance(small)
    prior = _prior_log_odds(height, width)

    person = _sigmoid(prior)
    for _ in range(ROUNDS):
        as_person = alike @ person / person.sum()
        as_background = alike @ (1 - person) / (1 - person).sum()
        person = _sigmoid(prior + EVIDENCE * np.log((as_person + 1e-6) / (as_background + 1e-6)))

    smooth = cv2.GaussianBlur(person.reshape(height, width), (0, 0), PIXELS / 2)
    score = smooth.reshape(grid[0], PIXELS, grid[1], PIXELS).mean(axis=(1, 3))
    return _above(score, 0.5, target_ratio)


def attention_saliency(
    attention: NDArray[np.float32], grid: tuple[int, int], target_ratio: float
) -> NDArray[np.bool_]:
    """Find the patches that the class token attends to, by Otsu's threshold (ours).

    The threshold is on the logarithm, since a few patches take most of the attention. The attention
    is slightly blurred, as neighbours are mostly of one kind. The share is bounded as in
    `spectral_saliency`.

    Args:
        attention: float32 [gh', gw'], above 0, mean over heads of the attention after softmax.
        grid: (gh, gw) wanted.
        target_ratio: in [0, 1].

    Returns:
        bool [gh, gw], True = person.
    """
    smooth = np.log(cv2.GaussianBlur(attention, (0, 0), BLUR))
    score = resample_area(smooth[None], grid)[0]
    levels = np.interp(score, (score.min(), score.max()), (0, 255)).astype(np.uint8)
    cut, _ = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return _above(levels, cut, target_ratio)


def resample_area(values: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Resample to another grid over the same picture: each cell is the mean of its area (ours).

    Both grids are taken as equal tiles of the whole picture. The middles of overlapping patches are
    then at most an eighth of a patch off.

    Args:
        values: float32 [N, H, W], of patches or pixels.
        grid: (gh, gw) wanted, coarser or finer.

    Returns:
        float32 [N, gh, gw]; `values` itself where the grid is theirs.
    """
    if values.shape[1:] == grid:
        return values
    rows, columns = _shares(values.shape[1], grid[0]), _shares(values.shape[2], grid[1])
    return np.einsum("ra,nab,cb->nrc", rows, values, columns, optimize=True).astype(np.float32)


def mask_iou(masks: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the intersection over union of bool [N, gh, gw] pairs, float64 [N]; both empty: 1."""
    both = (masks & truth).sum(axis=(1, 2))
    either = (masks | truth).sum(axis=(1, 2))
    return np.where(either > 0, both / either.clip(1), 1.0)


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Pack a patch mask into bits, row by row, high bit first: 16 bytes for 16x8 patches."""
    return np.packbits(mask).tobytes()


def unpack_mask(data: bytes, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the bool [gh, gw] mask of `pack_mask`; ValueError if the bytes are of another grid."""
    patches = grid[0] * grid[1]
    if len(data) != (patches + 7) // 8:
        raise ValueError(f"{len(data)} bytes are no mask of {grid[0]}x{grid[1]} patches")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=patches)
    return bits.astype(np.bool_).reshape(grid)


def _shares(cells: int, wanted: int) -> NDArray[np.float64]:
    """Return the share of `cells` equal intervals in each of `wanted` ones, [wanted, cells]."""
    edge, new_edge = np.arange(cells + 1) / cells, np.arange(wanted + 1) / wanted
    start = np.maximum(edge[:-1], new_edge[:-1, None])
    end = np.minimum(edge[1:], new_edge[1:, None])
    return (end - start).clip(0) * wanted


def _above(score: NDArray, threshold: float, target_ratio: float) -> NDArray[np.bool_]:
    """Select the patches of highest score: as many as exceed the threshold, within SHARE_RANGE."""
    low, high = SHARE_RANGE
    share = np.clip(np.mean(score > threshold), low * target_ratio, min(1.0, high * target_ratio))
    mask = np.zeros(score.size, np.bool_)
    order = np.argsort(-score.ravel().astype(np.float32), kind="stable")
    mask[order[: round(share * score.size)]] = True
    return mask.reshape(score.shape)


def _resemblance(image: cv2.typing.MatLike) -> NDArray[np.float32]:
    """Return the Gaussian kernel of colour and place between all N pixels, float32 [N, N]."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    spread = float(np.sqrt(lab.var(axis=0).sum()))
    lightness, a, b = lab.T / max(COLOUR_SCALE * spread, 1.0)
    y, x = _places(*image.shape[:2])
    features = np.column_stack([LIGHTNESS * lightness, a, b, y / PLACE_SCALE, x / PLACE_SCALE])
    half_norm = 0.5 * np.square(features).sum(axis=1)
    return np.exp(np.minimum(features @ features.T - half_norm[:, None] - half_norm, 0))


@lru_cache(maxsize=8)
def _prior_log_odds(height: int, width: int) -> NDArray[np.float32]:
    """Return the log odds that a pixel is person before its colour is known, float32 [N]."""
    y, x = _places(height, width)
    aside = np.abs(x - 0.5)
    odds = 1.5 * (1 - aside / np.interp(y, BODY_HEIGHT, BODY_HALF_WIDTH)) - BIAS
    odds -= np.interp(y, (0, 0.05, 0.95, 1), (1.5, 0, 0, 0.7))
    odds -= 3 * (aside > 0.5 - 1 / width)  # the outermost columns are street, nearly always
    return odds.astype(np.float32)


@lru_cache(maxsize=8)
def _places(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return y and x of each pixel's middle in [0, 1], row by row, float32 [N] each."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
    return (y / height).ravel(), (x / width).ravel()


def _sigmoid(log_odds: NDArray[np.float32]) -> NDArray[np.float32]:
    return (1 / (1 + np.exp(-log_odds))).astype(np.float32)
