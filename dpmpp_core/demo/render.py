"""One picture of a person: background, shadow, person, occluder, camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dpmpp_core.config import DemoConfig
from dpmpp_core.demo.cameras import Camera, background, develop, shrink
from dpmpp_core.demo.canvas import TALL, Floats, Layer
from dpmpp_core.demo.identity import IMAGE_STREAM, OCCLUDER_STREAM, member, stream
from dpmpp_core.demo.occluders import cover
from dpmpp_core.demo.person import draw_person
from dpmpp_core.demo.plan import Shot
from dpmpp_core.demo.pose import Pose, View, draw_pose

BADLY_CROPPED_SHARE = 0.08
DRAWING_WIDTH = 400  # pixels, in which a person is drawn before its box is cut out
NARROWEST, WIDEST = 166, 280


@dataclass(frozen=True)
class Picture:
    """A finished picture (256, 128, 3) of BGR uint8, its masks (256, 128) of bool, its coding."""

    image: npt.NDArray[np.uint8]
    body: npt.NDArray[np.bool_]  # the whole silhouette with what the person carries
    visible: npt.NDArray[np.bool_]
    occluder: str
    jpeg_quality: int


def render(shot: Shot, camera: Camera, config: DemoConfig) -> Picture:
    """Draw a planned picture; seed, identity and the shot's number decide everything.

    An occluder of chosen kinds has its own random stream, so that the same shot without it is the
    same photograph.
    """
    seed = config.seed
    rng = stream(seed, shot.pid, shot.number, IMAGE_STREAM)
    person = member(config, shot.pid)
    pose = draw_pose(rng, shot.orientation)
    view = _view(pose, camera, person.height, rng)
    figure = Layer.clear(TALL, DRAWING_WIDTH)
    draw_person(figure, person, pose, view, camera.light, rng)
    figure, view = _box(figure, view, rng)
    scene = background(camera, figure.alpha.shape[1], rng)
    _cast_shadow(scene, view, camera)
    scene = figure.over(scene)
    body = shrink(figure.alpha) > 0.5
    visible, kind = body, "none"
    if shot.hidden is not None:
        draw = stream(seed, shot.pid, shot.number, OCCLUDER_STREAM) if shot.kinds else rng
        kind, front = cover(figure.alpha, camera, seed, shot.hidden, draw, shot.kinds)
        scene = front.over(scene)
        visible = body & ~(shrink(front.alpha) > 0.5)
    image = develop(camera, shrink(scene), rng)
    return Picture(image, body, visible, kind, int(rng.integers(70, 93)))


def _view(pose: Pose, camera: Camera, tall: float, rng: np.random.Generator) -> View:
    """Fit a detector's box to the height: a little off, sometimes cutting head or feet."""
    fill = float(rng.uniform(0.87, 0.96))
    foot = float(rng.uniform(0.945, 0.985))
    if rng.random() < BADLY_CROPPED_SHARE:
        fill = float(rng.uniform(1.0, 1.12))
        foot = fill - 0.02 if rng.random() < 0.5 else 0.975
    # From above a body looks shorter, yet the box is fitted to it.
    size = TALL * fill / tall / (0.5 + 0.5 * np.cos(camera.pitch))
    return View((DRAWING_WIDTH / 2, TALL * foot), float(size), camera.pitch, pose.yaw, pose.lean)


def _box(figure: Layer, view: View, rng: np.random.Generator) -> tuple[Layer, View]:
    """Cut the figure's layer to a box about as wide as the person; boxes differ in shape."""
    columns = np.flatnonzero(figure.alpha.max(0) > 0.5)
    left, right = columns[0], columns[-1] + 1
    wide = max(right - left, NARROWEST) * rng.uniform(1.02, 1.2)
    wide = min(wide, WIDEST)
    middle = (left + right) / 2 + rng.normal(0, 0.03) * wide
    start = int(np.clip(middle - wide / 2, 0, DRAWING_WIDTH - wide))
    columns_kept = slice(start, start + int(wide))
    cut = Layer(figure.rgb[:, columns_kept].copy(), figure.alpha[:, columns_kept].copy())
    return cut, replace(view, ground=(view.ground[0] - start, view.ground[1]))


def _cast_shadow(scene: Floats, view: View, camera: Camera) -> None:
    height, width = scene.shape[:2]
    sideways = camera.light.direction[0]
    half, flat = 0.24 * view.size, 0.055 * view.size
    top = max(int(view.ground[1] - 2 * flat), 0)
    xs = np.arange(width, dtype=np.float32)[None] - (view.ground[0] - 0.5 * sideways * half)
    ys = np.arange(top, height, dtype=np.float32)[:, None] - view.ground[1]
    depth = np.clip(1 - (xs / half) ** 2 - (ys / flat) ** 2, 0, 1)
    scene[top:] *= 1 - ((0.25 + 0.35 * camera.light.diffuse) * depth)[..., None]
