"""Scenes before the cameras: wide still pictures, from which each image shows a new crop.

A scene is SCENE_TALL x SCENE_WIDE pixels of the large canvas; the ground meets the rest at
HORIZON. People stand on the ground in front of it.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from dpmpp_core.demo import things
from dpmpp_core.demo.canvas import RGB, Floats, Layer, Light, box, fill, noise, polygon
from dpmpp_core.demo.identity import identity
from dpmpp_core.demo.person import draw_person
from dpmpp_core.demo.pose import View, draw_pose
from dpmpp_core.demo.things import Rng, any_of, tone

SCENE_TALL, SCENE_WIDE, HORIZON = 640, 1300, 330


def paint_scene(kind: str, seed: int, rng: Rng) -> Floats:
    """Paint one of `SCENES`, (SCENE_TALL, SCENE_WIDE, 3) in [0, 1]."""
    layer = Layer.filled(SCENE_TALL, SCENE_WIDE, (0.6, 0.6, 0.6))
    SCENES[kind](layer, rng)
    for _ in range(int(rng.integers(2, 6))):
        _passer_by(layer, seed, rng)
    dirt = 1 + 0.05 * noise("mottle", (SCENE_TALL, SCENE_WIDE), rng)
    soft = cv2.GaussianBlur(layer.rgb * dirt[..., None], (0, 0), 1.8)
    return np.clip(soft, 0, 1)


def _passer_by(layer: Layer, seed: int, rng: Rng) -> None:
    person = identity(seed, int(rng.integers(2_000_000, 3_000_000)))
    pose = draw_pose(rng, int(rng.integers(8)))
    far = float(rng.uniform(0.35, 0.7))
    ground = HORIZON + 30 + 200 * (far - 0.3)
    view = View((float(rng.uniform(0, SCENE_WIDE)), ground), 440 * far, 0.15, pose.yaw, pose.lean)
    draw_person(layer, person, pose, view, Light(), rng)


def _ground(layer: Layer, colour: RGB, rng: Rng, tiles: float = 0.0, grain: float = 0.05) -> None:
    """Draw the ground, with joints of tiles to a vanishing point when `tiles` (pixels) > 0."""
    surface = box(layer, 0, HORIZON, SCENE_WIDE, SCENE_TALL, 0)
    assert surface is not None
    spots = 1 + grain * (
        noise("mottle", surface.alpha.shape, rng) + 0.6 * noise("grain", surface.alpha.shape, rng)
    )
    fill(layer, surface, spots[..., None] * np.array(colour, np.float32), top=0.88, bottom=1.06)
    if not tiles:
        return
    joint = tone(colour, 0.74)
    away = SCENE_WIDE * rng.uniform(0.3, 0.7)
    for x in np.arange(-3 * SCENE_WIDE, 4 * SCENE_WIDE, tiles * 2).tolist():
        top = away + 0.3 * (x - away)
        line = [(top, HORIZON), (top + 1.5, HORIZON), (x + 4, SCENE_TALL), (x, SCENE_TALL)]
        fill(layer, polygon(layer, line), joint, opacity=0.7)
    depth = 1.0
    while depth > 0.3:
        y = HORIZON + (SCENE_TALL - HORIZON) * (depth - 0.3) / 0.7
        fill(layer, box(layer, 0, y, SCENE_WIDE, y + 3 * depth, 0), joint, opacity=0.7)
        depth *= 1 - tiles / 700


def _wall(layer: Layer, colour: RGB, rng: Rng, brick: float = 0.0) -> None:
    surface = box(layer, 0, 0, SCENE_WIDE, HORIZON, 0)
    assert surface is not None
    spots = 1 + 0.06 * noise("mottle", surface.alpha.shape, rng)
    if brick:
        tall, wide = spots.shape
        rows = np.arange(tall, dtype=np.float32)[:, None] / (0.4 * brick)
        columns = np.arange(wide, dtype=np.float32)[None] / brick + 0.5 * (rows // 1 % 2)
        spots = spots * np.where((rows % 1 < 0.14) | (columns % 1 < 0.06), 0.8, 1.0)
    fill(layer, surface, spots[..., None] * np.array(colour, np.float32))


def _windows(layer: Layer, rng: Rng, wide: float, tall: float, gap: float, y: float) -> None:
    frame = any_of(rng, ((0.8, 0.8, 0.78), (0.25, 0.2, 0.17), (0.4, 0.42, 0.44)))
    for x in np.arange(rng.uniform(0, gap), SCENE_WIDE, wide + gap).tolist():
        fill(layer, box(layer, x, y, x + wide, y + tall, 2), frame)
        glass = tone((0.3, 0.36, 0.42), float(rng.uniform(0.5, 1.3)))
        fill(layer, box(layer, x + 7, y + 7, x + wide - 7, y + tall - 7, 1), glass, bottom=0.6)
        fill(layer, box(layer, x + wide / 2 - 3, y, x + wide / 2 + 3, y + tall, 0), frame)
        fill(layer, box(layer, x - 6, y + tall, x + wide + 6, y + tall + 9, 1), tone(frame, 0.8))


def _sky(layer: Layer, rng: Rng) -> None:
    fill(layer, box(layer, 0, 0, SCENE_WIDE, HORIZON, 0), (0.72, 0.78, 0.84), bottom=1.08)


def _street(layer: Layer, rng: Rng) -> None:
    _wall(layer, any_of(rng, ((0.5, 0.3, 0.24), (0.62, 0.55, 0.44), (0.55, 0.42, 0.36))), rng, 44)
    _windows(layer, rng, 120, 170, float(rng.uniform(70, 130)), 40)
    door = any_of(rng, ((0.3, 0.17, 0.1), (0.12, 0.25, 0.2), (0.16, 0.18, 0.3)))
    for x in (rng.uniform(80, 500), rng.uniform(700, 1150)):
        fill(layer, box(layer, x, 90, x + 110, HORIZON, 3), tone(door, 0.6))
        fill(layer, box(layer, x + 9, 99, x + 101, HORIZON, 2), door, bottom=0.8)
    _ground(layer, any_of(rng, ((0.5, 0.49, 0.47), (0.58, 0.54, 0.5))), rng, 70)
    for x in (rng.uniform(0, 300), rng.uniform(600, 900)):
        things.car(layer, x, HORIZON + 62, 400, rng)
    things.pole(layer, rng.uniform(300, 900), HORIZON + 90, -10, 8, rng)
    things.bin_(layer, rng.uniform(100, 1100), HORIZON + 70, 60, 110, rng)


def _shops(layer: Layer, rng: Rng) -> None:
    _wall(layer, any_of(rng, ((0.66, 0.64, 0.6), (0.35, 0.34, 0.36))), rng)
    x = -rng.uniform(0, 200)
    while x < SCENE_WIDE:
        wide = rng.uniform(260, 420)
        glow = any_of(rng, ((0.75, 0.68, 0.52), (0.6, 0.65, 0.7), (0.3, 0.32, 0.36)))
        fill(layer, box(layer, x + 12, 60, x + wide - 12, HORIZON - 26, 2), glow, bottom=0.65)
        for _ in range(int(rng.integers(4, 9))):
            px, py = x + rng.uniform(20, wide - 90), rng.uniform(100, HORIZON - 110)
            goods = any_of(rng, (*things.PAINTS, (0.7, 0.5, 0.2), (0.65, 0.3, 0.35)))
            fill(
                layer,
                box(layer, px, py, px + rng.uniform(20, 60), py + rng.uniform(40, 80), 5),
                goods,
                bottom=0.7,
            )
        things.sign(layer, x + 6, 6, wide - 12, 52, rng)
        fill(layer, box(layer, x, 0, x + 12, HORIZON, 1), (0.25, 0.24, 0.24))
        x += wide
    _ground(layer, any_of(rng, ((0.62, 0.58, 0.54), (0.5, 0.46, 0.44))), rng, 48)
    things.sign(layer, rng.uniform(100, 1000), HORIZON - 60, 70, 120, rng)
    things.bench(layer, rng.uniform(100, 900), HORIZON + 80, 230, 100, rng)


def _park(layer: Layer, rng: Rng) -> None:
    _sky(layer, rng)
    for _ in range(9):
        things.foliage(layer, rng.uniform(0, SCENE_WIDE), rng.uniform(150, 300), 190, 120, rng)
    _ground(layer, (0.27, 0.36, 0.17), rng, grain=0.14)
    away, near = rng.uniform(300, 900), rng.uniform(-100, 300)
    path = [
        (away, HORIZON + 30), (away + 130, HORIZON + 30), (near + 1200, SCENE_TALL),
        (near, SCENE_TALL),
    ]  # fmt: skip
    fill(layer, polygon(layer, path), (0.58, 0.53, 0.45), top=0.9)
    for x in rng.uniform(0, SCENE_WIDE, 4):
        things.tree(layer, x, HORIZON + rng.uniform(30, 90), rng.uniform(380, 560), rng)
    things.bench(layer, rng.uniform(100, 1000), HORIZON + 75, 220, 100, rng)


def _car_park(layer: Layer, rng: Rng) -> None:
    _sky(layer, rng)
    for x in np.arange(-50.0, SCENE_WIDE, 330).tolist():
        tall = rng.uniform(120, 280)
        house = any_of(rng, ((0.55, 0.52, 0.5), (0.68, 0.62, 0.55), (0.42, 0.45, 0.5)))
        fill(layer, box(layer, x, HORIZON - tall, x + 310, HORIZON, 1), house, bottom=0.85)
        for wx in np.arange(x + 20, x + 270, 60).tolist():
            fill(
                layer,
                box(layer, wx, HORIZON - tall + 20, wx + 34, HORIZON - tall + 70, 1),
                (0.28, 0.32, 0.38),
            )
    _ground(layer, (0.3, 0.3, 0.31), rng, grain=0.07)
    for x in np.arange(-400, 1800, 210).tolist():
        line = [
            (x, HORIZON + 50), (x + 8, HORIZON + 50), (x - 80, SCENE_TALL), (x - 98, SCENE_TALL),
        ]  # fmt: skip
        fill(layer, polygon(layer, line), (0.78, 0.78, 0.75))
    for x in np.arange(rng.uniform(-150, 0), SCENE_WIDE, 470).tolist():
        things.car(layer, x, HORIZON + 85, 440, rng)


def _hall(layer: Layer, rng: Rng) -> None:
    _wall(layer, any_of(rng, ((0.74, 0.72, 0.67), (0.6, 0.66, 0.7), (0.7, 0.66, 0.55))), rng)
    fill(layer, box(layer, 0, HORIZON - 40, SCENE_WIDE, HORIZON, 0), (0.3, 0.28, 0.26))
    for x in np.arange(rng.uniform(0, 200), SCENE_WIDE, 360).tolist():
        things.sign(layer, x, 70, rng.uniform(90, 150), rng.uniform(120, 170), rng)
    for x in np.arange(rng.uniform(100, 250), SCENE_WIDE, 420).tolist():
        things.pole(layer, x, HORIZON + 40, -10, 34, rng)
    _ground(layer, any_of(rng, ((0.66, 0.63, 0.57), (0.55, 0.57, 0.6))), rng, 110, grain=0.03)
    for x in rng.uniform(0, SCENE_WIDE, 6):  # lamps mirrored in the floor
        shine = box(layer, x, HORIZON + 20, x + 50, SCENE_TALL, 25)
        fill(layer, shine, (0.95, 0.94, 0.9), opacity=0.25)
    things.bench(layer, rng.uniform(100, 1000), HORIZON + 70, 260, 110, rng)
    things.suitcase(layer, rng.uniform(100, 1100), HORIZON + 90, 60, 90, rng)


def _station(layer: Layer, rng: Rng) -> None:
    train = any_of(rng, ((0.7, 0.72, 0.74), (0.15, 0.3, 0.5), (0.2, 0.4, 0.3)))
    _wall(layer, train, rng)
    fill(layer, box(layer, 0, 0, SCENE_WIDE, 40, 0), (0.16, 0.16, 0.17))
    stripe = any_of(rng, ((0.65, 0.12, 0.1), (0.8, 0.62, 0.12), (0.1, 0.2, 0.45)))
    fill(layer, box(layer, 0, 235, SCENE_WIDE, 262, 0), stripe)
    _windows(layer, rng, 190, 120, 60, 85)
    for x in np.arange(rng.uniform(0, 300), SCENE_WIDE, 500).tolist():
        fill(layer, box(layer, x, 60, x + 120, HORIZON, 6), tone(train, 0.75))
        for side in (10, 64):
            fill(layer, box(layer, x + side, 80, x + side + 46, 210, 6), (0.15, 0.17, 0.2))
    _ground(layer, (0.5, 0.5, 0.5), rng, 60)
    fill(layer, box(layer, 0, HORIZON + 30, SCENE_WIDE, HORIZON + 52, 0), (0.8, 0.66, 0.14))
    things.pole(layer, rng.uniform(200, 1000), HORIZON + 120, -10, 16, rng)


def _underpass(layer: Layer, rng: Rng) -> None:
    _wall(layer, any_of(rng, ((0.44, 0.44, 0.43), (0.5, 0.47, 0.42))), rng, 130)
    for _ in range(7):  # graffiti
        x, y = rng.uniform(0, SCENE_WIDE), rng.uniform(80, 280)
        points = np.cumsum(rng.normal(0, 45, (7, 2)), axis=0) + np.array([x, y])
        colour = any_of(rng, ((0.7, 0.2, 0.3), (0.2, 0.5, 0.6), (0.8, 0.7, 0.2), (0.15,) * 3))
        fill(
            layer,
            polygon(layer, np.clip(points, 0, (SCENE_WIDE, HORIZON - 20))),
            colour,
            opacity=0.8,
        )
    _ground(layer, (0.36, 0.36, 0.36), rng, grain=0.09)
    things.railing(layer, rng.uniform(0, 500), HORIZON + 30, 500, 120, rng)
    things.crate(layer, rng.uniform(0, 1100), HORIZON + 70, 110, 120, rng)


SCENES: dict[str, Callable[[Layer, Rng], None]] = {
    "street": _street, "hall": _hall, "park": _park, "shops": _shops, "station": _station,
    "car park": _car_park, "underpass": _underpass,
}  # fmt: skip
