"""Occluders between the camera and a person, placed so that they hide a wanted share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dpmpp_core.demo import covers, things
from dpmpp_core.demo.cameras import Camera, shrink
from dpmpp_core.demo.canvas import TALL, Floats, Layer, box, fill, overlap
from dpmpp_core.demo.identity import identity
from dpmpp_core.demo.person import draw_person
from dpmpp_core.demo.pose import View, draw_pose
from dpmpp_core.demo.things import Rng, any_of, tone

PLACES = 30  # tried for one occluder
COARSE = 4  # factor by which pictures are reduced to search places
STRANGERS = 1_000_000  # numbers of people who are in no set


@dataclass(frozen=True)
class Occluder:
    """A drawn object and the ranges of its corner, in pixels of the large canvas."""

    patch: Layer
    x: tuple[float, float]
    y: tuple[float, float]


def cover(
    body: Floats,
    camera: Camera,
    seed: int,
    wanted: tuple[float, float],
    rng: Rng,
    kinds: Sequence[str] = (),
) -> tuple[str, Layer]:
    """Draw an occluder; return its kind and its layer, as large as the coverage `body`.

    The share of the body, (TALL, width), that is hidden lies within `wanted` after shrinking to the
    final size. The last of `kinds` is the fallback; none = COMMON.
    """
    low, high = wanted
    target = float(rng.uniform(low + 0.02, high - 0.02))
    kinds, last = kinds or COMMON, kinds[-1] if kinds else "van"
    tries = 8 if kinds is COMMON else 100  # occluders of the middle rarely fit
    for kind in [kinds[int(k)] for k in rng.integers(len(kinds), size=tries)]:
        layer = _place(OCCLUDERS[kind](body.shape[1], camera, seed, rng), body, target, rng)
        if low <= hidden_share(body, layer) <= high:
            return kind, layer
    # A straight side that comes in from the edge, like a van's, can hide any share.
    sure = OCCLUDERS[last](body.shape[1], camera, seed, rng)
    return last, _place(sure, body, target, rng, places=400)


def hidden_share(body: Floats, occluder: Layer) -> float:
    """Return the share of the final body mask under the occluder."""
    mask = shrink(body) > 0.5
    return float((mask & (shrink(occluder.alpha) > 0.5)).sum() / mask.sum())


def hidden_part(body: npt.NDArray[np.bool_], visible: npt.NDArray[np.bool_]) -> str:
    """Name the hidden part: none, top, bottom, left, right or mixed; masks (H, W) of bool."""
    if body.sum() == visible.sum():
        return "none"
    rows, columns = np.nonzero(body)
    gone = ~visible[rows, columns]

    def excess(places: npt.NDArray[np.intp]) -> float:
        after = places > np.median(places)
        return float(gone[after].mean() - gone[~after].mean())

    down, right = excess(rows), excess(columns)
    strong, weak = sorted((abs(down), abs(right)), reverse=True)
    # One side is named when it has three quarters of the hidden area, and it is no corner.
    if strong < gone.mean() or weak > 0.8 * strong:
        return "mixed"
    if abs(down) >= abs(right):
        return "bottom" if down > 0 else "top"
    return "right" if right > 0 else "left"


def _place(
    occluder: Occluder, body: Floats, target: float, rng: Rng, places: int = PLACES
) -> Layer:
    patch = occluder.patch
    xs = np.linspace(*occluder.x, places) if places > PLACES else rng.uniform(*occluder.x, places)
    ys = rng.uniform(*occluder.y, places)
    small_body = cv2.resize(body, None, fx=1 / COARSE, fy=1 / COARSE, interpolation=cv2.INTER_AREA)
    small = cv2.resize(
        patch.alpha, None, fx=1 / COARSE, fy=1 / COARSE, interpolation=cv2.INTER_AREA
    )
    total = small_body.sum()
    misses = []
    for x, y in zip(xs, ys, strict=True):
        frame, part = overlap(small_body.shape, small.shape, int(x / COARSE), int(y / COARSE))
        misses.append(abs(float((small_body[frame] * small[part]).sum() / total) - target))
    best = int(np.argmin(misses))
    layer = Layer.clear(*body.shape)
    layer.put(patch, int(xs[best]), int(ys[best]))
    return layer


Draw = Callable[[Layer, float, float, float, float, Rng], None]


def _standing(
    draw: Draw, wide: tuple[float, float], tall: tuple[float, float], extra: float = 0.0
) -> Callable[[int, Camera, int, Rng], Occluder]:
    """Stand an object on the ground before the person; `extra` is its height above `tall`."""

    def make(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
        w, h = width * rng.uniform(*wide), TALL * rng.uniform(*tall)
        head = int(h * (0.06 + extra))
        patch = Layer.clear(int(h) + head, int(w) + 8)
        draw(patch, 4, h + head, w, h, rng)
        side = (-0.4 * w, width - 0.6 * w) if w < width else (width - w, 0.0)
        return Occluder(patch, side, (TALL - 0.9 * h - head, TALL - 0.3 * h - head))

    return make


def _car(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    length = rng.uniform(800, 1250)
    tall = 0.36 * length
    patch = Layer.clear(int(tall) + 8, width)
    things.car(patch, rng.uniform(width - length - 60, 60), tall + 4, length, rng)
    return Occluder(patch, (0, 0), (TALL - tall, TALL - 0.3 * tall))


def _van(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    wide, tall = 2 * width, int(1.15 * TALL)
    patch = Layer.clear(tall, wide)
    paint = any_of(rng, things.PAINTS)
    fill(patch, box(patch, 0, -40, wide, tall + 40, 30), paint, top=1.15, bottom=0.75)
    for door in (0.02, 0.5, 0.96):
        fill(patch, box(patch, door * wide, 0, door * wide + 4, tall, 0), tone(paint, 0.55))
    for window in (0.1, 0.56):
        glass = box(patch, window * wide, 0.06 * tall, (window + 0.34) * wide, 0.36 * tall, 24)
        fill(patch, glass, (0.2, 0.24, 0.28), top=1.5, bottom=0.7)
    fill(patch, box(patch, 0, 0.55 * tall, wide, 0.58 * tall, 0), tone(paint, 0.7))
    if rng.random() < 0.5:
        return Occluder(patch, (-wide, -width), (-0.1 * TALL, 0))
    return Occluder(patch, (0, width), (-0.1 * TALL, 0))


def _upright(thin: float, thick: float, kind: str) -> Callable[[int, Camera, int, Rng], Occluder]:
    def make(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
        half = width * rng.uniform(thin, thick)
        reach = int(max(half * 1.6, 60 if kind == "pole" else 0)) + 2
        patch = Layer.clear(int(1.2 * TALL), 2 * reach)
        if kind == "tree":
            things.trunk(patch, reach, 1.1 * TALL, -20, half, rng)
        else:
            things.pole(patch, reach, 1.1 * TALL, -20, half, rng)
        if kind == "pole" and rng.random() < 0.6:
            things.sign(patch, 2, rng.uniform(30, 260), 2 * reach - 4, rng.uniform(90, 170), rng)
        return Occluder(patch, (-reach * 0.6, width - 1.4 * reach), (-0.15 * TALL, 0))

    return make


def _other_person(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    person = identity(seed, STRANGERS + int(rng.integers(STRANGERS)))
    pose = draw_pose(rng, int(rng.integers(8)))
    size = TALL * float(rng.uniform(0.85, 1.1)) / person.height
    patch = Layer.clear(int(1.1 * TALL), 300)
    view = View((150, 1.08 * TALL), size, camera.pitch, pose.yaw, pose.lean)
    draw_person(patch, person, pose, view, camera.light, rng)
    return Occluder(patch, (-200, width - 100), (-0.1 * TALL, 0.35 * TALL))


def _board(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    wide, tall = width * rng.uniform(0.5, 1.2), TALL * rng.uniform(0.2, 0.4)
    patch = Layer.clear(int(1.3 * TALL), int(wide) + 2)
    things.pole(patch, wide / 2, 1.2 * TALL, 0.5 * tall, width * 0.025, rng)
    things.sign(patch, 0, 0, wide, tall, rng)
    return Occluder(patch, (-0.3 * wide, width - 0.7 * wide), (-0.2 * tall, 0.35 * TALL))


def _branches(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    wide, tall = width * rng.uniform(0.8, 1.4), TALL * rng.uniform(0.3, 0.6)
    patch = Layer.clear(int(1.4 * tall), int(1.4 * wide))
    things.foliage(patch, 0.7 * wide, 0.55 * tall, wide / 2, tall / 2, rng)
    return Occluder(patch, (-0.6 * wide, width - 0.7 * wide), (-0.5 * tall, -0.05 * tall))


def _umbrella(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    wide = width * rng.uniform(0.9, 1.5)
    patch = Layer.clear(int(wide), int(wide) + 4)
    things.umbrella(patch, wide / 2, 4, wide, rng)
    return Occluder(patch, (-0.35 * wide, width - 0.65 * wide), (-0.15 * TALL, 0.08 * TALL))


def _banner(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    patch = Layer.clear(TALL, width)
    covers.banner(patch, rng)
    return Occluder(patch, (0, 0), (-0.95 * TALL, -0.2 * TALL))


def _wall(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    patch = Layer.clear(TALL, width)
    covers.brick_wall(patch, rng)
    return Occluder(patch, (0, 0), (0.2 * TALL, 0.95 * TALL))


def _gate(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    patch = Layer.clear(int(1.15 * TALL), width)
    covers.gate(patch, rng)
    side = (-width, -0.1 * width) if rng.random() < 0.5 else (0.1 * width, width)
    return Occluder(patch, side, (-0.1 * TALL, 0))


OCCLUDERS: dict[str, Callable[[int, Camera, int, Rng], Occluder]] = {
    "car": _car,
    "van": _van,
    "person": _other_person,
    "barrier": _standing(things.barrier, (1.2, 2.0), (0.25, 0.5)),
    "railing": _standing(things.railing, (1.3, 2.0), (0.35, 0.6)),
    "bush": _standing(things.bush, (0.7, 1.4), (0.35, 0.6), extra=0.2),
    "tree": _upright(0.1, 0.2, "tree"),
    "pole": _upright(0.045, 0.1, "pole"),
    "pillar": _upright(0.14, 0.24, "pillar"),
    "bin": _standing(things.bin_, (0.4, 0.75), (0.35, 0.6)),
    "boxes": _standing(things.crate, (0.6, 1.1), (0.3, 0.6)),
    "suitcase": _standing(things.suitcase, (0.4, 0.6), (0.35, 0.5), extra=0.4),
    "bench": _standing(things.bench, (1.1, 1.7), (0.35, 0.5)),
    "sign": _board,
    "branches": _branches,
    "umbrella": _umbrella,
}


def _column(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    wide = int(width * rng.uniform(0.07, 0.5))
    patch = Layer.clear(int(1.15 * TALL), wide)
    covers.column(patch, rng)
    middle = (width - wide) / 2
    return Occluder(patch, (middle - 0.04 * width, middle + 0.04 * width), (-0.1 * TALL, 0))


def _tarpaulin(width: int, camera: Camera, seed: int, rng: Rng) -> Occluder:
    tall = int(TALL * rng.uniform(0.08, 0.55))
    patch = Layer.clear(tall, width)
    covers.tarpaulin(patch, rng)
    middle = (TALL - tall) / 2
    return Occluder(patch, (0, 0), (middle - 0.08 * TALL, middle + 0.02 * TALL))


COMMON = tuple(OCCLUDERS)  # all kinds of a set that is not `unseen`
OCCLUDERS |= {
    "banner": _banner, "wall": _wall, "gate": _gate, "column": _column, "tarpaulin": _tarpaulin,
}  # fmt: skip

# The halves of an `unseen` set, by the part of the person that they mostly hide; both hide every
# part. No kind of the test occurs in the scenes behind people either, so that patch transfer cannot
# show it; what occurs there (cars, trees, poles, ...) is all among those of training.
TRAINING_KINDS: dict[str, tuple[str, ...]] = {
    "top": ("sign", "branches"),
    "bottom": ("railing", "bush", "bin", "boxes", "suitcase", "bench", "car"),
    "middle": ("pole", "pillar"),
    "side": ("person", "tree"),
}
TEST_KINDS: dict[str, tuple[str, ...]] = {
    "top": ("umbrella", "banner"), "bottom": ("barrier", "wall"),
    "middle": ("tarpaulin", "column"), "side": ("gate", "van"),
}  # fmt: skip
