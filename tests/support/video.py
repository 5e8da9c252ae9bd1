"""Drawn videos of people who walk past a fixed camera, with their true boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dpmpp_core.demo.cameras import Camera, develop, make_camera
from dpmpp_core.demo.canvas import TALL, Layer
from dpmpp_core.demo.identity import IMAGE_STREAM, identity, stream
from dpmpp_core.demo.person import draw_person
from dpmpp_core.demo.pose import Pose, View
from dpmpp_core.demo.render import DRAWING_WIDTH

HEIGHT, WIDTH = 320, 640  # of a frame
SCALE = 2  # of the canvas, as everything is drawn larger and averaged down
Box = tuple[float, float, float, float]
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
STRIDE_HZ, SWING = 0.9, 0.32  # of a walk: double steps a second, radians
FRESH_NOISE = 0.012  # of each frame, next to what the camera's stream of numbers draws


@dataclass(frozen=True)
class Walker:
    """A person who crosses the picture on a straight line.

    Attributes:
        pid: number of the identity, of `seed`.
        start: second at which the person enters.
        seconds: time from one side to the other.
        ground: row of the feet, share of the height.
        size: height of a mean adult, share of the frame's height.
        rightwards: direction of the walk.
    """

    pid: int
    start: float
    seconds: float
    ground: float
    size: float
    rightwards: bool


@dataclass(frozen=True)
class Truth:
    """The true boxes of a video: frame -> person -> (left, top, right, bottom) in pixels.

    The boxes hold the whole silhouette, also the part that another person hides.
    """

    fps: float
    frames: int
    boxes: dict[int, dict[int, Box]]


def plan_walk(camid: int, pids: range, seed: int = 0, apart: float = 2.6) -> list[Walker]:
    """Return one walk for each person, in turn, from either side.

    With less than 5 seconds `apart`, two are in view at a time, and meet.
    """
    rng = stream(seed, camid, 77)
    order = [int(pid) for pid in rng.permutation(list(pids))]
    return [
        Walker(
            pid, start=1.5 + apart * place, seconds=float(rng.uniform(4.5, 5.5)),
            ground=float(rng.uniform(0.86, 0.97)), size=float(rng.uniform(0.5, 0.62)),
            rightwards=place % 2 == 0,
        )
        for place, pid in enumerate(order)
    ]  # fmt: skip


def draw_video(
    path: Path, camid: int, walkers: list[Walker], cameras: int = 2, seed: int = 0, fps: int = 5
) -> Truth:
    """Write a video of one camera, `.mp4` or `.avi`; return where the people are."""
    camera = make_camera(seed, cameras, camid)
    seconds = max(w.start + w.seconds for w in walkers) + 1
    frames = int(seconds * fps)
    code = cv2.VideoWriter.fourcc(*CODECS[path.suffix])
    video = cv2.VideoWriter(str(path), code, fps, (WIDTH, HEIGHT))
    assert video.isOpened()
    boxes = {}
    noise = np.random.default_rng(seed)
    for frame in range(frames):
        picture, boxes[frame] = draw_frame(camera, camid, walkers, frame / fps, seed)
        grain = noise.normal(0, 255 * FRESH_NOISE, (HEIGHT, WIDTH, 1))
        video.write(np.clip(picture + grain, 0, 255).astype(np.uint8))
    video.release()
    return Truth(fps, frames, boxes)


def draw_frame(
    camera: Camera, camid: int, walkers: list[Walker], second: float, seed: int
) -> tuple[npt.NDArray[np.uint8], dict[int, Box]]:
    """Return the frame (HEIGHT, WIDTH, 3) of BGR, and the boxes of those in view."""
    scene = cv2.resize(camera.views[0], (SCALE * WIDTH, SCALE * HEIGHT)).astype(np.float32)
    canvas = Layer(scene, np.ones(scene.shape[:2], np.float32))
    boxes = {}
    for walker in sorted(walkers, key=lambda w: w.ground):  # the far ones first
        share = (second - walker.start) / walker.seconds
        if not 0 <= share <= 1:
            continue
        figure = _draw_walker(walker, camera, second, seed)
        margin = DRAWING_WIDTH // 2
        across = share if walker.rightwards else 1 - share
        x = int(across * (SCALE * WIDTH + DRAWING_WIDTH) - margin) - margin
        y = int(SCALE * HEIGHT * walker.ground - 0.96 * TALL)
        canvas.put(figure, x, y)
        box = _box(figure.alpha, x, y)
        if box is not None:
            boxes[walker.pid] = box
    small = cv2.resize(canvas.rgb, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return develop(camera, np.asarray(small, np.float32), stream(seed, camid, 78)), boxes


def _draw_walker(walker: Walker, camera: Camera, second: float, seed: int) -> Layer:
    person = identity(seed, walker.pid, look_alikes=0)
    phase = 2 * np.pi * STRIDE_HZ * second + walker.pid
    swing = 0.8 * SWING * float(np.sin(phase))
    yaw = np.pi / 2 * (1 if walker.rightwards else -1)
    pose = Pose(float(yaw), float(phase), SWING, (-swing, swing), (0.3, 0.3), 0.08, 0.0)
    size = SCALE * HEIGHT * walker.size
    view = View((DRAWING_WIDTH / 2, 0.96 * TALL), size, camera.pitch, pose.yaw)
    figure = Layer.clear(TALL, DRAWING_WIDTH)
    # The same numbers at each step: folds of cloth must not flicker.
    draw_person(figure, person, pose, view, camera.light, stream(seed, walker.pid, IMAGE_STREAM))
    return figure


def _box(alpha: npt.NDArray[np.float32], x: int, y: int) -> Box | None:
    """Return the box in the frame of what is seen of a figure; None for less than half of it."""
    rows, columns = (np.flatnonzero(alpha.max(axis) > 0.5) for axis in (1, 0))
    left, right = (columns[0] + x) / SCALE, (columns[-1] + 1 + x) / SCALE
    inside = max(left, 0.0), min(right, float(WIDTH))
    if inside[1] - inside[0] < 0.5 * (right - left):
        return None
    top, bottom = (rows[0] + y) / SCALE, (rows[-1] + 1 + y) / SCALE
    return inside[0], max(top, 0.0), inside[1], min(bottom, float(HEIGHT))
