"""Drawing: layers with coverage, and solid-looking shapes with a surface to paint.

Everything is drawn at `SCALE` times the final size and averaged down, so edges and patterns are
smooth. Colours are float32 RGB reflectances in [0, 1]; lengths are pixels of the large canvas.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH = 256, 128
SCALE = 2
TALL, WIDE = HEIGHT * SCALE, WIDTH * SCALE

Floats = npt.NDArray[Any]  # float32 unless a docstring says otherwise
RGB = tuple[float, float, float]
Point = tuple[float, float]
Roi = tuple[slice, slice]


@dataclass
class Layer:
    """Premultiplied colour (H, W, 3) and coverage (H, W), float32 in [0, 1]."""

    rgb: Floats
    alpha: Floats

    @staticmethod
    def clear(height: int = TALL, width: int = WIDE) -> Layer:
        """Return an empty layer."""
        return Layer(
            np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
        )

    @staticmethod
    def filled(height: int, width: int, colour: RGB) -> Layer:
        """Return a layer of one colour."""
        rgb = np.empty((height, width, 3), np.float32)
        rgb[:] = colour
        return Layer(rgb, np.ones((height, width), np.float32))

    def paint(self, roi: Roi, alpha: Floats, colour: Floats | RGB) -> None:
        """Paint a colour, (h, w, 3) or a single one, over a region by its coverage (h, w)."""
        rgb, cover = self.rgb[roi], self.alpha[roi]
        rgb += alpha[..., None] * (np.asarray(colour, np.float32) - rgb)
        cover += alpha * (1 - cover)

    def over(self, background: Floats) -> Floats:
        """Return this layer in front of an opaque picture (H, W, 3)."""
        return background * (1 - self.alpha[..., None]) + self.rgb

    def put(self, other: Layer, x: int, y: int) -> None:
        """Lay another layer on top with its corner at (x, y); what sticks out is cut off."""
        target, source = overlap(self.alpha.shape, other.alpha.shape, x, y)
        alpha = other.alpha[source]
        rgb, cover = self.rgb[target], self.alpha[target]
        rgb *= 1 - alpha[..., None]
        rgb += other.rgb[source]
        cover += alpha * (1 - cover)


def overlap(frame: tuple[int, ...], patch: tuple[int, ...], x: int, y: int) -> tuple[Roi, Roi]:
    """Return the slices of a frame and of a patch, whose corner is at (x, y), that overlap."""
    top, left = max(y, 0), max(x, 0)
    bottom = max(min(y + patch[0], frame[0]), top)
    right = max(min(x + patch[1], frame[1]), left)
    return (
        (slice(top, bottom), slice(left, right)),
        (slice(top - y, bottom - y), slice(left - x, right - x)),
    )


@dataclass(frozen=True)
class Light:
    """Direction of the light in the view: x right, y up, z to the viewer (unit length)."""

    direction: tuple[float, float, float] = (-0.4, 0.6, 0.69)
    ambient: float = 0.55
    diffuse: float = 0.6


@cache
def noise_tile(kind: str) -> Floats:
    """Return a fixed (1024, 1024) tile of smooth noise, ~N(0, 1): `folds`, `grain` or `mottle`."""
    sizes = {"folds": ((7, 26), (14, 60)), "grain": ((2, 2), (3, 5)), "mottle": ((22, 22), (6, 6))}
    rng = np.random.default_rng(list(kind.encode()))
    tile = np.zeros((1024, 1024), np.float32)
    for tall, wide in sizes[kind]:
        coarse = rng.standard_normal((1024 // tall + 2, 1024 // wide + 2)).astype(np.float32)
        tile += cv2.resize(coarse, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    if kind == "folds":  # creases run aslant
        turn = cv2.getRotationMatrix2D((512, 512), 28, 1.5)
        tile = np.asarray(cv2.warpAffine(tile, turn, (1024, 1024), borderMode=cv2.BORDER_REFLECT))
    return (tile - tile.mean()) / tile.std()


def noise(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Cut a random window out of a noise tile, of a shape (height, width)."""
    tile, (height, width) = noise_tile(kind), shape
    y, x = (int(rng.integers(max(1024 - n, 1))) for n in (height, width))
    window = tile[y : y + height, x : x + width]
    if window.shape != (height, width):
        window = np.asarray(cv2.resize(tile, (width, height)))
    return window


