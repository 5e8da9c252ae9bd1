"""Colours of a garment's surface at a place on the body.

A place is (azimuth, height): radians round the body with 0 at the front, and body units upward.
So a print is only on the chest, straps run over the shoulders, and an open jacket shows the inner
garment only from the front.
"""

from __future__ import annotations

import numpy as np

from dpmpp_core.demo.canvas import RGB, Floats, noise
from dpmpp_core.demo.identity import Garment, Identity

GIRTH = 0.1  # body units per radian on the torso: patterns are as wide as high


def _mix(colour: Floats, share: Floats, other: RGB | Floats) -> Floats:
    weight = share.astype(np.float32)[..., None]
    return colour + weight * (np.asarray(other, np.float32) - colour)


def pattern(garment: Garment, azimuth: Floats, height: Floats, girth: float = GIRTH) -> Floats:
    """Return the colours (h, w, 3) of the cloth without prints and openings."""
    around = azimuth * girth
    base = np.empty((*np.broadcast(azimuth, height).shape, 3), np.float32)
    base[:] = garment.rgb
    p = garment.period
    match garment.pattern:
        case "striped":
            share = (height / p) % 1 < 0.42
        case "pinstriped":
            share = ((around / (0.6 * p)) % 1 < 0.3) & (height == height)
        case "checked":
            share = 0.5 * ((height / p) % 1 < 0.45) + 0.5 * ((around / p) % 1 < 0.45)
        case "dotted":
            q = 0.62 * p
            row = np.floor(height / q)
            dx, dy = (around / q + 0.5 * row) % 1 - 0.5, (height / q) % 1 - 0.5
            share = dx**2 + dy**2 < 0.075
        case "side-striped":
            share = np.abs(np.abs(azimuth) - np.pi / 2) < 0.3 + 0 * height
        case _:
            return base
    return _mix(base, np.asarray(share, np.float32), garment.second_rgb)


def torso(person: Identity, azimuth: Floats, height: Floats) -> Floats:
    """Return the colours (h, w, 3) of the upper garment, with print, opening and straps.

    `height` is relative to the person: 0.5 at the hips, 0.83 at the shoulders.
    """
    g = person.upper
    colour = pattern(g, azimuth, height)
    if g.pattern == "two-tone":
        colour = _mix(colour, height > 0.7 + 0 * azimuth, g.second_rgb)
    if g.pattern == "printed":
        colour = _print(person, colour, azimuth, height)
    front = np.abs(azimuth)
    match g.kind:
        case "open jacket":
            gap = 0.3 + 0.75 * np.maximum(0.74 - height, 0) + 0.9 * np.maximum(height - 0.78, 0)
            rim = (1 - 0.4 * (np.abs(front - gap) < 0.07))[..., None]
            colour = _mix(colour * rim, front < gap, person.inner.rgb)
        case "jacket" | "coat" | "hoodie":
            colour *= (1 - 0.45 * (front < 0.045))[..., None]
            pocket = (np.abs(front - 0.42) < 0.32) & (np.abs(height - 0.575) < 0.004)
            colour *= (1 - 0.4 * pocket)[..., None]
            neck = (height > 0.835 - 0.09 * np.maximum(0, 0.42 - front)) & (front < 0.42)
            colour = _mix(colour, neck, person.inner.rgb)
        case "shirt":
            colour *= (1 - 0.3 * (front < 0.03))[..., None]
            collar = (height > 0.812) & (front < 0.5)
            colour = _mix(colour, collar, np.minimum(1.0, 1.25 * np.array(g.rgb) + 0.05))
        case "T-shirt" | "dress":
            neck = (height > 0.815 + 0.1 * front) & (front < 0.6)
            colour = _mix(colour, neck, person.skin)
    if g.kind == "dress":
        colour *= (1 - 0.35 * (np.abs(height - 0.63) < 0.008))[..., None]
    return _straps(person, colour, azimuth, height)


def _print(person: Identity, colour: Floats, azimuth: Floats, height: Floats) -> Floats:
    logo = np.array(person.logo, np.float32)
    column = np.floor((azimuth + 0.62) / 1.24 * 6).astype(int)
    row = np.floor((0.78 - height) / 0.125 * 6).astype(int)
    inside = (column >= 0) & (column < 6) & (row >= 0) & (row < 6)
    share = np.where(inside, logo[np.clip(row, 0, 5), np.clip(column, 0, 5)], 0)
    return _mix(colour, share, person.upper.second_rgb)


def _straps(person: Identity, colour: Floats, azimuth: Floats, height: Floats) -> Floats:
    if person.bag == "backpack":
        strap = (np.abs(np.abs(azimuth) - 0.62) < 0.15) & (height > 0.64)
    elif person.bag == "shoulder bag":
        rise = np.sin(azimuth) * -person.bag_side
        strap = np.abs(height - 0.68 - 0.135 * rise) < 0.014
    else:
        return colour
    return _mix(colour, strap, person.bag_rgb)


def folds(shape: tuple[int, ...], strength: float, rng: np.random.Generator) -> Floats:
    """Return the brightness of creases and weave, about 1, (h, w, 1)."""
    crease = noise("folds", shape[:2], rng)
    weave = noise("grain", shape[:2], rng)
    return np.maximum(1 + strength * crease + 0.02 * weave, 0.3)[..., None]
