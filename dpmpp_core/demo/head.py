"""Colours of a head's surface: face, hair, hat, from any side."""

from __future__ import annotations

import numpy as np

from dpmpp_core.demo.canvas import Floats, Surface
from dpmpp_core.demo.cloth import folds
from dpmpp_core.demo.identity import Identity


def head(
    person: Identity, surface: Surface, yaw: float, pitch: float, rng: np.random.Generator
) -> Floats:
    """Return the colours (h, w, 3) of a head seen from `yaw` by a camera pitched down."""
    sin, cos = np.float32(np.sin(yaw)), np.float32(np.cos(yaw))
    # Directions from the middle of the head: x to its side, y up, z to its front.
    x = surface.nx * cos - surface.nz * sin
    z = surface.nx * sin + surface.nz * cos
    # A camera that looks down sees more of the crown.
    y = surface.ny + np.float32(0.8 * pitch) * surface.nz
    colour = _face(person, x, y, z)
    sheen = folds(x.shape, 0.12, rng)
    grown = np.asarray(person.hair_rgb, np.float32) * sheen
    colour = np.where(_hair(person.hair, y, z)[..., None], grown, colour)
    if person.hat != "none":
        brim = 0.28 if person.hat == "cap" else 0.2
        worn = np.asarray(person.hat_rgb, np.float32) * sheen
        colour = np.where((y > brim + 0.1 * z)[..., None], worn, colour)
    return colour


def _hair(style: str, y: Floats, z: Floats) -> Floats:
    match style:
        case "bald":
            return (y > -0.3 + 0.8 * z) & (y < 0.12) & (z < 0.2)
        case "long":
            return y > -0.35 + 0.92 * z
    return y > 0.02 + 0.58 * z


def _face(person: Identity, x: Floats, y: Floats, z: Floats) -> Floats:
    colour = np.empty((*x.shape, 3), np.float32)
    colour[:] = person.skin
    front, side = z > 0.2, np.abs(x)
    eyes = front & (np.abs(side - 0.36) < 0.14) & (np.abs(y - 0.12) < 0.07)
    brows = front & (np.abs(side - 0.36) < 0.2) & (np.abs(y - 0.27) < 0.04)
    mouth = front & (side < 0.24) & (np.abs(y + 0.46) < 0.045)
    nose = front & (np.abs(x - 0.05) < 0.08) & (np.abs(y + 0.12) < 0.16)
    colour *= (1 - 0.7 * eyes - 0.45 * brows - 0.3 * mouth - 0.2 * nose)[..., None]
    if person.glasses:
        colour[front & (np.abs(side - 0.37) < 0.27) & (np.abs(y - 0.11) < 0.13)] *= 0.35
    if person.beard:
        colour[front & (y < -0.3) & ~mouth] = person.hair_rgb
    return colour
