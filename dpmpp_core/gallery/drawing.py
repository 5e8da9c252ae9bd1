"""Draw what a query's mask trusts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from dpmpp_core.data.images import Image

if TYPE_CHECKING:
    from dpmpp_core.gallery.queries import QueryEmbeddings

QUERY_SIZE = 256, 128  # height and width of a query
BAR_PIXELS = 46  # width of the bars of bands
PAPER, BAR, EMPTY, RED = (255, 255, 255), (0, 114, 178), (208, 215, 222), (207, 34, 46)


def tint_patches(image: Image, chosen: NDArray[np.bool_]) -> Image:
    """Tint the chosen patches of a picture [H, W, 3] red; `chosen` is bool [rows, columns]."""
    size = image.shape[1], image.shape[0]
    share = cv2.resize(chosen.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    share = 0.6 * share[..., None]
    return (image * (1 - share) + share * np.array(RED, np.float32)).astype(np.uint8)


def draw_trusted(picture: Image, query: QueryEmbeddings) -> Image:
    """Draw a query, and next to it the query with the parts dark that do not show the person.

    Patches that were masked from attention are red.

    With bands there is one bar per band: its trust, relative to the most trusted one. A model with
    neither gives the picture only.
    """
    height, width = QUERY_SIZE
    method = cv2.INTER_AREA if picture.shape[0] > height else cv2.INTER_CUBIC
    plain = cv2.resize(picture, (width, height), interpolation=method).astype(np.uint8)
    cells = [plain]
    if query.visible is not None:
        light = cv2.resize(query.visible[0], (width, height), interpolation=cv2.INTER_LINEAR)
        shade = 0.15 + 0.85 * np.clip(light, 0, 1)
        cells.append((plain * shade[..., None]).astype(np.uint8))
    if query.occluded is not None:
        shown = cells.pop() if len(cells) > 1 else plain
        cells.append(tint_patches(shown, query.occluded[0]))
    if query.bands is not None:
        cells.append(_draw_bars(query.bands[0]))
    gap = np.full((height, 6, 3), PAPER, np.uint8)
    joined = [part for cell in cells for part in (cell, gap)][:-1]
    return np.concatenate(joined, axis=1)


def _draw_bars(bands: np.ndarray) -> Image:
    height = QUERY_SIZE[0]
    canvas = np.full((height, BAR_PIXELS, 3), PAPER, np.uint8)
    edges = np.linspace(0, height, len(bands) + 1).round().astype(int)
    for share, top, bottom in zip(bands / bands.max(), edges[:-1], edges[1:], strict=True):
        canvas[top + 2 : bottom - 2] = EMPTY
        canvas[top + 2 : bottom - 2, : round(BAR_PIXELS * float(share))] = BAR
    return canvas