@dataclass
class Surface:
    """The visible side of a shape over a region of interest, arrays (h, w).

    `across` runs from -1 (left rim) to 1 (right rim), `along` from 0 to 1 over the length;
    `nx`, `ny` are the view-space normal (y up), `alpha` the coverage.
    """

    roi: Roi
    alpha: Floats
    across: Floats
    along: Floats
    nx: Floats
    ny: Floats
    nz: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.nz = np.sqrt(np.maximum(1 - self.nx**2 - self.ny**2, 0.0))

    def shade(self, light: Light) -> Floats:
        """Return the brightness under the light, (h, w)."""
        x, y, z = light.direction
        facing = np.maximum(self.nx * x + self.ny * y + self.nz * z, 0)
        return light.ambient * (0.8 + 0.2 * self.nz) + light.diffuse * facing


def _window(
    frame: tuple[int, ...], x0: float, y0: float, x1: float, y1: float
) -> tuple[Roi, Floats, Floats] | None:
    """Return region and pixel centres (columns (1, w), rows (h, 1)) of a box, None if outside."""
    left, right = max(int(x0) - 1, 0), min(int(x1) + 2, frame[1])
    top, bottom = max(int(y0) - 1, 0), min(int(y1) + 2, frame[0])
    if left >= right or top >= bottom:
        return None
    xs = np.arange(left, right, dtype=np.float32)[None] + 0.5
    ys = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5
    return (slice(top, bottom), slice(left, right)), xs, ys


def limb(layer: Layer, a: Point, b: Point, ra: float, rb: float) -> Surface | None:
    """Return a tapered capsule from a to b."""
    r = max(ra, rb)
    box = min(a[0], b[0]) - r, min(a[1], b[1]) - r, max(a[0], b[0]) + r, max(a[1], b[1]) + r
    window = _window(layer.alpha.shape, *box)
    if window is None:
        return None
    roi, xs, ys = window
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = max(float(np.hypot(dx, dy)), 1e-3)
    ux, uy = dx / length, dy / length
    px, py = xs - a[0], ys - a[1]
    along = np.clip((px * ux + py * uy) / length, 0, 1)
    side = px * -uy + py * ux
    flip = -1.0 if uy > 0 else 1.0  # `across` grows to the right for any direction of the limb
    radius = ra + (rb - ra) * along
    away = np.hypot(px - along * dx, py - along * dy)
    across = np.clip(flip * side / radius, -1, 1)
    alpha = np.clip(radius - away + 0.5, 0, 1)
    nx, ny = across * -uy * flip, across * -ux * flip
    return Surface(roi, alpha, across, along, nx, ny)


def ellipse(layer: Layer, centre: Point, rx: float, ry: float) -> Surface | None:
    """Return an ellipsoid seen from the front; `along` runs from its top to its bottom."""
    (cx, cy) = centre
    window = _window(layer.alpha.shape, cx - rx, cy - ry, cx + rx, cy + ry)
    if window is None:
        return None
    roi, xs, ys = window
    nx, ny = (xs - cx) / rx, (cy - ys) / ry
    radius = np.maximum(np.sqrt(nx**2 + ny**2), 1e-6)
    alpha = np.clip((1 - radius) * min(rx, ry) + 0.5, 0, 1)
    scale = np.minimum(1, 0.999 / radius)
    along = np.broadcast_to((1 - ny) / 2, alpha.shape)
    return Surface(roi, alpha, nx * scale, along, nx * scale, ny * scale)


