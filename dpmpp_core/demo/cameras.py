"""Cameras: each has its own place, light, colours, sharpness and height.

The spread of every property is divided evenly between the cameras of a set, in an order of the
seed, so that any two cameras differ clearly and raw colours do not carry over.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dpmpp_core.demo.canvas import HEIGHT, TALL, WIDTH, Floats, Light
from dpmpp_core.demo.identity import CAMERA_STREAM, stream
from dpmpp_core.demo.scenes import SCENE_TALL, SCENE_WIDE, SCENES, paint_scene

VIEWS = 3  # a camera turns between
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Camera:
    """A fixed camera. Colours are RGB; pitch is in radians, blur and noise in final pixels."""

    views: tuple[Floats, ...]  # where it may look, each (SCENE_TALL, SCENE_WIDE, 3)
    light: Light
    pitch: float
    gain: float
    gamma: float
    cast: tuple[float, float, float]  # factor of each channel
    saturation: float
    haze: float
    blur: float
    noise: float
    resolution: float  # 1 = full
    vignette: float


def make_camera(seed: int, count: int, camid: int) -> Camera:
    """Create camera `camid`, 1..count, of the set of `count` cameras of a seed.

    Each is created alone, as its scenes take half a second to paint and 30 MB to keep.
    """
    rng = stream(seed, count, CAMERA_STREAM)

    def spread(low: float, high: float) -> float:
        steps = rng.permutation(count) + rng.uniform(0.2, 0.8, count)
        return float(low + (high - low) * steps[camid - 1] / count)

    order = [list(SCENES)[i] for i in rng.permutation(len(SCENES))]
    gain, gamma, hue = spread(0.84, 1.18), spread(0.92, 1.12), spread(0, 2 * np.pi)
    strength, saturation, haze = spread(0.01, 0.06), spread(0.75, 1.05), spread(0.0, 0.06)
    blur, grain, resolution = spread(0.3, 1.1), spread(0.006, 0.024), spread(0.45, 1.0)
    pitch, sun, hardness = spread(0.02, 0.42), spread(-1.0, 1.0), spread(0.3, 0.95)
    vignette = rng.uniform(0, 0.3, count)[camid - 1]
    cast = 1 + strength * np.cos(np.array([0, 2 * np.pi / 3, 4 * np.pi / 3]) + hue)
    toward = np.array([0.85 * sun, 0.6, 0.55])
    toward /= np.linalg.norm(toward)
    light = Light(
        direction=(float(toward[0]), float(toward[1]), float(toward[2])),
        ambient=1 - 0.72 * hardness,
        diffuse=hardness,
    )
    return Camera(
        views=_views(order, seed, camid - 1),
        light=light,
        pitch=pitch,
        gain=gain,
        gamma=gamma,
        cast=(float(cast[0]), float(cast[1]), float(cast[2])),
        saturation=saturation,
        haze=haze,
        blur=blur,
        noise=grain,
        resolution=resolution,
        vignette=float(vignette),
    )


def _views(order: list[str], seed: int, c: int) -> tuple[Floats, ...]:
    rng = stream(seed, c, CAMERA_STREAM)
    kinds = [order[(c + 2 * turn) % len(order)] for turn in range(VIEWS)]
    return tuple(paint_scene(kind, seed, rng) for kind in kinds)


def background(camera: Camera, width: int, rng: np.random.Generator) -> Floats:
    """Cut a random view out of the camera's scenes, (TALL, width, 3)."""
    tall = int(rng.integers(440, SCENE_TALL - 10))
    wide = min(int(width * tall / TALL), SCENE_WIDE)
    y = int(rng.integers(SCENE_TALL - tall))
    x = int(rng.integers(SCENE_WIDE - wide + 1))
    view = camera.views[int(rng.integers(VIEWS))][y : y + tall, x : x + wide]
    if rng.random() < 0.5:
        view = view[:, ::-1]
    # The hour and the weather change the place more than the person before it.
    hour = rng.uniform(0.7, 1.25) * rng.uniform(0.92, 1.08, 3)
    view = cv2.resize(view, (width, TALL), interpolation=cv2.INTER_LINEAR)
    return np.asarray(view * hour.astype(np.float32), np.float32)


def shrink(image: Floats) -> Floats:
    """Shrink a picture of the large canvas, of any width, to (HEIGHT, WIDTH, ...)."""
    small = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def develop(camera: Camera, scene: Floats, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Record a scene [H, W, 3] of RGB with the camera: BGR uint8 for encoding."""
    height, width = scene.shape[:2]
    level = camera.gain * float(rng.uniform(0.85, 1.15))
    tint = np.array(camera.cast, np.float32) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    picture = np.maximum(scene, 1e-4) * tint * np.float32(level)
    # Light falls unevenly: a slope over the picture, and darker corners.
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope = 1 + float(rng.normal(0, 0.08)) * x + float(rng.normal(0, 0.08)) * y
    picture *= (slope * (1 - camera.vignette * (0.5 * x**2 + 0.5 * y**2)))[..., None]
    picture = picture / (1 + 0.25 * picture**2)  # a soft shoulder instead of hard clipping
    picture = np.power(np.maximum(picture, 1e-4), np.float32(camera.gamma))
    picture = camera.haze + (1 - camera.haze) * picture
    grey = (picture @ LUMA)[..., None]
    picture = grey + camera.saturation * (picture - grey)
    sharpness = camera.resolution * float(rng.uniform(0.8, 1.0))
    small = cv2.resize(
        picture, (int(width * sharpness), int(height * sharpness)), interpolation=cv2.INTER_AREA
    )
    small = cv2.GaussianBlur(small, (0, 0), camera.blur * sharpness + 0.05)
    small += camera.noise * rng.standard_normal((*small.shape[:2], 1), dtype=np.float32)
    small += camera.noise * 0.4 * rng.standard_normal(small.shape, dtype=np.float32)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return (np.clip(large, 0, 1)[..., ::-1] * 255 + 0.5).astype(np.uint8)