def profile(layer: Layer, rows: npt.ArrayLike) -> Surface | None:
    """Return a body of revolution from rows of (y, centre x, half width), from top to bottom."""
    y, cx, half = np.asarray(rows, np.float32).T
    r = half.max()
    window = _window(layer.alpha.shape, (cx - half).min(), y[0], (cx + half).max(), y[-1])
    if window is None or r < 0.5:
        return None
    roi, xs, ys = window
    rows_y = ys[:, 0]
    centre = np.interp(rows_y, y, cx).astype(np.float32)[:, None]
    width = np.maximum(np.interp(rows_y, y, half), 0.5).astype(np.float32)[:, None]
    across = np.clip((xs - centre) / width, -1, 1)
    ends = np.clip(np.minimum(ys - y[0], y[-1] - ys) + 0.5, 0, 1)
    alpha = np.clip(width - np.abs(xs - centre) + 0.5, 0, 1) * ends
    along = np.broadcast_to((ys - y[0]) / max(float(y[-1] - y[0]), 1.0), alpha.shape)
    return Surface(roi, alpha, across, along, across * 0.98, np.zeros_like(across))


def box(layer: Layer, x0: float, y0: float, x1: float, y1: float, r: float = 1.0) -> Surface | None:
    """Return a flat upright rectangle with rounded corners."""
    window = _window(layer.alpha.shape, x0, y0, x1, y1)
    if window is None or x1 - x0 < 1 or y1 - y0 < 1:
        return None
    roi, xs, ys = window
    r = min(r, (x1 - x0) / 2, (y1 - y0) / 2)
    across = np.broadcast_to((xs - x0) / (x1 - x0) * 2 - 1, (ys.size, xs.size))
    along = np.broadcast_to((ys - y0) / (y1 - y0), across.shape)
    dx = np.maximum(np.abs(xs - (x0 + x1) / 2) - (x1 - x0) / 2 + r, 0)
    dy = np.maximum(np.abs(ys - (y0 + y1) / 2) - (y1 - y0) / 2 + r, 0)
    alpha = np.clip(r - np.hypot(dx, dy) + 0.5, 0, 1)
    flat = np.zeros_like(alpha)
    return Surface(roi, alpha, np.clip(across, -1, 1), np.clip(along, 0, 1), flat, flat)


def polygon(layer: Layer, points: npt.ArrayLike) -> Surface | None:
    """Return a flat polygon, points (N, 2)."""
    corners = np.asarray(points, np.float32)
    (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
    window = _window(layer.alpha.shape, float(x0), float(y0), float(x1), float(y1))
    if window is None:
        return None
    roi, xs, ys = window
    mask = np.zeros((ys.size, xs.size), np.uint8)
    moved = np.round((corners - (roi[1].start, roi[0].start)) * 16).astype(np.int32)
    cv2.fillPoly(mask, [moved], 255, cv2.LINE_AA, 4)
    alpha = mask.astype(np.float32) / 255
    across = np.broadcast_to((xs - x0) / max(x1 - x0, 1) * 2 - 1, alpha.shape)
    along = np.broadcast_to((ys - y0) / max(y1 - y0, 1), alpha.shape)
    flat = np.zeros_like(alpha)
    return Surface(roi, alpha, across, along, flat, flat)


def fill(
    layer: Layer,
    surface: Surface | None,
    colour: Floats | RGB,
    *,
    opacity: float = 1.0,
    top: float = 1.0,
    bottom: float = 1.0,
) -> None:
    """Paint a surface with a colour, its brightness going from `top` to `bottom`."""
    if surface is None:
        return
    tone = top + (bottom - top) * surface.along
    rgb = tone[..., None] * np.asarray(colour, np.float32)
    layer.paint(surface.roi, surface.alpha * np.float32(opacity), rgb)
